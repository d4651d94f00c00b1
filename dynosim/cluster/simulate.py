"""Runs a trace through a cluster of simulated engines."""

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dynosim.cluster.apart import one_by_one
from dynosim.cluster.assembly import Assembly
from dynosim.cluster.books import Books
from dynosim.cluster.cluster import Cluster
from dynosim.cluster.journal import Journal
from dynosim.cluster.outside import as_clients_see
from dynosim.cluster.pins import check_pins
from dynosim.cluster.placement import LoadPlacer
from dynosim.cluster.pool import worker_log
from dynosim.cluster.prefetches import check_prefetches
from dynosim.cluster.spec import ClusterSpec, RunOptions
from dynosim.cluster.watch import Watch
from dynosim.engine.room import require_room
from dynosim.engine.spec import EngineSpec
from dynosim.errors import InfeasibleError
from dynosim.records import RunResult, StartupLog, Trace
from dynosim.workload.load import NEVER

if TYPE_CHECKING:
    from dynosim.cluster.control import Process

PART_S = 0.1
Progress = Callable[[int, int], None]
"""Takes the number of requests that have ended, and of all."""


def simulate(
    trace: Trace,
    cluster: ClusterSpec,
    options: RunOptions = RunOptions(),  # noqa: B008 (a value that never changes)
    *,
    processes: "Sequence[Process]" = (),
    progress: Progress | None = None,
    watch: Watch | None = None,
) -> RunResult:
    """Replay `trace` on `cluster` in virtual time.

    Where workers start cold, requests wait outside until one of each role serves.

    `processes` are SimPy processes that watch and steer the run, see `dynosim.cluster.control`.
    `progress` is told several times a second how far a run without such processes is. `watch` may
    end a run early in which all workers are followed together and nothing steers them.

    Raises: InfeasibleError if a cache is too small for the model length, or all are for a pin.
    """
    started = time.perf_counter()
    for pool in cluster.pools:
        require_room(pool.engine)
    check_pins(trace, cluster)
    check_prefetches(trace, cluster)
    is_steered = bool(processes) or cluster.starts_cold
    made = Assembly(trace, cluster, options, is_steered=is_steered, may_fail=bool(processes))
    _launch_all(made.running, cluster)
    until_ms = NEVER if options.until_ms is None else options.until_ms - made.outside_ms
    if is_steered:
        ended = _run_steered(made.running, cluster, until_ms, processes, made.books, options.seed)
    elif made.can_go_apart:
        ended = _run_apart(made, trace, cluster, until_ms, _Parts(progress))
    else:
        ended = _Parts(progress).run_watched(made.running, until_ms, watch, made.journal)
    made.running.fleet.stop(ended.until_ms)
    result = _result(made, trace, ended, started)
    made.stores.clear()
    if made.outside_ms == 0:
        return result
    return as_clients_see(result, ingress_ms=made.ingress_ms, egress_ms=made.egress_ms)


class _Ended(NamedTuple):
    """How a run ended."""

    until_ms: float  # what it was to go to, or when it was stopped before; infinity: to the end
    last_ms: float  # when the last thing happened
    startups: StartupLog | None = None


def _launch_all(running: Cluster, spec: ClusterSpec) -> None:
    """Start the run with all workers ready, but those that start cold."""
    for pool in spec.pools:
        for _ in range(pool.workers):
            worker = running.launch(pool, 0.0)
            if not pool.start_cold:
                running.make_ready(worker, 0.0)


def _run_steered(
    running: Cluster,
    spec: ClusterSpec,
    until_ms: float,
    processes: "Sequence[Process]",
    books: Books,
    seed: int,
) -> _Ended:
    """Run to the end or to `until_ms`, or until a process stops the run."""
    from dynosim.cluster.control import ControlPlane

    control = ControlPlane(running, spec.pools, processes, books, seed)
    control.run_until(until_ms)
    if control.is_stopped:
        until_ms = control.now_ms
    return _Ended(until_ms, _end_ms(running, until_ms), control.startup_log())


