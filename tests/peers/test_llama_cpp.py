"""llama.cpp on our weights: the likeliest tokens after prompts are the engine's, so what is timed side by side computes
the same.

pip install gguf llama-cpp-python
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

SCRIPTS = Path(__file__).parents[2] / "benchmarks" / "peers"
pytestmark = pytest.mark.peers


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    pytest.importorskip("gguf", reason="gguf is not installed")
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    monkeypatch.syspath_prepend(str(SCRIPTS))
    before = set(sys.modules)
    import build_models

    build_models.build(build_models.SHAPES["nano"], tmp_path / "nano")
    yield tmp_path / "nano"
    for name in set(sys.modules) - before:
        if (SCRIPTS / f"{name}.py").is_file():
            del sys.modules[name]


def test_the_same_tokens_in_bfloat16(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from engine_worker import OwnSide
    from figures import FIGURES
    from llama_worker import OPTIONS, LlamaSide

    ours: Any = OwnSide(folder / "hf", "bf16")
    theirs: Any = LlamaSide(folder / "bf16.gguf", OPTIONS, folder)
    pairs = []
    for figure in (FIGURES["prefill-128"], FIGURES["decode-0"], FIGURES["decode-1024"], FIGURES["batch-8"]):
        for side in (ours, theirs):
            side.prepare(figure, torch.get_num_threads())
        for seed in "123":
            pairs += zip(ours.run(figure, seed).last_tokens, theirs.run(figure, seed).last_tokens, strict=True)
    same = sum(mine == other for mine, other in pairs)
    assert same >= 0.85 * len(pairs), "but for ties, of which random weights have some"

    for kind in ("q4_0", "q4_k_m"):
        quantised: Any = LlamaSide(folder / f"{kind}.gguf", OPTIONS, folder)
        quantised.prepare(FIGURES["decode-0"], 1)
        assert quantised.run(FIGURES["decode-0"], "1").seconds > 0
