from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from toy_runs import toy_run

from dynosim.blocks.tier import SLOWER, Tier
from dynosim.metrics import RECORD_FIELDS, request_table, timeline_table
from dynosim.metrics.tables import event_table
from dynosim.metrics.timeline import NUM_INTERVALS, cut_at_borders, default_interval_ms
from dynosim.records import KvEventLog, RequestStatus, RoutingStats


def test_records_have_the_documented_fields_in_order() -> None:
    run = toy_run()
    table = request_table(run.result, run.trace)
    assert tuple(table.columns) == RECORD_FIELDS
    assert table["request_id"].to_list()[:2] == ["0", "1"]
    assert table["status"].unique().to_list() == ["completed"]
    assert table["session_id"].dtype == pl.String


def test_ttft_is_wait_plus_prefill() -> None:
    run = toy_run()
    table = request_table(run.result, run.trace)
    total = table["prefill_wait_time_ms"] + table["prefill_time_ms"]
    assert np.allclose(total, table["ttft_ms"], rtol=0, atol=1e-9)


def test_what_does_not_exist_is_null_not_nan() -> None:
    run = toy_run(4, mean_output=0.01)
    log = run.result.requests
    status = log.status.copy()
    status[1] = RequestStatus.REJECTED
    worker = log.worker_id.copy()
    worker[1] = -1
    log = replace(log, status=status, worker_id=worker, errors={1: "prompt too long"})
    table = request_table(replace(run.result, requests=log), run.trace)
    assert table["tpot_ms"].null_count() == 4
    assert table["prefill_worker_id"].to_list() == [0, None, 0, 1]
    assert table["error"].to_list() == [None, "prompt too long", None, None]
    assert table["status"][1] == "rejected"
    assert not any(table[name].is_nan().any() for name in table.columns if name.endswith("_ms"))


def test_ids_number_the_ranks_of_all_workers() -> None:
    run = toy_run(5)
    log = replace(run.result.requests, worker_id=np.array([0, 1, 2, 3, -1]))
    workers = replace(run.result.workers, ranks_per_worker=2)
    table = request_table(replace(run.result, requests=log, workers=workers), run.trace)
    assert table["decode_worker_id"].to_list() == [0, 1, 2, 3, None]
    assert table["decode_dp_rank"].to_list() == [0, 1, 0, 1, None]
    assert table["prefill_dp_rank"].to_list() == [0, 1, 0, 1, None]


def test_the_hit_rate_is_what_the_router_believed() -> None:
    """Blocks of 16 tokens; a belief may count a part of the last one that is not of the prompt."""
    run = toy_run(4)
    log, size = run.result.requests, run.result.block_size
    log = replace(
        log,
        input_tokens=np.array([4 * size, 4 * size, size - 1, 4 * size]),
        dispatch_ms=np.array([0.0, 0.0, 0.0, np.nan]),
    )
    routing = RoutingStats(np.array([1.0, 2.5, 1.0, 3.0]), np.zeros(4), 0, {}, 0, {})
    table = request_table(replace(run.result, requests=log, routing=routing), run.trace)
    assert table["kv_hit_rate"].to_list() == [0.25, 0.625, 1.0, None]
    assert request_table(run.result, run.trace)["kv_hit_rate"].to_list() == [None] * 4
    assert table["total_time_ms"].equals(table["e2e_ms"])


def test_names_come_from_the_trace() -> None:
    run = toy_run(2)
    trace = replace(run.trace, request_ids=("a", "b"), session_ids=("s", "s"))
    table = request_table(run.result, trace)
    assert table["request_id"].to_list() == ["a", "b"]
    assert table["session_id"].to_list() == ["s", "s"]


@pytest.mark.parametrize("interval_ms", [None, 7.0, 100.0, 1e6])
def test_timeline_adds_up_to_the_run(interval_ms: float | None) -> None:
    run = toy_run()
    steps, log = run.result.steps, run.result.requests
    table = timeline_table(run.result, interval_ms)
    assert table["steps"].sum() == pytest.approx(steps.num_steps.sum())
    assert table["output_tokens"].sum() == pytest.approx(log.output_tokens.sum())
    assert table["prefill_tokens"].sum() == pytest.approx(steps.prefill_tokens.sum())
    assert table["admitted"].sum() == len(log.status)
    assert table["admitted_cached_tokens"].sum() == log.cached_tokens.sum()
    busy_ms = (table["busy_share"] * table["interval_ms"]).sum()
    assert busy_ms == pytest.approx(steps.duration_ms.sum())
    assert table["busy_share"].max() <= 1 + 1e-9
    assert table["kv_used_share"].max() <= 1