def _run_apart(
    made: Assembly, trace: Trace, cluster: ClusterSpec, until_ms: float, parts: "_Parts"
) -> _Ended:
    """Run each worker by itself to the end or to `until_ms`."""
    assert isinstance(made.placer, LoadPlacer)
    each = one_by_one(made.running, made.placer, trace, cluster.max_model_len)
    return _Ended(until_ms, max([parts.run(made.running, until_ms) for _ in each]))


def _end_ms(running: Cluster, until_ms: float) -> float:
    """When a run that went to `until_ms` ended: then, if there was anything left to happen."""
    return until_ms if running.next_ms() < NEVER else running.now_ms


def _result(made: Assembly, trace: Trace, ended: _Ended, started: float) -> RunResult:
    """What is known of a run that is over; it was `started` at that time of `perf_counter`."""
    fleet, handoffs = made.running.fleet, made.running.handoffs
    return RunResult(
        requests=made.journal.request_log(is_closed_loop=made.is_closed_loop),
        steps=made.journal.step_log(),
        stalled_gaps_ms=np.array(made.journal.stalled_gaps_ms),
        workers=worker_log(fleet.workers),
        block_size=made.books.cluster.block_size,
        end_ms=ended.last_ms,
        num_preemptions=sum(w.engine.core.num_preemptions for w in fleet.workers),
        num_scheduling_events=sum(w.engine.num_events for w in fleet.workers),
        routing=made.placer.stats(),
        kv_events=made.placer.kv_events(),
        trail=None if made.trail is None else made.trail.log(ended.last_ms),
        lock_step=fleet.lock_step_log(),
        links=None if handoffs is None else handoffs.transfers.log(),
        tiers=made.stores.log(),
        prefetches=None if trace.is_prefetch is None else fleet.prefetch_log(),
        retention=fleet.retention_log(),
        scaling=made.books.scaling_log(),
        startups=ended.startups,
        simulate_wall_ms=(time.perf_counter() - started) * 1e3,
    )


class _Parts:
    """Comes back from the loop some ten times a second: to tell, and so that Ctrl-C is heard."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._part_ms = 1000.0

    def run(self, running: Cluster, until_ms: float) -> float:
        """Run to the end or to `until_ms`; returns when the last thing happened."""
        while (next_ms := running.next_ms()) < NEVER and next_ms <= until_ms:
            started = time.perf_counter()
            running.run_until(min(next_ms + self._part_ms, until_ms))
            if self._progress is not None:
                self._progress(running.num_ended, running.num_requests)
            self._part_ms *= 2 if time.perf_counter() - started < PART_S else 0.5
        running.run_until(until_ms)  # what is still the same instant
        return _end_ms(running, until_ms)

    def run_watched(
        self, running: Cluster, until_ms: float, watch: Watch | None, journal: Journal
    ) -> _Ended:
        """Run to the end or to `until_ms`, or until `watch` ends it, if somebody watches."""
        while watch is not None and running.next_ms() < NEVER and watch.next_ms < until_ms:
            now_ms = watch.next_ms
            self.run(running, now_ms)
            if watch.look(journal, now_ms):
                return _Ended(now_ms, _end_ms(running, now_ms))
        return _Ended(until_ms, self.run(running, until_ms))


def check_requests_fit(trace: Trace, engine: EngineSpec) -> None:
    """Refuse a trace with requests that outgrow the KV cache.

    Meant for runs without a `max_model_len`: with one, longer prompts are rejected one by one, as
    an engine does.

    Raises: InfeasibleError naming the first such request and what to change.
    """
    capacity = engine.capacity_tokens
    needed = trace.input_tokens + trace.output_tokens - 1
    too_long = np.flatnonzero(needed > capacity)
    if len(too_long):
        row = int(too_long[0])
        raise InfeasibleError(
            f"{trace.source or 'trace'}: request {row} ({trace.input_tokens[row]} input + "
            f"{trace.output_tokens[row]} output tokens) is longer than the KV cache of one worker "
            f"({capacity} tokens), and so are {len(too_long) - 1} others: give workers more memory "
            "(engine.tensor_parallel, engine.num_gpu_blocks), or set engine.max_model_len to have "
            "too long prompts rejected and counted"
        )
