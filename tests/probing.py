"""Looks into the routers of a simulated cluster from where anybody may look: a placement policy.

Requests are placed where a script says. A probe is a request that the policy turns away after it
has seen its options: it leaves no trace, neither in a router nor in an engine.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from clusters import run_twin

from dynosim.engine.spec import EngineSpec
from dynosim.records import RunResult, Trace
from dynosim.router.cost import WorkerOption
from dynosim.router.knobs import RouterSpec
from dynosim.router.refusals import RequestRefusedError
from dynosim.router.request import RoutingRequest
from dynosim.router.spec import DelaySpec, RoutingSpec
from dynosim.timing.model import StepTimeModel

PROBE = None


class ProbedError(RequestRefusedError):
    """A probe has seen what it came for."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One request: its prompt's hash ids (of one block each), and the worker to serve it, or PROBE.

    Of the last block `last_tokens` are used; None: all.
    """

    at_ms: float
    ids: tuple[int, ...]
    worker: int | None
    output_tokens: int = 1
    last_tokens: int | None = None


@dataclass
class Watch:
    """What each frontend saw: request -> (frontend, its options by worker)."""

    workers: Sequence[int | None]
    num_frontends: int = 0
    seen: dict[int, tuple[int, list[WorkerOption]]] = field(default_factory=dict)

    def policy(self, settings: RouterSpec, seed: int) -> "FrontendPolicy":
        """The policy of the next frontend; frontends are made in order."""
        self.num_frontends += 1
        return FrontendPolicy(self, self.num_frontends - 1)

    def counts(self) -> dict[int, int]:
        """Requests by the frontend that got them."""
        counts: dict[int, int] = defaultdict(int)
        for frontend, _ in self.seen.values():
            counts[frontend] += 1
        return dict(counts)


@dataclass
class FrontendPolicy:
    """Does what the script says, and notes what it is shown."""

    watch: Watch
    frontend: int

    def choose(
        self, request: RoutingRequest, options: Sequence[WorkerOption], now_ms: float
    ) -> WorkerOption:
        index: Any = request.request_id
        self.watch.seen[index] = (self.frontend, list(options))
        worker = self.watch.workers[index]
        if worker is PROBE:
            raise ProbedError("a probe")
        return next(option for option in options if option.worker_id == worker)


@dataclass(frozen=True)
class Watched:
    """A finished run, and what its frontends saw."""

    watch: Watch
    result: RunResult
    trace: Trace

    def overlaps(self, index: int) -> list[int]:
        """Leading blocks of a request that each worker held, as its frontend knew."""
        _, options = self.watch.seen[index]
        return [int(option.overlap_blocks) for option in options]

    def frontend(self, index: int) -> int:
        """Who got a request."""
        return self.watch.seen[index][0]

    def option(self, index: int, worker: int = 0) -> WorkerOption:
        """What the frontend of a request knew of a worker."""
        return self.watch.seen[index][1][worker]


def trace_of(asks: Sequence[Ask], block: int) -> Trace:
    """The trace of these requests, which must be in order of their times."""
    ids = [list(ask.ids) for ask in asks]
    lengths = [
        block * len(ask.ids) - (0 if ask.last_tokens is None else block - ask.last_tokens)
        for ask in asks
    ]
    times_ms = np.array([ask.at_ms for ask in asks])
    assert (np.diff(times_ms) >= 0).all()
    return Trace(
        arrival_ms=times_ms,
        input_tokens=np.array(lengths, np.int64),
        output_tokens=np.array([ask.output_tokens for ask in asks], np.int64),
        hash_ids=np.array([value for row in ids for value in row], np.int64),
        hash_offsets=np.concatenate(([0], np.cumsum([len(row) for row in ids]))),
        trace_block_size=block,
    )


def watched_run(
    asks: Sequence[Ask],
    *,
    engine: EngineSpec,
    timing: StepTimeModel,
    num_workers: int = 1,
    frontends: int = 1,
    events: DelaySpec | None = None,
    seed: int = 0,
    exact: bool = False,
    settings: dict[str, Any] | None = None,
    columns: dict[str, Any] | None = None,
    **routing: Any,
) -> Watched:
    """Serve `asks` as scripted.

    `settings` are further ones of the router, `columns` of the trace; further names are those of
    `RoutingSpec`.
    """
    trace = replace(trace_of(asks, engine.block_size), **(columns or {}))
    watch = Watch([ask.worker for ask in asks])
    spec = RoutingSpec(
        RouterSpec(engine.block_size, seed=seed, **{"mode": "kv", **(settings or {})}),
        events=DelaySpec() if events is None else events,
        frontends=frontends,
        policy=watch.policy,
        **routing,
    )
    result = run_twin(
        trace,
        engine=engine,
        timing=timing,
        num_workers=num_workers,
        routing=spec,
        exact_stepping=exact,
    )
    return Watched(watch, result, trace)
