"""Experts on disk: the same bits as in memory, the coldest one given up, nothing wrong or half written used."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.engine.conftest import Answer, Recorder, prompt, tiny_config
from tests.engine.conftest import random_model as seeded_model

from openk2.checkpoint import Quantization, load_model, random_model, save_model
from openk2.checkpoint.expert_store import ExpertStore
from openk2.checkpoint.expert_store_file import ExpertFile, ExpertShape, ExpertWriter, write_experts
from openk2.checkpoint.files import Checkpoint, open_shard, read_tensors
from openk2.checkpoint.packed_header import PREFIX
from openk2.engine import Engine, EngineConfig
from openk2.errors import CheckpointError, ConfigError
from openk2.models import K2Model
from openk2.models.packed_stored import stored_experts

SHAPE = ExpertShape("int4", layers=3, experts=8, width=20, hidden=40)
WHOLE_PAGES = ExpertShape("int4", layers=2, experts=4, width=128, hidden=256)


def fill(writer: ExpertWriter, shape: ExpertShape) -> None:
    generator = torch.Generator().manual_seed(0)
    for index in range(shape.count):
        for part in range(3):
            size = shape.place(part)[1]
            writer.put(index, part, torch.randint(0, 256, (size,), dtype=torch.uint8, generator=generator))


def written(path: Path, shape: ExpertShape = SHAPE) -> Path:
    with write_experts(path, "source", shape) as writer:
        fill(writer, shape)
    return path


def read(file: ExpertFile, index: int) -> bytes:
    shape = file.shape
    gate_up = bytearray(2 * shape.gate_up(1).matrix_bytes)
    down = bytearray(shape.down(1).matrix_bytes)
    file.read(index, memoryview(gate_up), memoryview(down))
    return bytes(gate_up + down)


def expected(shape: ExpertShape) -> list[bytes]:
    class Collect:
        def __init__(self) -> None:
            self.records = [b""] * shape.count

        def put(self, index: int, part: int, data: torch.Tensor) -> None:
            self.records[index] += data.numpy().tobytes()

    collect = Collect()
    fill(collect, shape)  # type: ignore[arg-type]
    return collect.records


@pytest.fixture(params=["direct", "through the page cache"])
def either_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads past the page cache where this file system can, and reads of a file system that cannot."""
    if request.param != "direct":
        monkeypatch.delattr(os, "O_DIRECT", raising=False)


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("shape", [SHAPE, WHOLE_PAGES])
def test_experts_come_back_into_their_slots(tmp_path: Path, shape: ExpertShape) -> None:
    file = ExpertFile(written(tmp_path / "new" / "e", shape), "source", shape)
    store, want = ExpertStore(file, shape.expert_bytes * 5, topk=2), expected(shape)
    for index in [*range(shape.count), 0, shape.count - 1]:
        (slot,) = store.hold(index // shape.experts, [index % shape.experts])
        gate_up, down = store.gate_up.data[2 * slot : 2 * slot + 2], store.down.data[slot]
        assert gate_up.numpy().tobytes() + down.numpy().tobytes() == want[index]
    assert [one.name for one in (tmp_path / "new").iterdir()] == ["e"]


@pytest.mark.parametrize("where", ["magic", "version", "length", "header"])
def test_a_damaged_header_is_refused(tmp_path: Path, where: str) -> None:
    path = written(tmp_path / "e")
    data = bytearray(path.read_bytes())
    data[{"magic": 0, "version": 8, "length": 12, "header": PREFIX.size + 5}[where]] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="packed experts refused"):
        ExpertFile(path, "source", SHAPE)


@pytest.mark.parametrize("left", [0, 10, 100, 5000, -1])
def test_a_cut_file_is_refused(tmp_path: Path, left: int) -> None:
    path = written(tmp_path / "e")
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(CheckpointError, match="refused"):
        ExpertFile(path, "source", SHAPE)


def test_other_weights_and_shapes_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "e")
    for source, shape in (("other", SHAPE), ("source", replace(SHAPE, width=21)), ("source", replace(SHAPE, layers=2))):
        with pytest.raises(CheckpointError, match="other weights or formats"):
            ExpertFile(path, source, shape)


