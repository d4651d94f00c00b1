"""A controller in the twin: when it sees what, and how what it decides comes about."""

from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest
from clusters import equal_workers
from controllers import Script
from disagg_support import ENGINE, pools
from exposition import COMMON
from live_support import Inside, ScriptedEngine
from probing import Ask, trace_of
from prometheus_client.parser import text_string_to_metric_families
from virtual_time import in_virtual_time, now_ms

from dynosim.cluster import ClusterSpec, RunOptions, simulate
from dynosim.cluster.scaling import ScalingProcess, ScalingSpec, pool_cards
from dynosim.cluster.scenario import Crash, Replacement, WorkerTarget, play
from dynosim.engine.spec import EngineSpec
from dynosim.errors import ConfigError
from dynosim.metrics import summarize
from dynosim.metrics.lives import mean_gpus
from dynosim.metrics.scaling import replica_table
from dynosim.planner import frontend_metrics as names
from dynosim.planner.frontend_metrics import sample_name
from dynosim.planner.observation import Observation
from dynosim.records import RequestStatus, RunResult, Trace
from dynosim.router.knobs import RouterSpec
from dynosim.router.spec import RoutingSpec
from dynosim.timing.formulas import FixedModel
from dynosim.workers.lifecycle import Phase
from dynosim_runtime.serving.gauges import observe_frontend

TIMES = FixedModel(10.0, 5.0)
KV = RoutingSpec(RouterSpec(4, mode="kv"))
LEAST = RoutingSpec(RouterSpec(4, mode="least-loaded"))
SPEC = EngineSpec(num_gpu_blocks=400, max_model_len=1000, block_size=4)


def trace(*arrivals_ms: float, output_tokens: int = 20) -> Trace:
    return trace_of(
        [Ask(at_ms, (1, 2), 0, output_tokens=output_tokens) for at_ms in arrivals_ms], 4
    )


def run(
    script: Script,
    *arrivals_ms: float,
    cluster: ClusterSpec | None = None,
    startup_ms: float = 0.0,
    options: RunOptions = RunOptions(waits_for_workers=True),  # noqa: B008
    **spec: Any,
) -> tuple[RunResult, list[Observation]]:
    """What came of it, and what was seen."""
    cluster = cluster or equal_workers(SPEC, TIMES)
    slow = [replace(pool, startup_ms=startup_ms) for pool in cluster.pools]
    cluster = replace(cluster, pools=tuple(slow))
    process = ScalingProcess(script, ScalingSpec(**spec))
    result = simulate(trace(*arrivals_ms), cluster, options, processes=[process])
    return result, [look.seen for look in process.looks]


@pytest.mark.parametrize("routing", [None, LEAST, KV])
def test_requests_wait_for_a_worker_where_there_is_none(routing: RoutingSpec | None) -> None:
    """Asleep from 50 ms on; what comes at 200 and 210 waits until 300 + 40 ms, in order."""
    cluster = equal_workers(SPEC, TIMES, routing=routing)
    script = Script([50.0, 300.0], [0, 1])
    result, _ = run(script, 0.0, 200.0, 210.0, cluster=cluster, startup_ms=40.0)
    log = result.requests
    assert (log.status == RequestStatus.COMPLETED).all()
    assert log.dispatch_ms.tolist() == [0.0, 340.0, 340.0]
    assert result.workers.launched_ms.tolist() == [0.0, 300.0]


def test_without_waiting_they_are_refused() -> None:
    script = Script([50.0, 300.0], [0, 1])
    result, _ = run(script, 0.0, 200.0, 400.0, options=RunOptions())
    assert result.requests.status.tolist() == [0, RequestStatus.REJECTED, 0]
    assert "no worker" in result.requests.errors[1]


@pytest.mark.parametrize("routing", [None, KV])
@pytest.mark.parametrize("order", ["prefill_first", "decode_first"])
def test_both_pools_wake_up(routing: RoutingSpec | None, order: Any) -> None:
    cluster = pools(
        prefill=1, decode=1, engine=ENGINE, times=TIMES, routing=routing, decode_routing=routing
    )
    assert cluster.disagg is not None
    handoff = replace(cluster.disagg.handoff, order=order)
    cluster = replace(cluster, disagg=replace(cluster.disagg, handoff=handoff))
    # Prefill workers come at 300, decode workers at 500 ms.
    script = Script([150.0, 300.0, 500.0], [0, 0, 1, 0, 1, 1])
    result, _ = run(script, 0.0, 200.0, 210.0, cluster=cluster)
    log = result.requests
    assert (log.status == RequestStatus.COMPLETED).all()
    assert (log.first_token_ms[1:] >= 500.0).all() and log.handoffs is not None
    if order == "prefill_first":
        assert log.dispatch_ms[1:].tolist() == [300.0, 300.0]


