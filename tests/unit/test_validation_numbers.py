"""Predicted against measured: every figure worked out a second time, value by value."""

from fractions import Fraction
from math import nan
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynosim.records import RequestLog, RequestStatus
from dynosim_runtime.measure.capacity import engine_capacity, workers_capacity
from dynosim_runtime.validate import compare
from dynosim_runtime.validate.compare import (
    METRICS,
    Comparison,
    compare_reports,
    compare_requests,
    kolmogorov_smirnov,
)
from dynosim_runtime.validate.show import comparison_lines

DONE, FAILED = int(RequestStatus.COMPLETED), int(RequestStatus.FAILED)


def row(predicted: float | None, measured: float | None, **more: Any) -> Comparison:
    return Comparison("TTFT mean", "mean_ttft_ms", "ms", predicted, measured, **more)


@pytest.mark.parametrize(
    ("predicted", "is_good"),
    [(125.0, True), (125.1, False), (75.0, True), (74.9, False), (100.0, True)],
)
def test_good_is_no_farther_off_than_the_tolerance_itself(
    monkeypatch: pytest.MonkeyPatch, predicted: float, is_good: bool
) -> None:
    monkeypatch.setattr(compare, "TOLERANCE", 0.25)  # exact in binary, unlike a tenth
    assert row(predicted, 100.0).is_good is is_good


def test_a_tenth_is_the_tolerance() -> None:
    assert compare.TOLERANCE == 0.1
    assert row(109.99, 100.0).is_good and row(90.01, 100.0).is_good
    assert not row(110.01, 100.0).is_good and not row(89.99, 100.0).is_good


@pytest.mark.parametrize(
    ("measured", "is_inside"),
    [(84.9, False), (85.0, True), (90.0, True), (95.0, True), (95.1, False)],
)
def test_both_ends_of_an_interval_belong_to_it(measured: float, is_inside: bool) -> None:
    assert row(90.0, measured, interval=(85.0, 95.0)).is_inside_interval is is_inside


def test_a_row_tells_all_it_knows() -> None:
    assert row(90.0, 80.0, interval=(85.0, 95.0)).as_dict() == {
        "metric": "TTFT mean",
        "key": "mean_ttft_ms",
        "unit": "ms",
        "predicted": 90.0,
        "measured": 80.0,
        "interval": (85.0, 95.0),
        "difference": 0.125,
        "is_within_tolerance": False,
        "is_inside_interval": False,
    }


def test_reports_are_compared_key_by_key() -> None:
    predicted = {key: float(index) for index, (_, key, _) in enumerate(METRICS)}
    measured = {key: 2.0 * index for index, (_, key, _) in enumerate(METRICS)}
    intervals = {"p90_itl_ms": (1.0, 2.0)}
    rows = compare_reports(predicted, measured, intervals)
    assert [(one.metric, one.key, one.unit) for one in rows] == list(METRICS)
    assert [one.predicted for one in rows] == [float(index) for index in range(len(METRICS))]
    assert [one.measured for one in rows] == [2.0 * index for index in range(len(METRICS))]
    assert {one.key: one.interval for one in rows if one.interval} == intervals
    assert [one.measured for one in compare_reports(predicted, {})] == [None] * len(METRICS)
    assert METRICS[:4] == (
        ("TTFT mean", "mean_ttft_ms", "ms"),
        ("TTFT p50", "median_ttft_ms", "ms"),
        ("TTFT p90", "p90_ttft_ms", "ms"),
        ("TTFT p99", "p99_ttft_ms", "ms"),
    )
    assert [key for _, key, _ in METRICS[4:]] == [
        *(f"{name}_{what}_ms" for what in ("itl", "tpot", "e2e_latency")
          for name in ("mean", "median", "p90", "p99")),
        "request_throughput_rps",
        "output_throughput_tok_s",
        "prefix_cache_reused_ratio",
    ]  # fmt: skip


def log_of(*requests: tuple[float, float, float, int, int]) -> RequestLog:
    """(arrival, first token, finish, output tokens, status) of each."""
    arrival, first, finish, tokens, status = (
        np.array(column) for column in zip(*requests, strict=True)
    )
    nothing, zeros = np.full(len(requests), nan), np.zeros(len(requests), dtype=np.int64)
    return RequestLog(
        arrival_ms=arrival,
        dispatch_ms=nothing,
        scheduled_ms=nothing,
        first_token_ms=first,
        second_token_ms=nothing,
        finish_ms=finish,
        input_tokens=zeros,
        output_tokens=tokens,
        cached_tokens=zeros,
        worker_id=zeros,
        preemptions=zeros,
        migrations=zeros,
        status=status,
    )


