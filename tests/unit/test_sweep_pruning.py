"""Which layouts need no closer look: those that some other one far surpasses."""

from hypothesis import given
from hypothesis import strategies as st

from dynosim.sweep.capacity import LoadRange
from dynosim.sweep.pruning import not_pursued
from dynosim.sweep.study import USER_SPEED, LayoutStudy, LoadPlan, Probe

PLAN = LoadPlan(LoadRange(0.02, 8.0), 0.95)
LAYOUTS = st.tuples(st.integers(1, 40), st.floats(1.1, 1.9), st.integers(1, 5))


def located(rps: float, factor: float, speed: float) -> LayoutStudy:
    """It carries so many requests a second, and not `factor` times as many."""
    study = LayoutStudy(PLAN)
    report = {"num_gpus": 1, USER_SPEED: speed}
    study.told(Probe(1.0, True, 0.99, {"draws": ()}, report, rps))
    study.told(Probe(factor, False, None, None, {}, rps * factor))
    assert study.is_located
    return study


@given(st.lists(LAYOUTS, max_size=12))
def test_it_is_whom_another_carries_twice_and_serves_as_fast(
    layouts: list[tuple[int, float, int]],
) -> None:
    studies = {i: located(*layout) for i, layout in enumerate(layouts)}
    expected = {}
    for i, (rps, factor, speed) in enumerate(layouts):
        better = [r for r, _, s in layouts if r >= 2 * (rps * factor) and s >= speed]
        if better:
            expected[i] = f"another carries {max(better):.3g} and"
    found = not_pursued(studies)
    assert found.keys() == expected.keys()
    assert all(words in found[i] for i, words in expected.items())
