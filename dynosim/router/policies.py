"""Placement policies that look at nothing but load.

A policy sees a `RequestView`, never the true output length, and the number of requests each worker
has in hand. Twin and live layer call the same objects.
"""

import random
from typing import Protocol

from dynosim.errors import ConfigError
from dynosim.records import RequestView


class RoutingPolicy(Protocol):
    """Chooses a worker for each request as it arrives."""

    def choose(self, request: RequestView, num_requests: list[int], now_ms: float) -> int:
        """Index of the worker to serve `request`.

        `num_requests[w]` counts the requests placed on worker w that have not ended. The list is
        the caller's; it is not to be changed or kept.
        """
        ...


class RoundRobin:
    """Each worker in turn, in order of worker index."""

    def __init__(self) -> None:
        self._next = 0

    def choose(self, request: RequestView, num_requests: list[int], now_ms: float) -> int:
        """The worker after the one chosen last."""
        worker = self._next % len(num_requests)
        self._next = worker + 1
        return worker


class RandomChoice:
    """Every worker with equal chance."""

    def __init__(self, generator: random.Random) -> None:
        self._generator = generator

    def choose(self, request: RequestView, num_requests: list[int], now_ms: float) -> int:
        """Any worker."""
        return int(self._generator.random() * len(num_requests))


class LeastLoaded:
    """The worker with the fewest requests in hand; ties go to the lowest index."""

    def choose(self, request: RequestView, num_requests: list[int], now_ms: float) -> int:
        """The least loaded worker."""
        return num_requests.index(min(num_requests))


def make_policy(mode: str, seed: int) -> RoutingPolicy:
    """The policy of a routing mode: `round-robin`, `random` or `least-loaded`.

    Raises: ConfigError for any other mode.
    """
    if mode == "round-robin":
        return RoundRobin()
    if mode == "random":
        return RandomChoice(random.Random(f"{seed}/router"))
    if mode == "least-loaded":
        return LeastLoaded()
    known = "round-robin, random, least-loaded"
    raise ConfigError(f"router.mode: unknown mode {mode!r}; known: {known}")