def test_requests_are_compared_where_both_sides_completed_them() -> None:
    predicted = log_of(
        (0, 10, 30, 3, DONE),
        (0, 30, 30, 1, DONE),  # one token: no time per token
        (0, 99, 99, 2, FAILED),
        (0, 99, 199, 2, DONE),
        (0, 5, 25, 2, DONE),
    )
    measured = log_of(
        (100, 120, 140, 3, DONE),
        (100, 120, 120, 1, DONE),
        (100, 120, 140, 2, DONE),
        (100, 120, nan, 2, FAILED),
        (100, 100, 110, 2, DONE),  # first token at once: no share of nothing
    )
    errors = compare_requests(predicted, measured)
    assert list(errors) == ["ttft_ms", "tpot_ms", "e2e_ms"]
    # TTFT: 10, 30, 5 against 20, 20, 0. TPOT: 10, 20 against 10, 10.
    # End-to-end: 30, 30, 25 against 40, 20, 10.
    ttft, tpot, e2e = (error.absolute_percentage_error for error in errors.values())
    assert [error.num_requests for error in errors.values()] == [3, 2, 3]
    assert (ttft["mean"], ttft["min"], ttft["max"]) == (0.5, 0.5, 0.5)
    assert (tpot["mean"], tpot["min"], tpot["max"]) == (0.5, 0.0, 1.0)
    assert (e2e["mean"], e2e["median"], e2e["max"]) == (pytest.approx(2.25 / 3), 0.5, 1.5)
    assert errors["ttft_ms"].kolmogorov_smirnov == pytest.approx(1 / 3)
    assert errors["tpot_ms"].kolmogorov_smirnov == 0.5
    assert errors["e2e_ms"].kolmogorov_smirnov == pytest.approx(2 / 3)


def test_requests_of_which_none_completed_on_both_sides_tell_nothing() -> None:
    errors = compare_requests(log_of((0, 1, 2, 2, DONE)), log_of((0, 1, 2, 2, FAILED)))
    assert {error.num_requests for error in errors.values()} == {0}
    assert errors["ttft_ms"].absolute_percentage_error["mean"] is None
    assert errors["ttft_ms"].kolmogorov_smirnov is None


SAMPLES = st.lists(st.integers(0, 6), min_size=1, max_size=8)


@settings(max_examples=60, deadline=None)
@given(first=SAMPLES, second=SAMPLES)
def test_the_distance_of_two_samples_is_the_largest_of_their_shares(
    first: list[int], second: list[int]
) -> None:
    def share(sample: list[int], limit: int) -> Fraction:
        return Fraction(sum(value <= limit for value in sample), len(sample))

    largest = max(abs(share(first, limit) - share(second, limit)) for limit in range(7))
    found = kolmogorov_smirnov(np.array(first, float), np.array(second, float))
    assert found == pytest.approx(float(largest))


# ---- on the screen -------------------------------------------------------------------------------


def document(*rows: Comparison, **more: Any) -> dict[str, Any]:
    return {
        "name": "plan",
        "num_requests": 1200,
        "workload": "trace.jsonl",
        "measured_at": "http://x",
        "tolerance": 0.1,
        "metrics": [{**one.as_dict(), "capacity_given": None} for one in rows],
        "load": {"saturated": False},
        "measured": {},
        "attribution": None,
        "requests": {},
        "lateness_ms": None,
        "was_interrupted": False,
        "num_unserved": 0,
        "failures": [],
        "notes": [],
        **more,
    }


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.0, "0.00"), (0.25, "0.2500"), (0.99999, "1.0000"), (1.0, "1.00"), (999.994, "999.99"),
     (1000.0, "1,000"), (12345.6, "12,346"), (-2.5, "-2.50"), (None, "-")],
)  # fmt: skip
def test_numbers_are_as_long_as_they_are_worth(value: float | None, shown: str) -> None:
    line = comparison_lines(document(row(None, value)))[2]
    assert line.split() == ["TTFT", "mean", shown, "-", "-", "-", "-", "-", "ms"]


def test_a_line_has_value_error_verdict_interval_and_whether_it_holds() -> None:
    one = row(90.0, 80.0, interval=(85.0, 1500.0))
    head, titles, line = comparison_lines(document(one))
    assert head == "plan: 1,200 requests of trace.jsonl, measured at http://x"
    assert titles.split() == [
        "metric", "measured", "predicted", "error", "<10", "%", "95", "%", "of", "replays", "in",
    ]  # fmt: skip
    assert line.split() == [
        "TTFT", "mean", "80.00", "90.00", "+12.5", "%", "no", "85.00..1,500", "no", "ms",
    ]  # fmt: skip
    assert comparison_lines(document(one, name=None))[0].startswith("run: ")


