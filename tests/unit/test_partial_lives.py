"""Workers that live for part of a run: laws, clocks, pictures and words."""

import math
from dataclasses import replace

import numpy as np
import pytest
from toy_runs import ToyRun, toy_run

from dynosim.cluster.journal import Journal
from dynosim.cluster.outside import as_clients_see
from dynosim.cluster.pool import Worker, worker_log
from dynosim.cluster.spec import PoolSpec
from dynosim.cluster.token_log import TokenLog
from dynosim.engine.engine import Engine
from dynosim.engine.spec import EngineSpec
from dynosim.engine.vllm.scheduler import VllmScheduler
from dynosim.errors import InvariantError
from dynosim.metrics import check_conservation, summarize, timeline_table
from dynosim.metrics.routing import share_keys
from dynosim.metrics.saturation import load_of
from dynosim.plots.notebook import timeline_figure
from dynosim.plots.plotly_chart import plotly_figure
from dynosim.plots.run_figures import MAX_LINES, RunFigures
from dynosim.plots.run_html import run_page
from dynosim.records import RunResult, WorkerLog
from dynosim.timing.formulas import FixedModel
from dynosim.workers.lifecycle import WorkerEvent

NAN = math.nan
EARLY, LATE = 0, 1  # worker ids
ENGINE = EngineSpec(num_gpu_blocks=101, max_model_len=80)


def run_of_two(**changes: list[float]) -> ToyRun:
    """A run whose second worker is launched at 400 ms and ready at 500, by these changes."""
    arrivals = [0.0, 510.0, 20.0, 520.0, 40.0, 530.0]
    run = toy_run(6, workers=2, arrivals_ms=arrivals, mean_output=5, mean_input=50)
    columns: dict[str, list[float]] = {
        "launched_ms": [0.0, 400.0], "ready_ms": [0.0, 500.0], "ended_ms": [NAN, NAN]
    }  # fmt: skip
    lives = {name: np.array(column) for name, column in (columns | changes).items()}
    return replace(run, result=replace(run.result, workers=replace(run.result.workers, **lives)))


def end_of(run: ToyRun, worker: int) -> float:
    """When the last step of a worker ended."""
    steps = run.result.steps
    return float((steps.start_ms + steps.duration_ms)[steps.worker_id == worker].max())


def worker(worker_id: int, pool: PoolSpec, launched_ms: float, *moves: float) -> Worker:
    """One that became ready, was told to drain and had drained at these times, as far as given."""
    journal = Journal(toy_run(1).trace)
    core = VllmScheduler(pool.engine)
    log = TokenLog(journal, worker_id, core, pool.times, is_pipelined=False)
    made = Worker(worker_id, pool, Engine(core, pool.times, log), log, launched_ms)
    events = (WorkerEvent.BECAME_READY, WorkerEvent.TOLD_TO_DRAIN, WorkerEvent.DRAINED)
    for event, at_ms in zip(events, moves, strict=False):
        made.move(event, at_ms)
    return made


def test_a_life_is_told_by_worker() -> None:
    times = FixedModel(10.0, 5.0)
    early = PoolSpec(engine=ENGINE, times=times, workers=1, gpus_per_worker=2)
    late = replace(early, name="late", engine=replace(ENGINE, num_gpu_blocks=51), workers=0,
                   gpus_per_worker=1, step_time_scale=3.0)  # fmt: skip
    log = worker_log(
        [worker(0, early, 0.0, 0.0), worker(1, late, 60.0, 75.0, 80.0, 90.0), worker(2, late, 80.0)]
    )
    assert len(log) == 3
    assert log.pool == ("workers", "late", "late") and log.role == ("agg", "agg", "agg")
    assert log.gpus.tolist() == [2, 1, 1] and log.usable_blocks.tolist() == [100, 50, 50]
    assert log.step_time_scale.tolist() == [1.0, 3.0, 3.0]
    assert log.launched_ms.tolist() == [0.0, 60.0, 80.0]
    np.testing.assert_array_equal(log.ready_ms, [0.0, 75.0, NAN])
    np.testing.assert_array_equal(log.ended_ms, [NAN, 90.0, NAN])


