"""/v1/models: what can be asked for, in a form that OpenAI's and Anthropic's clients both read."""

from datetime import UTC, datetime
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from dynosim_runtime.http.registry import ModelRegistry, ServedModel


def model_routes(models: ModelRegistry) -> list[BaseRoute]:
    """The list, and each model by its id, which may hold slashes."""

    async def list_models(request: Request) -> Response:
        described = [_describe(model) for model in models]
        ids = [model.name for model in models]
        return _json(
            {
                "object": "list",
                "data": described,
                "has_more": False,
                "first_id": ids[0] if ids else None,
                "last_id": ids[-1] if ids else None,
            }
        )

    async def retrieve_model(request: Request) -> Response:
        return _json(_describe(models.get(request.path_params["model_id"])))

    return [
        Route("/v1/models", list_models),
        Route("/v1/models/{model_id:path}", retrieve_model),
    ]


def _describe(model: ServedModel) -> dict[str, Any]:
    return {
        "id": model.name,
        "object": "model",
        "created": model.created_s,
        "owned_by": "dynosim",
        "max_model_len": model.max_model_len,
        "type": "model",
        "display_name": model.name,
        "created_at": datetime.fromtimestamp(model.created_s, UTC).isoformat(),
    }


def _json(content: object) -> Response:
    return Response(orjson.dumps(content), media_type="application/json")
