"""current_time."""

from __future__ import annotations

import difflib
from datetime import UTC, datetime, tzinfo
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

from openk2.agent.declare import ToolError


def current_time(timezone: str = "") -> str:
    """The date and time there, such as `2026-11-03 14:05:22 CET (UTC+01:00), Tuesday`; empty is the local time."""
    name = timezone.strip()
    zone = None if name.lower() in ("", "local") else _zone(name)
    now = datetime.now(zone) if zone is not None else datetime.now().astimezone()
    offset = now.strftime("%z")
    return f"{now:%Y-%m-%d %H:%M:%S} {now.tzname()} (UTC{offset[:3]}:{offset[3:5]}), {now:%A}"


def _zone(name: str) -> tzinfo:
    if name.upper() in ("UTC", "GMT", "Z"):  # known also where the system has no time zone database
        return UTC
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ToolError(_unknown(name)) from None


def _unknown(name: str) -> str:
    known = available_timezones()
    if not known:
        return f"time zone {name!r} is not known: this system has no time zone database (the package tzdata has one)"
    city = name.replace(" ", "_").lower()
    meant = sorted(zone for zone in known if zone.lower() == city or zone.lower().endswith(f"/{city}"))
    meant = meant or difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {' or '.join(meant[:3])}?" if meant else "names look like UTC or Europe/Paris"
    return f"there is no time zone {name!r}; {hint}"
