"""SimPy processes see and steer a run without changing what they do not touch."""

import random

import numpy as np
from strategies import random_trace

from dynosim.cluster import simulate
from dynosim.cluster.control import ControlPlane, ProcessGenerator
from dynosim.engine.spec import EngineSpec
from dynosim.metrics import check_conservation
from dynosim.records import RequestStatus, RunResult
from dynosim.timing.formulas import FixedModel

TRACE = random_trace(random.Random(3))
SPEC = EngineSpec(num_gpu_blocks=400, max_model_len=1000, block_size=4)


def run(*processes: object, concurrency: int | None = None) -> RunResult:
    return simulate(
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
