"""Gives a router its inputs and writes each, with what came of it."""

from collections.abc import Callable, Hashable
from typing import Generic, overload

from dynosim.errors import ConfigError, InvariantError
from dynosim.indexer.base import Index, LaggingIndex
from dynosim.router.inputs import (
    Arrive,
    DropStale,
    E,
    E_contra,
    Input,
    Join,
    Leave,
    Outcome,
    Placed,
    Release,
)
from dynosim.router.knobs import RouterSpec
from dynosim.router.kv_router import KvRouter
from dynosim.router.log.entries import PREDICTS, entries_of
from dynosim.router.log.estimates import RecordingEstimator
from dynosim.router.log.plain import Entry
from dynosim.router.policy import PlacementPolicy
from dynosim.router.prefill_load import PrefillEstimator
from dynosim.router.refusals import UnknownWorkerError

Sink = Callable[[Entry], None]


class RouterLog(Generic[E_contra]):
    """The driver of `router` gives it all inputs through `take` here.

    Entries are written after the fact, so that events which a decision brought in come before it.
    `now_ms` is that of the last input.
    """

    def __init__(self, router: KvRouter[E_contra], sink: Sink) -> None:
        self.router = router
        self.now_ms = 0.0
        self._sink = sink
        estimator = router.estimator
        self._estimates = estimator if isinstance(estimator, RecordingEstimator) else None
        if estimator is not None and self._estimates is None:
            raise InvariantError("a logged router's predictions must be recorded too")

    @overload
    def take(self, given: Arrive) -> Placed | None: ...
    @overload
    def take(self, given: Release) -> list[Placed]: ...
    @overload
    def take(self, given: Leave | DropStale) -> list[Hashable]: ...
    @overload
    def take(self, given: Input[E_contra]) -> Outcome: ...
    def take(self, given: Input[E_contra]) -> Outcome:
        """See `KvRouter.take`.

        Should it raise after the input may have left half of its traces, the log says so: a
        placement policy may raise anything.
        """
        self.now_ms = given.now_ms
        try:
            outcome = self.router.take(given)
        except Exception as error:
            leaves_no_trace = isinstance(error, UnknownWorkerError) or (
                isinstance(error, ConfigError) and isinstance(given, Join)
            )
            if not leaves_no_trace:
                self._sink(["broken", given.now_ms, f"{type(error).__name__}: {error}"])
            raise
        for entry in entries_of(given, outcome):
            durations_ms = None
            if self._estimates is not None and entry[0] in PREDICTS:
                durations_ms = self._estimates.take()
            self._sink([*entry, durations_ms] if durations_ms else entry)
        return outcome


def logged_router(
    sink: Sink,
    settings: RouterSpec,
    index: Index[E] | LaggingIndex[E],
    *,
    key_blocks: list[int] | None = None,
    estimator: PrefillEstimator | None = None,
    policy: PlacementPolicy | None = None,
) -> RouterLog[E]:
    """A new router whose inputs are logged; see `KvRouter`."""
    recorded = None if estimator is None else RecordingEstimator(estimator)
    router = KvRouter(settings, index, key_blocks=key_blocks, estimator=recorded, policy=policy)
    return RouterLog(router, sink)
