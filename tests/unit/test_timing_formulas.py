"""Formulas give the published values, and exact integers when asked in integers."""

import numpy as np
import pytest

from dynosim.timing.formulas import FixedModel, LinearModel, PolynomialModel
from dynosim.timing.scaled import ScaledModel
from dynosim.timing.step import StepShape


def test_fixed_charges_prefill_and_decode_once_each() -> None:
    model = FixedModel(prefill_ms=50, decode_ms=7)
    assert model.step_ms(StepShape()) == 0
    assert model.step_ms(StepShape.of_prompts(3, 900, 100)) == 50
    assert model.step_ms(StepShape.of_decodes(5, 100)) == 7
    assert model.step_ms(StepShape(1, 1, 0, 1, 10)) == 57
    assert model.decode_run_ms(5, 100, 11) == 77


def test_linear_counts_whole_numbers_exactly() -> None:
    model = LinearModel(
        base_ms=1000, per_prefill_token_ms=7, per_decode_ms=13, per_context_token_ms=3
    )
    step = model.step_ms(StepShape(2, 30, 20, 4, 400))
    assert step == 1000 + 210 + 52 + 3 * 450
    run = model.decode_run_ms(4, 400, 9)
    assert run == sum(model.step_ms(StepShape.of_decodes(4, 400 + 4 * j)) for j in range(9))
    assert model.step_ms(StepShape()) == 0


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
    assert PolynomialModel(16_000).step_ms(StepShape(*step)) == pytest.approx(expected_ms, abs=1e-6)


def test_polynomial_prefill_uses_integer_means() -> None:
    model = PolynomialModel(16_000)
    # Two prompts, 101 and 200 tokens, 1 cached: 2 * (301 // 2 - 1 // 2) = 300 tokens.
    assert model.step_ms(StepShape.of_prompts(2, 300, 1)) == model.step_ms(
        StepShape.of_prompts(1, 300)
    )


def test_polynomial_decode_stays_flat_above_capacity() -> None:
    model = PolynomialModel(1000)
    assert model.step_ms(StepShape.of_decodes(9, 1000)) == model.step_ms(
        StepShape.of_decodes(9, 5000)
    )
    assert model.step_ms(StepShape.of_decodes(9, 1000)) == pytest.approx(34.01)


@pytest.mark.parametrize(
    ("prompts", "tokens", "prefix", "counted"),
    [
        (2, 301, 0, 300),  # 150 each, and a half is left out
        (2, 300, 1, 300),
        (2, 299, 2, 298),
        (2, 301, 1, 302),
        (3, 302, 4, 303),
        (2, 1, 0, 0),
    ],
)
def test_polynomial_prefill_rounds_both_means_down(
    prompts: int, tokens: int, prefix: int, counted: int
) -> None:
    expected_ms = 4.209989e-07 * counted**2 + 1.518344e-02 * counted + 16.50142 if counted else 0.0
    found_ms = PolynomialModel(16_000).step_ms(StepShape.of_prompts(prompts, tokens, prefix))
    assert found_ms == pytest.approx(expected_ms, rel=1e-12)


