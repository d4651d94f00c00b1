"""The fitted model: its physical form, its file, and what lies outside the steps."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clusters import run_twin

from dynosim.engine.spec import EngineSpec
from dynosim.errors import TraceError
from dynosim.metrics import check_conservation
from dynosim.records import RunResult, Trace
from dynosim.silicon.fitted_file import read_fit
from dynosim.testing.step_times import step_log
from dynosim.timing.fitted import (
    Fit,
    FittedModel,
    FittedParameters,
    MeasuredRange,
)
from dynosim.timing.step import StepShape

PARAMETERS = FittedParameters(
    overhead_ms=2.0,
    weights_ms=8.0,
    per_token_ms=0.05,
    prompt_step_ms=0.5,
    per_decode_ms=0.02,
    per_context_token_ms=1e-4,
    per_pair_ms=1e-6,
)


def _model(**changes: Any) -> FittedModel:
    return FittedModel(Fit(parameters=replace(PARAMETERS, **changes), knee=64.0))


def test_prompt_tokens_ride_along_while_weights_are_read() -> None:
    model = _model()
    alone = model.step_ms(StepShape.of_decodes(10, 5000))
    with_chunk = model.step_ms(StepShape(1, 20, 0, 10, 5000))
    pairs = 20 * 10.5 * 1e-6
    assert alone == pytest.approx(2 + 8 + 0.2 + 0.5)
    assert with_chunk - alone == pytest.approx(0.5 + pairs)


def test_prompt_tokens_cost_once_computing_is_the_limit() -> None:
    model = _model()
    longer = model.step_ms(StepShape.of_prompts(1, 2000)) - model.step_ms(
        StepShape.of_prompts(1, 1000)
    )
    pairs = 2000 * 1000.5 - 1000 * 500.5
    assert longer == pytest.approx(1000 * 0.05 + pairs * 1e-6, rel=1e-6)


def test_attention_pairs_of_a_chunk_count_what_is_cached_before_it() -> None:
    model = _model(per_pair_ms=1.0, overhead_ms=0.0, weights_ms=0.0, per_token_ms=0.0)
    # Tokens 5, 6 and 7 of a prompt attend to 5, 6 and 7 tokens.
    assert model.step_ms(StepShape.of_prompts(1, 3, 4)) - 0.5 == pytest.approx(5 + 6 + 7)
    # Two equal prompts make twice the pairs of one.
    assert model.step_ms(StepShape.of_prompts(2, 6, 8)) - 0.5 == pytest.approx(2 * (5 + 6 + 7))


def test_whole_prompt_in_chunks_makes_the_same_pairs() -> None:
    model = _model(per_pair_ms=1.0, overhead_ms=0.0, weights_ms=0.0, per_token_ms=0.0)
    chunks = sum(model.step_ms(StepShape.of_prompts(1, 8, done)) - 0.5 for done in range(0, 64, 8))
    assert chunks == pytest.approx(model.step_ms(StepShape.of_prompts(1, 64)) - 0.5)


def test_curves_stand_in_for_the_products_and_shape_the_context_term() -> None:
    fit = Fit(
        parameters=FittedParameters(
            curve_scale=2.0, per_context_token_ms=1e-3, mixed_context_token_ms=5e-4
        ),
        token_curve=((1, 10.0), (11, 20.0)),
        context_curve=((1, 0.5), (3, 1.5)),
    )
    model = FittedModel(fit)
    assert model.step_ms(StepShape.of_decodes(2, 1000)) == pytest.approx(2 * 11 + 1.0)
    assert model.step_ms(StepShape.of_decodes(3, 1000)) == pytest.approx(2 * 12 + 1.5)
    assert model.step_ms(StepShape(1, 18, 0, 3, 1000)) == pytest.approx(2 * 30 + 1.5 + 0.5)
    # Past its end the context curve stays, the token curve goes on.
    assert model.step_ms(StepShape.of_decodes(31, 1000)) == pytest.approx(2 * 40 + 1.5)


def test_range_is_told_by_axis() -> None:
    measured = MeasuredRange(prefill_tokens=100, num_decodes=8, mean_context=50.0)
    model = FittedModel(Fit(parameters=PARAMETERS, measured=measured))
    steps = step_log((1, 1, 101, 0, 4, 40), (1, 1, 100, 9, 9, 90), (30, 0, 0, 0, 4, 4 * 41))
    assert model.steps_in_range_of("prefill_tokens", steps).tolist() == [0, 1, 30]
    assert model.steps_in_range_of("num_decodes", steps).tolist() == [1, 0, 30]
    assert model.steps_in_range_of("mean_context", steps).tolist() == [1, 1, 10]
    assert model.steps_in_range(steps).tolist() == [0, 0, 10]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "x"}, 'format: expected "dynosim-fitted-timing"'),
        ({"version": 9}, "version: expected 1"),
        ({"parameters": {"overhead": 1}}, "parameters.overhead: unknown; did you mean overhead_ms"),
        ({"parameters": {"overhead_ms": -1}}, "parameters.overhead_ms: expected a number >= 0"),
        ({"parameters": {"overhead_ms": True}}, "parameters.overhead_ms: expected a number >= 0"),
        ({"parameters": []}, "parameters: expected an object"),
        ({"knee": 0.5}, "knee: expected 1 or more"),
        ({"graph_sizes": [4, 2]}, "graph_sizes: expected rising whole numbers"),
        ({"intervals": {"overhead_ms": [2, 1]}}, "intervals.overhead_ms: low 2 is above high 1"),
        ({"token_curve": {"tokens": [1, 2], "ms": [1]}}, "token_curve: expected as many tokens"),
        ({"token_curve": {"tokens": [2, 1], "ms": [1, 1]}}, "token_curve.tokens: expected rising"),
        ({"draws": {}}, "draws: expected a list"),
        ({"draws": [3]}, "draws[0]: expected an object of parameters, got 3"),
        ({"draws": [{}, {"weight_ms": 1}]}, "draws[1].weight_ms: unknown; did you mean weights_ms"),
        ({"draws": [{"weights_ms": -1}]}, "draws[0].weights_ms: expected a number >= 0"),
        ({"source": 3}, "source: expected text"),
        ({"sauce": "x"}, "sauce: unknown; did you mean source"),
    ],
)
def test_bad_file_is_refused_where_it_is_wrong(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    good = {"format": "dynosim-fitted-timing", "version": 1, "parameters": {"overhead_ms": 1}}
    path = tmp_path / "timing.json"
    path.write_text(json.dumps(good))
    assert read_fit(path).parameters.overhead_ms == 1
    path.write_text(json.dumps(good | changes))
    with pytest.raises(TraceError, match=r"timing\.json") as caught:
        read_fit(path)
    assert message in str(caught.value)


def _trace(arrivals: list[float], previous: list[int] | None = None) -> Trace:
    n = len(arrivals)
    return Trace(
        arrival_ms=np.array(arrivals),
        input_tokens=np.full(n, 64),
        output_tokens=np.full(n, 5),
        hash_ids=np.zeros(0, np.int64),
        hash_offsets=np.zeros(n + 1, np.int64),
        trace_block_size=16,
        previous_turn=None if previous is None else np.array(previous),
    )


def _run(trace: Trace, concurrency: int | None = None, **changes: Any) -> RunResult:
    engine = EngineSpec(num_gpu_blocks=200, max_model_len=1024, block_size=16)
    model = _model(**changes)
    result = run_twin(trace, engine=engine, timing=model, num_workers=1, concurrency=concurrency)
    check_conservation(result, trace)
    return result


def test_ingress_and_egress_delay_tokens_but_not_gaps() -> None:
    trace = _trace([0.0, 3.0, 40.0, 41.0])
    without = _run(trace).requests
    delayed = _run(trace, ingress_ms=20.0, egress_ms=2.0).requests
    np.testing.assert_array_equal(delayed.arrival_ms, without.arrival_ms)
    np.testing.assert_allclose(delayed.scheduled_ms - without.scheduled_ms, 20.0)
    np.testing.assert_allclose(delayed.first_token_ms - without.first_token_ms, 22.0)
    np.testing.assert_allclose(delayed.finish_ms - without.finish_ms, 22.0)


def test_closed_loop_waits_for_delivery_and_ingress() -> None:
    result = _run(_trace([0.0, 0.0]), concurrency=1, ingress_ms=20.0, egress_ms=2.0).requests
    served = result.finish_ms[0] - 22.0  # alone on the engine
    assert result.arrival_ms[1] == pytest.approx(22.0 + served)
    assert result.finish_ms[1] == pytest.approx(2 * (22.0 + served))


def test_next_turn_arrives_after_the_delivered_end() -> None:
    result = _run(_trace([0.0, 0.0], [-1, 0]), ingress_ms=20.0, egress_ms=2.0).requests
    assert result.arrival_ms[1] == pytest.approx(result.finish_ms[0])
    assert result.first_token_ms[1] > result.arrival_ms[1] + 22.0


def test_products_are_bent_at_some_token_counts_and_in_line_between() -> None:
    flat = {"overhead_ms": 0.0, "per_decode_ms": 0.0, "per_context_token_ms": 0.0}
    model = _model(**flat, per_token_ms=0.0, factor_at_8=1.5, factor_at_32=1.1)
    times = [model.step_ms(StepShape.of_decodes(n, n)) / 8.0 for n in (1, 8, 16, 32, 128)]
    assert times == pytest.approx([1.0, 1.5, 1.3, 1.1, 1.0])


def test_beyond_the_last_factor_it_stays() -> None:
    model = _model(factor_at_2048=1.2, per_pair_ms=0.0, prompt_step_ms=0.0, overhead_ms=0.0)
    products = [model.step_ms(StepShape.of_prompts(1, tokens)) for tokens in (4096, 8192)]
    assert products == pytest.approx([1.2 * 4096 * 0.05, 1.2 * 8192 * 0.05], rel=1e-6)


def test_many_steps_at_once_are_single_steps() -> None:
    model = _model(mixed_context_token_ms=2e-5, factor_at_32=1.2)
    steps = [(0, 0, 0, 7, 900), (1, 300, 64, 0, 0), (2, 90, 0, 20, 8000), (0, 0, 0, 0, 0)]
    together = model.steps_ms(np.array(steps))
    assert together == pytest.approx([model.step_ms(StepShape(*step)) for step in steps], rel=1e-12)
