"""Every column and figure of a measured load, against the same worked out record by record."""

from array import array
from dataclasses import fields
from itertools import pairwise
from math import isnan, nan
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynosim.metrics.tables import RECORD_FIELDS
from dynosim.records import RequestLog, RequestStatus
from dynosim_runtime.measure.client import TimedAnswer
from dynosim_runtime.measure.load import LoadRun, fill_record
from dynosim_runtime.measure.measured import (
    cache_hit_rate,
    measured_report,
    record_table,
    request_log,
)
from dynosim_runtime.requests import RequestRecord
from dynosim_runtime.serving.request_log import record_row

STATUSES = {
    "completed": RequestStatus.COMPLETED,
    "rejected": RequestStatus.REJECTED,
    "failed": RequestStatus.FAILED,
    "cancelled": RequestStatus.UNFINISHED,
    "unfinished": RequestStatus.UNFINISHED,
}


def made(number: int, token_ms: list[float], **fields: Any) -> RequestRecord:
    """A completed request that came at 100 ms times its number, unless said otherwise."""
    given: dict[str, Any] = {
        "request_id": f"r{number}",
        "arrival_ms": 100.0 * number,
        "dispatch_ms": 100.0 * number + 1,
        "first_token_ms": token_ms[0] if token_ms else None,
        "finish_ms": token_ms[-1] if token_ms else None,
        "input_tokens": 10 + number,
        "output_tokens": len(token_ms),
        "status": "completed",
    }
    return RequestRecord(**(given | fields))


def run_of(*requests: tuple[list[float], dict[str, Any]]) -> LoadRun:
    records = [made(number, times, **more) for number, (times, more) in enumerate(requests)]
    tokens = [array("d", times) for times, _ in requests]
    return LoadRun(records, tokens, np.zeros(len(records)))


VARIED = run_of(
    ([130.0, 140.0, 165.0], {"prefill_wait_time_ms": 7.0, "decode_worker_id": 9, "migrations": 1}),
    ([140.0, 150.0], {"prefill_wait_time_ms": 12.0, "decode_worker_id": 4, "cached_tokens": 8}),
    ([290.0, 300.0], {"decode_worker_id": 9, "preemptions": 2, "session_id": "s"}),
    ([390.0], {"status": "failed", "error": "HTTP 500", "finish_ms": None}),
    ([], {"status": "rejected", "error": "too long", "decode_worker_id": None}),
    ([520.0, 530.0], {"status": "cancelled", "error": "cut off", "finish_ms": None}),
    ([], {"status": "unfinished", "arrival_ms": nan, "dispatch_ms": None}),
)


def test_every_column_of_the_log_is_that_of_the_records() -> None:
    log = request_log(VARIED)
    expected: dict[str, list[float]] = {
        "arrival_ms": [0, 100, 200, 300, 400, 500, nan],
        "dispatch_ms": [1, 101, 201, 301, 401, 501, nan],
        # Arrival and wait where that was told, else the first token.
        "scheduled_ms": [7, 112, 290, 390, nan, 520, nan],
        "first_token_ms": [130, 140, 290, 390, nan, 520, nan],
        "second_token_ms": [140, 150, 300, nan, nan, 530, nan],
        "finish_ms": [165, 150, 300, nan, nan, nan, nan],
        "input_tokens": [10, 11, 12, 13, 14, 15, 16],
        "output_tokens": [3, 2, 2, 1, 0, 2, 0],
        "cached_tokens": [0, 8, 0, 0, 0, 0, 0],
        "worker_id": [1, 0, 1, 0, 0, 0, 0],  # 4 and 9 in the order of their ids
        "preemptions": [0, 0, 2, 0, 0, 0, 0],
        "migrations": [1, 0, 0, 0, 0, 0, 0],
        "status": [0, 0, 0, 2, 1, 3, 3],
    }
    others = {"errors", "is_timed", "gave_up_ms", "handoffs", "onboards"}
    assert {field.name for field in fields(RequestLog)} == {*expected, *others}
    for name, column in expected.items():
        np.testing.assert_array_equal(getattr(log, name), column, err_msg=name)
    assert log.errors == {3: "HTTP 500", 4: "too long", 5: "cut off"}
    assert log.gave_up_ms is None  # no record says it


OPTIONAL_MS = st.none() | st.integers(0, 1000).map(float)
RECORDS = st.lists(
    st.builds(
        RequestRecord,
        request_id=st.text("ab", max_size=2),
        session_id=st.none() | st.just("s"),
        arrival_ms=st.integers(0, 1000).map(float) | st.just(nan),
        dispatch_ms=OPTIONAL_MS,
        first_token_ms=OPTIONAL_MS,
        finish_ms=OPTIONAL_MS,
        input_tokens=st.integers(1, 99),
        output_tokens=st.integers(0, 9),
        cached_tokens=st.none() | st.integers(0, 9),
        prefill_worker_id=st.none() | st.integers(0, 1 << 53),
        decode_worker_id=st.none() | st.integers(0, 1 << 53),
        prefill_wait_time_ms=OPTIONAL_MS,
        prefill_time_ms=OPTIONAL_MS,
        prefill_dp_rank=st.none() | st.integers(0, 7),
        kv_hit_rate=st.none() | st.floats(0, 1),
        preemptions=st.integers(0, 3),
        migrations=st.integers(0, 3),
        status=st.sampled_from(sorted(STATUSES)),
        error=st.none() | st.just("no"),
    ),
    min_size=1,
    max_size=5,
)


