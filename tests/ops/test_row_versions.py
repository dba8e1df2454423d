"""The serving versions of the ops: equal to their definitions, and each row by itself, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
from torch import Tensor

from openk2 import ops
from openk2.ops import ExpertBudgets, reference, row_attention, row_experts, row_pointwise, row_tiles, single_rows

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2}
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])


@pytest.fixture(params=[1, 2], ids=["1 thread", "2 threads"], autouse=True)
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def rand(*shape: int, dtype: torch.dtype, seed: int = 0, scale: float = 1.0) -> Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)


def assert_close(actual: Tensor, expected: Tensor) -> None:
    error = (actual.float() - expected.float()).abs().max() / expected.float().abs().max()
    assert error < TOLERANCE[actual.dtype]


@DTYPES
@pytest.mark.parametrize("form", [row_tiles, single_rows], ids=["tiles", "single"])
@pytest.mark.parametrize(("inner", "outer"), [(192, 128), (48, 192), (40, 24), (100, 7), (512, 1030)])
def test_linear(form: ModuleType, inner: int, outer: int, dtype: torch.dtype) -> None:
    x, weight = rand(83, inner, dtype=dtype), rand(outer, inner, dtype=dtype, seed=1)
    whole = form.linear(x, weight)
    assert_close(whole, reference.linear(x, weight))
    for start, end in [(0, 1), (5, 6), (7, 15), (3, 36), (82, 83), (11, 80)]:
        assert torch.equal(form.linear(x[start:end], weight), whole[start:end])


@pytest.mark.parametrize("form", [row_tiles, single_rows], ids=["tiles", "single"])
def test_linear_of_no_rows(form: ModuleType) -> None:
    assert form.linear(torch.zeros(0, 8), torch.zeros(4, 8)).shape == (0, 4)


def test_form_of_generated_tokens() -> None:
    """Taken where it is asked for only: bits tell, since a single row sums in another order."""
    x, weight = rand(1, 512, dtype=torch.float32), rand(512, 512, dtype=torch.float32, seed=1)
    assert torch.equal(ops.linear(x, weight, per_row=True), single_rows.linear(x, weight))
    assert torch.equal(ops.linear(x, weight), row_tiles.linear(x, weight))


def test_rows_alone_where_no_tile_agrees(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library whose rows depend on each other, made up here, is only ever given one row."""
    product = torch.mm

    def unstable(x: Tensor, weight: Tensor) -> Tensor:
        return product(x, weight) + torch.arange(len(x))[:, None]

    monkeypatch.setattr(torch, "mm", unstable)
    assert row_tiles._prove(16, 16, torch.float32) == (1,)


@DTYPES
def test_silu_mul(dtype: torch.dtype) -> None:
    gate, up = rand(37, 41, dtype=dtype, scale=4), rand(37, 41, dtype=dtype, seed=1)
    whole = row_pointwise.silu_mul(gate, up)
    assert_close(whole, reference.silu_mul(gate, up))
    assert torch.equal(torch.stack([row_pointwise.silu_mul(g, u) for g, u in zip(gate, up, strict=True)]), whole)
    extremes = torch.tensor([-1e4, 0.0, 1e4])
    assert torch.equal(row_pointwise.silu_mul(extremes, torch.ones(3)), torch.tensor([-0.0, 0.0, 1e4]))


