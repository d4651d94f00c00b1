"""A run's trace obeys Chrome's trace event format, whatever the run was like."""

import gzip
import json
import random
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clusters import equal_workers
from strategies import pressed_spec, pressing_trace, random_spec, random_trace
from test_tier_laws import random_tiers, with_tiers

from dynosim.cluster import RunOptions, simulate
from dynosim.plots.perfetto import write_perfetto
from dynosim.plots.run_slices import FIRST_WORKER_PID, STEPS_TID
from dynosim.records import RunResult, Trace
from dynosim.router.knobs import RouterSpec
from dynosim.router.spec import RoutingSpec
from dynosim.timing.formulas import LinearModel

Event = dict[str, Any]
SEEDS = range(16)
CUT_MS = (400.0, 20_000.0)  # where runs are cut off


def random_run(seed: int) -> tuple[RunResult, Trace]:
    rng = random.Random(seed)
    trace = random_trace(rng)
    spec = replace(random_spec(rng, trace), async_scheduling=rng.random() < 0.5)
    times = LinearModel(
        base_ms=5.0, per_prefill_token_ms=0.05, per_decode_ms=0.1, per_context_token_ms=0.0005
    )
    times.ingress_ms, times.egress_ms = rng.choice([(0.0, 0.0), (2.0, 1.0)])
    routing = RoutingSpec(RouterSpec(spec.block_size, mode=rng.choice(["kv", "round-robin"])))
    until_ms = rng.choice([None, 400.0])
    options = RunOptions(records_trail=True, until_ms=until_ms)
    cluster = equal_workers(spec, times, num_workers=2, routing=routing)
    return simulate(trace, cluster, options), trace


def tiered_run(seed: int) -> tuple[RunResult, Trace]:
    rng = random.Random(seed)
    trace = pressing_trace(rng)
    spec = replace(pressed_spec(rng, trace), enable_prefix_caching=True)
    times = LinearModel(
        base_ms=5.0, per_prefill_token_ms=0.05, per_decode_ms=0.1, per_context_token_ms=0.0005
    )
    cluster = with_tiers(equal_workers(spec, times, num_workers=2), random_tiers(rng, spec))
    return simulate(trace, cluster, RunOptions(records_trail=True, until_ms=20_000.0)), trace


def events_of(result: RunResult, trace: Trace, folder: Path) -> list[Event]:
    path = folder / "trace.json.gz"
    write_perfetto(path, result, trace)
    document = json.loads(gzip.decompress(path.read_bytes()))
    assert document["displayTimeUnit"] == "ms"
    events: list[Event] = document["traceEvents"]
    return events


def to_ns(microseconds: float) -> int:
    return round(microseconds * 1000)


@pytest.mark.parametrize("made", [random_run, tiered_run])
@pytest.mark.parametrize("seed", SEEDS)
def test_events_are_in_order_slices_nest_and_arrows_hit_slices(
    made: Callable[[int], tuple[RunResult, Trace]], seed: int, tmp_path: Path
) -> None:
    result, trace = made(seed)
    last_us = 0.0
    is_named = True
    open_slices: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    phases: dict[int, str] = defaultdict(str)
    for event in events_of(result, trace, tmp_path):
        if event["ph"] == "M":
            assert is_named, "names stand first"
            continue
        is_named = False
        assert event["ts"] >= last_us >= 0
        last_us = event["ts"]
        now_ns = to_ns(event["ts"])
        stack = open_slices[event["pid"], event.get("tid", 0)]
        while stack and stack[-1][1] < now_ns:
            stack.pop()
        if event["ph"] == "X":
            end_ns = now_ns + to_ns(event["dur"])
            while stack and stack[-1][1] <= now_ns:
                stack.pop()
            assert end_ns > now_ns or event["tid"] == STEPS_TID or result.end_ms in CUT_MS
            assert not stack or end_ns <= stack[-1][1], "lies inside what is open on its track"
            stack.append((now_ns, end_ns))
        elif event["ph"] in "stf":
            assert stack and stack[-1][0] == now_ns, "an arrow ends where a slice begins"
            phases[event["id"]] += event["ph"]
    assert phases
    for shape in phases.values():
        assert shape[0] == "s" and shape[-1] == "f" and set(shape[1:-1]) <= {"t"}


