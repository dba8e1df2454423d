"""Packed weights on disk: mapped as written, refused when anything about them is wrong, never there in part."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.engine.conftest import prompt, random_model, tiny_config

from openk2.checkpoint import Quantization, load_model, packed_file, save_model
from openk2.checkpoint.packed_file import map_packed, write_packed
from openk2.checkpoint.packed_header import PREFIX
from openk2.errors import CheckpointError
from openk2.models import ForwardBatch, K2Model
from openk2.ops.packed import PackedLayout, PackedStack
from openk2.quant import empty_stack, random_stack

INT4 = Quantization.parse("int4")


@pytest.fixture
def stacks() -> dict[str, PackedStack]:
    made = {"a": empty_stack(PackedLayout("int4", 3, 20, 70)), "b": empty_stack(PackedLayout("bf16", 1, 5, 5))}
    for stack in made.values():
        random_stack(stack, 1.0, torch.Generator().manual_seed(0))
    return made


def layouts(stacks: dict[str, PackedStack]) -> dict[str, PackedLayout]:
    return {name: stack.layout for name, stack in stacks.items()}


def test_round_trip(tmp_path: Path, stacks: dict[str, PackedStack]) -> None:
    write_packed(tmp_path / "new" / "w.packed", "source", stacks)
    mapped = map_packed(tmp_path / "new" / "w.packed", "source", layouts(stacks))
    assert all(torch.equal(mapped[name].view(torch.int8), stacks[name].data.view(torch.int8)) for name in stacks)
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["w.packed"]


@pytest.mark.parametrize("where", ["magic", "version", "length", "header", "first", "last"])
def test_one_wrong_byte_is_refused(tmp_path: Path, stacks: dict[str, PackedStack], where: str) -> None:
    path = tmp_path / "w.packed"
    write_packed(path, "source", stacks)
    data = bytearray(path.read_bytes())
    last = 4096 + 2 * 4096 + stacks["b"].data.numel() - 1
    at = {"magic": 0, "version": 8, "length": 12, "header": PREFIX.size + 5, "first": 4096, "last": last}[where]
    data[at] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"w\.packed: packed weights refused"):
        map_packed(path, "source", layouts(stacks))


@pytest.mark.parametrize("left", [0, 10, 100, 5000])
def test_a_cut_file_is_refused(tmp_path: Path, stacks: dict[str, PackedStack], left: int) -> None:
    path = tmp_path / "w.packed"
    write_packed(path, "source", stacks)
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(CheckpointError, match="refused"):
        map_packed(path, "source", layouts(stacks), check_bytes=False)


def test_other_weights_and_layouts_are_refused(tmp_path: Path, stacks: dict[str, PackedStack]) -> None:
    path = tmp_path / "w.packed"
    write_packed(path, "source", stacks)
    with pytest.raises(CheckpointError, match="other weights or formats"):
        map_packed(path, "other", layouts(stacks))
    with pytest.raises(CheckpointError, match="other weights or formats"):
        map_packed(path, "source", {"a": stacks["a"].layout})
    with pytest.raises(CheckpointError, match="a has another layout"):
        map_packed(path, "source", {**layouts(stacks), "a": PackedLayout("int4", 3, 20, 71)})


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, stacks: dict[str, PackedStack], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "w.packed"
    write_packed(path, "old", stacks)

    def fails(fd: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("openk2.config.whole_file.os.fsync", fails)
    with pytest.raises(OSError, match="disk full"):
        write_packed(path, "new", stacks)
    assert [file.name for file in tmp_path.iterdir()] == ["w.packed"]
    map_packed(path, "old", layouts(stacks))


def test_killed_while_writing(tmp_path: Path) -> None:
    """The process dies before the last step: no file of that name."""
    program = f"""
import os, signal, torch
from pathlib import Path
from openk2.checkpoint import packed_file
from openk2.ops.packed import PackedLayout
from openk2.quant import empty_stack
os.fsync = lambda fd: os.kill(os.getpid(), signal.SIGKILL)
packed_file.write_packed(Path({str(tmp_path)!r}) / "w.packed", "s", {{"a": empty_stack(PackedLayout("int4", 1, 9, 9))}})
"""
    done = subprocess.run([sys.executable, "-c", program], env=dict(os.environ), check=False)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "w.packed").exists()


def logits(model: K2Model) -> torch.Tensor:
    ids = torch.tensor(prompt(20))
    with torch.inference_mode():
        return model.compute_logits(model(ids, ForwardBatch.packed([len(ids)])))


def test_a_model_is_packed_once_and_again_after_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, cache = save_model(random_model(tiny_config("k2-0905")), tmp_path / "model"), tmp_path / "cache"
    want = logits(load_model(folder, quantization=INT4))
    written = []
    write = packed_file.write_packed
    monkeypatch.setattr("openk2.checkpoint.load.write_packed", lambda *a: written.append(a[0]) or write(*a))
    for times in (1, 1, 2, 2):
        if times == 2 and len(written) == 1:
            with written[0].open("r+b") as file:
                file.seek(9000)
                file.write(bytes(range(100)))
        assert torch.equal(logits(load_model(folder, quantization=INT4, packed_folder=cache)), want)
        assert len(written) == times
    assert [file.name for file in cache.iterdir()] == ["model-int4.packed"]
