"""The fitted model's terms, each alone and all together, by hand; and where batches are padded."""

from dataclasses import fields, replace
from math import log2
from typing import Any

import numpy as np
import pytest

from dynosim.testing.step_times import step_log
from dynosim.timing.axes import AXES
from dynosim.timing.fitted import (
    BENT_AT,
    FACTOR_NAMES,
    PARAMETER_NAMES,
    Fit,
    FittedModel,
    FittedParameters,
    MeasuredRange,
    on_curve,
    soft_maximum,
)
from dynosim.timing.graphs import padded_tokens, vllm_graph_sizes
from dynosim.timing.step import StepShape

PROMPTS = (2, 60, 20, 0, 0)
DECODES = (0, 0, 0, 5, 700)
MIXED = (2, 60, 20, 5, 700)
NOTHING = (0, 0, 0, 0, 0)
PAIRS = 60 * (20 / 2 + (60 / 2 + 1) / 2)  # each prompt: 30 new tokens behind 10 cached ones


def model(fit: Fit | None = None, /, **parameters: float) -> FittedModel:
    fit = fit or Fit(parameters=FittedParameters())
    return FittedModel(replace(fit, parameters=FittedParameters(**parameters)))


@pytest.mark.parametrize(
    ("name", "value", "prompts_ms", "decodes_ms", "mixed_ms"),
    [
        ("overhead_ms", 3.0, 3.0, 3.0, 3.0),
        ("weights_ms", 8.0, 8.0, 8.0, 8.0),
        ("per_token_ms", 0.5, 60 * 0.5, 5 * 0.5, 65 * 0.5),
        ("prompt_step_ms", 2.0, 2.0, 0.0, 2.0),
        ("per_decode_ms", 0.3, 0.0, 5 * 0.3, 5 * 0.3),
        ("per_context_token_ms", 0.01, 0.0, 7.0, 7.0),
        ("mixed_context_token_ms", 0.02, 0.0, 0.0, 14.0),
        ("per_pair_ms", 0.001, PAIRS * 0.001, 0.0, PAIRS * 0.001),
        ("ingress_ms", 9.0, 0.0, 0.0, 0.0),  # outside the steps
        ("egress_ms", 9.0, 0.0, 0.0, 0.0),
        ("curve_scale", 9.0, 0.0, 0.0, 0.0),  # without a curve of no effect
    ],
)
def test_one_term_alone(
    name: str, value: float, prompts_ms: float, decodes_ms: float, mixed_ms: float
) -> None:
    timed = model(**{name: value})
    assert timed.step_ms(StepShape(*PROMPTS)) == pytest.approx(prompts_ms, rel=1e-12)
    assert timed.step_ms(StepShape(*DECODES)) == pytest.approx(decodes_ms, rel=1e-12)
    assert timed.step_ms(StepShape(*MIXED)) == pytest.approx(mixed_ms, rel=1e-12)
    assert timed.step_ms(StepShape(*NOTHING)) == 0.0


def test_all_terms_are_a_sum_but_for_the_soft_maximum() -> None:
    timed = model(
        overhead_ms=3.0,
        weights_ms=8.0,
        per_token_ms=0.5,
        prompt_step_ms=2.0,
        per_decode_ms=0.3,
        per_context_token_ms=0.01,
        mixed_context_token_ms=0.02,
        per_pair_ms=0.001,
    )
    products_ms = (8.0**4 + (65 * 0.5) ** 4) ** (1 / 4)
    rest_ms = 3.0 + 2.0 + 5 * 0.3 + 700 * (0.01 + 0.02) + PAIRS * 0.001
    assert timed.step_ms(StepShape(*MIXED)) == pytest.approx(products_ms + rest_ms, rel=1e-12)


def test_outside_times_are_the_models_own() -> None:
    timed = model(ingress_ms=4.0, egress_ms=1.5)
    assert (timed.ingress_ms, timed.egress_ms) == (4.0, 1.5)


@pytest.mark.parametrize("tokens", BENT_AT)
def test_a_factor_bends_the_products_of_its_token_count_alone(tokens: int) -> None:
    name = f"factor_at_{tokens}"
    timed = model(weights_ms=10.0, overhead_ms=1.0, **{name: 1.5})
    places = (1, *BENT_AT)
    found = [timed.step_ms(StepShape.of_decodes(count, 0)) - 1.0 for count in places]
    expected = [15.0 if count == tokens else 10.0 for count in places]
    assert found == pytest.approx(expected, rel=1e-12)
    assert FACTOR_NAMES[BENT_AT.index(tokens)] == name


