"""Runs a trace through a cluster of simulated engines."""

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from dynosim.cluster.apart import can_go_apart, one_by_one
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
    running = made.running
    _launch_all(running, cluster)
    books = Books(
        made.journal,
        made.placer,
        cluster,
        ingress_ms=made.ingress_ms,
        egress_ms=made.egress_ms,
        frontend=made.frontend,
    )
    until_ms = NEVER if options.until_ms is None else options.until_ms - made.outside_ms
    startups = None
    if is_steered:
        until_ms, end_ms, startups = _run_steered(
            running, cluster, until_ms, processes, books, options.seed
        )
    else:
        until_ms, end_ms = _run_alone(
            made, trace, cluster, options, until_ms, _Parts(progress), watch
        )
    running.fleet.stop(until_ms)
    result = RunResult(
        requests=made.journal.request_log(is_closed_loop=options.concurrency is not None),
        steps=made.journal.step_log(),
        stalled_gaps_ms=np.array(made.journal.stalled_gaps_ms),
        workers=worker_log(running.workers),
        block_size=cluster.block_size,
        end_ms=end_ms,
        num_preemptions=sum(w.engine.core.num_preemptions for w in running.workers),
        num_scheduling_events=sum(w.engine.num_events for w in running.workers),
        routing=made.placer.stats(),
        kv_events=made.placer.kv_events(),
        trail=None if made.trail is None else made.trail.log(end_ms),
        lock_step=running.fleet.lock_step_log(),
        links=None if made.handoffs is None else made.handoffs.transfers.log(),
        tiers=made.stores.log(),
        prefetches=None if trace.is_prefetch is None else running.fleet.prefetch_log(),
        retention=running.fleet.retention_log(),
        scaling=books.scaling_log(),
        startups=startups,
        simulate_wall_ms=(time.perf_counter() - started) * 1e3,
    )
    made.stores.clear()
    if made.outside_ms == 0:
        return result
    return as_clients_see(result, ingress_ms=made.ingress_ms, egress_ms=made.egress_ms)


def _launch_all(running: Cluster, spec: ClusterSpec) -> None:
    """Start the run with all workers ready, but those that start cold."""
    for pool in spec.pools:
        for _ in range(pool.workers):
            worker = running.launch(pool, 0.0)
            if not pool.start_cold:
                running.make_ready(worker, 0.0)


def _run_alone(
    made: Assembly,
    trace: Trace,
    cluster: ClusterSpec,
    options: RunOptions,
    until_ms: float,
    parts: "_Parts",
    watch: Watch | None,
) -> tuple[float, float]:
    """Run with nobody who steers to the end or to `until_ms`; returns that, or when `watch` ended
    the run, and when the last thing happened.
    """
    running, placer = made.running, made.placer
    goes_apart = can_go_apart(cluster, made.routing, options, made.load)
    if goes_apart and isinstance(placer, LoadPlacer):
        each = one_by_one(running, placer, trace, cluster.max_model_len)
        return until_ms, max([parts.run(running, until_ms) for _ in each])
    if watch is not None:
        return parts.run_watched(running, until_ms, watch, made.journal)
    return until_ms, parts.run(running, until_ms)


def _run_steered(
    running: Cluster,
    spec: ClusterSpec,
    until_ms: float,
    processes: "Sequence[Process]",
    books: Books,
    seed: int,
) -> tuple[float, float, StartupLog | None]:
    """Run to the end or to `until_ms`; returns that, or when a process stopped the run, when the
    last thing happened, and how workers started.
    """
    from dynosim.cluster.control import ControlPlane

    control = ControlPlane(running, spec.pools, processes, books, seed)
    control.run_until(until_ms)
    if control.is_stopped:
        until_ms = control.now_ms
    return until_ms, _end_ms(running, until_ms), control.startup_log()


def _end_ms(running: Cluster, until_ms: float) -> float:
    """When a run that went to `until_ms` ended: then, if there was anything left to happen."""
    return until_ms if running.next_ms() < NEVER else running.now_ms


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
        self, running: Cluster, until_ms: float, watch: Watch, journal: Journal
    ) -> tuple[float, float]:
        """Run until `watch` ends it or to `until_ms`; returns until when, and when it ended."""
        while running.next_ms() < NEVER and watch.next_ms < until_ms:
            now_ms = watch.next_ms
            self.run(running, now_ms)
            if watch.look(journal, now_ms):
                return now_ms, _end_ms(running, now_ms)
        return until_ms, self.run(running, until_ms)


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
