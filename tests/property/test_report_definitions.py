"""Every figure that users read equals a plain second computation of it, on runs of all kinds.

The runs are made in bulk; the second computation serves the same requests step by step
(`naive_serving`) and follows each definition token by token (`naive_report`, `naive_tables`). A key
or a column without a definition there fails.
"""

import math
from collections.abc import Mapping
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from naive_latencies import Between, ordinary_decodes
from naive_report import naive_report
from naive_serving import SAME_MS, Step
from naive_tables import request_rows, timeline_rows
from report_runs import Told, outcome_of, told_run

from dynosim.metrics import PROCESS_KEYS, request_table, timeline_table
from dynosim.records import RequestStatus

SEEDS = st.integers(0, 2**32 - 1)
SUM_RELATIVE = 1e-9  # the same floats added in another order, or a closed form for a sum
KINDS = (
    "rejected_requests",
    "unfinished_requests",
    "preemptions",
    "router_queued_requests",
    "refused_queue_full_requests",
    "kv_events_lost",
    "saturated",
    "saturation_collapse_ms",
    "saturation_sustained_tok_s",
    "goodput_rps",
    "prefix_cache_reused_ratio",
)


@settings(max_examples=60, deadline=None)
@given(SEEDS)
def test_figures_of_a_run_in_bulk_are_those_of_its_single_tokens(seed: int) -> None:
    told = told_run(seed)
    check_records(told)
    check_end(told)
    check_step_log(told)
    check_report(told)
    check_tables(told)


@settings(max_examples=10, deadline=None)
@given(SEEDS)
def test_figures_of_a_run_step_by_step_are_those_of_its_single_tokens(seed: int) -> None:
    told = told_run(seed, is_exact=True)
    check_records(told)
    check_step_log(told)
    check_report(told)
    steps = told.outcome.result.steps
    assert steps.num_steps.tolist() == [1] * len(told.served.steps)
    assert told.outcome.report["num_scheduling_events"] == len(told.served.steps)


def test_the_runs_are_of_all_kinds() -> None:
    reports = [outcome_of(seed).report for seed in range(40)]
    assert [kind for kind in KINDS if not any(report[kind] for report in reports)] == []
    assert {report["timing_source"] for report in reports} == {"estimated", "derived"}
    assert {report["num_workers"] for report in reports} == {1, 2, 3}
    assert {report["gpus_per_worker"] for report in reports} == {1, 2, 3}
    assert any(report["router_overlap_ratio"] is None for report in reports)
    assert any(report["saturation_reason"].startswith("closed loop") for report in reports)


def is_same(found: Any, expected: Any, absolute: float = 0.0) -> bool:
    """Equal, or, for numbers that were summed up, equal but for rounding."""
    if isinstance(expected, Between):
        low, high = expected
        return bool(low * (1 - SUM_RELATIVE) <= found <= high * (1 + SUM_RELATIVE))
    if isinstance(expected, float) and isinstance(found, float):
        return math.isclose(found, expected, rel_tol=SUM_RELATIVE, abs_tol=absolute)
    return bool(found == expected and (found is None) == (expected is None))


def check_report(told: Told) -> None:
    report = told.outcome.report
    expected = naive_report(told.outcome, told.run)
    assert set(report) - set(PROCESS_KEYS) == set(expected)
    assert 0 <= report["simulate_wall_ms"] <= report["wall_time_ms"]
    wrong = {
        key: (report[key], value)
        for key, value in expected.items()
        if not is_same(report[key], value, _rounding(key, expected))
    }
    assert wrong == {}


def _rounding(key: str, expected: Mapping[str, Any]) -> float:
    """A deviation of equal numbers is nothing but the rounding of their mean."""
    if not key.startswith("std_"):
        return 0.0
    return SUM_RELATIVE * (expected[key.replace("std_", "max_")] or 0.0)


