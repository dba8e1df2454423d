"""Server-sent events: lines to the data of each event, tolerant of everything that servers leave out."""

from __future__ import annotations

from collections.abc import AsyncIterator


async def event_data(lines: AsyncIterator[str]) -> AsyncIterator[str]:
    """Yield the data of each event. Comments, names and ids are skipped.

    Each `data:` line is an event when it is followed by another one that begins a JSON object: some servers leave out
    the empty line between events, and none of those that speak this API splits its JSON over lines.
    """
    waiting: list[str] = []
    async for line in lines:
        field, _, value = line.rstrip("\r").partition(":")
        starts = field == "data" and value.lstrip().startswith(("{", "["))
        if waiting and (not line.strip() or starts):
            yield "\n".join(waiting)
            waiting = []
        if field == "data":
            waiting.append(value.removeprefix(" "))
    if waiting:
        yield "\n".join(waiting)