def test_between_two_factors_the_bend_is_in_line_over_the_logarithm() -> None:
    timed = model(weights_ms=10.0, factor_at_8=1.2, factor_at_32=2.0)
    for count in (2, 4, 11, 20, 100):
        if count <= 8:
            factor = 1 + 0.2 * log2(count) / 3
        elif count <= 32:
            factor = 1.2 + 0.8 * (log2(count) - 3) / 2
        else:
            factor = 2.0 - 1.0 * (log2(count) - 5) / 2
        assert timed.step_ms(StepShape.of_decodes(count, 0)) == pytest.approx(
            10.0 * factor, rel=1e-12
        )


@pytest.mark.parametrize("count", [2048, 2049, 5000, 100_000])
def test_the_last_factor_holds_from_its_token_count_on(count: int) -> None:
    timed = model(weights_ms=10.0, factor_at_2048=1.25)
    assert timed.step_ms(StepShape.of_prompts(1, count)) == pytest.approx(12.5, rel=1e-12)


CURVED = Fit(parameters=FittedParameters(), token_curve=((1, 10.0), (11, 20.0), (31, 60.0)))


@pytest.mark.parametrize(
    ("tokens", "height_ms"),
    [(1, 10.0), (6, 15.0), (11, 20.0), (12, 22.0), (31, 60.0), (41, 80.0)],
)
def test_a_token_curve_stands_in_for_weights_and_computing(tokens: int, height_ms: float) -> None:
    timed = model(CURVED, weights_ms=99.0, per_token_ms=99.0, curve_scale=0.5)
    assert timed.step_ms(StepShape.of_prompts(1, tokens)) == pytest.approx(
        0.5 * height_ms, rel=1e-12
    )
    bent = model(CURVED, factor_at_8=1.2, factor_at_32=1.2, factor_at_128=1.2)
    if tokens > 8:
        assert bent.step_ms(StepShape.of_prompts(1, tokens)) == pytest.approx(
            1.2 * height_ms, rel=1e-12
        )


@pytest.mark.parametrize(
    ("decodes", "factor"), [(1, 0.5), (2, 1.0), (3, 1.5), (5, 1.25), (7, 1.0), (8, 1.0), (90, 1.0)]
)
def test_a_context_curve_shapes_the_context_term_and_ends_flat(decodes: int, factor: float) -> None:
    fit = Fit(parameters=FittedParameters(), context_curve=((1, 0.5), (3, 1.5), (7, 1.0)))
    timed = model(fit, per_context_token_ms=0.01)
    step = (0, 0, 0, decodes, 1000)
    assert timed.step_ms(StepShape(*step)) == pytest.approx(10.0 * factor, rel=1e-12)
    mixed = model(fit, mixed_context_token_ms=0.01)  # which it does not shape
    assert mixed.step_ms(StepShape(1, 5, 0, decodes, 1000)) == pytest.approx(10.0, rel=1e-12)


@pytest.mark.parametrize(
    ("x", "height"), [(0, -1.0), (1, 0.0), (2, 1.0), (3, 2.0), (4, 4.0), (5, 6.0), (6, 8.0)]
)
def test_curves_go_on_in_line_at_both_ends(x: float, height: float) -> None:
    assert on_curve(((1, 0.0), (3, 2.0), (5, 6.0)), x) == pytest.approx(height, abs=1e-12)


@pytest.mark.parametrize(
    ("a", "b", "knee", "expected"),
    [
        (3.0, 4.0, 1.0, 7.0),  # a sum
        (3.0, 4.0, 2.0, 5.0),
        (4.0, 3.0, 2.0, 5.0),
        (0.0, 4.0, 4.0, 4.0),
        (4.0, 0.0, 4.0, 4.0),
        (0.0, 0.0, 4.0, 0.0),
        (2.0, 2.0, 4.0, 2.0 * 2 ** (1 / 4)),
        (3.0, 4.0, 400.0, 4.0),  # all but sharp
    ],
)
def test_the_soft_maximum(a: float, b: float, knee: float, expected: float) -> None:
    assert soft_maximum(a, b, knee) == pytest.approx(expected, rel=1e-12)


SIZES = (1, 2, 4, 8, 16)


@pytest.mark.parametrize(
    ("tokens", "padded"),
    [
        (1, 1),
        (2, 2),
        (3, 4),
        (4, 4),
        (5, 8),
        (7, 8),
        (8, 8),
        (9, 16),
        (15, 16),
        (16, 16),
        (17, 17),  # beyond the last graph a step computes what it has
        (900, 900),
    ],
)
def test_a_step_is_padded_to_the_next_graph_unless_it_is_one(tokens: int, padded: int) -> None:
    assert padded_tokens(tokens, SIZES) == padded
    timed = model(Fit(parameters=FittedParameters(), graph_sizes=SIZES), per_token_ms=1.0)
    assert timed.step_ms(StepShape.of_decodes(tokens, 0)) == padded
    assert timed.step_ms(StepShape.of_prompts(1, tokens)) == padded
    assert timed.decode_run_ms(tokens, 0, 3) == 3 * padded
    assert timed.steps_ms(np.array([[1, tokens, 0, 0, 0]])).tolist() == [padded]


