"""The ASGI application: routes, guard and error handlers around one `ModelSlot`."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

from openk2 import __version__
from openk2.chat.provider import ChatProvider
from openk2.server import cache_misses, openapi, page, traces
from openk2.server.answering import Answering
from openk2.server.anthropic.errors import AnthropicErrors
from openk2.server.anthropic.routes import build_router as build_anthropic_router
from openk2.server.error_responses import BugResponses, add_error_handlers
from openk2.server.guard import Guard
from openk2.server.model_slot import ModelSlot
from openk2.server.openai.routes import build_router as build_openai_router
from openk2.server.request_log import RequestLog, RequestSink, log_request
from openk2.server.responses.routes import build_router as build_responses_router
from openk2.server.settings import ServerSettings
from openk2.server.sse import dump_json
from openk2.server.tokenize import build_router as build_tokenize_router

_EXPOSED_HEADERS = ("x-request-id", "request-id", "x-openk2-ignored", "retry-after", "x-should-retry")
"""What pages of other origins may read, besides what browsers always show them."""


def create_app(
    provider: ChatProvider | ModelSlot,
    settings: ServerSettings | None = None,
    *,
    sinks: Sequence[RequestSink] = (log_request,),
) -> FastAPI:
    """The application that serves `provider`; give a `ModelSlot` to fill later and answer 503 until then.

    `sinks` are told of every request when it has ended. `app.state.answering` knows the answers that are under way.
    Raises ConfigError when the settings' store of responses cannot be used.
    """
    settings = settings or ServerSettings()
    if isinstance(provider, ModelSlot):
        slot = provider
    else:
        slot = ModelSlot(provider, served_model_names=settings.served_model_names)
    answering = Answering(slot, settings)
    app = FastAPI(title="openk2", version=__version__, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.answering = answering

    @app.get("/health")
    async def health() -> Response:
        """200 as long as the model is there."""
        status = "ok" if slot.is_healthy else "failed" if slot.is_loaded else "loading"
        return _status(status)

    @app.get("/ready")
    async def ready() -> Response:
        """200 only when a request would be answered: also not while the server is about to end."""
        return _status("draining") if answering.is_draining else await health()

    @app.get("/version")
    async def version() -> Response:
        return Response(dump_json({"version": __version__}), media_type="application/json")

    @app.get("/metrics")
    async def metrics_text() -> Response:
        metrics = answering.metrics
        return Response(metrics.render(), headers={"content-type": metrics.content_type})

    app.include_router(build_openai_router(slot, settings, answering))
    app.include_router(build_responses_router(slot, settings, answering))
    app.include_router(build_anthropic_router(slot, settings, answering))
    app.include_router(build_tokenize_router(slot, settings))
    app.include_router(traces.build_router(answering.traces))
    if answering.cache_misses is not None:
        app.include_router(cache_misses.build_router(answering.cache_misses))
    app.include_router(openapi.build_router())
    app.include_router(page.build_router())
    add_error_handlers(app)
    # From the inside out: each sees what those before it answer.
    app.add_middleware(BugResponses)
    app.add_middleware(Guard, settings=settings)
    app.add_middleware(AnthropicErrors)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=("GET", "POST", "DELETE"),
            allow_headers=("*",),
            expose_headers=_EXPOSED_HEADERS,
        )
    app.add_middleware(RequestLog, sinks=sinks)
    return app


def _status(status: str) -> Response:
    return Response(dump_json({"status": status}), 200 if status == "ok" else 503, media_type="application/json")