def test_a_client_that_waits_for_a_worker_may_give_up() -> None:
    script = Script([50.0, 300.0], [0, 1])
    options = RunOptions(waits_for_workers=True, client_timeout_ms=60.0)
    result, _ = run(script, 0.0, 200.0, 290.0, options=options)
    assert result.requests.gave_up_ms is not None
    assert result.requests.status.tolist()[1] == RequestStatus.TIMED_OUT
    assert result.requests.gave_up_ms[1] == 260.0
    assert result.requests.dispatch_ms[2] == 300.0


def test_the_run_ends_where_nobody_will_ever_come() -> None:
    script = Script([50.0, *range(100, 100_000, 1000)], [0])
    result, seen = run(script, 0.0, 200.0, scrape_interval_ms=1000.0, max_wait_ms=5000.0)
    assert result.requests.status.tolist() == [0, RequestStatus.UNFINISHED]
    assert seen[-1].now_ms == 5100.0  # it waits from the scrape at 1,000 ms on
    assert result.end_ms == 200.0  # nothing happened after


def test_what_is_decided_comes_about_later_unless_something_else_is_decided() -> None:
    script = Script([100.0, 130.0, 400.0], [3, 2, 1])
    result, seen = run(script, 0.0, 900.0, actuation_delay_ms=50.0, startup_ms=70.0)
    assert result.scaling is not None
    assert result.scaling.at_ms.tolist() == [180.0, 450.0]
    assert result.scaling.before.tolist() == [1, 2] and result.scaling.after.tolist() == [2, 1]
    assert result.workers.launched_ms.tolist() == [0.0, 180.0]
    assert result.workers.ready_ms.tolist() == [0.0, 250.0]
    assert [one.pools[0].wanted for one in seen] == [1, 3, 2]


def test_who_says_the_same_again_and_again_is_obeyed_after_the_delay() -> None:
    """Every 20 ms, of a delay of 50: counted from when the number was first wanted."""
    script = Script([float(at) for at in range(100, 400, 20)], [3] * 8 + [1] * 7)
    result, _ = run(script, 0.0, 900.0, actuation_delay_ms=50.0)
    assert result.scaling is not None
    assert result.scaling.at_ms.tolist() == [150.0, 310.0]
    assert result.scaling.after.tolist() == [3, 1]


def test_advice_is_not_carried_out() -> None:
    result, seen = run(Script([50.0, 100.0], [4], is_advisory=True), 0.0, 200.0)
    assert len(result.workers) == 1 and [one.pools[0].wanted for one in seen] == [1, 1]
    assert result.scaling is not None and len(result.scaling.at_ms) == 0


def test_workers_are_seen_in_their_phases() -> None:
    """One starts from 50 to 130 ms; at 140 it drains, for its neighbour has all the requests."""
    script = Script([50.0, 100.0, 140.0, 150.0], [2, 2, 0, 0])
    result, seen = run(script, *([0.0] * 3), 300.0, startup_ms=80.0)
    pools = [one.pool("workers") for one in seen]
    phases = [[(w.worker_id, w.phase, w.since_ms) for w in pool.workers] for pool in pools]
    first = (0, Phase.READY, 0.0)
    assert phases[:3] == [
        [first],
        [first, (1, Phase.STARTING, 50.0)],
        [first] if result.workers.ended_ms[1] < 140.0 else [first, (1, Phase.READY, 130.0)],
    ]


def test_metrics_lag_and_fail() -> None:
    """Scrapes every 20 ms, none from 100 to 200 ms; seen 30 ms later."""
    script = Script([95.0, 150.0, 260.0], [])
    _, seen = run(
        script,
        0.0,
        300.0,
        scrape_interval_ms=20.0,
        metric_lag_ms=30.0,
        outages=((100.0, 200.0),),
    )
    times_ms = [[scrape.at_ms for scrape in one.scrapes] for one in seen]
    assert times_ms == [[0.0, 20.0, 40.0, 60.0], [80.0], [200.0, 220.0]]


def test_gpus_are_paid_from_launch_to_end_starting_and_draining_included() -> None:
    """The second worker from 100 ms on; told to go at 120, it has something to finish first."""
    script = Script([100.0, 120.0], [2, 1])
    arrivals = (0.0, 90.0, 116.0, 117.0)
    result, _ = run(script, *arrivals, 400.0, startup_ms=15.0)
    lives_ms = np.nan_to_num(result.workers.ended_ms, nan=result.end_ms)
    lives_ms -= result.workers.launched_ms
    mean = mean_gpus(result.workers, 0.0, result.end_ms)
    assert mean * result.end_ms == pytest.approx(lives_ms.sum())
    assert result.workers.ended_ms[1] > 200.0
    assert result.workers.ready_ms[1] == 115.0


