"""Attention of prompts in the compiled kernel: equal to its definition, and each token by its sequence alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from openk2.ops import cpu, reference
from openk2.ops.cpu.prompt_attention import PromptSpan, prompt_attention

pytestmark = pytest.mark.skipif(not cpu.available(), reason="the extension is not built")
ISAS = pytest.mark.parametrize("isa", cpu.supported_isas())
FUSED = tuple(isa for isa in cpu.supported_isas() if isa != "portable")
SCALE = 0.3


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@dataclass(frozen=True)
class Problem:
    """Sequences of some lengths in one cache; the queries of all of their tokens, one sequence after the other."""

    q_nope: Tensor
    q_pe: Tensor
    cache: Tensor
    kv_b: Tensor
    tables: Tensor
    lengths: tuple[int, ...]

    @classmethod
    def random(
        cls,
        lengths: Sequence[int],
        heads: int,
        nope: int,
        rope: int,
        value: int,
        latent: int,
        *,
        block: int = 16,
        dtype: torch.dtype = torch.float32,
        spread: float = 1.0,
    ) -> Problem:
        """What no sequence has written in the cache is NaN. `spread`: of the queries, and so of the scores."""
        generator = torch.Generator().manual_seed(0)

        def randn(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        counts = [-(-length // block) for length in lengths]
        order = torch.randperm(sum(counts) + 1, generator=torch.Generator().manual_seed(1))
        cache = torch.full((len(order), block, latent + rope), torch.nan)
        tables = torch.zeros(len(lengths), max(counts), dtype=torch.int64)
        for row, (length, blocks) in enumerate(zip(lengths, order[:-1].split(counts), strict=True)):
            tables[row, : len(blocks)] = blocks
            written = torch.full((len(blocks) * block, latent + rope), torch.nan)
            written[:length] = randn(length, latent + rope)
            cache[blocks] = written.unflatten(0, (-1, block))
        query = (randn(sum(lengths), heads, nope + rope) * spread).to(dtype)
        kv_b = (randn(heads * (nope + value), latent) * latent**-0.5).to(dtype)
        q_nope, q_pe = query.split([nope, rope], -1)
        return cls(q_nope, q_pe.contiguous(), cache.to(dtype), kv_b, tables, tuple(lengths))

    @property
    def starts(self) -> list[int]:
        return [sum(self.lengths[:row]) for row in range(len(self.lengths) + 1)]

    def run(self, parts: Sequence[tuple[int, int, int]] | None = None, *, isa: str | None = None) -> Tensor:
        """The tokens [first, last) of sequences, or all of them: (T, H, V)."""
        parts = parts or [(row, 0, length) for row, length in enumerate(self.lengths)]
        rows = torch.cat(
            [torch.arange(self.starts[row] + first, self.starts[row] + last) for row, first, last in parts]
        )
        spans, taken = [], 0
        for row, first, last in parts:
            spans.append(PromptSpan(taken, last - first, first, row))
            taken += last - first
        q_nope, q_pe = self.q_nope[rows], self.q_pe[rows]
        values = self.kv_b.shape[0] // q_nope.shape[1] - q_nope.shape[2]
        out = torch.full((*q_nope.shape[:2], values), torch.nan, dtype=q_nope.dtype)
        prompt_attention(q_nope, q_pe, self.cache, self.kv_b, self.tables, spans, SCALE, out, isa_name=isa)
        return out

    def defined(self) -> Tensor:
        """By the definition, in float32."""
        return reference.paged_attention(
            self.q_nope.float(),
            self.q_pe.float(),
            self.cache.float(),
            self.kv_b.float(),
            torch.cat([torch.arange(length) for length in self.lengths]),
            block_tables=self.tables,
            query_starts=self.starts,
            context_lens=self.lengths,
            generated_T=torch.zeros(sum(self.lengths), dtype=torch.bool),
            softmax_scale=SCALE,
        )


SIZES = [
    ([1], 1, 1, 2, 1, 1),
    ([7, 1, 64], 3, 5, 2, 7, 13),
    ([31, 33], 2, 16, 8, 16, 32),
    ([65, 130, 2], 3, 17, 6, 19, 33),
    ([128], 2, 48, 16, 31, 64),
    ([197], 1, 33, 4, 40, 100),
]
"""Lengths; heads, nope, rope, value, latent."""


@ISAS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_parity(sizes: tuple, dtype: torch.dtype, isa: str) -> None:
    problem = Problem.random(*sizes, dtype=dtype)
    want, got = problem.defined(), problem.run(isa=isa).float()
    assert (got - want).abs().max() <= {torch.float32: 2e-6, torch.bfloat16: 4e-3}[dtype] * want.abs().max()


@ISAS
@pytest.mark.parametrize("spread", [0.0, 30.0])
def test_even_and_steep_scores(spread: float, isa: str) -> None:
    """All keys alike, and one that takes nearly everything: later blocks raise the largest score again and again."""
    problem = Problem.random([300], 2, 16, 8, 16, 32, spread=spread)
    want, got = problem.defined(), problem.run(isa=isa)
    assert (got - want).abs().max() <= (1e-4 if spread else 2e-6) * want.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_no_bit_depends_on_chunks_batch_threads_or_instruction_set(
    dtype: torch.dtype, threads: None, shared_loops: None
) -> None:
    problem = Problem.random([150, 61, 230], 3, 21, 6, 18, 40, dtype=dtype)
    want = dict(zip(range(3), problem.run().split(problem.lengths), strict=True))
    for count in (1, 2, 7):  # more threads than heads: a head's queries are shared out
        torch.set_num_threads(count)
        for isa in FUSED or cpu.supported_isas():
            assert torch.equal(problem.run(isa=isa), torch.cat(list(want.values())))
        for chunk in (1, 7, 32, 50, 64):
            for first in range(0, 150, 40):
                parts = [(2, first, min(first + chunk, 230)), (0, first, min(first + chunk, 150)), (1, 60, 61)]
                sizes = [last - begin for _, begin, last in parts]
                for (row, begin, last), got in zip(parts, problem.run(parts).split(sizes), strict=True):
                    assert torch.equal(got, want[row][begin:last]), (count, chunk, row, begin)


@pytest.mark.parametrize("block", [1, 5, 24, 300])
def test_size_of_the_cache_blocks(block: int) -> None:
    sizes = ([90, 13], 2, 12, 4, 9, 20)
    assert torch.equal(Problem.random(*sizes, block=block).run(), Problem.random(*sizes).run())


@ISAS
def test_what_is_no_number_stays_in_its_sequence(isa: str) -> None:
    problem = Problem.random([70, 70], 2, 12, 4, 9, 20)
    want = problem.run(isa=isa)
    problem.q_nope[3] = torch.nan
    problem.cache[problem.tables[0, 4]] = torch.inf  # the last of its keys
    got = problem.run(isa=isa)
    assert not got[3].isfinite().any() and torch.equal(got[70:], want[70:])
    assert torch.equal(got[:3], want[:3]) and torch.equal(got[4:64], want[4:64]), "earlier tokens do not see it"


def test_nothing_but_the_spans_is_written() -> None:
    problem = Problem.random([40], 2, 12, 4, 9, 20)
    out = torch.full((40, 2, 9), 7.0)
    spans = [PromptSpan(5, 3, 5, 0), PromptSpan(20, 1, 20, 0)]
    prompt_attention(problem.q_nope, problem.q_pe, problem.cache, problem.kv_b, problem.tables, spans, SCALE, out)
    written = torch.tensor([5, 6, 7, 20])
    assert torch.equal(out[written], problem.run()[written])
    out[written] = 7.0
    assert (out == 7.0).all()
    prompt_attention(problem.q_nope, problem.q_pe, problem.cache, problem.kv_b, problem.tables, [], SCALE, out)


def test_what_does_not_fit_is_refused() -> None:
    p = Problem.random([40], 2, 12, 4, 9, 20)
    out = torch.zeros(40, 2, 9)

    def call(problem: Problem, out: Tensor, span: tuple[int, int, int, int] = (0, 40, 0, 0)) -> None:
        q = problem.q_nope, problem.q_pe
        prompt_attention(*q, problem.cache, problem.kv_b, problem.tables, [PromptSpan(*span)], SCALE, out)

    call(p, out)
    for wrong in (
        replace(p, q_pe=p.q_pe.bfloat16()),
        replace(p, q_nope=p.q_nope.double()),
        replace(p, q_nope=p.q_nope.transpose(0, 2).contiguous().transpose(0, 2)),
        replace(p, q_pe=p.q_pe[1:]),
        replace(p, cache=p.cache[..., 1:]),
        replace(p, cache=p.cache[:, ::2]),
        replace(p, kv_b=p.kv_b[1:]),
        replace(p, tables=p.tables.int()),
    ):
        with pytest.raises(ValueError, match="do not fit each other"):
            call(wrong, out)
    with pytest.raises(ValueError, match="do not fit each other"):
        call(p, torch.zeros(40, 2, 8))
    for span in ((1, 40, 0, 0), (0, 0, 0, 0), (-1, 5, 0, 0), (0, 5, 44, 0), (0, 5, -1, 0), (0, 5, 0, 1)):
        with pytest.raises(ValueError, match="reaches past"):
            call(p, out, span)
