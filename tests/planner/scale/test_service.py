"""Services for many users: what their numbers must satisfy, and that the page is what the code says."""

from __future__ import annotations

from dataclasses import replace

import pytest
from dev import write_scale

from openk2.errors import ConfigError
from openk2.planner.read_model import read_model
from openk2.planner.scale import Audience, ServicePlan, plan_service

K2 = read_model("k2-0905")
UNITS = ("16xH200", "8xB200")


def plans(**changes: float) -> list[ServicePlan]:
    return plan_service(K2, replace(Audience(users_per_day=1e6), **changes), UNITS, gateway_s=0.02)


def test_the_peak_by_hand() -> None:
    assert Audience(users_per_day=86_400, requests_per_user=2, peak=3).peak_requests_per_s == 6


@pytest.mark.parametrize("plan", plans(), ids=lambda plan: str(plan.unit.hardware))
def test_every_zone_may_be_lost(plan: ServicePlan) -> None:
    audience, speed = plan.audience, plan.unit.speed
    assert speed is not None
    left = plan.deployments_in_all * (audience.zones - 1) // audience.zones
    assert left * speed.requests_per_s * audience.headroom >= audience.peak_requests_per_s
    assert speed.decode_tokens_per_s_per_request >= audience.least_tokens_per_s
    assert plan.devices == plan.deployments_in_all * plan.unit.hardware.num_devices


def test_the_cheapest_is_first_and_more_users_cost_more() -> None:
    small, large = plans(), plans(users_per_day=1e8)
    assert [plan.usd_per_month for plan in small] == sorted(plan.usd_per_month for plan in small)
    assert large[0].usd_per_month > 90 * small[0].usd_per_month
    assert large[0].usd_per_million_requests <= small[0].usd_per_million_requests  # rounding up weighs less


def test_caches_by_littles_law() -> None:
    plan = plans(think_s=30)[0]
    assert plan.cache_tokens_needed == pytest.approx(plans(think_s=60)[0].cache_tokens_needed / 2)
    held = plan.pause_held_s * plan.audience.peak_requests_per_s * plan.audience.conversation_tokens
    assert held == pytest.approx(plan.device_cache_tokens)


def test_cells_divide_the_health_checks() -> None:
    plan = plans(users_per_day=1e8)[0]
    assert plan.health_checks_per_s(100) == pytest.approx(plan.health_checks_per_s() / 100)


def test_what_no_hardware_reaches_is_refused() -> None:
    with pytest.raises(ConfigError, match="gives each answer 10000 tokens/s"):
        plans(least_tokens_per_s=10_000)
    with pytest.raises(ConfigError):
        plan_service(K2, Audience(users_per_day=1e6), ["1xL40S"], gateway_s=0.02)


@pytest.mark.parametrize("wrong", [dict(users_per_day=0), dict(zones=1), dict(think_s=0), dict(peak=float("nan"))])
def test_an_audience_that_is_none_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(wrong))} must be"):
        Audience(**{"users_per_day": 1e6, **wrong})  # type: ignore[arg-type]


def test_docs_scale_is_up_to_date() -> None:
    assert write_scale.PAGE.read_text(encoding="utf-8") == write_scale.page(), "run: python dev/write_scale.py"