@pytest.mark.parametrize("part", [0, 1, 2])
def test_a_wrong_byte_is_refused_when_its_expert_is_read(tmp_path: Path, part: int) -> None:
    path = written(tmp_path / "e")
    at = path.stat().st_size - 2 * SHAPE.record_bytes + SHAPE.place(part)[0] + SHAPE.place(part)[1] - 1
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 16]))
    store = ExpertStore(ExpertFile(path, "source", SHAPE), SHAPE.expert_bytes * 9, topk=2)
    store.hold(2, [7])
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"expert 6 of the 3\. layer with experts"):
            store.hold(2, [5, 6])
    store.expect(2, [6])
    with pytest.raises(CheckpointError, match="expert 6"):
        store.hold(2, [6, 7])


def test_a_file_cut_while_it_is_open(tmp_path: Path) -> None:
    file = ExpertFile(written(tmp_path / "e"), "source", SHAPE)
    os.truncate(tmp_path / "e", 8192)
    with pytest.raises(CheckpointError, match="cut short"):
        read(file, SHAPE.count - 1)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = written(tmp_path / "e")
    with pytest.raises(CheckpointError, match="not every expert"), write_experts(path, "new", SHAPE):
        pass
    assert [one.name for one in tmp_path.iterdir()] == ["e"]
    ExpertFile(path, "source", SHAPE)


def test_a_full_disk_is_told_before_writing(tmp_path: Path) -> None:
    huge = replace(SHAPE, experts=16, width=1 << 22, hidden=1 << 16)
    with pytest.raises(CheckpointError, match="bytes of disk"), write_experts(tmp_path / "e", "s", huge):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("moment", ["fsync", "pwrite"])
