"""The frontend's HTTP application: which path is answered by what.

It knows models (`ModelRegistry`) and a `Generator`; of workers, routing and discovery it knows
nothing.
"""

from collections.abc import Sequence

from starlette.applications import Starlette
from starlette.routing import BaseRoute
from starlette.types import Lifespan

from dynosim_runtime.frontend.limits import HttpLimits
from dynosim_runtime.frontend.observer import HttpObserver
from dynosim_runtime.frontend.registry import ModelRegistry
from dynosim_runtime.frontend.routes_health import health_routes
from dynosim_runtime.frontend.routes_models import model_routes
from dynosim_runtime.generation import Generator


def create_app(
    generator: Generator,
    models: ModelRegistry,
    *,
    limits: HttpLimits | None = None,
    metrics: HttpObserver | None = None,
    extra_routes: Sequence[BaseRoute] = (),
    lifespan: Lifespan[Starlette] | None = None,
    strip_anthropic_preamble: bool = False,
) -> Starlette:
    """The ASGI application over a generator and the models it serves.

    `extra_routes` (e.g. /metrics) come first. `strip_anthropic_preamble` removes the billing line
    that some clients put in front of the system prompt of /v1/messages, which would make every
    session's prefix another one.
    """
    routes = [*extra_routes, *health_routes(models), *model_routes(models)]
    return Starlette(routes=routes, lifespan=lifespan)