def test_everything_beside_the_table_is_said() -> None:
    statistics = {"mean": 0.125, "median": 0.1, "p90": None}
    lines = comparison_lines(
        document(
            requests={
                "ttft_ms": {"absolute_percentage_error": statistics, "kolmogorov_smirnov": 0.25},
                "tpot_ms": {"absolute_percentage_error": statistics, "kolmogorov_smirnov": None},
            },
            lateness_ms={"mean": 1.25, "max": 7.0},
            was_interrupted=True,
            num_unserved=1200,
            failures=[
                {"request_id": str(n), "status": "failed", "error": f"e{n}"} for n in range(9)
            ],
            attribution={
                "num_metrics": 19,
                "mean_abs_error": {"none": 0.5, "step time": 0.125},
                "not_swapped": {"KV capacity": "why"},
            },
            notes=["one", "two"],
        )
    )
    assert lines[2:] == [
        "ttft_ms of the same requests: error 12.5 % in the mean, 10.0 % median, - p90; "
        "distributions 0.250 apart (Kolmogorov-Smirnov)",
        "tpot_ms of the same requests: error 12.5 % in the mean, 10.0 % median, - p90; "
        "distributions - apart (Kolmogorov-Smirnov)",
        "requests were sent 1.2 ms after they were due in the mean, 7.0 ms at most",
        "mean |error| over 19 metrics, with parts of the blind prediction replaced by measured "
        "ones (parts can make up for each other):",
        f"  {'none':<46}   50.0 %",
        f"  {'step time':<46}   12.5 %",
        "  KV capacity: not replaced: why",
        "interrupted: the measured side is incomplete",
        "1,200 requests were not served, first of all:",
        *(f"  {n}: failed: e{n}" for n in range(5)),
        "note: one",
        "note: two",
    ]


@pytest.mark.parametrize("side", ["load", "measured"])
def test_waits_of_a_saturated_side_are_marked(side: str) -> None:
    rows = [Comparison(key, key, "ms", 1.0, 1.0) for _, key, _ in METRICS]
    lines = comparison_lines(document(*rows, **{side: {"saturated": True}}, **(
        {} if side == "load" else {"load": {"saturated": False}})))  # fmt: skip
    marked = [line.split()[1] for line in lines if line.startswith("~ ")]
    growing = [key for _, key, _ in METRICS if "ttft" in key or "e2e_latency" in key]
    assert marked == [*growing, "saturated:"]
    assert not any(line.startswith("~") for line in comparison_lines(document(*rows)))


# ---- capacity ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("blocks", "size", "expected"),
    # Usable blocks of the engine, in blocks of the plan's 16 tokens, and the placeholder.
    [("101", "16", 101), ("101", "32", 201), ("101", "8", 51), ("102", "8", 51), ("2", "16", 2),
     ("101", "", 101), ("101", "0", 101), ("2", "8", None), ("1", "16", None), ("x", "16", None)],
)  # fmt: skip
def test_an_engines_blocks_in_blocks_of_the_plan(
    blocks: str, size: str, expected: int | None
) -> None:
    told = engine_capacity({"num_gpu_blocks": blocks, "block_size": size}, block_size=16)
    assert (None if told is None else told.num_gpu_blocks) == expected
    if told is not None:
        assert (told.reported_by, len(told.notes)) == (
            "the engine's /metrics",
            int(size not in ("16", "", "0")),
        )


def test_a_fleets_smallest_worker_counts_whatever_its_blocks_hold() -> None:
    rows = [
        {"total_kv_blocks": 500, "block_size": 16},
        {"total_kv_blocks": 200, "block_size": 32},
        {"total_kv_blocks": 450},
    ]
    told = workers_capacity(rows, block_size=16)
    assert told is not None
    assert (told.num_gpu_blocks, told.reported_by) == (401, "the workers' cards")
    assert [note.split(":")[0] for note in told.notes] == [
        "the engine's KV blocks hold 32 tokens, the plan's 16",
        "workers have 400 to 500 KV blocks; all are taken to have the fewest",
    ]
    same = workers_capacity(rows[:1] * 3, block_size=16)
    assert same is not None and (same.num_gpu_blocks, same.notes) == (501, ())
    for odd in (True, 0, -1, 1.5, "9", None):
        assert workers_capacity([rows[0], {"total_kv_blocks": odd}], block_size=16) is None
