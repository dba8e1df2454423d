"""The ASGI application: routes, guard and error handlers around one `ModelSlot`."""

from __future__ import annotations

from fastapi import FastAPI
from starlette.responses import Response

from openk2 import __version__
from openk2.chat.provider import ChatProvider
from openk2.server import page
from openk2.server.anthropic.errors import AnthropicErrors
from openk2.server.anthropic.routes import build_router as build_anthropic_router
from openk2.server.error_responses import add_error_handlers
from openk2.server.guard import Guard
from openk2.server.metrics import Metrics
from openk2.server.model_slot import ModelSlot
from openk2.server.openai.routes import build_router as build_openai_router
from openk2.server.responses.routes import build_router as build_responses_router
from openk2.server.settings import ServerSettings
from openk2.server.sse import dump_json
from openk2.server.tokenize import build_router as build_tokenize_router


def create_app(provider: ChatProvider | ModelSlot, settings: ServerSettings | None = None) -> FastAPI:
    """The application that serves `provider`; give a `ModelSlot` to fill later and answer 503 until then.

    Raises ConfigError when the settings' store of responses cannot be used.
    """
    settings = settings or ServerSettings()
    if isinstance(provider, ModelSlot):
        slot = provider
    else:
        slot = ModelSlot(provider, served_model_names=settings.served_model_names)
    metrics = Metrics()
    app = FastAPI(title="openk2", version=__version__, docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/health")
    @app.get("/ready")
    async def health() -> Response:
        """200 only when a request would be answered."""
        status = "ok" if slot.is_healthy else "failed" if slot.is_loaded else "loading"
        return Response(dump_json({"status": status}), 200 if slot.is_healthy else 503, media_type="application/json")

    @app.get("/version")
    async def version() -> Response:
        return Response(dump_json({"version": __version__}), media_type="application/json")

    @app.get("/metrics")
    async def metrics_text() -> Response:
        return Response(metrics.render(), headers={"content-type": metrics.content_type})

    app.include_router(build_openai_router(slot, settings, metrics))
    app.include_router(build_responses_router(slot, settings, metrics))
    app.include_router(build_anthropic_router(slot, settings, metrics))
    app.include_router(build_tokenize_router(slot, settings))
    app.include_router(page.build_router())
    add_error_handlers(app)
    app.add_middleware(Guard, settings=settings)
    app.add_middleware(AnthropicErrors)  # outermost: what the guard refuses is translated, too
    return app