def test_killed_while_packing(tmp_path: Path, moment: str) -> None:
    """No file of that name; what is left of the half-written one goes with the next packing."""
    program = f"""
import os, signal, torch
from pathlib import Path
from openk2.checkpoint import expert_store_file as f
from tests.checkpoint.test_expert_store import SHAPE, fill
setattr(f.os, {moment!r}, lambda *a: os.kill(os.getpid(), signal.SIGKILL))
with f.write_experts(Path({str(tmp_path)!r}) / "e", "source", SHAPE) as writer:
    fill(writer, SHAPE)
"""
    root = str(Path(__file__).parents[2])
    done = subprocess.run([sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": root}, check=False)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "e").exists() and len(list(tmp_path.iterdir())) == 1
    ExpertFile(written(tmp_path / "e"), "source", SHAPE)
    assert [one.name for one in tmp_path.iterdir()] == ["e"]


@pytest.fixture
def store(tmp_path: Path) -> ExpertStore:
    return ExpertStore(ExpertFile(written(tmp_path / "e"), "source", SHAPE), SHAPE.expert_bytes * 6, topk=2)


def test_the_coldest_expert_goes(store: ExpertStore) -> None:
    assert (store.slots, store.most_held, store.most_ahead) == (6, 4, 2)
    for expert in (0, 1, 2, 3, 4, 5):
        store.hold(0, [expert])
    for expert in (0, 2, 3, 4, 5):
        store.hold(0, [expert])
    store.hold(1, [0])
    assert not store.is_resident(0, 1) and all(store.is_resident(0, expert) for expert in (0, 2, 3, 4, 5))
    store.hold(1, [1])
    assert store.is_resident(1, 1) and not store.is_resident(1, 0), "used once, against those used twice"
    stats = store.stats
    assert (stats.lookups, stats.hits, stats.reads, stats.hits_ahead) == (13, 5, 8, 0)
    assert stats.bytes_read == 8 * SHAPE.record_bytes


def test_an_expert_is_as_hot_as_it_was_before_it_went(store: ExpertStore) -> None:
    for _ in range(9):
        store.hold(0, [0])
    for expert in range(7):  # more than there are slots, each used oftener
        for _ in range(12):
            store.hold(1, [expert])
    assert not store.is_resident(0, 0)
    for _ in range(16):
        store.hold(0, [0])
    store.hold(2, [0])
    assert store.is_resident(0, 0), "used 25 times in two passes, though 16 times since it came"


@pytest.mark.parametrize(("decay", "gone"), [(0.5, 0), (1.0, 1)])
def test_old_uses_count_less(store: ExpertStore, decay: float, gone: int) -> None:
    store._decay = decay
    for expert in (0, 0, 0, 1, 1):
        store.hold(0, [expert])
        store.hold(2, [7])
    store.hold(1, [0, 1, 2])
    store.hold(1, [3])
    assert not store.is_resident(0, gone) and store.is_resident(0, 1 - gone)


def test_a_cache_smaller_than_a_pass_still_hits(tmp_path: Path) -> None:
    """Where giving up what was used least recently would never hit."""
    shape = replace(SHAPE, layers=12)
    store = ExpertStore(ExpertFile(written(tmp_path / "e", shape), "source", shape), shape.expert_bytes * 6, topk=2)
    for _ in range(40):
        for layer in range(12):
            store.hold(layer, [0, 1 + layer % 3])
    assert store.stats.hits > 100


def test_what_is_expected_is_there(store: ExpertStore) -> None:
    store.hold(0, [0, 1, 2])
    store.expect(1, [0, 1, 2])
    assert store.is_resident(1, 0) and store.is_resident(1, 1) and not store.is_resident(1, 2), (
        "as far as there is room"
    )
    assert all(store.is_resident(0, expert) for expert in (0, 1, 2)), "in use"
    while not all(future.done() for future in store._ahead.values()):
        pass
    store.hold(1, [0, 5])
    stats = store.stats
    assert (stats.lookups, stats.hits, stats.hits_ahead, stats.reads, stats.reads_ahead) == (5, 0, 1, 4, 2)
    store.hold(1, [1])
    assert store.stats.hits == 1, "fetched in vain, but still there"


def test_slots_are_never_given_away_in_use(store: ExpertStore) -> None:
    """Any sequence of calls: what is held has its bytes, and no more is pinned than there is."""
    want, rng = expected(SHAPE), random.Random(0)
    for _ in range(400):
        layer = rng.randrange(3)
        experts = rng.sample(range(8), rng.randint(1, store.most_held))
        slots = store.hold(layer, experts)
        if rng.random() < 0.7:
            store.expect((layer + 1) % 3, rng.sample(range(8), rng.randint(1, 6)))
        for expert, slot in zip(experts, slots, strict=True):
            bytes_ = (
                store.gate_up.data[2 * slot : 2 * slot + 2].numpy().tobytes() + store.down.data[slot].numpy().tobytes()
            )
            assert bytes_ == want[layer * 8 + expert]
    stats = store.stats
    assert stats.lookups == stats.hits + stats.hits_ahead + stats.reads and stats.hits and stats.hits_ahead


def test_too_few_slots_are_refused(tmp_path: Path) -> None:
    file = ExpertFile(written(tmp_path / "e"), "source", SHAPE)
    with pytest.raises(ConfigError, match="hold 2 experts; a token needs 3"):
        ExpertStore(file, SHAPE.expert_bytes * 2, topk=2)


def answers(model: K2Model, **config: Any) -> list[Answer]:
    """Of three requests together and one that comes later, alone in the end."""
    recorder = Recorder(Engine(model, EngineConfig(max_num_batched_tokens=48, **config)))
    made = [recorder.add(str(n), prompt(n, seed=n), max_tokens=6) for n in (40, 7, 70)]
    for _ in range(3):
        recorder.step()
    made.append(recorder.add("late", prompt(21), max_tokens=12))
    made.append(recorder.add("few", prompt(5), max_tokens=4, topk=1))
    recorder.run()
    return made


def assert_same(ours: list[Answer], others: list[Answer]) -> None:
    for one, other in zip(ours, others, strict=True):
        assert one.tokens == other.tokens
        assert all(torch.equal(a, b) for a, b in zip(one.logits, other.logits, strict=True))


def experts_bytes(formats: str, experts: int) -> int:
    config = tiny_config("k2-0905")
    shape = ExpertShape(formats, 1, 1, config.moe_intermediate_size, config.hidden_size)
    return experts * shape.expert_bytes


@pytest.mark.parametrize("name", ["k2-0905", "deepseek-v3", "deepseek-v2-lite"])
@pytest.mark.parametrize("formats", ["int4", "bf16"])
def test_answers_are_those_of_the_model_in_memory(tmp_path: Path, name: str, formats: str) -> None:
    folder, packed = save_model(seeded_model(tiny_config(name)), tmp_path / "model"), tmp_path / "packed"
    quantization = Quantization.parse(formats)
    want = answers(load_model(folder, quantization=quantization))
    for slots in (5, 12, 1000):
        model = load_model(
            folder,
            quantization=quantization,
            packed_folder=packed,
            expert_cache_bytes=experts_bytes(formats, slots),
            mapped=False,
        )
        assert_same(answers(model), want)
        store = stored_experts(model)[0].slots
        assert store.stats.slots == min(slots, store.stats.experts) and store.stats.lookups
        stats = store.stats
        assert (stats.reads + stats.reads_ahead > stats.experts) is (slots < stats.experts)
    model.model.decode = None  # generated tokens module by module
    plain = load_model(folder, quantization=quantization)
    plain.model.decode = None
    assert_same(answers(model), answers(plain))
    assert sorted(one.name for one in packed.iterdir()) == [
        f"model-{formats}-without-experts.packed",
        f"model-{formats}.experts",
    ]


@pytest.mark.parametrize("native", [True, False])
def test_fewer_experts_are_read_ahead_where_fewer_are_used(tmp_path: Path, native: bool) -> None:
    """One token at a time, of one expert: no layer waits for, or guesses, more than one."""
    config, quantization = tiny_config("k2-0905"), Quantization.parse("bf16")
    model = random_model(
        config, quantization=quantization, packed_folder=tmp_path, expert_cache_bytes=experts_bytes("bf16", 20)
    )
    if not native:
        model.model.decode = None
    recorder = Recorder(Engine(model, EngineConfig()))
    recorder.add("one", prompt(5), max_tokens=9, topk=1)
    recorder.step()
    before = stored_experts(model)[0].slots.stats
    recorder.run()
    after = stored_experts(model)[0].slots.stats
    layers = len(stored_experts(model))
    assert after.lookups - before.lookups == 8 * layers
    assert after.reads_ahead - before.reads_ahead <= 8 * (layers - 1)


@pytest.mark.parametrize("formats", ["int4", "int8", "bf16", "int4,experts=bf16"])
def test_random_experts_are_those_of_the_model_in_memory(tmp_path: Path, formats: str) -> None:
    config, quantization = replace(tiny_config("k2-0905"), hidden_size=96), Quantization.parse(formats)
    want = answers(random_model(config, quantization=quantization))
    model = random_model(
        config, quantization=quantization, packed_folder=tmp_path, expert_cache_bytes=experts_bytes("bf16", 20)
    )
    assert_same(answers(model), want)


def test_experts_are_packed_once_and_again_after_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, packed = save_model(seeded_model(tiny_config("k2-0905")), tmp_path / "model"), tmp_path / "packed"
    times: list[Path] = []

    def counted(path: Path, *rest: Any) -> Any:
        times.append(path)
        return write_experts(path, *rest)

    monkeypatch.setattr("openk2.checkpoint.expert_store_pack.write_experts", counted)

    def load() -> None:
        load_model(
            folder,
            quantization=Quantization.parse("int4"),
            packed_folder=packed,
            expert_cache_bytes=experts_bytes("int4", 9),
        )

    load()
    load()
    assert len(times) == 1
    os.truncate(times[0], times[0].stat().st_size - 1)
    load()
    load()
    assert len(times) == 2


def test_tensors_are_read_as_they_are_mapped(tmp_path: Path) -> None:
    folder = save_model(seeded_model(tiny_config("k2-0905")).to(torch.bfloat16), tmp_path / "model")
    for path, tensors in Checkpoint.open(folder).shards.items():
        found = dict(read_tensors(path, tensors))
        assert found.keys() == tensors.keys()
        with open_shard(path) as shard:
            assert all(torch.equal(tensor, shard.get_tensor(name)) for name, tensor in found.items())
        last = list(found)[-1]
        assert [name for name, _ in read_tensors(path, {last})] == [last]
        os.truncate(path, path.stat().st_size - 1)
        with pytest.raises(CheckpointError, match=f"{last} is cut short"):
            list(read_tensors(path, tensors))


def test_a_large_matrix_is_packed_in_parts_to_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    from openk2.ops.packed import FORMATS, PackedLayout
    from openk2.quant import empty_stack, formats, pack_into

    matrix = torch.randn(83, 70, generator=torch.Generator().manual_seed(0))
    for format in FORMATS:
        whole, parts = (empty_stack(PackedLayout(format, 1, 83, 70)) for _ in range(2))
        pack_into(whole, 0, matrix)
        monkeypatch.setattr(formats, "PART_VALUES", 2500)
        pack_into(parts, 0, matrix)
        monkeypatch.undo()
        assert torch.equal(whole.data, parts.data)
