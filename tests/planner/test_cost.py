"""Cost, against the guide's own table worked out by hand, and the cheapest hardware."""

from __future__ import annotations

from pathlib import Path

import pytest

from openk2.errors import ConfigError
from openk2.planner import Load, read_hardware
from openk2.planner.cost import HostedPrice, cheapest_plan, plan_cost, prices
from openk2.planner.make_plan import make_plan
from openk2.planner.read_model import read_model

GUIDE = HostedPrice(
    provider="guide", models=("k2-0905",), input_usd=1, cached_input_usd=0.5, output_usd=3, source="", date=""
)


def load(requests: float, **values: float) -> Load:
    return Load(context_tokens=4096, prompt_tokens=1000, output_tokens=2000, requests_per_day=requests, **values)  # type: ignore[arg-type]


@pytest.mark.parametrize(("requests", "usd"), [(1e4, 2100), (5e4, 10_500), (2e5, 42_000), (1e6, 210_000)])
def test_a_month_of_the_guides_requests(requests: float, usd: float) -> None:
    made = make_plan(read_model("k2-0905"), read_hardware("16xH200"), load(requests))
    assert plan_cost(made, 2.0, (GUIDE,)).hosted[0].month_usd == pytest.approx(usd)


@pytest.mark.parametrize(("hour", "thousands"), [(1.8, 99), (2, 110), (3, 165), (4, 219)])
def test_break_even_of_sixteen_h200(hour: float, thousands: float) -> None:
    made = make_plan(read_model("k2-0905"), read_hardware("16xH200"), load(0))
    cost = plan_cost(made, hour, (GUIDE,))
    assert cost.hosted[0].break_even_requests_per_day == pytest.approx(thousands * 1000, rel=0.01)
    assert cost.request_usd is None


def test_cached_tokens_cost_their_own_price() -> None:
    assert GUIDE.request_usd(load(1, cached_fraction=0.5)) == pytest.approx(0.0005 + 0.00025 + 0.006)


def test_every_price_has_a_source_and_a_date() -> None:
    assert all(price.source and price.date for price in prices().hosted)


def test_the_cheapest_hardware_reaches_the_target() -> None:
    model, wanted = read_model("k2-0905"), Load(context_tokens=131_072, batch=4)
    made = cheapest_plan(model, wanted, target_tokens_per_s=200, counts=(8, 16))
    assert made.speed is not None and made.speed.decode_tokens_per_s >= 200
    with pytest.raises(ConfigError, match="the fastest is"):
        cheapest_plan(model, wanted, target_tokens_per_s=1e6, counts=(8, 16))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[device_hours.H200]\nusd = 1", "unknown tables device_hours; there are"),
        ("[device_hour.H200]\nusd = -1", r"device_hour.H200: usd must be dollars of at least 0, not -1"),
        ("[device_hour.H200]\neur = 1", "usd must be dollars of at least 0, not None"),
        ("[[hosted]]\nprovider = 'me'", "hosted price of me: it must have exactly provider, models"),
        ("[[hosted", "is no TOML"),
        ("device_hour = 3", r"prices are tables \[device_hour.NAME\]"),
        ("hosted = ['me']", r"prices are tables \[device_hour.NAME\] and \[\[hosted\]\]"),
        (
            "[[hosted]]\nprovider = 'me'\nmodels = 3\ninput_usd = 1\ncached_input_usd = 1\noutput_usd = 1\n"
            "source = 'me'\ndate = 'now'",
            "hosted price of me: models is a list of names, not 3",
        ),
    ],
)
def test_price_files_with_mistakes_are_refused(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "prices.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        prices(file)


def test_a_price_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read .*: No such file"):
        prices(tmp_path / "prices.toml")
