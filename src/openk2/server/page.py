"""The web page at `/` and what it needs from the server besides the API."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, Response

from openk2.chat.builtin_tools import CALCULATE, CURRENT_TIME
from openk2.chat.messages import ToolSpec
from openk2.server.sse import dump_json

STATIC_FOLDER = Path(__file__).with_name("static")

GET_WEATHER = ToolSpec.function(
    "get_weather",
    "Get the current weather of a city.",
    {
        "type": "object",
        "properties": {"city": {"type": "string", "description": "Name of the city"}},
        "required": ["city"],
    },
)
"""The page answers it with fixed data, and says so."""

DEMO_TOOLS = (CALCULATE, CURRENT_TIME, GET_WEATHER)

SECURITY_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


_MEDIA_TYPES = {".js": "text/javascript", ".css": "text/css"}
"""Stated, because the system's own table is wrong on some machines, and a module of the wrong type does not load."""


def build_router() -> APIRouter:
    router = APIRouter()
    names = frozenset(path.name for path in STATIC_FOLDER.iterdir() if path.suffix in _MEDIA_TYPES)

    @router.get("/")
    async def page() -> Response:
        return FileResponse(STATIC_FOLDER / "index.html", headers=SECURITY_HEADERS)

    @router.get("/static/{name}")
    async def static_file(name: str) -> Response:
        path = STATIC_FOLDER / name
        if name not in names:
            raise HTTPException(404)
        return FileResponse(path, headers=SECURITY_HEADERS, media_type=_MEDIA_TYPES[path.suffix])

    @router.get("/ui/tools.json")
    async def tools() -> Response:
        body = dump_json({"tools": [tool.declaration for tool in DEMO_TOOLS]})
        return Response(body, headers=SECURITY_HEADERS, media_type="application/json")

    return router