@pytest.mark.parametrize(
    ("tokens", "use"), [(0, 0.0), (250, 0.25), (999, 0.999), (1000, 1.0), (1001, 1.0), (10**6, 1.0)]
)
def test_polynomial_decode_goes_by_the_share_of_cache_in_use(tokens: int, use: float) -> None:
    model = PolynomialModel(1000)
    expected_ms = -25.74 * use**2 + 54.01 * use + 5.74
    assert model.step_ms(StepShape.of_decodes(3, tokens)) == pytest.approx(expected_ms, rel=1e-12)
    assert model.step_ms(StepShape(1, 100, 0, 3, tokens)) == pytest.approx(
        expected_ms + 18.023974, abs=1e-6
    )
    array = model.decode_step_ms_array(np.array([3, 0]), np.array([tokens, tokens]))
    assert array.tolist() == pytest.approx([expected_ms, 0.0], rel=1e-12)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"base_ms": 7}, (7, 7, 7)),
        ({"per_prefill_token_ms": 3}, (3 * 30, 0, 3 * 30)),
        ({"per_decode_ms": 5}, (0, 5 * 4, 5 * 4)),
        ({"per_context_token_ms": 2}, (2 * (20 + 30), 2 * 400, 2 * (20 + 30 + 400))),
    ],
)
def test_linear_terms_one_by_one(changes: dict[str, int], expected: tuple[int, int, int]) -> None:
    nothing = dict.fromkeys(
        ("base_ms", "per_prefill_token_ms", "per_decode_ms", "per_context_token_ms"), 0
    )
    model = LinearModel(**(nothing | changes))
    steps = ((2, 30, 20, 0, 0), (0, 0, 0, 4, 400), (2, 30, 20, 4, 400))
    assert tuple(model.step_ms(StepShape(*step)) for step in steps) == expected


@pytest.mark.parametrize(("per_context", "is_monotone"), [(0.1, True), (0.0, True), (-0.1, False)])
def test_linear_promises_no_rise_that_it_has_not(per_context: float, is_monotone: bool) -> None:
    model = LinearModel(
        base_ms=100, per_prefill_token_ms=0, per_decode_ms=0, per_context_token_ms=per_context
    )
    assert model.decode_is_monotone is is_monotone


def test_formulas_say_that_they_are_estimates_and_of_what() -> None:
    linear = LinearModel(base_ms=1, per_prefill_token_ms=2, per_decode_ms=3, per_context_token_ms=4)
    described = [model.describe() for model in (FixedModel(5, 2), linear, PolynomialModel(1600))]
    assert described == [
        {"source": "estimated", "description": text, "notes": []}
        for text in (
            "fixed: 5.0 ms per prefill step, 2.0 ms per decode",
            "linear: 1.0 + 2.0/prompt token + 3.0/decode + 4.0/context token (ms)",
            "polynomial: mocker formulas over 1600 tokens of KV cache",
        )
    ]


def test_fixed_counts_a_step_of_no_new_tokens_as_none() -> None:
    assert FixedModel(50, 7).step_ms(StepShape.of_prompts(1, 0, 100)) == 0


@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
def test_a_scaled_model_is_so_many_times_its_own(scale: float) -> None:
    own = PolynomialModel(4096)
    own.ingress_ms, own.egress_ms, own.notes = 3.0, 4.0, ("note",)
    scaled = ScaledModel(own, scale)
    for step in ((1, 100, 0, 0, 0), (0, 0, 0, 5, 900), (2, 64, 9, 5, 900), (0, 0, 0, 0, 0)):
        assert scaled.step_ms(StepShape(*step)) == scale * own.step_ms(StepShape(*step))
    assert scaled.decode_run_ms(5, 900, 70) == scale * own.decode_run_ms(5, 900, 70)
    batches, contexts = np.array([1, 5, 0]), np.array([9, 900, 0])
    found = scaled.decode_step_ms_array(batches, contexts)
    assert found.tolist() == (scale * own.decode_step_ms_array(batches, contexts)).tolist()
    # What lies outside the steps is not the accelerator's and stays.
    assert (scaled.ingress_ms, scaled.egress_ms) == (3.0, 4.0)
    assert scaled.decode_is_monotone is True
    assert scaled.describe() == {
        "source": "estimated",
        "description": f"{scale:g} x (polynomial: mocker formulas over 4096 tokens of KV cache)",
        "notes": ["note"],
    }


def test_a_scaled_model_is_as_sure_as_its_own() -> None:
    own = LinearModel(
        base_ms=9, per_prefill_token_ms=0, per_decode_ms=0, per_context_token_ms=-0.001
    )
    own.source = "measured"
    scaled = ScaledModel(own, 2.0)
    assert (scaled.source, scaled.decode_is_monotone) == ("measured", False)
