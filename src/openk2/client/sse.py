"""Server-sent events: bytes to the data of each event, tolerant of everything that servers leave out."""

from __future__ import annotations

from collections.abc import AsyncIterator


async def event_data(chunks: AsyncIterator[bytes]) -> AsyncIterator[str]:
    """Yield the data of each event. Comments, names and ids are skipped.

    Each `data:` line is an event when it is followed by another one that begins a JSON value: some servers leave out
    the empty line between events, and none of those that speak this API splits its JSON over lines.
    """
    waiting: list[str] = []
    async for line in _lines(chunks):
        field, _, value = line.partition(":")
        starts = field == "data" and value.lstrip().startswith(("{", "["))
        if waiting and (not line.strip() or starts):
            yield "\n".join(waiting)
            waiting = []
        if field == "data":
            waiting.append(value.removeprefix(" "))
    if waiting:
        yield "\n".join(waiting)


async def _lines(chunks: AsyncIterator[bytes]) -> AsyncIterator[str]:
    """Lines as the event stream format has them: ended by newlines alone.

    The line readers of HTTP libraries also split at U+2028 and other breaks of Unicode, which JSON may hold unescaped.
    """
    rest = b""
    async for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line.removesuffix(b"\r").decode("utf-8", errors="replace")
    if rest:
        yield rest.decode("utf-8", errors="replace")
