"""Runs whose workers start: who waits for whom, to the millisecond. Times in ms.

A prefill step takes 10 ms and a decode step 5.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from probing import Ask, trace_of
from startup_support import GB, from_storage
from test_placers import SPEC, TIMING

from dynosim.cluster import ClusterSpec, PoolSpec, RunOptions, simulate
from dynosim.cluster.control import ControlPlane, Process, ProcessGenerator
from dynosim.cluster.outside import as_clients_see
from dynosim.cluster.spec import DisaggSpec, TransferSpec
from dynosim.config.workload import WorkloadConfig
from dynosim.engine.ranks import RankSpec
from dynosim.errors import ConfigError
from dynosim.experiment.warm_up import measured_run
from dynosim.memory.kv_transfer import KvGeometry
from dynosim.memory.links import LinkSpec
from dynosim.metrics import check_conservation, summarize
from dynosim.metrics.startups import startup_keys, startup_table
from dynosim.records import RequestStatus, RunResult, Trace
from dynosim.router.handoff import HandoffSpec
from dynosim.workers.lifecycle import Phase
from dynosim.workers.startup import Duration, StartupSpec

EACH_SECOND = trace_of([Ask(1000.0 * i, (i,), 0, output_tokens=3) for i in range(10)], 4)


def pool(startup: StartupSpec, workers: int = 1, **more: object) -> PoolSpec:
    return PoolSpec(
        engine=SPEC, times=TIMING, workers=workers, startup=startup, start_cold=True, **more
    )  # type: ignore[arg-type]


def booting(boot_ms: float) -> StartupSpec:
    return StartupSpec(boot=Duration(boot_ms))


def run(
    *pools: PoolSpec, trace: Trace = EACH_SECOND, processes: tuple[Process, ...] = (),
    disagg: DisaggSpec | None = None, **options: object,
) -> RunResult:  # fmt: skip
    cluster = ClusterSpec(pools=pools, disagg=disagg)
    result = simulate(trace, cluster, RunOptions(**options), processes=processes)  # type: ignore[arg-type]
    check_conservation(result, trace)
    return result


def at(*acts: tuple[float, Callable[[ControlPlane], object]]) -> Process:
    def act(control: ControlPlane) -> ProcessGenerator:
        for time_ms, what in acts:
            yield control.env.timeout(time_ms - control.now_ms)
            what(control)

    return act


def test_requests_wait_for_the_first_worker() -> None:
    """Ready at 2.5 s: three have come by then, and their waits count."""
    result = run(pool(booting(2500.0)))
    log, lives = result.requests, result.workers
    assert (lives.launched_ms[0], lives.ready_ms[0]) == (0.0, 2500.0)
    assert (log.status == RequestStatus.COMPLETED).all()
    assert log.dispatch_ms[:4].tolist() == [2500.0, 2500.0, 2500.0, 3000.0]
    assert log.arrival_ms[:4].tolist() == [0.0, 1000.0, 2000.0, 3000.0]


def test_a_closed_loop_waits_too() -> None:
    log = run(pool(booting(2500.0)), concurrency=2).requests
    assert (log.status == RequestStatus.COMPLETED).all()
    assert sorted(log.dispatch_ms)[:2] == [2500.0, 2500.0]


def test_they_wait_for_one_worker_and_not_for_all() -> None:
    """Alone from 1 to 2 s, then both share 1 GB/s: 4 GB by 8 s; the other has 1 GB left then."""
    spec = replace(from_storage(4.0, node_gb_s=1.0, total_gb_s=1.0), boot=Duration(1000.0))
    late = replace(spec, boot=Duration(2000.0))
    result = run(pool(spec), replace(pool(late), name="late"))
    assert result.workers.ready_ms.tolist() == pytest.approx([8000.0, 9000.0])
    assert result.requests.scheduled_ms[0] == pytest.approx(8000.0)


def test_a_pool_of_each_phase_must_be_there() -> None:
    geometry = KvGeometry(layers=1, kv_heads=1, head_dim=1, element_bytes=1)
    transfer = TransferSpec(
        link=LinkSpec(name="fast", line_gb_s=None, achieved_gb_s=100.0), geometry=geometry
    )
    disagg = DisaggSpec(handoff=HandoffSpec(), transfer=transfer)
    prefill = pool(booting(1500.0), name="prefill", role="prefill")
    decode = pool(booting(2500.0), name="decode", role="decode")
    log = run(prefill, decode, disagg=disagg).requests
    assert (log.status == RequestStatus.COMPLETED).all() and log.scheduled_ms[0] == 2500.0
    ready = replace(decode, start_cold=False)
    assert run(prefill, ready, disagg=disagg).requests.scheduled_ms[0] == 1500.0


def test_without_cold_starts_how_workers_start_changes_nothing() -> None:
    plain = PoolSpec(engine=SPEC, times=TIMING, workers=2)
    result, other = run(plain), run(replace(plain, startup=booting(5000.0)))
    np.testing.assert_array_equal(result.requests.finish_ms, other.requests.finish_ms)
    assert result.startups is None and other.startups is None


def test_a_worker_that_is_launched_goes_through_its_phases() -> None:
    spec = replace(from_storage(2.0, node_gb_s=1.0), boot=Duration(500.0))
    first = replace(pool(spec), start_cold=False)
    result = run(first, processes=(at((1200.0, lambda control: control.launch())),))
    assert result.workers.ready_ms.tolist() == pytest.approx([0.0, 3700.0])
    assert result.startups is not None
    assert result.startups.phase == ("boot", "weights")
    assert result.startups.worker_id.tolist() == [1, 1]


@pytest.mark.parametrize("end", ["drain", "fail"])
def test_one_that_ends_while_it_starts_lets_others_read(end: str) -> None:
    """Both read 4 GB at 1 GB/s; one goes at 2 s with 1 GB read, so the other has 3 s to go."""
    spec = from_storage(4.0, node_gb_s=1.0, total_gb_s=1.0)
    result = run(pool(spec, 2), processes=(at((2000.0, lambda c: getattr(c, end)(0))),))
    assert result.workers.ended_ms[0] == 2000.0
    assert result.workers.ready_ms.tolist() == pytest.approx([np.nan, 5000.0], nan_ok=True)
    assert result.startups is not None
    assert result.startups.num_bytes.tolist() == pytest.approx([GB, 4 * GB])
    assert (result.requests.status == RequestStatus.COMPLETED).all()


def test_if_none_is_left_to_come_up_requests_are_let_in() -> None:
    """And refused, as they are where no worker is."""
    result = run(pool(booting(5000.0)), processes=(at((1500.0, lambda c: c.drain(0))),))
    assert (result.requests.status == RequestStatus.REJECTED).all()


def test_load_that_a_process_holds_stays_held() -> None:
    """Until both let it go, whoever is the last."""
    for hold, release in ((0.0, 4500.0), (0.0, 1000.0)):
        process = at((hold, lambda c: c.hold_load()), (release, lambda c: c.release_load()))
        log = run(pool(booting(2500.0)), processes=(process,)).requests
        assert log.scheduled_ms[0] == max(2500.0, release)


def test_a_process_sees_them_start() -> None:
    phases: list[Phase] = []
    look = at(
        *((time, lambda c: phases.append(c.workers[0].phase)) for time in (1.0, 2499.0, 2501.0))
    )
    run(pool(booting(2500.0)), processes=(look,))
    assert phases == [Phase.STARTING, Phase.STARTING, Phase.READY]


def test_ranks_come_up_together() -> None:
    spec = from_storage(2.0, node_gb_s=1.0, total_gb_s=1.0)
    ranks = RankSpec(number=2)
    result = run(pool(spec, 2, ranks=ranks, gpus_per_worker=2))
    assert result.workers.ready_ms.tolist() == pytest.approx([4000.0] * 4)
    assert result.startups is not None and result.startups.worker_id.tolist() == [0, 2]


def test_the_same_seed_gives_the_same_starts_and_another_one_others() -> None:
    spec = StartupSpec(boot=Duration(1000.0, 2000.0), probe=Duration.between(0.0, 500.0))
    times = [run(pool(spec, 3), seed=seed).workers.ready_ms.tolist() for seed in (0, 0, 1)]
    assert times[0] == times[1] != times[2] and len(set(times[0])) == 3


def test_bulk_does_as_single_steps_do() -> None:
    spec = replace(from_storage(1.0, node_gb_s=1.0), boot=Duration(1000.0, 2000.0))
    bulk, single = (run(pool(spec, 3), exact_stepping=exact) for exact in (False, True))
    np.testing.assert_array_equal(bulk.requests.finish_ms, single.requests.finish_ms)


def test_a_run_that_is_cut_off_leaves_phases_without_an_end() -> None:
    result = run(pool(booting(2500.0)), until_ms=2000.0)
    log = result.startups
    assert log is not None and np.isnan(log.end_ms).all() and not log.is_complete.any()
    keys = startup_keys(result)
    assert (keys["num_startups"], keys["mean_startup_ms"]) == (0, None)
    assert startup_table(log)["end_ms"].to_list() == [None]


def test_the_report_says_how_long_starts_took_and_with_what() -> None:
    spec = replace(from_storage(2.0, node_gb_s=1.0, total_gb_s=1.0), boot=Duration(500.0))
    late = replace(spec, boot=Duration(1500.0))
    result = run(pool(spec), replace(pool(late), name="late"))
    keys = summarize(result, TIMING, sla=None, wall_time_ms=0.0)
    # Alone to 1.5 s, then shared: 3.5 s; the other has 1 GB left and is alone.
    assert keys["num_startups"] == 2
    assert keys["mean_startup_ms"] == pytest.approx((3500.0 + 4500.0) / 2)
    assert keys["max_startup_ms"] == pytest.approx(4500.0)
    assert keys["mean_startup_boot_ms"] == pytest.approx(1000.0)
    assert keys["mean_startup_weights_ms"] == pytest.approx(3000.0)
    assert keys["mean_startup_compile_ms"] is None


def test_clients_see_starts_later_by_the_way_to_the_engines() -> None:
    spec = replace(booting(2500.0), probe=Duration(100.0))
    plain, seen = run(pool(spec)), as_clients_see(run(pool(spec)), ingress_ms=7.0, egress_ms=1.0)
    assert plain.startups is not None and seen.startups is not None
    assert seen.startups.start_ms.tolist() == [0.0, 2507.0]
    assert seen.startups.end_ms.tolist() == [2507.0, 2607.0]
    assert seen.workers.ready_ms.tolist() == [2607.0]


def test_after_a_warm_up_the_starts_that_were_over_are_gone() -> None:
    """It ends at 3 s; one boots till 2.5 s and is probed till 3.5."""
    spec = replace(booting(2500.0), probe=Duration(1000.0))
    workload = WorkloadConfig.model_construct(warm_up_requests=0, warm_up_s=3.0)
    result, _, from_ms = measured_run(run(pool(spec)), EACH_SECOND, workload)
    assert from_ms == 3000.0 and result.startups is not None
    assert result.startups.phase == ("probe",)
    assert (result.startups.start_ms.tolist(), result.startups.end_ms.tolist()) == ([0.0], [500.0])


def test_how_long_a_start_takes_is_said_once() -> None:
    with pytest.raises(ConfigError, match="startup_ms: stated beside startup"):
        pool(booting(1.0), startup_ms=5.0)


def test_a_pool_of_which_only_the_time_is_known_boots_so_long() -> None:
    first = PoolSpec(engine=SPEC, times=TIMING, workers=1, startup_ms=1500.0, start_cold=True)
    result = run(first)
    assert result.workers.ready_ms.tolist() == [1500.0]
    assert result.startups is not None and result.startups.phase == ("boot",)