def check_records(told: Told) -> None:
    """What a run wrote down of each request is what serving it step by step gives."""
    log, served, trace = told.outcome.result.requests, told.served, told.outcome.trace
    assert log.input_tokens.tolist() == trace.input_tokens.tolist()
    assert len(log.status) == len(trace) > 0
    for index in range(len(trace)):
        tokens = served.token_ms.get(index, [])
        finish_ms = tokens[-1] if index in served.finished else math.nan
        assert is_time(log.scheduled_ms[index], served.scheduled_ms.get(index, math.nan))
        assert is_time(log.first_token_ms[index], tokens[0] if tokens else math.nan)
        assert is_time(log.second_token_ms[index], tokens[1] if len(tokens) > 1 else math.nan)
        assert is_time(log.finish_ms[index], finish_ms)
        assert log.output_tokens[index] == len(tokens)
        assert log.cached_tokens[index] == served.cached_tokens.get(index, 0)
        assert log.preemptions[index] == served.preemptions.get(index, 0)
        assert (log.status[index] == RequestStatus.COMPLETED) == (index in served.finished)
        assert (log.status[index] == RequestStatus.REJECTED) == (index in log.errors)
        check_hand_over(told, index)


def check_end(told: Told) -> None:
    """A run ends with its last event as clients see it, or where it was cut off."""
    end_ms, timing = told.outcome.result.end_ms, told.outcome.timing
    if any(request.status == "unfinished" for request in told.run.requests):
        assert is_time(end_ms, told.outcome.config.cluster.max_sim_time_ms or math.nan)
        return
    outside_ms = timing.ingress_ms + timing.egress_ms
    events = [step.end_ms + timing.egress_ms for step in told.served.steps]
    events += [r.arrival_ms + outside_ms for r in told.run.requests if r.arrival_ms is not None]
    assert is_time(end_ms, max(events))


def is_time(found: float, expected: float) -> bool:
    """Whether two times are the same instant, or both do not exist."""
    return bool(abs(found - expected) < SAME_MS or (math.isnan(found) and math.isnan(expected)))


def check_hand_over(told: Told, index: int) -> None:
    """A request reaches its worker after what it spends outside and in the router, not before."""
    log, routing = told.outcome.result.requests, told.outcome.result.routing
    trace, timing = told.outcome.trace, told.outcome.timing
    queued_ms = 0.0 if routing is None else routing.queued_ms[index]
    is_placed = log.worker_id[index] >= 0
    assert is_placed == (not math.isnan(log.dispatch_ms[index]))
    if is_placed:
        expected_ms = log.arrival_ms[index] + timing.ingress_ms + queued_ms
        assert is_time(log.dispatch_ms[index], expected_ms)
    else:
        assert log.status[index] != RequestStatus.COMPLETED
    assert log.is_timed is not None
    is_turn = trace.previous_turn is not None and trace.previous_turn[index] >= 0
    is_closed = told.outcome.config.workload.concurrency is not None
    assert log.is_timed[index] == (not is_turn and not is_closed)
    if log.is_timed[index] and not math.isnan(log.arrival_ms[index]):
        assert log.arrival_ms[index] == trace.arrival_ms[index]


def check_step_log(told: Told) -> None:
    """Every row stands for the next steps of its worker and says what they were like."""
    left: dict[int, list[Step]] = {}
    for step in told.served.steps:
        left.setdefault(step.worker, []).append(step)
    before: dict[int, list[int]] = {worker: [] for worker in left}
    for row in told.run.rows:
        steps = left[row.worker][: row.num_steps]
        del left[row.worker][: row.num_steps]
        assert len(steps) == row.num_steps
        assert is_time(row.start_ms, steps[0].start_ms)
        assert is_time(row.end_ms, steps[-1].end_ms)
        assert row.num_prefills == sum(step.num_prefills + step.resumed for step in steps)
        assert row.prefill_tokens == sum(step.prefill_tokens + step.resumed for step in steps)
        assert row.prefix_tokens == sum(step.prefix_tokens for step in steps)
        assert row.context_tokens == steps[0].context_tokens
        last = steps[-1]
        assert (row.running, row.waiting) == (last.running, last.waiting)
        assert row.used_blocks == last.used_blocks
        for step in steps:
            assert row.num_decodes == len(ordinary_decodes(step, before[row.worker]))
            before[row.worker] = step.got_token
    assert {worker: steps for worker, steps in left.items() if steps} == {}


def check_tables(told: Told) -> None:
    result, trace = told.outcome.result, told.outcome.trace
    check_rows(request_table(result, trace).to_dicts(), request_rows(told.run))
    check_rows(timeline_table(result).to_dicts(), timeline_rows(told.run))


def check_rows(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert len(found) == len(expected) > 0
    for ours, theirs in zip(found, expected, strict=True):
        assert list(ours) == list(theirs)
        wrong = {
            name: (ours[name], value)
            for name, value in theirs.items()
            if not is_same(ours[name], value, SAME_MS * SUM_RELATIVE)
        }
        assert wrong == {}