# ---- laws --------------------------------------------------------------------------------------


def test_workers_that_come_and_go_in_time_break_no_law() -> None:
    run = run_of_two()
    check_conservation(run.result, run.trace)
    ended = [end_of(run, EARLY), end_of(run, LATE)]
    run = run_of_two(ended_ms=ended)
    check_conservation(run.result, run.trace)


@pytest.mark.parametrize(
    ("changes", "law"),
    [
        ({"launched_ms": [0.0, 501.0]}, "a worker is launched, gets ready and ends, in this order"),
        ({"ended_ms": [NAN, 450.0]}, "a worker is launched, gets ready and ends, in this order"),
        ({"ready_ms": [NAN, 500.0], "ended_ms": [-1.0, NAN]}, "gets ready and ends, in this order"),
        ({"ready_ms": [0.0, 510.1]}, "a worker steps while it lives: step row"),
        ({"ready_ms": [0.0, NAN]}, "a worker steps while it lives: step row"),
        ({"ended_ms": [NAN, 529.0]}, "a worker steps while it lives: step row"),
    ],
)
def test_what_a_worker_cannot_have_done_is_found(changes: dict[str, list[float]], law: str) -> None:
    run = run_of_two(**changes)
    with pytest.raises(InvariantError, match=law):
        check_conservation(run.result, run.trace)


@pytest.mark.parametrize("at_ms", [499.0, 1e6])
def test_a_request_for_a_worker_that_is_not_there_is_found(at_ms: float) -> None:
    run = run_of_two(ended_ms=[NAN, 1000.0])
    log = run.result.requests
    dispatch_ms = log.dispatch_ms.copy()
    dispatch_ms[1] = at_ms
    nothing = np.full(len(log.status), NAN)
    unserved = {name: nothing for name in ("arrival_ms", "scheduled_ms", "first_token_ms")}
    unserved |= {"second_token_ms": nothing, "finish_ms": nothing}
    log = replace(log, dispatch_ms=dispatch_ms, status=np.full(len(log.status), 3), **unserved)
    with pytest.raises(InvariantError, match="requests go to workers that are ready: request 1"):
        check_conservation(replace(run.result, requests=log), run.trace)
    moved = replace(log, migrations=np.array([0, 1, 0, 0, 0, 0]))
    check_conservation(replace(run.result, requests=moved), run.trace)


# ---- the clients' clock ------------------------------------------------------------------------


def test_who_is_there_at_the_start_is_there_for_the_first_client() -> None:
    result = run_of_two(ended_ms=[900.0, NAN]).result
    seen = as_clients_see(result, ingress_ms=3.0, egress_ms=2.0).workers
    assert seen.launched_ms.tolist() == [0.0, 403.0]
    assert seen.ready_ms.tolist() == [0.0, 503.0]
    np.testing.assert_array_equal(seen.ended_ms, [903.0, NAN])


# ---- the report --------------------------------------------------------------------------------


def report_of(run: ToyRun) -> dict[str, object]:
    return summarize(run.result, run.timing, sla=None, wall_time_ms=0.0)


def test_gpu_hours_are_an_integral_and_rates_per_gpu_follow() -> None:
    """Workers of two GPUs each: one all along, one from 400 ms."""
    report = report_of(run_of_two())
    run_ms, duration_ms = float(report["duration_ms"]), float(report["duration_ms"])
    assert run_of_two().result.end_ms == run_ms
    assert report["gpu_hours"] == pytest.approx((2 * run_ms + 2 * (run_ms - 400)) / 3.6e6)
    assert (report["num_gpus"], report["num_workers"]) == (4, 2)
    gpu_s = (2 * duration_ms + 2 * (duration_ms - 400)) / 1000
    assert report["output_tok_s_per_gpu"] == pytest.approx(report["total_output_tokens"] / gpu_s)


def test_a_worker_in_the_place_of_another_is_no_second_one() -> None:
    report = report_of(run_of_two(ended_ms=[400.0, NAN]))
    assert (report["num_gpus"], report["num_workers"]) == (2, 1)
    assert report["gpu_hours"] == pytest.approx(2 * float(report["duration_ms"]) / 3.6e6)


