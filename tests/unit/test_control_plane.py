"""SimPy processes see and steer a run without changing what they do not touch."""

import random
from dataclasses import replace

import numpy as np
import pytest
from clusters import run_twin
from strategies import random_trace

from dynosim.cluster.control import ControlPlane, ProcessGenerator
from dynosim.engine.spec import EngineSpec
from dynosim.metrics import check_conservation
from dynosim.records import RequestStatus, RunResult
from dynosim.timing.formulas import FixedModel

TRACE = random_trace(random.Random(3))
SPEC = EngineSpec(num_gpu_blocks=400, max_model_len=1000, block_size=4)


def run(*processes: object, concurrency: int | None = None) -> RunResult:
    return run_twin(
        TRACE,
        engine=SPEC,
        timing=FixedModel(10.0, 5.0),
        num_workers=2,
        concurrency=concurrency,
        processes=processes,  # type: ignore[arg-type]
    )


def test_an_observer_sees_loads_at_its_times_and_changes_nothing() -> None:
    seen: list[tuple[float, int, int]] = []

    def observe(control: ControlPlane) -> ProcessGenerator:
        while True:
            seen.append((control.now_ms, sum(control.num_requests), control.num_ended))
            yield control.env.timeout(50.0)

    watched, alone = run(observe), run()
    np.testing.assert_array_equal(watched.requests.finish_ms, alone.requests.finish_ms)
    assert [time_ms for time_ms, _, _ in seen] == [50.0 * k for k in range(len(seen))]
    log = alone.requests
    for time_ms, in_hand, ended in seen:
        assert ended == int((log.finish_ms <= time_ms).sum())
        assert in_hand == int((log.arrival_ms <= time_ms).sum()) - ended


def test_an_error_of_a_process_comes_out_though_nothing_is_left_to_happen() -> None:
    def err(control: ControlPlane) -> ProcessGenerator:
        control.hold_load()  # nothing else happens before, or after
        yield control.env.timeout(1e9)
        control.release_load()
        for worker in control.workers:
            control.fail(worker.worker_id)
        raise KeyError("ours")

    with pytest.raises(KeyError, match="ours"):
        run(err)


def test_stop_leaves_the_rest_unfinished() -> None:
    def stop(control: ControlPlane) -> ProcessGenerator:
        yield control.env.timeout(100.0)
        control.stop()

    result = run(stop)
    unfinished = result.requests.status == RequestStatus.UNFINISHED
    assert unfinished.any()
    check_conservation(result, TRACE)
    assert np.nanmax(result.requests.finish_ms[~unfinished], initial=0.0) <= 100.0


def test_a_process_that_never_ends_does_not_prolong_the_run() -> None:
    def tick(control: ControlPlane) -> ProcessGenerator:
        while True:
            yield control.env.timeout(1.0)

    assert run(tick).end_ms == run().end_ms


def test_what_happens_at_a_process_own_time_has_happened_when_it_looks() -> None:
    """The first prefill step ends at 10 ms, when ten milliseconds are over for the process, too."""
    outputs = np.array([1] * (len(TRACE) - 1) + [3])
    trace = replace(TRACE, arrival_ms=np.zeros(len(TRACE)), output_tokens=outputs)
    seen: list[tuple[float, int]] = []

    def look(control: ControlPlane) -> ProcessGenerator:
        for wait_ms in (0.0, 9.999, 0.001):
            yield control.env.timeout(wait_ms)
            seen.append((control.now_ms, control.num_ended))

    run_twin(
        trace,
        engine=replace(SPEC, num_gpu_blocks=10_000),
        timing=FixedModel(10.0, 5.0),
        num_workers=2,
        processes=(look,),
    )
    assert [time_ms for time_ms, _ in seen] == pytest.approx([0.0, 9.999, 10.0])
    assert [ended for _, ended in seen] == [0, 0, len(TRACE) - 1]


def test_loads_are_told_by_worker() -> None:
    seen: list[tuple[int, ...]] = []

    def look(control: ControlPlane) -> ProcessGenerator:
        yield control.env.timeout(0.0)
        seen.append(control.num_requests)

    result = run(look)
    at_once = result.requests.worker_id[result.requests.arrival_ms == 0]
    assert seen == [tuple(np.bincount(at_once, minlength=2).tolist())]
    assert sum(seen[0]) > 1


def test_processes_run_up_to_the_cut_off_and_no_further() -> None:
    seen: list[float] = []

    def tick(control: ControlPlane) -> ProcessGenerator:
        while True:
            yield control.env.timeout(25.0)
            seen.append(control.now_ms)

    result = run_twin(
        TRACE,
        engine=SPEC,
        timing=FixedModel(10.0, 5.0),
        num_workers=2,
        processes=(tick,),
        until_ms=100.0,
    )
    assert seen == [25.0, 50.0, 75.0, 100.0]
    assert result.end_ms == 100.0


def test_a_stop_is_the_end_of_the_run_at_its_time() -> None:
    def stop(control: ControlPlane) -> ProcessGenerator:
        yield control.env.timeout(30.0)
        control.stop()

    cut = run_twin(
        TRACE,
        engine=SPEC,
        timing=FixedModel(10.0, 5.0),
        num_workers=2,
        until_ms=30.0,
    )
    stopped = run(stop)
    assert stopped.end_ms == cut.end_ms == 30.0
    np.testing.assert_array_equal(stopped.requests.output_tokens, cut.requests.output_tokens)


def test_those_alive_are_those_who_have_come_and_not_gone() -> None:
    seen: list[list[int]] = []

    def steer(control: ControlPlane) -> ProcessGenerator:
        def look() -> None:
            seen.append([worker.worker_id for worker in control.alive])

        yield control.env.timeout(10.0)
        look()
        control.fail(0)
        control.launch()
        look()
        control.launch()
        control.drain(2)
        with control.expected():
            yield control.env.timeout(500.0)
        look()

    run(steer)
    assert seen == [[0, 1], [1, 2], [1, 3]]
