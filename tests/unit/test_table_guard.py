"""What is not credible is refused, told and replaced; what is credible stays as it is."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynosim.records import FloatArray
from dynosim.silicon.guard import HeldTimes, hold
from dynosim.timing.operation_bounds import KernelBounds

SIZES = np.array([1.0, 2.0, 4.0, 8.0, 16.0, 32.0])
FLOOR, USUAL = 0.5 * SIZES, 1.0 * SIZES


def held(ratios: list[float], *, name: str = "product", family: str = "gemm") -> HeldTimes:
    """Times that are such multiples of the usual ones."""
    times = np.array(ratios) * USUAL
    nodes = np.ones(len(times), np.bool_)
    return HeldTimes(name, family, times, KernelBounds(FLOOR, USUAL), SIZES, nodes)


def times_of(*given: HeldTimes) -> list[list[float]]:
    return [(one.times_ms / USUAL).tolist() for one in hold(given)]


def test_credible_times_stay_to_the_bit() -> None:
    (one,) = hold([held([0.3, 1.0, 1.2, 1.9, 2.0, 0.26])])
    assert one.finding is None and not one.refused.any()
    assert (one.times_ms / USUAL).tolist() == pytest.approx([0.3, 1.0, 1.2, 1.9, 2.0, 0.26])


def test_few_wrong_times_take_the_ratio_of_the_nearest_sizes() -> None:
    (found,) = times_of(held([1.0, 1.0, 9.0, 1.5, 1.5, 0.1]))
    assert found == pytest.approx([1.0, 1.0, 1.25, 1.5, 1.5, 1.5])


def test_an_operation_that_is_mostly_wrong_is_refused_as_a_whole() -> None:
    (one,) = hold([held([4.0, 5.0, 4.0, 4.0, 1.9, 1.9])])
    assert one.refused.all()
    assert (one.times_ms / USUAL).tolist() == pytest.approx([1.0] * 6)
    assert one.finding is not None
    assert one.finding["refused"] == one.finding["entries"] == 6
    assert (one.finding["smallest"], one.finding["largest"]) == (1.0, 32.0)
    assert one.finding["over_roofline"] == pytest.approx(4.0)
    assert one.finding["kept"] == pytest.approx(0.25)


def test_it_takes_what_credible_operations_of_its_family_are_like() -> None:
    wrong, other = held([5.0] * 6), held([5.0] * 6, name="attention", family="attention")
    good = held([1.4, 1.4, 1.6, 1.4, 1.4, 1.4], name="good")
    assert times_of(wrong, good, other)[0] == pytest.approx([1.4] * 6)
    assert times_of(wrong, good, other)[2] == pytest.approx([1.0] * 6)
    small = held([0.6] * 6, name="small")  # launches quicker than reckoned with: no measure
    assert times_of(wrong, small)[0] == pytest.approx([1.0] * 6)


def test_times_below_what_physics_allow_are_refused_too() -> None:
    (one,) = hold([held([1.0, 1.0, 1.0, 1.0, 1.0, 0.2])])
    assert one.refused.tolist() == [False] * 5 + [True]
    assert one.finding is not None and one.finding["over_roofline"] == pytest.approx(0.2)


def test_sizes_between_the_counted_ones_are_replaced_and_not_counted() -> None:
    nodes = np.array([True, True, False, True, True, True])
    times = np.array([1.0, 1.0, 9.0, 1.0, 1.0, 1.0]) * USUAL
    (one,) = hold([HeldTimes("product", "gemm", times, KernelBounds(FLOOR, USUAL), SIZES, nodes)])
    assert one.refused.tolist() == [False, False, True, False, False, False]
    assert one.times_ms[2] == pytest.approx(USUAL[2]) and one.finding is None


RATIOS = st.lists(st.floats(0.01, 50.0), min_size=6, max_size=6)


@given(RATIOS, RATIOS)
def test_nothing_that_is_not_credible_is_left(first: list[float], second: list[float]) -> None:
    given_times = [held(first), held(second, name="other")]
    judged = hold(given_times)
    for before, after in zip(given_times, judged, strict=True):
        again = HeldTimes("x", "gemm", after.times_ms, before.bounds, SIZES, before.nodes)
        assert not again.refused.any()
        kept: FloatArray = after.times_ms[~after.refused]
        assert kept.tolist() == before.times_ms[~after.refused].tolist()
        assert (after.finding is not None) == bool(after.refused.any())
