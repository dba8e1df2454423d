"""The layers of a packed model in one call, against the same layers module by module."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.engine.conftest import Recorder, prompt, random_model, tiny_config
from torch import Tensor

from openk2 import assets
from openk2.checkpoint import Quantization, load_model, save_model
from openk2.engine import Engine, EngineConfig
from openk2.models import ForwardBatch, K2Model, PagedBatch
from openk2.models.packed_decode import PackedDecode
from openk2.ops import ExpertBudgets, cpu

pytestmark = pytest.mark.skipif(not cpu.available(), reason="the extension is not built")
MODELS = ["k2-0905", "deepseek-v3", "moonlight", "deepseek-v2-lite", "k2-nano"]
BLOCK = 16


@pytest.fixture(scope="module", params=MODELS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "k2-nano":
        return assets.path("k2-nano")
    model = random_model(tiny_config(request.param)).to(torch.bfloat16)
    return save_model(model, tmp_path_factory.mktemp("m") / "model")


def load(folder: Path, formats: str) -> K2Model:
    return load_model(folder, quantization=Quantization.parse(formats))


def answer(model: K2Model, seed: int = 1, **sampling: Any) -> Any:
    recorder = Recorder(Engine(model, EngineConfig(enable_prefix_caching=False, block_size=BLOCK)))
    made = recorder.add("x", prompt(150, seed=seed), max_tokens=8, **sampling)
    recorder.run()
    return made


@pytest.mark.parametrize(("formats", "share"), [("bf16", 1.0), ("int8", 0.25)])
def test_answers_are_those_of_the_modules(folder: Path, formats: str, share: float) -> None:
    """The same tokens, and so large a share of the steps with the same logits to float32's precision.

    In int8 a last bit can turn the rounding of an activation, that an expert's choice, and the cache all later steps of
    the answer: how many are left depends on the weights and on the modules' order of sums (15 to 29 of 32 were seen).
    """
    model = load(folder, formats)
    together = model.model.decode
    assert isinstance(together, PackedDecode)
    near = []
    for seed in (1, 2, 3, 4):
        model.model.decode = None
        want = answer(model, seed)
        model.model.decode = together
        made = answer(model, seed)
        near += [(a - b).abs().max() < 5e-6 * a.abs().max() for a, b in zip(want.logits, made.logits, strict=True)]
        assert made.tokens == want.tokens
    assert sum(near) >= share * len(near) and len(near) > 8


def test_every_budget_is_kept(folder: Path) -> None:
    model = load(folder, "bf16")
    full, together = answer(model), model.model.decode
    trained = model.config.num_experts_per_tok
    for sampling in [*({"topk": k} for k in range(1, trained)), {"mode": "reflex"}, {"mode": "auto"}]:
        model.model.decode = None
        want = answer(model, **sampling)
        model.model.decode = together
        made = answer(model, **sampling)
        for a, b in zip(want.logits, made.logits, strict=True):
            assert (a - b).abs().max() < 5e-6 * a.abs().max(), sampling
        assert not torch.equal(full.logits[-1], made.logits[-1]), sampling
        assert made.expert_use == want.expert_use, sampling
        if "topk" in sampling:
            assert made.expert_use.taken == sampling["topk"] * made.expert_use.choices


def test_each_row_has_its_own_budget(folder: Path) -> None:
    """By mass between limits, in the order of choice; the trained number gives the bits of no budget at all."""
    model = load(folder, "bf16")
    K = model.config.num_experts_per_tok
    taken = torch.zeros(model.config.num_hidden_layers, 5, dtype=torch.int64)
    budgets = ExpertBudgets(
        torch.tensor([K, 1, 1, 1, 2]), torch.tensor([K, K, K, 1, 3]), torch.tensor([1, 0.4, 0, 1, 0.9]).double()
    )
    made, _ = step(model, budgets, taken)
    decode, model.model.decode = model.model.decode, None
    of_modules = torch.zeros_like(taken)
    want, _ = step(model, budgets, of_modules)
    assert torch.equal(taken, of_modules)
    assert (made - want).abs().max() < 1e-5 * want.abs().max()
    first = model.config.first_k_dense_replace
    assert not taken[:first].any()
    rows = taken[first:].T
    assert (rows[0] == K).all() and (rows[2] == 1).all() and (rows[3] == 1).all()
    assert 1 < rows[1].float().mean() < K and rows[4].min() >= 2 and rows[4].max() <= 3
    model.model.decode = decode
    assert torch.equal(made[0], step(model, None, None)[0][0])


MIXED = ExpertBudgets(
    torch.tensor([1, 2, 2, 1, 1]), torch.tensor([1, 2, 2, 1, 2]), torch.tensor([1, 1, 1, 1, 0.6]).double()
)


def step(model: K2Model, budgets: ExpertBudgets | None = MIXED, taken: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Hidden states and written latents of five tokens of two sequences with full and ragged contexts."""
    config = model.config
    generator = torch.Generator().manual_seed(0)
    caches = [torch.randn(12, BLOCK, config.latent_dim, generator=generator) for _ in range(config.num_hidden_layers)]
    tables = torch.tensor([[3, 1, 7, 2, 9, 4], [5, 8, 0, 0, 0, 0]])
    positions = torch.tensor([93, 94, 95, 19, 20])
    rows = torch.tensor([0, 0, 0, 1, 1])
    slots = tables[rows, positions // BLOCK] * BLOCK + positions % BLOCK
    paged = PagedBatch(slots, tables, (0, 3, 5), (96, 21), torch.ones(5, dtype=torch.bool))
    batch = ForwardBatch(positions, paged=paged, per_row=True, budgets=budgets, taken=taken)
    with torch.inference_mode():
        hidden = model(torch.tensor([5, 6, 7, 8, 9]), batch, caches)
    return hidden, torch.stack([cache.view(-1, config.latent_dim)[slots] for cache in caches])


@pytest.mark.parametrize("formats", ["bf16", "int4"])
def test_instruction_sets_and_threads_give_the_same_bits(
    folder: Path, formats: str, shared_loops: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(folder, formats)
    want = step(model)
    before = torch.get_num_threads()
    for isa in cpu.supported_isas():
        monkeypatch.setattr("openk2.ops.cpu.decode.isa", lambda isa=isa: isa)
        for threads in (1, 3):
            torch.set_num_threads(threads)
            made = step(model)
            torch.set_num_threads(before)
            assert all(torch.equal(a, b) for a, b in zip(want, made, strict=True)), (isa, threads)


def test_several_tokens_of_a_sequence_see_each_other(folder: Path) -> None:
    model = load(folder, "bf16")
    together = step(model)
    model.model.decode = None
    apart = step(model)
    for a, b in zip(together, apart, strict=True):
        assert (a - b).abs().max() < 1e-5 * b.abs().max()


@pytest.mark.parametrize(
    ("heads", "latent", "nope", "rope", "value", "topk"),
    [(9, 17, 5, 2, 7, 1), (18, 33, 16, 6, 1, 16), (8, 1, 1, 2, 3, 5)],
)
def test_sizes_that_fill_no_vector(
    heads: int,
    latent: int,
    nope: int,
    rope: int,
    value: int,
    topk: int,
    tmp_path: Path,
    shared_loops: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Heads beyond a task's, with several remainders of four; rows with a remainder of sixteen, or shorter."""
    config = replace(
        tiny_config("k2-0905"),
        num_attention_heads=heads,
        kv_lora_rank=latent,
        qk_nope_head_dim=nope,
        qk_rope_head_dim=rope,
        v_head_dim=value,
        num_experts_per_tok=topk,
        hidden_size=37,
        moe_intermediate_size=19,
    )
    model = load(save_model(random_model(config).to(torch.bfloat16), tmp_path / "model"), "bf16")
    together = step(model)
    before = torch.get_num_threads()
    for isa, threads in ((cpu.supported_isas()[0], 1), (cpu.supported_isas()[-1], 6)):
        with monkeypatch.context() as patch:
            patch.setattr("openk2.ops.cpu.decode.isa", lambda isa=isa: isa)
            torch.set_num_threads(threads)
            made = step(model)
            torch.set_num_threads(before)
        assert all(torch.equal(a, b) for a, b in zip(together, made, strict=True)), (isa, threads)
    model.model.decode = None
    for a, b in zip(together, step(model), strict=True):
        assert (a - b).abs().max() < 1e-5 * b.abs().max()


@pytest.mark.parametrize("formats", ["bf16", "int4"])
def test_what_is_no_number_stays_in_its_sequence(folder: Path, formats: str) -> None:
    model = load(folder, formats)
    want, _ = step(model)
    with torch.no_grad():
        model.model.embed_tokens.weight[5] = torch.nan  # the first token of the first sequence
    made, _ = step(model)
    assert not made[0].isfinite().any() and torch.equal(made[3:], want[3:])


def test_tensors_that_do_not_fit_are_refused(folder: Path) -> None:
    model = load(folder, "bf16")
    step(model)
    decode = model.model.decode
    assert isinstance(decode, PackedDecode)
    (op,) = decode._ops.values()
    c = model.config
    h, angles = torch.zeros(2, c.hidden_size), torch.zeros(2, c.qk_rope_head_dim // 2)
    ints, tables = torch.zeros(2, dtype=torch.int64), torch.zeros(1, 3, dtype=torch.int64)
    caches = [torch.zeros(4, BLOCK, c.latent_dim) for _ in range(c.num_hidden_layers)]
    fine: dict[str, Any] = dict(
        h=h, rotary=(angles, angles), positions=ints, slots=ints, sequences=ints, block_tables=tables, caches=caches
    )
    op(**fine, budgets=None)
    for name, wrong in (
        ("h", h.double()),
        ("rotary", (angles, angles[:1])),
        ("positions", ints.int()),
        ("slots", torch.zeros(4, dtype=torch.int64)[::2]),
        ("sequences", ints[:1]),
        ("block_tables", tables.int()),
        ("caches", [cache.bfloat16() for cache in caches]),
        ("caches", [cache.view(8, BLOCK // 2, -1) for cache in caches]),
        ("caches", caches[1:]),
        ("budgets", ExpertBudgets(ints.int(), ints, ints.double())),
        ("budgets", ExpertBudgets(ints, ints, ints.float())),
        ("budgets", ExpertBudgets(ints, ints[:1], ints.double())),
    ):
        with pytest.raises(ValueError, match=r"wanted, not|one cache a layer"):
            op(**{**fine, "budgets": None, name: wrong})


def test_weights_that_do_not_fit_are_refused(folder: Path) -> None:
    from openk2.models.packed_decode import _shape, _weights
    from openk2.ops.cpu.decode import DecodeLayers

    model = load(folder, "bf16")
    layer, shape = _weights(model.decoder_layers[0]), _shape(model.config)
    for wrong, said in (
        (replace(layer, kv_b=layer.kv_b.float()), "kv_b"),
        (replace(layer, post_norm=layer.post_norm[1:]), "post_norm"),
        (replace(layer, o=layer.kv_a), "o:"),
    ):
        with pytest.raises(ValueError, match=said):
            DecodeLayers(shape, [wrong], BLOCK)
    sparse = _weights(model.decoder_layers[-1])
    two = replace(sparse, down=_weights(load(folder, "int8").decoder_layers[-1]).down)
    with pytest.raises(ValueError, match="two formats"):
        DecodeLayers(shape, [two], BLOCK)
    experts = sparse.down.layout.count
    for odd in (
        dict(topk=experts + 1),
        dict(groups=3 if experts % 3 else 5, kept_groups=1),
        dict(groups=experts, kept_groups=experts),
        dict(groups=2, kept_groups=1, topk=experts // 2 + 1),
    ):
        with pytest.raises(ValueError, match="cannot choose"):
            DecodeLayers(replace(shape, **odd), [sparse], BLOCK)
