"""Two logs of one run, compared in everything that they tell."""

from dataclasses import fields
from typing import Any

import numpy as np

from dynosim.records import (
    HandoffLog,
    KvEventLog,
    OnboardLog,
    RequestLog,
    RoutingStats,
    RunResult,
    StepLog,
    WorkerLog,
)

# Sums of a run's step times in two orders: far above rounding, far below any step.
TOLERANCE_MS = 1e-6


def assert_close(ours: Any, theirs: Any, name: str) -> None:
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE_MS, err_msg=name)


def assert_same(bulk: RunResult, single: RunResult) -> None:
    """Everything that a run tells, but for what it cost to find out."""
    assert_same_requests(bulk.requests, single.requests)
    assert_same_steps(bulk, single)
    assert_close(np.sort(bulk.stalled_gaps_ms), np.sort(single.stalled_gaps_ms), "stalled gaps")
    assert_close(bulk.end_ms, single.end_ms, "end_ms")
    assert_same_workers(bulk.workers, single.workers)
    for name in ("num_preemptions", "block_size"):
        assert getattr(bulk, name) == getattr(single, name), name
    assert bulk.num_scheduling_events <= single.num_scheduling_events
    assert bulk.links == single.links or (bulk.links is not None and single.links is not None)
    assert (bulk.routing is None) == (single.routing is None)
    if bulk.routing is not None and single.routing is not None:
        assert_same_routing(bulk.routing, single.routing)
    assert (bulk.kv_events is None) == (single.kv_events is None)
    if bulk.kv_events is not None and single.kv_events is not None:
        assert_same_events(bulk.kv_events, single.kv_events)


def assert_same_requests(bulk: RequestLog, single: RequestLog) -> None:
    for column in fields(RequestLog):
        ours, theirs = getattr(bulk, column.name), getattr(single, column.name)
        if ours is None or theirs is None:
            assert ours is theirs, column.name
        elif column.name.endswith("_ms"):
            assert_close(ours, theirs, column.name)
        elif column.name == "errors":
            assert ours == theirs
        elif column.name == "handoffs":
            assert_same_handoffs(ours, theirs)
        elif column.name == "onboards":
            for name in OnboardLog.__slots__:
                assert_close(getattr(ours, name), getattr(theirs, name), name)
        else:
            np.testing.assert_array_equal(ours, theirs, err_msg=column.name)


def assert_same_handoffs(bulk: HandoffLog, single: HandoffLog) -> None:
    for column in fields(HandoffLog):
        ours, theirs = getattr(bulk, column.name), getattr(single, column.name)
        if column.name.endswith("_ms"):
            assert_close(ours, theirs, column.name)
        else:
            np.testing.assert_array_equal(ours, theirs, err_msg=column.name)


def assert_same_workers(bulk: WorkerLog, single: WorkerLog) -> None:
    for column in fields(WorkerLog):
        ours, theirs = getattr(bulk, column.name), getattr(single, column.name)
        if column.name == "held_blocks":
            continue  # of a run that is cut off: in bulk, those of the last whole step
        if column.name.endswith("_ms"):
            assert_close(ours, theirs, column.name)
        else:
            np.testing.assert_array_equal(ours, theirs, err_msg=column.name)


AT_START = (
    "start_ms",
    "num_prefills",
    "prefill_tokens",
    "prefix_tokens",
    "num_decodes",
    "decode_context_tokens",
)
AT_END = ("num_running", "num_waiting", "used_blocks")


def assert_same_steps(bulk: RunResult, single: RunResult) -> None:
    """Each row of several steps begins as its first step does and ends as its last one does."""
    for worker_id in range(len(bulk.workers)):
        ours, theirs = rows_of(bulk.steps, worker_id), rows_of(single.steps, worker_id)
        assert (theirs["num_steps"] == 1).all()
        last = np.cumsum(ours["num_steps"]) - 1
        first = last - ours["num_steps"] + 1
        assert len(theirs["num_steps"]) == ours["num_steps"].sum()
        for name in AT_START:
            assert_close(ours[name], theirs[name][first], name)
        for name in AT_END:
            np.testing.assert_array_equal(ours[name], theirs[name][last], err_msg=name)
        ends_ms = theirs["start_ms"] + theirs["duration_ms"]
        assert_close(ours["start_ms"] + ours["duration_ms"], ends_ms[last], "end of a row")
        assert_close(ours["duration_ms"].sum(), theirs["duration_ms"].sum(), "busy time")
        peaks = (columns["used_blocks"].max(initial=0) for columns in (ours, theirs))
        assert len(set(peaks)) == 1


def rows_of(steps: StepLog, worker_id: int) -> dict[str, Any]:
    mine = steps.worker_id == worker_id
    return {column.name: getattr(steps, column.name)[mine] for column in fields(StepLog)}


EFFORT = ("queries", "query_blocks", "lookups")  # late look-ups ask the index again


def assert_same_routing(bulk: RoutingStats, single: RoutingStats) -> None:
    assert_close(bulk.overlap_blocks, single.overlap_blocks, "overlap_blocks")
    assert_close(bulk.queued_ms, single.queued_ms, "queued_ms")
    assert (bulk.num_queued, bulk.refused) == (single.num_queued, single.refused)
    # Several steps at once evict first and store then: a child may find its parent gone or not.
    if bulk.counters.get("unknown_parents") == single.counters.get("unknown_parents") == 0:
        counts = [{**stats.counters, **dict.fromkeys(EFFORT, 0)} for stats in (bulk, single)]
        assert counts[0] == counts[1]
        assert bulk.index_blocks == single.index_blocks


def assert_same_events(bulk: KvEventLog, single: KvEventLog) -> None:
    """What a worker stored, and what it evicted, by when; not in how many pieces it told."""
    for is_stored in (False, True):
        for worker_id in set(bulk.worker_id) | set(single.worker_id):
            ours, theirs = (told(log, worker_id, is_stored) for log in (bulk, single))
            assert ours[1] == theirs[1]
            assert_close(ours[0], theirs[0], "time of an event")


def told(log: KvEventLog, worker_id: int, is_stored: bool) -> tuple[list[float], list[int]]:
    """Times at which a worker told of blocks, and how many at each."""
    mine = (log.worker_id == worker_id) & ((log.num_blocks > 0) == is_stored)
    times: list[float] = []
    counts: list[int] = []
    for time_ms, num_blocks in zip(log.time_ms[mine], log.num_blocks[mine], strict=True):
        if times and abs(time_ms - times[-1]) < TOLERANCE_MS:
            counts[-1] += int(num_blocks)
        else:
            times.append(float(time_ms))
            counts.append(int(num_blocks))
    return times, counts