@pytest.mark.parametrize(
    ("func", "method", "groups"), [("sigmoid", "noaux_tc", 1), ("sigmoid", "noaux_tc", 4), ("softmax", "greedy", 1)]
)
def test_route(func: str, method: str, groups: int) -> None:
    logits, bias = rand(61, 24, dtype=torch.float32), rand(24, dtype=torch.float32, seed=1, scale=0.1)
    least = torch.arange(61) % 5 + 1
    budgets = ExpertBudgets(least, torch.full_like(least, 5), rand(61, dtype=torch.float64, seed=2).sigmoid())
    settings = dict(topk=5, scoring_func=func, topk_method=method, n_group=groups, topk_group=max(1, groups // 2))
    settings |= dict(norm_topk_prob=True, routed_scaling_factor=2.5)
    correction = bias if method == "noaux_tc" else None
    ids, weights = ops.route(logits, correction, budgets=budgets, **settings)
    expected_ids, expected_weights = reference.route(logits, correction, budgets=budgets, **settings)
    assert torch.equal(ids, expected_ids)
    assert_close(weights, expected_weights)
    for start, end in [(0, 1), (13, 14), (20, 29)]:
        some = ops.route(logits[start:end], correction, budgets=budgets.part(slice(start, end)), **settings)
        assert torch.equal(some[0], ids[start:end])
        assert torch.equal(some[1], weights[start:end])


def test_budgets_are_kept_by_hand() -> None:
    """Scores 4, 3, 2, 1 tenths, in their order: the share of the first is 0.4, of two 0.7, of three 0.9."""
    scores = torch.tensor([0.4, 0.3, 0.2, 0.1])
    settings = dict(topk=4, scoring_func="sigmoid", topk_method="greedy", n_group=1, topk_group=1)
    settings |= dict(norm_topk_prob=True, routed_scaling_factor=2.0)
    cases = [(1, 4, 0.35, 1), (1, 4, 0.5, 2), (3, 4, 0.5, 3), (1, 2, 1.0, 2), (1, 4, 1.0, 4), (1, 4, 0.0, 1)]
    least, most, mass, wanted = (torch.tensor(column) for column in zip(*cases, strict=True))
    logits = scores.logit().expand(len(cases), 4)
    _, full = reference.route(logits, None, **settings)
    ids, weights = reference.route(logits, None, budgets=ExpertBudgets(least, most, mass.double()), **settings)
    assert ids.tolist() == [[0, 1, 2, 3]] * len(cases)
    assert ((weights != 0).sum(-1)).tolist() == wanted.tolist()
    assert torch.allclose(weights.norm(dim=-1), full.norm(dim=-1))
    for row, of_full, count in zip(weights, full, wanted.tolist(), strict=True):
        assert torch.allclose(row[:count] / row[0], of_full[:count] / of_full[0])
    assert torch.equal(weights[4], full[4])


@pytest.mark.parametrize("out_features", [52, 80, 97])
def test_batches_of_single_rows_in_bfloat16_where_terms_cancel(out_features: int) -> None:
    """Rounding to bfloat16 hides another order of a sum in most results, but not here."""
    xs, weights = row_tiles.cancelling(1, 15, out_features, 40, torch.bfloat16)
    x, weight = xs[0], weights[0]
    alone = torch.cat([single_rows.linear(row, weight) for row in x.split(1)])
    for rows in (2, 3, 5, 15):
        assert torch.equal(single_rows.linear(x[:rows], weight), alone[:rows])


@DTYPES
@pytest.mark.parametrize("form", [row_experts, single_rows], ids=["tiles", "single"])
def test_moe_experts(form: ModuleType, dtype: torch.dtype) -> None:
    """Of 1 and 2 tokens, of some and of all: the ways through."""
    T, K, E, D, F = 45, 3, 10, 24, 12
    x = rand(T, D, dtype=dtype)
    gate_up, down = rand(E, 2 * F, D, dtype=dtype, seed=1, scale=0.2), rand(E, D, F, dtype=dtype, seed=2, scale=0.2)
    ids = torch.stack([torch.randperm(E, generator=torch.Generator().manual_seed(t))[:K] for t in range(T)])
    weights = rand(T, K, dtype=torch.float32, seed=3).sigmoid()
    weights[::3, 2] = 0
    whole = form.moe_experts(x, ids, weights, gate_up, down)
    assert_close(whole, reference.moe_experts(x, ids, weights, gate_up, down))
    for start, end in [(0, 1), (7, 8), (20, 22), (30, 45), (9, 26), (5, 9)]:
        some = form.moe_experts(x[start:end], ids[start:end], weights[start:end], gate_up, down)
        assert torch.equal(some, whole[start:end])


@pytest.mark.parametrize("form", [row_experts, single_rows], ids=["tiles", "single"])
def test_moe_experts_past_the_budget_are_not_computed(form: ModuleType) -> None:
    weights = torch.tensor([[1.0, 0.0]])
    down = torch.ones(2, 4, 4)
    down[1] = torch.nan
    out = form.moe_experts(torch.ones(1, 4), torch.tensor([[0, 1]]), weights, torch.ones(2, 8, 4), down)
    assert out.isfinite().all()


# A cache of one layer with sequences scattered over its blocks, the rest of it NaN.
BLOCK, C, R, H, N, V = 16, 24, 8, 3, 12, 20


def attend(cache: Tensor, kv_b: Tensor, queries: list[tuple[Tensor, Tensor, list[int], int, int, int]], version=None):
    """Attention of [(q_nope, q_pe of the whole sequence, its blocks, prompt tokens, first, last)], each its slice."""
    width = max(len(blocks) for _, _, blocks, *_ in queries)
    starts, positions, generated = [0], [], []
    for _, _, _, prompt, first, last in queries:
        starts.append(starts[-1] + last - first)
        positions += range(first, last)
        generated += [p >= prompt for p in range(first, last)]
    return (version or row_attention).paged_attention(
        torch.cat([q[first:last] for q, _, _, _, first, last in queries]),
        torch.cat([q[first:last] for _, q, _, _, first, last in queries]),
        cache,
        kv_b,
        torch.tensor(positions),
        block_tables=torch.tensor([blocks + [0] * (width - len(blocks)) for _, _, blocks, *_ in queries]),
        query_starts=starts,
        context_lens=[last for *_, last in queries],
        generated_T=torch.tensor(generated),
        softmax_scale=0.3,
    )


@DTYPES
@pytest.mark.parametrize("compiled", [False, True])
def test_paged_attention(compiled: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """The prompts' tokens in torch's products, and in the kernel where it is built."""
    if not compiled:
        monkeypatch.setattr(row_attention, "_has_kernel", lambda kv_cache: False)
    length, prompt = 150, 130
    cache = torch.full((30, BLOCK, C + R), torch.nan, dtype=dtype)
    kv_b = rand(H * (N + V), C, dtype=dtype, seed=1, scale=0.3)
    sequences = []
    for seed, blocks in enumerate([[3, 17, 5, 9, 21, 8, 2, 11, 4, 25], [28, 1, 14, 7, 19, 6, 29, 10, 12, 13]]):
        latents = rand(length, C + R, dtype=dtype, seed=10 + seed)
        for block, part in zip(blocks, latents.split(BLOCK), strict=True):
            cache[block, : len(part)] = part
        q = rand(length, H, N + R, dtype=dtype, seed=20 + seed).split([N, R], -1)
        sequences.append((*q, blocks))
    one, two = sequences

    whole = attend(cache, kv_b, [(*one, prompt, 0, length)])
    assert whole.isfinite().all()
    assert_close(whole, attend(cache, kv_b, [(*one, prompt, 0, length)], reference))
    for chunk in (1, 7, 32, 64):
        for first in range(0, length, 40):
            last = min(first + chunk, length)
            assert torch.equal(attend(cache, kv_b, [(*one, prompt, first, last)]), whole[first:last])
    mixed = attend(cache, kv_b, [(*two, 5, 100, 103), (*one, prompt, 128, 141), (*two, 140, 90, 91)])
    assert torch.equal(mixed[3:16], whole[128:141])
