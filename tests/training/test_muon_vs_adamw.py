"""The comparison's script in its tiny form: equal trials for both, goes on where it was cut, a table at the end."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "muon_vs_adamw.py"


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPT), run_name="muon_vs_adamw")


@pytest.mark.slow
def test_the_comparison_runs_in_pieces(
    script: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["muon_vs_adamw.py", str(tmp_path), "--size", "tiny", "--data", "text", "--json", str(tmp_path / "r.json")]
    monkeypatch.setattr("sys.argv", [*words, "--max-minutes", "0.01"])
    script["main"]()
    assert "not complete" in capsys.readouterr().out and not json.loads((tmp_path / "r.json").read_text())["complete"]
    monkeypatch.setattr("sys.argv", words)
    script["main"]()
    report = json.loads((tmp_path / "r.json").read_text())
    found = report["data"]["text"]
    assert report["complete"] and len(found["trials"]["adamw"]) == len(found["trials"]["muonclip"]) == 4
    assert [len(final["held_loss"]) for final in found["finals"].values()] == [3, 3, 3]
    adamw, muon, shorter = found["finals"].values()
    assert adamw["tokens"] > shorter["tokens"] and abs(adamw["tokens"] - muon["tokens"]) < 600
    assert found["optimizer_bytes_per_parameter"]["adamw"] == 8.0
    assert found["optimizer_bytes_per_parameter"]["muonclip"] < 7
    assert set(found["qk_clip"]) == {"on", "off"}
    assert "| text | muonclip |" in capsys.readouterr().out


def test_differences_are_of_the_same_seed(script: dict[str, Any]) -> None:
    def outcomes(*losses: float) -> list[Any]:
        return [script["Outcome"](run="r", status="done", tokens=1, seconds=1.0, held_loss=loss) for loss in losses]

    found = script["paired"](outcomes(1.0, 2.0, 3.0), outcomes(1.5, 2.25, 3.0))
    assert found == {"each": [-0.5, -0.25, 0.0], "mean": -0.25, "deviation": 0.25}
