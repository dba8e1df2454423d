"""Pretraining on paper: terms against counts by hand, and the page against the code."""

from __future__ import annotations

from pathlib import Path

import pytest

from openk2.errors import ConfigError
from openk2.planner import ModelShape, read_hardware
from openk2.planner.pretraining import TrainingLayout, training_memory, training_step
from openk2.planner.read_model import read_model

PAGE = Path(__file__).parents[2] / "docs" / "training.md"
TOKENS = 15.5e12
LAYOUTS = ((256, 8), (256, 16), (256, 128), (384, 384), (1536, 384))


def k2() -> ModelShape:
    return read_model("k2-0905")


def layout(ranks: int, degree: int) -> TrainingLayout:
    return TrainingLayout(
        num_ranks=ranks, expert_parallel=degree, pass_tokens=8192, batch_tokens=2**26, sequence_tokens=4096
    )


def ranks_table() -> str:
    rows = [
        "| ranks | expert parallel | memory a rank, GB | arithmetic, s | gathering, s | exchange, s | Newton-Schulz, s "
        "| days |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for ranks, degree in LAYOUTS:
        plan = layout(ranks, degree)
        size = sum(term.bytes for term in training_memory(k2(), plan)) / 1e9
        time = training_step(k2(), plan, read_hardware(f"{ranks}xH200"))
        days = TOKENS / plan.batch_tokens * time.total_s / 86_400
        rows.append(
            f"| {ranks:,} | {degree} | {size:.0f} | {time.arithmetic_s:.0f} | {time.gather_s:.0f} "
            f"| {time.exchange_s:.0f} | {time.newton_schulz_s:.1f} | {days:,.0f} |"
        )
    return "\n".join(rows)


def memory_table() -> str:
    rows = ["| term | GB | what it is |", "|---|---|---|"]
    rows += [f"| {t.name} | {t.bytes / 1e9:.1f} | {t.formula} |" for t in training_memory(k2(), layout(384, 384))]
    return "\n".join(rows)


def test_the_page_says_what_the_planner_computes() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert ranks_table() in page
    assert memory_table() in page


def test_terms_by_hand() -> None:
    shape, plan = k2(), layout(384, 384)
    terms = {term.name: term.bytes for term in training_memory(shape, plan)}
    assert terms["weights"] == pytest.approx(4 * 1026.408e9 / 384, rel=1e-6)
    assert terms["optimizer"] - terms["weights"] == pytest.approx(4 * 2 * 163_840 * 7168 / 384, rel=1e-6)
    assert terms["layer inputs"] == 2 * 61 * 8192 * 7168
    time = training_step(shape, plan, read_hardware("384xH200"))
    reached = 989e12 * 0.45
    rank_tokens = plan.passes * plan.pass_tokens
    assert plan.passes == 22  # 67M / (384 x 8,192), rounded up
    # 4 forward passes of 2 operations per active weight, a little more for attention, 3 for the head
    assert time.arithmetic_s == pytest.approx(rank_tokens * (8 * 30.5e9 + 6 * 1.17e9) / reached, rel=0.1)
    rows = 8192 * 8 * 7168 * 2  # bytes of the tokens' copies
    assert time.exchange_s == pytest.approx(22 * 60 * 6 * rows * 383 / 384 / (50e9 * 0.7), rel=1e-6)


def test_one_copy_of_the_experts_is_never_gathered() -> None:
    hardware = read_hardware("384xH200")
    spread, copied = (training_step(k2(), layout(384, degree), hardware) for degree in (384, 48))
    assert spread.gather_s < copied.gather_s / 2
    assert training_step(k2(), layout(384, 8), hardware).exchange_s < spread.exchange_s / 5  # within a node
    with pytest.raises(ConfigError, match="does not divide"):
        layout(384, 7)