def test_levels_are_means_over_time() -> None:
    run = toy_run(workers=1)
    steps = run.result.steps
    table = timeline_table(run.result, 50.0)
    cell = table.row(3, named=True)
    start, end = cell["start_ms"], cell["start_ms"] + 50.0
    times = np.linspace(start, end, 20_001)
    row = np.searchsorted(steps.start_ms, times, side="right") - 1
    busy = times < (steps.start_ms + steps.duration_ms)[row]
    # A mean over samples 2.5 us apart; exactly: tests/property/test_report_definitions.py.
    assert cell["running"] == pytest.approx(
        np.where(busy, steps.num_running[row], 0).mean(), rel=0.01
    )


def test_a_step_without_duration_is_kept() -> None:
    run = toy_run(3)
    steps = replace(run.result.steps, duration_ms=np.zeros(len(run.result.steps.num_steps)))
    table = timeline_table(replace(run.result, steps=steps))
    assert table["steps"].sum() == steps.num_steps.sum()


def test_default_interval_is_round_and_gives_enough_intervals() -> None:
    assert default_interval_ms(100.0) == 1.0
    assert default_interval_ms(3_545_000.0) == 20_000.0
    for end_ms in (301.0, 999.0, 12_345.6, 1e9):
        assert NUM_INTERVALS / 2.6 <= end_ms / default_interval_ms(end_ms) <= NUM_INTERVALS


def test_interval_must_be_positive() -> None:
    with pytest.raises(ValueError, match="positive"):
        timeline_table(toy_run(2).result, 0.0)


def test_an_empty_run_has_an_empty_timeline() -> None:
    run = toy_run(0)
    assert timeline_table(run.result)["steps"].sum() == 0
    assert request_table(run.result, run.trace).is_empty()


def test_events_are_listed_as_they_were_told() -> None:
    log = KvEventLog(np.array([5.0, 6.5]), np.array([1, 0]), np.array([3, -2]))
    assert event_table(log).to_dicts() == [
        {"time_ms": 5.0, "worker_id": 1, "num_blocks": 3},
        {"time_ms": 6.5, "worker_id": 0, "num_blocks": -2},
    ]


def test_events_of_slower_tiers_say_so() -> None:
    times_ms, ones = np.array([5.0, 6.5]), np.array([1, 1])
    tables = [
        event_table(KvEventLog(times_ms, ones, ones, np.array([Tier.DEVICE, tier])))
        for tier in SLOWER
    ]
    assert [table["tier"].to_list() for table in tables] == [
        ["device", name] for name in ("host", "disk", "remote")
    ]


@pytest.mark.parametrize(
    ("end_ms", "interval_ms"),
    [(300.0, 1.0), (300.5, 2.0), (600.0, 2.0), (601.0, 5.0), (1500.0, 5.0), (1501.0, 10.0),
     (3000.0, 10.0), (3001.0, 20.0), (0.0, 1.0)],
)  # fmt: skip
def test_intervals_are_the_smallest_round_ones(end_ms: float, interval_ms: float) -> None:
    assert default_interval_ms(end_ms) == interval_ms


def test_rows_are_cut_at_borders_and_lose_nothing() -> None:
    """One inside, one over two borders, one that ends at a border, one that takes no time."""
    steps = toy_run(5, workers=1).result.steps
    four = {name: getattr(steps, name)[:4] for name in steps.__slots__}
    start, length = np.array([1.0, 5.0, 26.0, 30.0]), np.array([2.0, 21.0, 4.0, 0.0])
    pieces = cut_at_borders(
        replace(steps, **four | {"start_ms": start, "duration_ms": length}), 10.0, 4
    )
    parts = zip(pieces.row.tolist(), pieces.interval.tolist(), pieces.overlap_ms.tolist(),
                pieces.share.tolist(), strict=True)  # fmt: skip
    spent = [(row, interval, ms, share) for row, interval, ms, share in parts if ms or share]
    assert spent == [
        (0, 0, 2.0, 1.0),
        (1, 0, 5.0, pytest.approx(5 / 21)),
        (1, 1, 10.0, pytest.approx(10 / 21)),
        (1, 2, 6.0, pytest.approx(6 / 21)),
        (2, 2, 4.0, 1.0),
        (3, 3, 0.0, 1.0),
    ]