@pytest.mark.parametrize("tokens", [1, 9, 300])
def test_without_graphs_nothing_is_padded(tokens: int) -> None:
    assert padded_tokens(tokens, ()) == tokens


def test_padding_costs_products_only() -> None:
    timed = model(
        Fit(parameters=FittedParameters(), graph_sizes=(64,)),
        per_decode_ms=1.0,
        per_context_token_ms=0.1,
    )
    assert timed.step_ms(StepShape.of_decodes(3, 50)) == pytest.approx(3 * 1.0 + 5.0, rel=1e-12)


@pytest.mark.parametrize(
    ("max_num_seqs", "expected"),
    [
        (1, (1, 2)),
        (2, (1, 2, 4)),
        (4, (1, 2, 4, 8)),
        (7, (1, 2, 4, 8)),
        (8, (1, 2, 4, 8, 16)),
        (12, (1, 2, 4, 8, 16, 24)),
    ],
)
def test_graphs_that_vllm_captures_for_few_sequences(
    max_num_seqs: int, expected: tuple[int, ...]
) -> None:
    assert vllm_graph_sizes(max_num_seqs) == expected


@pytest.mark.parametrize(
    ("max_num_seqs", "largest"),
    [(127, 248), (128, 256), (135, 256), (136, 272), (255, 496), (256, 512), (1024, 512)],
)
def test_graphs_that_vllm_captures_for_many_sequences(max_num_seqs: int, largest: int) -> None:
    sizes = vllm_graph_sizes(max_num_seqs)
    every = [1, 2, 4, *(8 * n for n in range(1, 32)), *(16 * n for n in range(16, 33))]
    assert list(sizes) == [size for size in every if size <= largest]
    assert sizes[-1] == largest


def test_many_steps_at_once_are_the_steps_one_by_one() -> None:
    fit = replace(CURVED, context_curve=((1, 0.5), (3, 1.5)), graph_sizes=SIZES)
    timed = model(
        fit,
        overhead_ms=3.0,
        curve_scale=0.7,
        factor_at_8=1.3,
        prompt_step_ms=2.0,
        per_decode_ms=0.3,
        per_context_token_ms=0.01,
        mixed_context_token_ms=0.02,
        per_pair_ms=0.001,
    )
    steps = [PROMPTS, DECODES, MIXED, NOTHING, (0, 0, 0, 9, 90), (1, 1, 0, 0, 0), (3, 7, 9, 1, 4)]
    together = timed.steps_ms(np.array(steps))
    assert together.tolist() == pytest.approx(
        [timed.step_ms(StepShape(*step)) for step in steps], rel=1e-12
    )
    assert timed.steps_ms(np.zeros((0, 5), np.int64)).tolist() == []


def test_a_fit_says_what_it_rests_on() -> None:
    fit = Fit(
        parameters=FittedParameters(),
        unidentified=("prompt_step_ms", "egress_ms"),
        errors={"mean_ttft_ms": 0.02},
        source="a.jsonl",
    )
    timed = FittedModel(fit, name="timing.json")
    assert timed.describe() == {
        "source": "derived",
        "description": "fitted: timing.json, from a.jsonl",
        "notes": [
            "constants fitted to measurements of one deployment; not of single steps",
            "not told apart by the measurements: prompt_step_ms, egress_ms",
        ],
        "held_out_errors": {"mean_ttft_ms": 0.02},
    }
    plain = FittedModel(Fit(parameters=FittedParameters()))
    assert plain.description == "fitted: fitted"
    assert len(plain.notes) == 1
    assert plain.describe()["held_out_errors"] == {}


def test_names_are_those_of_the_records() -> None:
    assert PARAMETER_NAMES == tuple(one.name for one in fields(FittedParameters))
    assert AXES == tuple(one.name for one in fields(MeasuredRange))


def test_constants_of_nothing_take_no_time_and_factors_of_one_bend_nothing() -> None:
    defaults: dict[str, Any] = {name: getattr(FittedParameters(), name) for name in PARAMETER_NAMES}
    neutral = {"curve_scale", *FACTOR_NAMES}
    assert defaults == {name: 1.0 if name in neutral else 0.0 for name in PARAMETER_NAMES}


def test_ranges_that_are_not_known_bound_nothing() -> None:
    rows = step_log((3, 1, 10**6, 10**7, 10**4, 10**9))
    assert model().steps_in_range(rows).tolist() == [3]
