"""Formulas give the published values, and exact integers when asked in integers."""

import pytest

from dynosim.timing.formulas import FixedModel, LinearModel, PolynomialModel


def test_fixed_charges_prefill_and_decode_once_each() -> None:
    model = FixedModel(prefill_ms=50, decode_ms=7)
    assert model.step_ms(0, 0, 0, 0, 0) == 0
    assert model.step_ms(3, 900, 100, 0, 0) == 50
    assert model.step_ms(0, 0, 0, 5, 100) == 7
    assert model.step_ms(1, 1, 0, 1, 10) == 57
    assert model.decode_run_ms(5, 100, 11) == 77


def test_linear_stays_integer_when_coefficients_are() -> None:
    model = LinearModel(
        base_ms=1000, per_prefill_token_ms=7, per_decode_ms=13, per_context_token_ms=3
    )
    step = model.step_ms(2, 30, 20, 4, 400)
    assert (step, type(step)) == (1000 + 210 + 52 + 3 * 450, int)
    run = model.decode_run_ms(4, 400, 9)
    assert type(run) is int
    assert run == sum(model.step_ms(0, 0, 0, 4, 400 + 4 * j) for j in range(9))
    assert model.step_ms(0, 0, 0, 0, 0) == 0


@pytest.mark.parametrize(
    ("step", "expected_ms"),
    [
        ((1, 100, 0, 0, 0), 18.023974),
        ((1, 160, 0, 0, 0), 18.941548),
        ((0, 0, 0, 1, 160), 6.277526),
        ((1, 200, 0, 1, 102), 19.554948 + 6.083268),
        ((1, 0, 160, 0, 0), 0.0),
    ],
)
def test_polynomial_gives_the_mockers_values(
    step: tuple[int, int, int, int, int], expected_ms: float
) -> None:
    assert PolynomialModel(16_000).step_ms(*step) == pytest.approx(expected_ms, abs=1e-6)


def test_polynomial_prefill_uses_integer_means() -> None:
    model = PolynomialModel(16_000)
    # Two prompts, 101 and 200 tokens, 1 cached: 2 * (301 // 2 - 1 // 2) = 300 tokens.
    assert model.step_ms(2, 300, 1, 0, 0) == model.step_ms(1, 300, 0, 0, 0)


def test_polynomial_decode_stays_flat_above_capacity() -> None:
    model = PolynomialModel(1000)
    assert model.step_ms(0, 0, 0, 9, 1000) == model.step_ms(0, 0, 0, 9, 5000)
    assert model.step_ms(0, 0, 0, 9, 1000) == pytest.approx(34.01)