def naive_row(record: RequestRecord) -> dict[str, Any]:
    """A record's row: what it holds, and what follows from that."""
    row = {name: getattr(record, name, None) for name in RECORD_FIELDS}
    first, last, arrival = record.first_token_ms, record.finish_ms, record.arrival_ms
    row["ttft_ms"] = None if first is None else first - arrival
    row["total_time_ms"] = row["e2e_ms"] = None if last is None else last - arrival
    row["tpot_ms"] = row["itl_mean_ms"] = (
        (last - first) / (record.output_tokens - 1)
        if first is not None and last is not None and record.output_tokens > 1
        else None
    )
    return row


@settings(max_examples=20, deadline=None)
@given(records=RECORDS)
def test_every_column_of_the_table_is_that_of_the_records(records: list[RequestRecord]) -> None:
    rows = [naive_row(record) for record in records]
    for record, row in zip(records, rows, strict=True):
        assert str(record_row(record)) == str(row)  # as text: a time may be NaN
    told = [
        {
            name: None if isinstance(value, float) and isnan(value) else value
            for name, value in row.items()
        }
        for row in rows
    ]
    assert record_table(records).to_dicts() == told


@settings(max_examples=20, deadline=None)
@given(records=RECORDS)
def test_every_entry_of_the_log_is_that_of_the_records(records: list[RequestRecord]) -> None:
    tokens = [array("d", [float(i)] * record.output_tokens) for i, record in enumerate(records)]
    log = request_log(LoadRun(records, tokens, np.zeros(len(records))))
    ids = sorted({r.decode_worker_id for r in records if r.decode_worker_id is not None})
    for row, record in enumerate(records):
        wait_ms = record.prefill_wait_time_ms
        for name, expected in (
            ("arrival_ms", record.arrival_ms),
            ("dispatch_ms", record.dispatch_ms),
            ("first_token_ms", record.first_token_ms),
            ("second_token_ms", float(row) if record.output_tokens > 1 else None),
            ("finish_ms", record.finish_ms),
            (
                "scheduled_ms",
                record.first_token_ms if wait_ms is None else record.arrival_ms + wait_ms,
            ),
            ("input_tokens", record.input_tokens),
            ("output_tokens", record.output_tokens),
            ("cached_tokens", record.cached_tokens or 0),
            ("preemptions", record.preemptions),
            ("status", STATUSES[record.status]),
            (
                "worker_id",
                0 if record.decode_worker_id is None else ids.index(record.decode_worker_id),
            ),
        ):
            value = float(getattr(log, name)[row])
            is_none = expected is None or isnan(expected)
            assert isnan(value) if is_none else value == expected, name


def test_gaps_are_those_of_completed_requests_only() -> None:
    gaps = [
        later - earlier
        for times, record in zip(VARIED.token_ms, VARIED.records, strict=True)
        if record.status == "completed"
        for earlier, later in pairwise(times)
    ]
    assert VARIED.gaps_ms.tolist() == gaps == [10, 25, 10, 10]
    assert run_of(([5.0], {})).gaps_ms.tolist() == []


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_a_run_ends_with_its_last_end_whoever_had_it(order: tuple[int, ...]) -> None:
    requests = [
        ([20.0, 40.0], {"arrival_ms": 0.0}),
        ([30.0, 99.0], {"arrival_ms": 10.0}),
        ([50.0], {"arrival_ms": 20.0, "status": "failed", "finish_ms": None}),
    ]
    report = measured_report(run_of(*(requests[number] for number in order)))
    assert report["duration_ms"] == 99.0
    assert report["request_throughput_rps"] == pytest.approx(2 / 0.099)
    assert report["output_throughput_tok_s"] == pytest.approx(4 / 0.099)


def test_a_run_without_an_end_has_no_length() -> None:
    report = measured_report(run_of(([], {"status": "failed"})))
    assert (report["duration_ms"], report["completed_requests"]) == (0.0, 0)
    assert report["prefix_cache_reused_ratio"] is None


def test_figures_per_gpu_are_of_all_gpus() -> None:
    run = run_of(([10.0, 20.0], {}), ([120.0, 130.0], {}))
    one = measured_report(run)
    six = measured_report(run, num_workers=3, gpus_per_worker=2)
    keys = [key for key in one if key.endswith("per_gpu") and one[key]]
    assert "output_throughput_tok_s_per_gpu" in keys or "output_tok_s_per_gpu" in keys
    for key in keys:
        assert six[key] == pytest.approx(one[key] / 6), key


