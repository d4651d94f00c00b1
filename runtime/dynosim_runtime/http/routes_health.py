"""/health and /live."""

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from dynosim_runtime.http.registry import ModelRegistry


def health_routes(models: ModelRegistry) -> list[BaseRoute]:
    """`/live`: the process answers. `/health`: there is a model to serve, else 503."""

    async def live(request: Request) -> Response:
        return _json(200, {"status": "live"})

    async def health(request: Request) -> Response:
        if not len(models):
            why = models.absence or "no worker is known yet"
            return _json(503, {"status": "unhealthy", "message": why})
        return _json(200, {"status": "healthy", "models": [model.name for model in models]})

    return [Route("/live", live), Route("/health", health)]


def _json(status: int, content: object) -> Response:
    return Response(orjson.dumps(content), status_code=status, media_type="application/json")
