"""`benchmarks/peers`: turns, calls that go on where one ended, the summary; the engine's side on a small model; what
becomes of the weights in a GGUF file. llama.cpp itself: `tests/peers/test_llama_cpp.py`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from tests.support.tiny_model import save_tiny_model, tiny_config

from openk2.checkpoint import random_model

SCRIPTS = Path(__file__).parents[2] / "benchmarks" / "peers"


@pytest.fixture(autouse=True)
def scripts(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The scripts stand in no package: they find each other beside themselves."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if (SCRIPTS / f"{name}.py").is_file():
            del sys.modules[name]


class ScriptedWorker:
    """Takes the seconds that its side is said to take; the second round is slow for all."""

    asked: ClassVar[list[tuple[str, str, int]]] = []
    seconds: ClassVar[dict[str, float]] = {"openk2": 1.0, "q4_0": 4.0, "q4_k_m": 2.0}

    def __init__(self, folder: Path, bits: int, side: str) -> None:
        self.side = side

    def time(self, cell: tuple[str, int, int, str], number: int) -> dict[str, Any]:
        self.asked.append((self.side, cell[3], number))
        seconds = self.seconds[self.side] * (10 if number == 1 else 1)
        return {"seconds": seconds, "cpu_seconds": 2 * seconds, "last_tokens": [7], "resident_mb": 1}

    def close(self) -> None:
        pass


def test_rounds_alternate_and_a_later_call_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import side_by_side

    monkeypatch.setattr(side_by_side, "Worker", ScriptedWorker)
    monkeypatch.setattr(side_by_side, "read_bytes_per_s", lambda threads, huge: 20e9 if huge else 10e9)
    monkeypatch.setattr(ScriptedWorker, "asked", [])
    file = tmp_path / "result.json"
    words = ["side_by_side.py", str(tmp_path), "--json", str(file), "--bits", "4", "--threads", "1", "--peers"]
    words += ["q4_0", "q4_k_m", "--figures", "decode-0", "prefill-128", "--rounds"]
    monkeypatch.setattr("sys.argv", [*words, "1"])
    side_by_side.main()
    assert [side for side, *_ in ScriptedWorker.asked] == ["openk2", "q4_0", "q4_k_m"] * 2
    ScriptedWorker.asked.clear()
    monkeypatch.setattr("sys.argv", [*words, "3", "--note", "nothing else"])
    side_by_side.main()
    turns = [(side, number) for side, figure, number in ScriptedWorker.asked if figure == "decode-0"]
    assert turns == [("q4_0", 1), ("q4_k_m", 1), ("openk2", 1), ("q4_k_m", 2), ("openk2", 2), ("q4_0", 2)]

    found = json.loads(file.read_text())
    assert str(tmp_path) not in file.read_text(), "no places of the machine"
    assert [call["note"] for call in found["calls"]] == ["", "nothing else"]
    row = next(row for row in found["summary"] if row["figure"] == "decode-0")
    assert row["best_peer"] == "q4_k_m" and row["ratio"] == row["cpu_ratio"] == 2.0 and row["rounds"] == 3
    assert row["tokens_per_s"] == {"openk2": 32.0, "q4_0": 8.0, "q4_k_m": 16.0}
    assert row["spread"]["openk2"] == [3.2, 32.0] and row["same_last_token"] == 1.0
    # 297.8M weights of 4.5 bits are 167.5 MB.
    assert row["bandwidth_share"] == pytest.approx(32 * 167.5e6 / 20e9, abs=0.006)
    assert "| mini | 4 | 1 | decode-0 | 32.0 | 16.0 | q4_k_m | 2.0 | 2.0 |" in capsys.readouterr().out

    ScriptedWorker.asked.clear()
    monkeypatch.setattr("sys.argv", [*words, "4", "--minutes", "0"])
    side_by_side.main()
    assert not ScriptedWorker.asked and "Not complete" in capsys.readouterr().out
    file.write_text(json.dumps(found | {"machine": {"processor": "another"}}))
    with pytest.raises(SystemExit, match="measured on another"):
        side_by_side.main()


def test_the_engines_side_times_every_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import engine_worker
    from figures import Figure

    monkeypatch.setattr(engine_worker, "LONGEST", 64)
    monkeypatch.setattr(engine_worker, "WARM_UP", Figure("prefill", 16))
    threads = torch.get_num_threads()
    side = engine_worker.OwnSide(save_tiny_model(tmp_path / "tiny"), "int4")
    for figure in (Figure("prefill", 40), Figure("decode", 0, steps=4), Figure("decode", 33, batch=3, steps=4)):
        side.prepare(figure, threads)
        first, second = side.run(figure, "1"), side.run(figure, "2")
        assert len(first.last_tokens) == figure.batch and first.seconds > 0 and first.cpu_seconds > 0
        if figure.kind == "decode":
            assert second.last_tokens == first.last_tokens, "the same prompts in every round"
    with pytest.raises(AssertionError, match="there before"):
        side.prepare(Figure("prefill", 40), threads)
        side.run(Figure("prefill", 40), "2")


def test_a_gguf_file_holds_every_weight_once() -> None:
    import build_models

    model = random_model(tiny_config(64))
    stored, tensors = dict(model.checkpoint_tensors()), dict(build_models.gguf_tensors(model))
    assert sum(t.numel() for t in tensors.values()) == sum(t.numel() for t in stored.values())
    assert torch.equal(
        tensors["blk.1.ffn_down_exps.weight"][5], stored["model.layers.1.mlp.experts.5.down_proj.weight"]
    )
    keys, values = tensors["blk.0.attn_k_b.weight"], tensors["blk.0.attn_v_b.weight"]
    joined = torch.cat([keys.transpose(1, 2), values], 1).flatten(0, 1)
    assert torch.equal(joined, stored["model.layers.0.self_attn.kv_b_proj.weight"])
    assert "blk.1.exp_probs_b.bias" in tensors and "blk.0.ffn_gate.weight" in tensors and "output.weight" in tensors