def test_cards_tell_of_one_worker() -> None:
    card = pool_cards(equal_workers(SPEC, TIMES, num_workers=3))[0]
    assert (card.name, card.role, card.gpus_per_worker) == ("workers", "agg", 1)
    assert card.max_kv_tokens == SPEC.usable_blocks * 4
    assert card.max_model_len == 1000


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"scrape_interval_ms": 0.0}, "scrape_interval_ms"),
        ({"metric_lag_ms": -1.0}, "metric_lag_ms"),
        ({"actuation_delay_ms": float("inf")}, "actuation_delay_ms"),
        ({"outages": ((5.0, 5.0),)}, "from < to"),
    ],
)
def test_values_that_make_no_sense_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ScalingSpec(**values)


@in_virtual_time
async def test_the_live_frontend_has_all_metrics_of_the_twin() -> None:
    """With these labels and buckets; counters by outcome exist once there is one."""
    inside = Inside(ScriptedEngine(), "a", now_ms=now_ms)
    observe_frontend(inside.metrics, inside.dispatcher, [inside.pool])
    live = set()
    for family in text_string_to_metric_families(inside.metrics.exposition().decode()):
        for sample in family.samples:
            labels = {key: value for key, value in sample.labels.items() if key not in COMMON}
            live.add(sample_name(sample.name, labels))
    process = ScalingProcess(Script([50.0], []))
    simulate(trace(0.0), equal_workers(SPEC, TIMES), processes=[process])
    twin = {
        bare(name)
        for name in process.scrape_at_end(1000.0).values
        if not name.startswith((names.REQUESTS, names.GENERATIONS))
    }
    assert twin <= live
    only_live = {name.partition("{")[0] for name in live - twin if not name.endswith("_created")}
    of_live_alone = ("dynosim_kv_", "dynosim_router_index", "dynosim_frontend_speculative")
    assert all(name.startswith(of_live_alone) for name in only_live)


def bare(name: str) -> str:
    """A sample's name without the labels that all share."""
    stem, _, rest = name.partition("{")
    pairs = [pair for pair in rest.rstrip("}").split(",") if pair.partition("=")[0] not in COMMON]
    labels = {key: value.strip('"') for key, _, value in (pair.partition("=") for pair in pairs)}
    labels.pop("", None)
    return sample_name(stem, labels)


def test_the_number_of_workers_over_time() -> None:
    """One more from 50 ms on, which is ready at 65; at 120 it is to go and has to finish first."""
    script = Script([50.0, 120.0], [2, 1])
    result, _ = run(script, 0.0, 90.0, 116.0, 117.0, startup_ms=15.0)
    rows = replica_table(result).rows()
    ended_ms = float(np.nanmax(result.workers.ended_ms))
    assert rows == [
        ("workers", 0.0, 1, 0, 1, 0),
        ("workers", 50.0, 2, 1, 1, 0),
        ("workers", 65.0, 2, 0, 2, 0),
        ("workers", 120.0, 1, 0, 1, 1),
        ("workers", ended_ms, 1, 0, 1, 0),
    ]
    report = summarize(result, TIMES, sla=None, wall_time_ms=0.0)
    assert (report["num_scale_ups"], report["num_scale_downs"]) == (1, 1)
    assert report["num_workers"] == 2
    mean = 1 + (ended_ms - 50.0) / result.end_ms
    assert report["mean_workers"] == pytest.approx(mean)
    assert report["gpu_hours"] == pytest.approx(mean * result.end_ms / 3.6e6)


def test_nothing_is_said_of_scaling_where_nobody_does() -> None:
    result = simulate(trace(0.0), equal_workers(SPEC, TIMES))
    report = summarize(result, TIMES, sla=None, wall_time_ms=0.0)
    assert report["num_scale_ups"] is None and report["mean_workers"] is None
    assert replica_table(result).rows() == [("workers", 0.0, None, 0, 1, 0)]


def test_what_a_hung_worker_said_last_stays_and_grows_old() -> None:
    gone = Crash(
        at_ms=42.0,
        target=WorkerTarget("workers", 0),
        detect_ms=100.0,
        replacement=Replacement(kind="none"),
    )
    process = ScalingProcess(Script([30.0, 60.0, 90.0, 150.0], []), ScalingSpec())
    cluster = equal_workers(SPEC, TIMES, num_workers=2, routing=LEAST)
    simulate(trace(0.0, 1.0, 50.0), cluster, processes=[process, *play([gone])])
    reports = [look.seen.reports for look in process.looks]
    ages = [[(one.worker_id, one.at_ms) for one in of] for of in reports]
    assert ages[0] == [(0, 30.0), (1, 30.0)]
    assert ages[1] == [(0, 30.0), (1, 60.0)] and ages[2] == [(0, 30.0), (1, 90.0)]
    assert ages[3] == [(1, 150.0)]  # it is known to be gone by then
    first, second = reports[0][0], reports[1][0]
    assert first.passes and second == msgspec.structs.replace(first, passes=())  # told once
