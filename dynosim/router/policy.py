"""A user's own placement policy: named in the run file, it works alike in twin and live layer.

    class Cheapest:
        def __init__(self, settings, seed): ...
        def choose(self, request, options, now_ms): return min(options, key=lambda o: o.cost)

`router.policy: my_package.my_module:Cheapest` puts it in place of the choice by cost. Everything
else stays: eligibility, queue, load tracking, the index.
"""

from collections.abc import Hashable, Sequence
from typing import Any, Protocol, runtime_checkable

from dynosim.errors import ConfigError
from dynosim.router.cost import WorkerOption
from dynosim.router.request import RoutingRequest


class PlacementPolicy(Protocol):
    """Chooses among the eligible candidates, each with its cost."""

    def choose(
        self, request: RoutingRequest, options: Sequence[WorkerOption], now_ms: float
    ) -> WorkerOption:
        """One of `options` (never empty, in slot order)."""
        ...


@runtime_checkable
class LearningPolicy(Protocol):
    """A policy that wants to know what came of its choices."""

    def on_first_token(self, request_id: Hashable, now_ms: float) -> None:
        """The first token of a request was produced."""
        ...

    def on_end(self, request_id: Hashable, now_ms: float) -> None:
        """A request ended, however it ended."""
        ...


@runtime_checkable
class StatefulPolicy(Protocol):
    """A policy that can go on where another one was.

    A live router's log begins a new file now and then, from where the router can be followed on its
    own. A policy without these methods begins anew then (and must bear reports of requests that it
    has not placed).
    """

    def state(self) -> Any:
        """All that future choices depend on, as JSON knows it: lists, texts, numbers, text keys."""
        ...

    def restore(self, state: Any) -> None:
        """Make a new policy what the one was that gave its `state`."""
        ...


def choose_by(
    policy: PlacementPolicy, request: RoutingRequest, options: Sequence[WorkerOption], now_ms: float
) -> WorkerOption:
    """What a policy chooses.

    Raises: ConfigError naming the policy if that may not be chosen.
    """
    option: object = policy.choose(request, options, now_ms)
    if isinstance(option, WorkerOption) and option in options:
        return option
    raise ConfigError(
        f"router.policy {type(policy).__name__}: choose() must return one of its options, "
        f"got {option!r}"
    )
