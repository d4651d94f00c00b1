"""The frontend's HTTP application: which path is answered by what.

It knows models (`ModelRegistry`) and a `Dispatcher`; of workers, routing and discovery it knows
nothing.
"""

from collections.abc import Mapping, Sequence
from http import HTTPStatus

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Lifespan, Receive, Scope, Send

from dynosim_runtime.dialects.errors import (
    anthropic_error,
    error_headers,
    internal_error,
    openai_error,
)
from dynosim_runtime.dialects.parsing.output_parser import Parsing
from dynosim_runtime.errors import ApiError
from dynosim_runtime.http.callers import Callers
from dynosim_runtime.http.limits import ConcurrencyLimit, HttpLimits
from dynosim_runtime.http.observer import HttpObserver, NoObserver
from dynosim_runtime.http.registry import ModelRegistry
from dynosim_runtime.http.routes_generate import Service, generate_routes
from dynosim_runtime.http.routes_health import health_routes
from dynosim_runtime.http.routes_models import model_routes
from dynosim_runtime.http.routes_tokenize import tokenize_routes
from dynosim_runtime.http.speculative_prefills import SpeculativePrefills
from dynosim_runtime.requests import Dispatcher


def create_app(
    dispatcher: Dispatcher,
    models: ModelRegistry,
    *,
    limits: HttpLimits | None = None,
    metrics: HttpObserver | None = None,
    extra_routes: Sequence[BaseRoute] = (),
    lifespan: Lifespan[Starlette] | None = None,
    strip_anthropic_preamble: bool = False,
    parsing: Parsing | None = None,
    speculative_prefills: SpeculativePrefills | None = None,
) -> ASGIApp:
    """The ASGI application over a dispatcher and the models it serves.

    `extra_routes` (e.g. /metrics) come first. `strip_anthropic_preamble` removes the billing line
    that some clients put in front of the system prompt of /v1/messages, which would make every
    session's prefix another one. `parsing` tells what the model writes in chats besides words,
    `speculative_prefills` what is to become of prompts of next turns; whoever makes it closes it.
    """
    limits = limits or HttpLimits()
    service = Service(
        dispatcher=dispatcher,
        models=models,
        limits=limits,
        observer=metrics or NoObserver(),
        concurrency=ConcurrencyLimit(limits.max_concurrent_requests),
        callers=Callers(),
        speculative_prefills=speculative_prefills or SpeculativePrefills(dispatcher),
    )
    generating = generate_routes(
        service,
        strip_anthropic_preamble=strip_anthropic_preamble,
        parsing=parsing or Parsing(),
    )
    routes = [
        *extra_routes,
        *generating,
        *tokenize_routes(service, strip_anthropic_preamble=strip_anthropic_preamble),
        *health_routes(models),
        *model_routes(models),
    ]
    app = Starlette(
        routes=routes,
        lifespan=lifespan,
        exception_handlers={
            ApiError: _answer_api_error,
            HTTPException: _answer_http_exception,
            Exception: _answer_exception,
        },
    )
    return Shortcuts(app, {route.path: route.app for route in generating})


class Shortcuts:
    """Leads straight to the applications that answer POSTs to some paths, and else to `app`.

    What those answer themselves, errors included, needs none of Starlette's layers, each of which
    would cost something with every token.
    """

    def __init__(self, app: ASGIApp, targets: Mapping[str, ASGIApp]) -> None:
        self._app = app
        self._targets = targets

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""
        app = self._app
        if scope["type"] == "http" and scope["method"] == "POST":
            app = self._targets.get(scope["path"], app)
        await app(scope, receive, send)


def _answer_api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError), "registered for it"
    return _error_response(request, error, error_headers(error))


def _answer_http_exception(request: Request, error: Exception) -> Response:
    """Starlette's own: no such path, or the wrong method for it."""
    assert isinstance(error, HTTPException), "registered for it"
    reason = HTTPStatus(error.status_code).phrase
    told = ApiError(
        error.status_code,
        f"{request.method} {request.url.path}: {reason}",
        code=reason.lower().replace(" ", "_"),
    )
    return _error_response(request, told, dict(error.headers or {}))


def _answer_exception(request: Request, error: Exception) -> Response:
    return _error_response(request, internal_error(), {})


def _error_response(request: Request, error: ApiError, headers: dict[str, str]) -> Response:
    is_anthropic = request.url.path.startswith("/v1/messages")
    content = anthropic_error(error) if is_anthropic else openai_error(error)
    return Response(
        orjson.dumps(content),
        status_code=error.status,
        headers=headers,
        media_type="application/json",
    )