@pytest.mark.parametrize("seed", SEEDS)
def test_slices_are_what_the_run_did(seed: int, tmp_path: Path) -> None:
    result, trace = random_run(seed)
    events = events_of(result, trace, tmp_path)
    slices = [event for event in events if event["ph"] == "X"]
    log, steps = result.requests, result.steps
    for worker in range(len(result.workers)):
        on_track = [
            event for event in slices
            if event["pid"] == FIRST_WORKER_PID + worker and event["tid"] == STEPS_TID
        ]  # fmt: skip
        rows = steps.worker_id == worker
        assert len(on_track) == rows.sum()
        busy_ms = sum(event["dur"] for event in on_track) / 1000
        assert busy_ms == pytest.approx(steps.duration_ms[rows].sum(), abs=1e-3)
    served = np.flatnonzero(~np.isnan(log.scheduled_ms))
    flows = [event["id"] - 1 for event in events if event["ph"] == "s"]
    assert set(flows) <= set(served.tolist()) and len(flows) == len(set(flows))
    computed = sum(
        int(event["name"].split()[1].replace(",", ""))
        for event in slices
        if event["name"].startswith("prefill") and event["tid"] != STEPS_TID
    )
    assert result.trail is not None and computed == result.trail.chunks.num_tokens.sum()


@pytest.mark.parametrize("seed", SEEDS)
def test_loads_lie_in_waits_and_are_those_of_the_records(seed: int, tmp_path: Path) -> None:
    result, trace = tiered_run(seed)
    log, onboards = result.requests, result.requests.onboards
    assert onboards is not None
    slices = [event for event in events_of(result, trace, tmp_path) if event["ph"] == "X"]
    waits: dict[tuple[int, str], list[Event]] = defaultdict(list)
    for event in slices:
        waits[event["pid"], event["name"]].append(event)
    loaded = [
        (to_ns(event["ts"]), to_ns(event["dur"]), event["name"], event["args"]["beyond_tokens"])
        for event in slices
        if event["name"].startswith("load ")
    ]
    served = np.flatnonzero((onboards.num_tokens > 0) & ~np.isnan(log.scheduled_ms))
    expected = []
    for index in served.tolist():
        start_ns, end_ns = (
            round(onboards.start_ms[index] * 1e6),
            round(onboards.end_ms[index] * 1e6),
        )
        name = f"load {onboards.num_tokens[index]:,}"
        expected.append((start_ns, end_ns - start_ns, name, onboards.num_beyond[index]))
        pid = FIRST_WORKER_PID + int(log.worker_id[index])
        number = str(index) if trace.request_ids is None else trace.request_ids[index]
        assert any(
            to_ns(wait["ts"]) <= start_ns and end_ns <= to_ns(wait["ts"]) + to_ns(wait["dur"])
            for wait in waits[pid, f"wait {number}"]
        )
    assert sorted(loaded) == sorted(expected)


def test_tracks_are_reused_when_free(tmp_path: Path) -> None:
    """As many tracks of seats as requests ever held one at once."""
    result, trace = random_run(3)
    slices = [event for event in events_of(result, trace, tmp_path) if event["ph"] == "X"]
    seats = [event for event in slices if event["name"].startswith("request ")]
    for pid in {event["pid"] for event in seats}:
        own = [event for event in seats if event["pid"] == pid]
        times = [(to_ns(one["ts"]), 1) for one in own]
        times += [(to_ns(one["ts"]) + to_ns(one["dur"]), -1) for one in own]
        held, most = 0, 0
        for _, change in sorted(times):  # who leaves goes before who comes
            held += change
            most = max(most, held)
        assert len({event["tid"] for event in own}) == most


def test_the_file_depends_on_the_run_alone(tmp_path: Path) -> None:
    result, trace = random_run(1)
    contents = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        events_of(result, trace, tmp_path / name)
        contents.append((tmp_path / name / "trace.json.gz").read_bytes())
    assert contents[0] == contents[1]


def test_without_a_trail_there_is_no_trace(tmp_path: Path) -> None:
    result, trace = random_run(1)
    with pytest.raises(ValueError, match="trail"):
        write_perfetto(tmp_path / "trace.json.gz", replace(result, trail=None), trace)
