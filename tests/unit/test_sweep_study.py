"""The loads that one layout is tried at, from its first probe to its curve."""

import numpy as np

from dynosim.sweep.capacity import LoadCapacity, LoadRange
from dynosim.sweep.study import LayoutStudy, LoadPlan, Probe

CURVE = (0.15, 0.3, 0.5, 0.7, 0.85, 1.0)


def plan(**options: object) -> LoadPlan:
    given = {"range": LoadRange(0.02, 8.0), "attainment": 0.95, "curve": CURVE, **options}
    return LoadPlan(**given)  # type: ignore[arg-type]


def probe(load: float, capacity: float) -> Probe:
    """Far beyond its capacity a probe is stopped early."""
    if load > 1.5 * capacity:
        return Probe(load, False, None, None, {})
    share = 0.99 if load <= capacity else 0.9
    verdict = {"is_carried": load <= capacity, "draws": ()}
    return Probe(load, load <= capacity, share, verdict, {"load": load})


def studied(study: LayoutStudy, capacity: float, start: float) -> list[float]:
    loads: list[float] = []
    while asked := study.next_loads():
        assert asked == study.next_loads()
        assert len(loads) < 60
        for load in asked:
            loads.append(start if load is None else load)
            study.told(probe(loads[-1], capacity))
    return loads


def test_it_begins_where_the_first_probe_says() -> None:
    study = LayoutStudy(plan())
    assert study.next_loads() == [None]
    assert study.capacity == LoadCapacity(None, None) and study.at_capacity is None


def test_after_the_search_come_the_loads_that_the_curve_lacks() -> None:
    study = LayoutStudy(plan())
    loads = studied(study, 1.3, start=0.7)
    low = study.capacity.low
    assert low is not None and low <= 1.3 and study.at_capacity is study.probes[low]
    for multiple in CURVE:
        assert any(abs(load - multiple * low) <= 0.05 * load for load in loads)
    assert len(loads) == len(set(loads))


def test_the_own_load_is_tried_unless_something_is_near() -> None:
    lacking = studied(LayoutStudy(plan(curve=(), tries_own_load=True)), 5.0, start=4.0)
    assert lacking[-1] == 1.0
    near = studied(LayoutStudy(plan(curve=(), tries_own_load=True)), 1.0, start=0.98)
    assert 1.0 not in near


def test_an_own_load_that_was_stopped_early_is_not_tried_again() -> None:
    loads = studied(LayoutStudy(plan(curve=(), tries_own_load=True)), 0.1, start=1.0)
    assert loads.count(1.0) == 1


def test_a_layout_that_carries_nothing_has_no_curve() -> None:
    study = LayoutStudy(plan())
    loads = studied(study, 0.001, start=0.7)
    assert study.capacity == LoadCapacity(None, 0.02) and loads[-1] == 0.02


def test_the_interval_is_where_most_draws_cross_the_target() -> None:
    study = LayoutStudy(plan(curve=()))
    draws = np.linspace(-0.02, 0.02, 200)
    for load, share in ((0.8, 0.98), (1.0, 0.955), (1.1, 0.93)):
        verdict = {"is_carried": share >= 0.95, "draws": tuple(share + draws)}
        study.told(Probe(load, share >= 0.95, share, verdict, {}))
    found = study.interval
    assert found is not None and 0.8 < found[0] < 1.0 < found[1] < 1.1
    assert study.capacity == LoadCapacity(1.0, 1.1)


def test_a_load_that_was_stopped_bounds_the_interval_and_does_not_shut_it() -> None:
    study = LayoutStudy(plan(curve=()))
    for load, share in ((0.8, 0.98), (1.0, 0.96)):
        verdict = {"is_carried": True, "draws": tuple(share + np.linspace(-0.005, 0.005, 200))}
        study.told(Probe(load, True, share, verdict, {}))
    study.told(Probe(1.1, False, None, None, {}, attainment_so_far=0.7))
    study.told(Probe(1.3, False, 0.2, {"is_carried": False, "draws": (0.2,) * 200}, {}))
    found = study.interval
    assert found is not None and 1.0 < found[0] < found[1] < 1.02


def test_without_draws_there_is_no_interval() -> None:
    study = LayoutStudy(plan())
    studied(study, 1.3, start=0.7)
    assert study.interval is None


def test_a_ladder_is_tried_whatever_the_capacity() -> None:
    rungs = (1.0, 2.0, 4.0)
    loads = studied(LayoutStudy(plan(curve=(), ladder=rungs)), 1.3, start=0.7)
    assert set(rungs) <= set(loads) and len(loads) == len(set(loads))


def test_where_no_capacity_is_sought_the_ladder_is_all() -> None:
    study = LayoutStudy(plan(ladder=(1.0, 2.0, 4.0), is_sought=False))
    assert study.next_loads() == [1.0, 2.0, 4.0]
    study.told(probe(2.0, 9.0))
    assert study.next_loads() == [1.0, 4.0]
    assert studied(study, 9.0, start=0.7) == [1.0, 4.0]
    assert study.capacity == LoadCapacity(4.0, None)


def test_the_own_load_may_be_another_one() -> None:
    own = plan(curve=(), tries_own_load=True, own_load=0.2)
    assert studied(LayoutStudy(own), 1.0, start=0.98)[-1] == 0.2