@pytest.mark.parametrize(
    ("cached", "engine_says", "expected"),
    [
        ([4, 6], None, 10 / 21),
        ([4, 6], 0.9, 10 / 21),
        ([0, 0], 0.9, 0.0),
        ([4, None], 0.9, 0.9),  # of one it is not known: of all it is not
        ([None, 4], 0.9, 0.9),
        ([4, None], None, None),
        ([None, None], 0.25, 0.25),
    ],
)
def test_hit_rate_is_of_all_prompts_or_the_engines_own(
    cached: list[int | None], engine_says: float | None, expected: float | None
) -> None:
    run = run_of(
        ([10.0], {"cached_tokens": cached[0]}),
        ([11.0], {"cached_tokens": cached[1]}),
        ([12.0], {"status": "failed", "cached_tokens": None}),  # does not count
        ([13.0], {"status": "failed", "cached_tokens": 5}),
    )
    run.cache_hit_rate = engine_says
    assert cache_hit_rate(run) == expected
    report = measured_report(run)
    assert report["prefix_cache_reused_ratio"] == expected
    assert report["first_admission_prefix_cache_reused_ratio"] == expected


def test_lateness_counts_what_was_sent() -> None:
    run = run_of(([1.0], {}), ([1.0], {}), ([], {}))
    run.lateness_ms = np.array([2.0, 6.0, nan])
    summary = run.lateness()
    assert (summary.count, summary.statistics["mean"], summary.statistics["max"]) == (2, 4.0, 6.0)


def answer(**changes: Any) -> TimedAnswer:
    given: dict[str, Any] = {
        "sent_ms": 105.0,
        "token_ms": array("d", [140.0, 150.0, 150.0]),
        "http_status": 200,
    }
    return TimedAnswer(**(given | changes))


def filled(told: TimedAnswer, speed: float = 1.0) -> RequestRecord:
    record = RequestRecord(request_id="0", arrival_ms=100.0, input_tokens=10)
    fill_record(record, told, speed=speed)
    return record


def test_an_answer_fills_every_field_of_its_record() -> None:
    told = answer(
        input_tokens=99,
        output_tokens=3,
        cached_tokens=4,
        extension={
            "worker_id": {
                "prefill_worker_id": 5,
                "prefill_dp_rank": 1,
                "decode_worker_id": 6,
                "decode_dp_rank": 2,
            },
            "timing": {"prefill_time_ms": 3.0, "prefill_wait_time_ms": 77.0, "kv_hit_rate": 0.4},
        },
    )
    assert filled(told, speed=10.0) == RequestRecord(
        request_id="0",
        arrival_ms=100.0,
        dispatch_ms=105.0,
        first_token_ms=140.0,
        finish_ms=150.0,
        input_tokens=10,  # the trace's
        output_tokens=3,
        cached_tokens=4,
        prefill_worker_id=5,
        decode_worker_id=6,
        prefill_dp_rank=1,
        decode_dp_rank=2,
        prefill_wait_time_ms=10.0,  # what is left of the 40 ms that the client saw
        prefill_time_ms=30.0,
        kv_hit_rate=0.4,
        status="completed",
    )


def test_a_server_that_tells_nothing_leaves_only_times() -> None:
    assert filled(answer()) == RequestRecord(
        request_id="0",
        arrival_ms=100.0,
        dispatch_ms=105.0,
        first_token_ms=140.0,
        finish_ms=150.0,
        input_tokens=10,
        output_tokens=3,
        status="completed",
    )
    odd = answer(extension={"worker_id": 7, "timing": None})
    assert filled(odd) == filled(answer())


def test_a_prefill_is_no_longer_than_the_time_to_the_first_token() -> None:
    record = filled(answer(extension={"timing": {"prefill_time_ms": 5.0}}), speed=10.0)
    assert (record.prefill_time_ms, record.prefill_wait_time_ms) == (40.0, 0.0)


def test_an_answer_that_failed_has_a_first_token_but_no_end() -> None:
    record = filled(answer(error="broke", output_tokens=9))
    assert (record.status, record.error) == ("failed", "broke")
    assert (record.first_token_ms, record.finish_ms, record.output_tokens) == (140.0, None, 3)
    nothing = answer(
        error="no", token_ms=array("d"), extension={"timing": {"prefill_time_ms": 5.0}}
    )
    record = filled(nothing)
    assert (record.first_token_ms, record.prefill_time_ms) == (None, None)


@pytest.mark.parametrize(
    ("http_status", "num_tokens", "status"),
    [(400, 0, "rejected"), (413, 0, "rejected"), (422, 0, "rejected"), (404, 0, "failed"),
     (429, 0, "failed"), (500, 0, "failed"), (None, 0, "failed"), (400, 1, "failed"),
     (200, 1, "failed")],
)  # fmt: skip
def test_only_a_refusal_before_the_first_token_is_one(
    http_status: int | None, num_tokens: int, status: str
) -> None:
    told = answer(http_status=http_status, token_ms=array("d", [1.0] * num_tokens), error="no")
    assert filled(told).status == status
