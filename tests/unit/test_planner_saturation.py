"""The saturation autoscaler: llm-d's rule by hand."""

from dataclasses import replace

import pytest

from dynosim.planner.decision import PoolDecision
from dynosim.planner.observation import EngineReport, Observation, PoolState, WorkerState
from dynosim.planner.saturation import SaturationScaler, SaturationSpec
from dynosim.planner.scaling_rules import ScalingPolicy, ScalingRules
from dynosim.workers.lifecycle import Phase

S = 1000.0
AT_ONCE = ScalingRules(window_ms=0, policies=(ScalingPolicy("pods", 9, S),))
SPEC = SaturationSpec(pool="pool", up=AT_ONCE, down=AT_ONCE)


def looked(
    scaler: SaturationScaler,
    now_s: float,
    *loads: tuple[float, int],
    starting: int = 0,
    silent: int = 0,
    wanted: int | None = None,
) -> PoolDecision:
    """`loads`: share of KV and queue of each worker that reports."""
    phases = [Phase.READY] * (len(loads) + silent) + [Phase.STARTING] * starting
    workers = tuple(WorkerState(i, phase, 0.0) for i, phase in enumerate(phases))
    reports = tuple(
        EngineReport(i, "pool", now_s * S, 0, queue, 0, 0, 0, kv)
        for i, (kv, queue) in enumerate(loads)
    )
    pool = PoolState("pool", len(workers) if wanted is None else wanted, workers)
    decision = scaler.look(Observation(now_s * S, (pool,), (), reports))
    assert decision is not None
    return decision.pools[0]


@pytest.mark.parametrize(
    ("loads", "expected"),
    [
        ([(0.71, 0), (0.71, 0)], 3),  # 0.09 of KV to spare
        ([(0.69, 0), (0.69, 0)], 2),  # 0.11
        ([(0.3, 3), (0.3, 2)], 3),  # 2.5 of the queue to spare
        ([(0.3, 2), (0.3, 2)], 2),  # 3 are enough; of one alone 1 would not be
        ([(0.34, 0), (0.34, 0)], 1),  # one alone would have 0.12 of KV to spare
        ([(0.36, 0), (0.36, 0)], 2),  # one alone 0.08
        ([(0.1, 1), (0.1, 1)], 1),  # one alone 3
        ([(0.1, 2), (0.1, 1)], 2),  # one alone 2
        ([(0.9, 0), (0.1, 0)], 2),  # the saturated one counts for nothing, and none may go
        ([(0.9, 0), (0.5, 5)], 3),  # all are saturated
        ([(0.0, 0)], 1),
    ],
)
def test_spare_of_those_not_saturated_decides(
    loads: list[tuple[float, int]], expected: int
) -> None:
    assert looked(SaturationScaler(SPEC), 0, *loads).target == expected


def test_nobody_is_added_while_somebody_starts() -> None:
    found = looked(SaturationScaler(SPEC), 0, (0.79, 0), starting=1)
    assert found.target == 2
    assert "awaited" in found.reasons[0]


def test_peak_of_the_last_minute_counts() -> None:
    scaler = SaturationScaler(replace(SPEC, reconcile_ms=30 * S))
    assert looked(scaler, 0, (0.75, 0)).target == 2
    looked(scaler, 15, (0.1, 0), (0.1, 0))
    assert looked(scaler, 30, (0.1, 0), (0.1, 0)).target == 2  # 0.425 on average, 0.85 of one
    assert looked(scaler, 60, (0.1, 0), (0.1, 0)).target == 1


def test_between_reconciliations_the_last_one_holds() -> None:
    scaler = SaturationScaler(SPEC)
    assert looked(scaler, 0, (0.75, 0)).target == 2
    again = looked(scaler, 15, (0.75, 0), (0.75, 0))
    assert (again.target, again.verdict) == (2, "no_change")
    assert looked(scaler, 60, (0.75, 0), (0.75, 0)).target == 3


def test_windows_are_those_of_an_hpa() -> None:
    scaler = SaturationScaler(SaturationSpec(pool="pool"))
    for second in range(0, 300, 15):
        found = looked(scaler, second, (0.1, 0), (0.1, 0))
        assert (found.target, found.verdict) == (2, "held_by_window")
    assert looked(scaler, 300, (0.1, 0), (0.1, 0)).target == 1


def test_without_reports_nothing_changes_and_limits_are_kept() -> None:
    found = looked(SaturationScaler(SPEC), 0, silent=3)
    assert (found.target, found.verdict) == (3, "metrics_missing")
    assert looked(SaturationScaler(SPEC), 0, *[(0.79, 0)] * 10).target == 10
    assert looked(SaturationScaler(SPEC), 0, *[(0.1, 0)] * 12).target == 10
    with pytest.raises(ValueError, match="min_replicas 0"):
        replace(SPEC, min_replicas=0)


def test_figures_are_named() -> None:
    found = looked(SaturationScaler(SPEC), 0, (0.9, 0), (0.3, 1))
    assert found.figures["saturated"] == 1
    assert found.figures["spare_kv"] == pytest.approx(0.5)
    assert found.figures["spare_queue"] == 4
    assert found.reasons[0].endswith(": 2 desired")