def test_sizes_in_which_workers_differ_are_nobodys() -> None:
    run = run_of_two()
    workers = replace(
        run.result.workers, gpus=np.array([1, 4]), usable_blocks=np.array([100, 10_000])
    )
    report = report_of(replace(run, result=replace(run.result, workers=workers)))
    assert report["gpus_per_worker"] is None and report["num_gpu_blocks"] is None
    assert report["num_gpus"] == 5
    steps = run.result.steps
    most = steps.used_blocks[steps.worker_id == EARLY].max() / 100
    assert report["peak_kv_usage_share"] == pytest.approx(most)


def test_a_worker_that_never_was_ready_is_not_spared_requests() -> None:
    run = run_of_two()
    workers = WorkerLog.equal(3)
    never = replace(workers, ready_ms=np.array([0.0, 0.0, NAN]))
    spared = share_keys(replace(run.result, workers=workers))["worker_request_cv"]
    assert spared > 0.5
    assert share_keys(replace(run.result, workers=never))["worker_request_cv"] == 0.0


def overloaded(workers: WorkerLog) -> RunResult:
    """A queue at both workers all along; the second one's steps are between 500 and 1000 ms."""
    run = toy_run(400, workers=2, rate_rps=400.0, max_seqs=2)
    return replace(run.result, workers=workers)


def test_what_is_sustained_counts_for_the_share_of_the_run_that_a_worker_lived() -> None:
    whole = overloaded(WorkerLog.equal(2))
    steps = whole.steps
    last_ms = float((steps.start_ms + steps.duration_ms).max())
    half = replace(WorkerLog.equal(2), launched_ms=np.array([0.0, last_ms / 2]))
    alone = replace(WorkerLog.equal(2), launched_ms=np.array([last_ms, 0.0]))
    both, first, second = (load_of(overloaded(w)).sustained_tok_s for w in (whole.workers, half,
                                                                           alone))  # fmt: skip
    assert both and first and second
    assert first == pytest.approx(both - second / 2)


def test_the_queue_of_a_worker_that_is_gone_does_not_last() -> None:
    whole = overloaded(WorkerLog.equal(2))
    assert load_of(whole).collapse_ms is not None
    gone = replace(WorkerLog.equal(2), ended_ms=np.array([1.0, 1.0]))
    assert load_of(overloaded(gone)).collapse_ms is None


# ---- pictures and words ------------------------------------------------------------------------


def test_a_worker_that_is_not_there_has_no_level() -> None:
    table = timeline_table(run_of_two().result, 100.0)
    late = table.filter(table["worker_id"] == LATE)
    assert late["busy_share"].is_null().to_list()[:5] == [True] * 4 + [False]
    assert late["waiting"][4] == 0.0
    assert late["steps"].null_count() == 0


@pytest.mark.parametrize("copies", [1, MAX_LINES])
def test_pictures_leave_out_who_is_not_there(copies: int) -> None:
    run = run_of_two()
    some = run.result.workers
    columns = {
        name: np.tile(getattr(some, name), copies)
        for name in WorkerLog.__slots__
        if name not in ("pool", "role", "ranks_per_worker")
    }
    result = replace(run.result, workers=WorkerLog(pool=some.pool * copies,
                                                   role=some.role * copies, **columns))  # fmt: skip
    report = summarize(result, run.timing, sla=None, wall_time_ms=0.0)
    data = plotly_figure(RunFigures(result, report).workers()).data
    rows = [trace["y"] for trace in data] if copies == 1 else data[0]["z"]
    assert None not in rows[EARLY] and rows[LATE][0] is None and rows[LATE][-1] is not None
    timeline_figure(timeline_table(result), report=report)


def test_the_lead_names_the_sizes_of_workers() -> None:
    run = run_of_two()
    workers = replace(run.result.workers, gpus=np.array([1, 4]))
    page = run_page("t", "", report_of(run), replace(run.result, workers=workers), run.trace)
    assert page.lead == "2 workers of 1 to 4 GPUs · workload toy"
