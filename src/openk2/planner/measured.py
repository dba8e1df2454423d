"""A plan whose speed was measured in parts on the machine that it is for, instead of taken from a roofline."""

from __future__ import annotations

from dataclasses import replace

from openk2.planner.plan import Plan


def with_measured_speed(plan: Plan, *, decode_step_s: float, prompt_s: float, measured: str) -> Plan:
    """The plan with the rates that follow from the seconds of a decode step of its batch in the middle of its answers,
    and of the uncached part of its mean prompt.

    The times by what they are spent on stay the roofline's. `measured` says what was measured, and joins the
    assumptions. Of one machine, which answers all requests; plans that do not fit stay as they are.
    """
    speed, load = plan.speed, plan.load
    if speed is None:
        return plan
    roofline = (
        f"by the roofline, with what is assumed to be reached of it: decode {speed.decode_tokens_per_s:,.1f} tokens/s, "
        f"prefill {speed.prefill_tokens_per_s:,.0f}"
    )
    return replace(
        plan,
        speed=replace(
            speed,
            decode_tokens_per_s_per_request=1 / decode_step_s,
            decode_tokens_per_s=load.batch / decode_step_s,
            prefill_tokens_per_s=load.uncached_prompt_tokens / prompt_s,
            time_to_first_token_s=prompt_s,
            requests_per_s=1 / (prompt_s + load.output_tokens * decode_step_s / load.batch),
        ),
        assumptions=(*plan.assumptions, measured, roofline),
    )
