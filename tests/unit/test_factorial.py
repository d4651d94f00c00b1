"""Effects of a 2^k design: an example by hand, and what defines them."""

from itertools import product
from math import exp, log, prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynosim.compare.factorial import Levels, factorial_effects

NAMES = ("a", "b", "c")
CORNERS = list(product((False, True), repeat=3))

# Filtration rates of a 2^2 design worked out by hand: off/off 28, a 36, b 18, both 31.
BY_HAND = {(False, False): 28.0, (True, False): 36.0, (False, True): 18.0, (True, True): 31.0}


def effects_of(
    names: tuple[str, ...], responses: dict[Levels, float], *, as_ratios: bool = False
) -> dict[tuple[str, ...], float]:
    found = factorial_effects(names, responses, as_ratios=as_ratios)
    return {effect.factors: effect.value for effect in found}


def test_two_factors_by_hand() -> None:
    # a: (36-28 + 31-18)/2; b: (18-28 + 31-36)/2; a's effect is 8 without b and 13 with it
    assert effects_of(("a", "b"), BY_HAND) == {("a",): 10.5, ("b",): -7.5, ("a", "b"): 2.5}


def test_main_effects_come_first_each_in_the_order_of_the_factors() -> None:
    found = factorial_effects(NAMES, dict.fromkeys(CORNERS, 1.0))
    assert [effect.factors for effect in found] == [
        ("a",), ("b",), ("c",), ("a", "b"), ("a", "c"), ("b", "c"), ("a", "b", "c"),
    ]  # fmt: skip
    assert {effect.value for effect in found} == {0.0}


@given(st.lists(st.floats(-1e6, 1e6), min_size=8, max_size=8))
def test_each_effect_is_its_signed_mean(values: list[float]) -> None:
    responses = dict(zip(CORNERS, values, strict=True))
    for factors, value in effects_of(NAMES, responses).items():
        inside = [name in factors for name in NAMES]
        signed = [
            response * prod(1 if on else -1 for on, counts in zip(levels, inside, strict=True)
                            if counts)
            for levels, response in responses.items()
        ]  # fmt: skip
        assert value == pytest.approx(sum(signed) / 4, abs=1e-6)


@given(st.lists(st.floats(0.1, 10), min_size=8, max_size=8))
def test_what_the_effects_multiply_to_is_what_was_measured(values: list[float]) -> None:
    """The mean and half of every effect, with its sign, give each response again."""
    responses = dict(zip(CORNERS, values, strict=True))
    effects = effects_of(NAMES, responses, as_ratios=True)
    mean = sum(map(log, values)) / 8
    for levels, response in responses.items():
        on = dict(zip(NAMES, levels, strict=True))
        logs = [log(v) / 2 * prod(1 if on[n] else -1 for n in f) for f, v in effects.items()]
        assert exp(mean + sum(logs)) == pytest.approx(response)


@given(st.lists(st.floats(0.1, 10), min_size=3, max_size=3))
def test_factors_that_do_not_interact_have_their_own_ratios_alone(ratios: list[float]) -> None:
    responses = {
        levels: 7 * prod(ratio for ratio, on in zip(ratios, levels, strict=True) if on)
        for levels in CORNERS
    }
    effects = effects_of(NAMES, responses, as_ratios=True)
    assert [effects[name,] for name in NAMES] == pytest.approx(ratios)
    assert [v for f, v in effects.items() if len(f) > 1] == pytest.approx([1.0] * 4)


def test_an_interaction_is_what_the_other_factor_multiplies_an_effect_by() -> None:
    effects = effects_of(("a", "b"), BY_HAND, as_ratios=True)
    main, both = effects["a",], effects["a", "b"]
    assert main / both == pytest.approx(36 / 28) and main * both == pytest.approx(31 / 18)


@pytest.mark.parametrize(
    ("names", "responses", "as_ratios", "message"),
    [
        ((), {(): 1.0}, False, "factors"),
        (("a", "a"), BY_HAND, False, "all different"),
        (("a",), BY_HAND, False, "each of 2 combinations"),
        (("a", "b", "c"), BY_HAND, False, "each of 8 combinations"),
        (("a", "b"), {**BY_HAND, (True, True): 0.0}, True, "positive"),
        (("a", "b"), {**BY_HAND, (True, True): float("nan")}, False, "finite"),
    ],
)
def test_what_cannot_be_worked_out_is_refused(
    names: tuple[str, ...], responses: dict[Levels, float], as_ratios: bool, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        factorial_effects(names, responses, as_ratios=as_ratios)
