from array import array
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from toy_runs import ToyRun, toy_run

from dynosim.metrics import RECORD_FIELDS, request_table, summarize
from dynosim_runtime.measure.client import TimedAnswer
from dynosim_runtime.measure.load import LoadRun, fill_record
from dynosim_runtime.measure.measured import (
    ENGINE_KEYS,
    cache_hit_rate,
    measured_report,
    record_table,
    write_records,
)
from dynosim_runtime.requests import RequestRecord


def record(index: int, times: list[float], *, due_ms: float = 0.0) -> RequestRecord:
    return RequestRecord(
        request_id=str(index),
        arrival_ms=due_ms,
        dispatch_ms=due_ms,
        first_token_ms=times[0],
        finish_ms=times[-1],
        input_tokens=10,
        output_tokens=len(times),
        status="completed",
    )


def run_of(*token_ms: list[float]) -> LoadRun:
    records = [record(index, times) for index, times in enumerate(token_ms)]
    return LoadRun(records, [array("d", times) for times in token_ms], np.zeros(len(token_ms)))


def seen_by_a_client(toy: ToyRun) -> LoadRun:
    """What a client sees of a run: the times of tokens, put together from first ones and gaps."""
    log = toy.result.requests
    borders = np.cumsum(log.output_tokens - 1)[:-1]
    records, token_ms = [], []
    for row, gaps in enumerate(np.split(toy.gaps_ms, borders)):
        times = log.first_token_ms[row] + np.concatenate(([0.0], np.cumsum(gaps)))
        entry = record(row, times.tolist(), due_ms=float(log.arrival_ms[row]))
        entry.input_tokens = int(log.input_tokens[row])
        entry.cached_tokens = int(log.cached_tokens[row])
        entry.decode_worker_id = 10 + int(log.worker_id[row])
        entry.prefill_wait_time_ms = float(log.scheduled_ms[row] - log.arrival_ms[row])
        records.append(entry)
        token_ms.append(array("d", times.tolist()))
    return LoadRun(records, token_ms, np.zeros(len(records)))


def test_table_has_the_columns_of_the_twins() -> None:
    toy = toy_run()
    expected = request_table(toy.result, toy.trace)
    table = record_table(run_of([5.0, 7.0]).records)
    assert tuple(table.columns) == RECORD_FIELDS
    assert table.schema == expected.schema


def test_report_has_the_twins_definitions() -> None:
    run = run_of([10.0, 12.0, 12.0, 18.0], [20.0, 21.0])
    report = measured_report(run)
    assert report["mean_ttft_ms"] == 15.0
    assert report["mean_itl_ms"] == pytest.approx((2 + 0 + 6 + 1) / 4)
    assert report["max_itl_ms"] == 6.0
    assert report["mean_tpot_ms"] == pytest.approx((8 / 3 + 1) / 2)
    assert report["mean_e2e_latency_ms"] == pytest.approx((18 + 21) / 2)
    assert report["mean_ttst_ms"] == pytest.approx(1.5)
    assert report["request_throughput_rps"] == pytest.approx(2 / 0.021)
    assert report["output_throughput_tok_s"] == pytest.approx(6 / 0.021)
    assert not set(report) & set(ENGINE_KEYS)


def test_failed_requests_count_but_have_no_latencies() -> None:
    run = run_of([10.0, 12.0], [50.0, 99.0])
    run.records[1].status, run.records[1].error = "failed", "HTTP 500"
    report = measured_report(run)
    assert report["failed_requests"] == 1
    assert report["max_ttft_ms"] == 10.0
    assert report["num_itl_samples"] == 1


def test_hit_rate_from_answers_or_else_from_the_engine() -> None:
    run = run_of([1.0], [1.0])
    assert cache_hit_rate(run) is None
    run.cache_hit_rate = 0.25
    assert cache_hit_rate(run) == 0.25
    for entry in run.records:
        entry.cached_tokens = 8
    assert cache_hit_rate(run) == pytest.approx(0.8)


def test_wait_and_prefill_add_up_to_ttft_on_the_scaled_clock() -> None:
    answer = TimedAnswer(
        sent_ms=101.0,
        token_ms=array("d", [140.0, 150.0]),
        input_tokens=10,
        output_tokens=2,
        cached_tokens=4,
        http_status=200,
        extension={
            "worker_id": {"prefill_worker_id": 5, "decode_worker_id": 5},
            "timing": {"prefill_time_ms": 3.0},
        },
    )
    entry = RequestRecord(request_id="0", arrival_ms=100.0, input_tokens=10)
    fill_record(entry, answer, speed=10.0)
    assert entry.status == "completed"
    assert entry.prefill_time_ms == 30.0
    assert entry.prefill_wait_time_ms == 10.0
    assert (entry.decode_worker_id, entry.cached_tokens) == (5, 4)


@pytest.mark.parametrize(
    ("status", "tokens", "expected"),
    [(400, [], "rejected"), (503, [], "failed"), (200, [1.0], "failed"), (None, [], "failed")],
)
def test_what_an_error_makes_of_a_request(
    status: int | None, tokens: list[float], expected: str
) -> None:
    answer = TimedAnswer(sent_ms=0.0, token_ms=array("d", tokens), http_status=status, error="no")
    entry = RequestRecord(request_id="0", arrival_ms=0.0, input_tokens=10)
    fill_record(entry, answer)
    assert (entry.status, entry.error, entry.finish_ms) == (expected, "no", None)


def test_written_files_hold_the_same_rows(tmp_path: Path) -> None:
    records = run_of([5.0, 7.0], [6.0]).records
    records[1].arrival_ms = float("nan")
    write_records(records, tmp_path / "r.parquet", tmp_path / "r.jsonl")
    parquet = pl.read_parquet(tmp_path / "r.parquet")
    lines = pl.read_ndjson(tmp_path / "r.jsonl", schema=parquet.schema)
    assert parquet.equals(lines)
    assert parquet["arrival_ms"].to_list() == [0.0, None]


@pytest.mark.parametrize("preempt_chance", [0.0, 0.05])
def test_report_of_what_a_client_sees_is_the_twins(preempt_chance: float) -> None:
    toy = toy_run(40, preempt_chance=preempt_chance)
    twin = summarize(toy.result, toy.timing, sla=None, wall_time_ms=0.0)
    measured = measured_report(seen_by_a_client(toy), num_workers=2, gpus_per_worker=2)
    # A client sees all that is not an engine's own; `wall_time_ms` is how long it measured.
    assert set(measured) == set(twin) - set(ENGINE_KEYS)
    assert measured.pop("wall_time_ms") == twin["duration_ms"]
    assert len(measured) > 60
    for key in sorted(measured):
        is_number = isinstance(twin[key], float)  # sums of times, put together in another order
        expected = pytest.approx(twin[key], rel=1e-9, abs=1e-9) if is_number else twin[key]
        assert measured[key] == expected, key
