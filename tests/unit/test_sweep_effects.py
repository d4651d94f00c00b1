"""Paired effects: only layouts that differ in one setting alone are compared."""

from math import sqrt
from typing import Any

import pytest

from dynosim.sweep.effects import PairedEffect, paired_effects
from dynosim.sweep.results import Row
from dynosim.sweep.space import Trial
from dynosim.sweep.status import OK

TP, ROUTER = "engine.tensor_parallel", "router.mode"


def row(
    index: int, tp: int, router: str, low: float | None, high: float | None, **more: Any
) -> Row:
    trial = Trial(index=index, values={TP: tp, ROUTER: router}, config=None)
    report = {"capacity_load": low, "capacity_load_failed": high, **more}
    return Row(trial, OK, "", report, low is not None)


def effects(*rows: Row, base: dict[str, Any] | None = None) -> dict[tuple[str, Any], PairedEffect]:
    found = paired_effects(rows, [TP, ROUTER], base or {TP: 2, ROUTER: "kv"})
    return {(effect.key, effect.to_value): effect for effect in found}


def test_an_effect_is_the_mean_ratio_of_pairs_that_differ_in_it_alone() -> None:
    found = effects(
        row(0, 2, "kv", 1.0, 1.1), row(1, 2, "random", 0.5, 0.55),
        row(2, 4, "kv", 4.0, 4.4), row(3, 4, "random", 1.0, 1.1),
    )  # fmt: skip
    router = found[ROUTER, "random"]
    assert (router.from_value, router.num_pairs) == ("kv", 2)
    assert router.ratio == pytest.approx(sqrt(0.5 * 0.25))
    assert (router.smallest, router.largest) == pytest.approx((0.25, 0.5))
    assert found[TP, 4].ratio == pytest.approx(sqrt(4.0 * 2.0))
    assert set(found) == {(ROUTER, "random"), (TP, 4)}


def test_brackets_bound_an_effect_and_one_that_may_be_nothing_is_a_tie() -> None:
    found = effects(row(0, 2, "kv", 1.0, 1.1), row(1, 2, "random", 1.05, 1.2))
    effect = found[ROUTER, "random"]
    assert (effect.low, effect.high) == pytest.approx((1.05 / 1.1, 1.2 / 1.0))
    assert effect.is_tie
    clear = effects(row(0, 2, "kv", 1.0, 1.1), row(1, 2, "random", 1.2, 1.3))
    assert not clear[ROUTER, "random"].is_tie


def test_what_cannot_differ_or_is_only_bounded_below_takes_no_part() -> None:
    assert effects(row(0, 2, "kv", 1.0, 1.1), row(1, 2, "random", 1.0, 1.1, same_as=0)) == {}
    assert effects(row(0, 2, "kv", 1.0, 1.1), row(1, 2, "random", 8.0, None)) == {}
    assert effects(row(0, 2, "kv", 1.0, 1.1), row(1, 4, "random", 2.0, 2.2)) == {}


def test_where_only_one_of_two_carries_anything_there_is_no_ratio() -> None:
    found = effects(
        row(0, 2, "kv", 1.0, 1.1), row(1, 2, "random", 0.5, 0.55),
        row(2, 4, "kv", None, 0.02), row(3, 4, "random", 1.0, 1.1),
    )  # fmt: skip
    effect = found[ROUTER, "random"]
    assert (effect.num_pairs, effect.num_without, effect.num_only_to) == (1, 1, 1)
    assert effect.ratio == pytest.approx(0.5)
    none = effects(row(0, 2, "kv", None, 0.02), row(1, 2, "random", 1.0, 1.1))
    assert none == {}


def test_every_other_value_is_compared_with_that_of_the_base() -> None:
    rows = [row(i, tp, "kv", float(tp), tp * 1.1) for i, tp in enumerate((1, 2, 4))]
    found = effects(*rows)
    assert {key: effect.ratio for key, effect in found.items()} == pytest.approx(
        {(TP, 1): 0.5, (TP, 4): 2.0}
    )
    assert set(effects(*rows, base={TP: 8, ROUTER: "kv"})) == set()
