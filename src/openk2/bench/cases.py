"""What is measured: prefill of a prompt, decode at a depth, decode of several requests together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from openk2.errors import ConfigError
from openk2.planner import ModelShape, Parallelism
from openk2.planner.formats import Scheme
from openk2.planner.hardware import Device, Efficiency, Hardware
from openk2.planner.plan import TimeTerms
from openk2.planner.roofline import step_time

ANSWER_TOKENS = 32
"""That each request of a decode case is given."""
_NO_LOSSES = Efficiency(
    bandwidth_fraction=1.0,
    flops_fraction=1.0,
    link_fraction=1.0,
    overhead_s_per_layer=0.0,
    overhead_s_per_step=0.0,
    source="none: the machine's limit",
)


@dataclass(frozen=True)
class Case:
    """`batch` requests with prompts of `context` tokens. Counted are the prompt's tokens, or those of the answers."""

    kind: str
    """prefill or decode."""
    context: int
    batch: int = 1

    @property
    def answer_tokens(self) -> int:
        return 1 if self.kind == "prefill" else ANSWER_TOKENS

    @property
    def name(self) -> str:
        if self.kind == "prefill":
            return f"prefill {self.context:,}"
        return f"decode at {self.context:,}" + (f", {self.batch} together" if self.batch > 1 else "")

    def limit(
        self,
        shape: ModelShape,
        scheme: Scheme,
        cache_format: str,
        device: Device,
        efficiency: Efficiency = _NO_LOSSES,
    ) -> TimeTerms:
        """Seconds by the planner's roofline, at the machine's limit unless there is an `efficiency`: of the whole
        prompt, or of one decode step."""
        is_prefill = self.kind == "prefill"
        return step_time(
            shape,
            scheme,
            cache_format,
            Hardware(device=device, efficiency=efficiency),
            Parallelism(),
            tokens=self.context if is_prefill else self.batch,
            context_tokens=self.context / 2 if is_prefill else self.context,
            is_prefill=is_prefill,
        )


def make_cases(prefill: Sequence[int], depths: Sequence[int], batches: Sequence[int], *, window: int) -> list[Case]:
    """Prefill of each length, one request at each depth, and each batch at the first depth.

    Raises ConfigError for a size below 1, one that with its answer is beyond the model's window of `window` tokens, and
    where there is no case.
    """
    for name, sizes in (("prefill", prefill), ("depths", depths), ("batches", batches)):
        for size in sizes:
            if size < 1:
                raise ConfigError(f"{name} must be at least 1, not {size}", param=name)
    cases = [Case("prefill", tokens) for tokens in prefill]
    cases += [Case("decode", depth) for depth in depths]
    for case in cases:
        if case.context + case.answer_tokens > window:
            raise ConfigError(
                f"{case.name} with an answer of {case.answer_tokens} exceeds the model's window of {window:,} tokens",
                param=case.kind,
            )
    if not cases:
        raise ConfigError("nothing to measure: give a length for --prefill or --depth", param="depth")
    return cases + [Case("decode", depths[0], batch) for batch in batches if batch > 1 and depths]
