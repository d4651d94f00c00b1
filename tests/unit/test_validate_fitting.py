"""A fit's parts on small cases by hand: costs, derivatives, steps, spreads, what it tells."""

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recorded_runs import TRUE, engines, workload

from dynosim.fit.fitting import _drift, _measured_range, _outside, _Problem, fit_log
from dynosim.fit.measurements import Measurements
from dynosim.fit.prior import Prior
from dynosim.fit.replay import Predicted, replay
from dynosim.fit.schedule import held_schedule
from dynosim.fit.spread import bootstrap, correlations, newton_step, untold
from dynosim.testing.step_times import step_log
from dynosim.timing.fitted import Fit, FittedModel, FittedParameters, MeasuredRange

KNEE = 2.5
TRUTH = Fit(parameters=TRUE, knee=KNEE)
TRACE = replace(workload(16), hash_ids=np.zeros(0, np.int64), hash_offsets=np.zeros(17, np.int64))


def measured_of(clock: str = "engine", parameters: FittedParameters = TRUE) -> Measurements:
    timing = FittedModel(Fit(parameters=parameters, knee=KNEE))
    run = replay(TRACE, engines(), timing, clock)  # type: ignore[arg-type]
    return made(TRACE.arrival_ms, run.ttft_ms, run.decode_ms, clock)


def made(arrival_ms: Any, ttft_ms: Any, decode_ms: Any, clock: str = "engine") -> Measurements:
    count = len(arrival_ms)
    return Measurements(
        source="log",
        setup={},
        clock=clock,  # type: ignore[arg-type]
        arrival_ms=np.array(arrival_ms, np.float64),
        input_tokens=TRACE.input_tokens[:count],
        output_tokens=TRACE.output_tokens[:count],
        ttft_ms=np.array(ttft_ms, np.float64),
        decode_ms=np.array(decode_ms, np.float64),
        block_tokens=0,
        hashes=((),) * count,
    )


def problem(measured: Measurements, count: int, **spread: float) -> _Problem:
    return _Problem(measured, Prior(TRUTH, spread, "test"), engines(), count)


def test_free_constants_are_those_with_a_spread_and_never_fall_below_nothing() -> None:
    found = problem(measured_of(), 16, overhead_ms=0.5, weights_ms=0.0, per_token_ms=0.01)
    assert found.names == ("overhead_ms", "per_token_ms")
    assert found.lowest.tolist() == pytest.approx([-2.0 / 0.5, -0.04 / 0.01])
    fit = found.fit_at(np.array([2.0, -1.0]))
    assert fit == replace(TRUTH, parameters=replace(TRUE, overhead_ms=3.0, per_token_ms=0.03))
    low = found.fit_at(np.array([-9.0, 0.0])).parameters
    assert (low.overhead_ms, low.per_token_ms) == (0.0, 0.04)


def test_the_truth_costs_nothing() -> None:
    found = problem(measured_of(), 16, weights_ms=1.0)
    trial = found.trial(np.zeros(1))
    assert trial.cost == 0.0
    assert trial.residuals.tolist() == [0.0] * 32
    assert trial.noise.tolist() == [1.0, 1.0]  # never less: scales have a floor
    found.trial(np.ones(1))
    assert found.num_replays == 2


def test_a_cost_is_robust_counts_the_noise_and_the_distance_from_the_prior() -> None:
    truth = measured_of()
    late_ms = np.arange(16) * 4.0
    measured = made(TRACE.arrival_ms, truth.ttft_ms + late_ms, truth.decode_ms * 1.25)
    trial = problem(measured, 16).trial(np.zeros(0))  # with nothing that may move
    first = -late_ms / (0.01 * measured.ttft_ms + 3.0)
    decode = (truth.decode_ms - measured.decode_ms) / (0.005 * measured.decode_ms + 2.0)
    noise = [max(2.385 * 1.4826 * float(np.median(np.abs(e))), 1.0) for e in (first, decode)]
    residuals = np.concatenate([first / noise[0], decode / noise[1]])
    assert min(noise) > 1.0
    assert trial.noise.tolist() == pytest.approx(noise, rel=1e-9)
    assert trial.residuals.tolist() == pytest.approx(residuals.tolist(), rel=1e-9)
    robust = 0.5 * sum(np.log(1 + r * r) for r in residuals)
    cost = robust + 16 * (np.log(noise[0]) + np.log(noise[1]))
    assert trial.cost == pytest.approx(cost, rel=1e-9)
    far = problem(truth, 16, egress_ms=1e-9).trial(np.array([3.0]))  # moves nothing that is seen
    assert far.cost == pytest.approx(0.5 * 9.0, abs=1e-6)


def test_requests_behind_the_fitted_ones_are_replayed_as_far_as_they_shared_the_engine() -> None:
    measured = measured_of()
    count = 3
    until_ms = float(measured.end_ms[:count].max())
    sharing = int((measured.arrival_ms <= until_ms).sum())
    assert count < sharing < 16
    trial = problem(measured, count, overhead_ms=0.5).trial(np.zeros(1))
    assert len(trial.predicted.ttft_ms) == sharing
    assert len(trial.residuals) == 2 * count
    assert trial.cost == 0.0


@pytest.mark.parametrize("clock", ["engine", "clients"])
def test_derivatives_are_differences_of_sums_over_the_held_schedule(clock: str) -> None:
    true = replace(TRUE, ingress_ms=4.0)
    measured = measured_of(clock, true)
    fit = Fit(parameters=true, knee=KNEE)
    spread = {"weights_ms": 0.5, "per_context_token_ms": 1e-5, "ingress_ms": 2.0, "egress_ms": 0.0}
    found = _Problem(measured, Prior(fit, spread, "test"), engines(), 16)
    trial = found.trial(np.zeros(3))
    jacobian = found.jacobian(trial)
    held = held_schedule(trial.predicted, FittedModel(fit), clock, 16)  # type: ignore[arg-type]
    first_scale = 0.01 * measured.ttft_ms + 3.0
    decode_scale = 0.005 * measured.decode_ms + 2.0
    for column, (name, width) in enumerate(list(spread.items())[:2]):
        ahead = replace(true, **{name: getattr(true, name) + 0.001 * width})
        longer = FittedModel(Fit(parameters=ahead, knee=KNEE))
        first, decode = (
            later - now
            for later, now in zip(
                held.sums(held.durations(longer)), held.sums(held.durations(FittedModel(fit))),
                strict=True,
            )
        )  # fmt: skip
        expected = np.concatenate([first / first_scale, decode / decode_scale]) / 0.001
        assert jacobian[:, column] == pytest.approx(expected, rel=1e-3, abs=1e-9)
        assert np.abs(expected[16:]).max() > 1e-3
    is_seen = 2.0 if clock == "clients" else 0.0  # of the way in, for a move of one spread
    assert jacobian[:16, 2] == pytest.approx(is_seen / first_scale)
    assert jacobian[16:, 2].tolist() == [0.0] * 16


def objective(step: np.ndarray, jacobian: Any, residuals: Any, moves: Any, prior: Any) -> float:
    """What a step minimises: reweighted squares, and the distance from the prior."""
    weights = 1 / (1 + residuals**2)
    after = residuals + jacobian @ step
    return float((weights * after**2).sum() + ((moves + step - prior) ** 2).sum())


numbers = st.integers(-20, 20).map(lambda n: n / 10)


@given(
    jacobian=st.lists(numbers, min_size=8, max_size=8),
    residuals=st.lists(numbers, min_size=4, max_size=4),
    moves=st.lists(numbers, min_size=2, max_size=2),
    prior=st.lists(numbers, min_size=2, max_size=2),
    room=st.lists(st.integers(0, 15).map(lambda n: n / 10), min_size=2, max_size=2),
)
@settings(max_examples=60, deadline=None)
def test_a_step_keeps_above_the_lowest_and_is_best_along_what_is_free(
    jacobian: list[float],
    residuals: list[float],
    moves: list[float],
    prior: list[float],
    room: list[float],
) -> None:
    matrix = np.array(jacobian).reshape(4, 2)
    given_moves, lowest = np.array(moves), np.array(moves) - np.array(room)
    rest = (matrix, np.array(residuals), given_moves, np.array(prior))
    step = newton_step(matrix, np.array(residuals), given_moves, lowest, np.array(prior))
    assert (given_moves + step >= lowest - 1e-12).all()
    best = objective(step, *rest)
    for index, sign in product((0, 1), (-1, 1)):
        is_held = abs(given_moves[index] + step[index] - lowest[index]) < 1e-9
        if not is_held:
            nudged = step.copy()
            nudged[index] += sign * 1e-3
            assert objective(nudged, *rest) >= best - 1e-12
    if (given_moves + step > lowest + 1e-9).all():
        weights = np.diag(1 / (1 + np.array(residuals) ** 2))
        hessian = matrix.T @ weights @ matrix + np.eye(2)
        pull = matrix.T @ weights @ np.array(residuals) + given_moves - np.array(prior)
        assert step == pytest.approx(-np.linalg.inv(hessian) @ pull, abs=1e-9)


def test_what_the_log_does_not_tell_stays_as_uncertain_as_the_prior() -> None:
    moves, lowest = np.array([0.5, -0.2]), np.array([-9.0, -1.0])
    samples = bootstrap(np.zeros((20, 2)), np.zeros(20), moves, lowest, seed=3)
    assert samples.shape == (400, 2)
    rng = np.random.default_rng(3)
    expected = []
    for _ in range(400):
        rng.integers(0, 10 - 2 + 1, 5)  # five blocks of two of ten requests
        expected.append(np.maximum(rng.standard_normal(2), lowest))
    assert samples == pytest.approx(np.array(expected))


def test_resampled_requests_keep_their_two_errors_together() -> None:
    # Requests 0 to 4 say +1 with both errors, requests 5 to 9 say nothing.
    jacobian = np.concatenate([np.ones(5), np.zeros(5)] * 2)[:, None] * 1e3
    residuals = np.concatenate([-np.ones(5), np.zeros(5)] * 2) * 1e-6
    samples = bootstrap(jacobian, residuals, np.zeros(1), np.array([-9.0]), seed=0)[:, 0]
    told = samples[np.abs(samples - 1e-9) < 1e-4]  # the prior's weight is a millionth
    untold = samples[np.abs(samples - 1e-9) >= 1e-4]
    # Five blocks of two, each within the first six of nine places with probability 6/9: none does
    # with one in 243.
    assert 0 <= len(untold) <= 8
    assert len(told) + len(untold) == 400


def test_ways_that_a_clock_does_not_see_are_never_told() -> None:
    assert _outside(made([0.0], [1.0], [1.0])) == ("ingress_ms", "egress_ms")
    assert _outside(made([0.0], [1.0], [1.0], "clients")) == ("egress_ms",)


def test_constants_that_keep_most_of_their_priors_width_were_not_told() -> None:
    # Information of 1.05, 1.03 and 0 beside the prior's 1 leaves 0.698, 0.702 and 1 of its width.
    jacobian = np.diag(np.sqrt([1.05, 1.03, 0.0]))
    assert untold(("a", "b", "c"), jacobian, np.zeros(3)) == ("b", "c")
    # A residual of 1 halves what an error tells.
    assert untold(("a", "b", "c"), 1.3 * jacobian, np.array([1.0, 0.0, 0.0])) == ("a", "c")


def test_of_two_constants_that_only_show_together_one_is_told() -> None:
    together = np.array([[30.0, 20.0, 0.0]])
    assert untold(("a", "b", "c"), together, np.zeros(1)) == ("b", "c")
    assert untold(("a", "b", "c"), 0.01 * together, np.zeros(1)) == ("a", "b", "c")


def predicted_of(decode_ms: Any) -> Predicted:
    nothing: Any = None
    return Predicted(np.zeros(len(decode_ms)), np.array(decode_ms, np.float64), nothing)


def test_drift_is_how_the_speed_differs_between_stretches() -> None:
    count = 16
    measured_ms = np.array([10.0] * 8 + [30.0] * 8)
    measured = made(np.zeros(count), np.zeros(count), measured_ms)
    # Fewer than forty requests make two stretches: 10 and 30 over 20.
    assert _drift(predicted_of([20.0] * 20), measured) == pytest.approx(np.sqrt(0.5))
    assert _drift(predicted_of(measured_ms), measured) == 0.0


def test_drift_has_stretches_of_twenty_requests() -> None:
    ratios = np.array([1.0, 1.2, 1.4])
    fields = {name: getattr(measured_of(), name) for name in Measurements.__dataclass_fields__}
    measured = Measurements(
        **(fields | {"arrival_ms": np.zeros(60), "decode_ms": np.repeat(ratios, 20)})
    )
    assert _drift(predicted_of(np.ones(60)), measured) == pytest.approx(0.2)


def test_estimates_that_go_together_are_named() -> None:
    rng = np.random.default_rng(0)
    free, other = rng.standard_normal((2, 500))
    samples = np.stack([free, -2 * free, other, np.ones(500), free + 0.6 * other], axis=1)
    found = correlations(("a", "b", "c", "d", "e"), samples)
    assert found == {"b, a": pytest.approx(-1.0)}  # and not 0.86 of a and e
    assert correlations(("a",), samples[:, :1]) == {}


def test_a_measured_range_is_of_the_steps_of_the_fitted_requests() -> None:
    rows = step_log(
        (1, 2, 60, 30, 3, 90), (10, 0, 0, 0, 4, 4 * 50), (1, 1, 70, 5, 0, 0), (9, 0, 0, 0, 9, 9999)
    )
    steps = replace(rows, start_ms=np.array([0.0, 10.0, 50.0, 50.1]))
    run: Any = type("Run", (), {"steps": steps})
    measured = made([0.0, 20.0, 99.0], [5.0, 10.0, 1.0], [5.0, 20.0, 1.0])
    predicted = Predicted(np.zeros(3), np.zeros(3), run)
    # Request 1 ends at 50 ms. Ten steps of four reach a mean of 59.
    assert _measured_range(predicted, measured, 2) == MeasuredRange(
        prefill_tokens=70, prefix_tokens=15.0, num_decodes=4, mean_context=59.0
    )
    prompts = Predicted(np.zeros(3), np.zeros(3), type("Run", (), {"steps": step_log(
        (1, 1, 60, 30, 0, 0))}))  # type: ignore[arg-type]  # fmt: skip
    assert _measured_range(prompts, measured, 2) == MeasuredRange(
        prefill_tokens=60, prefix_tokens=30.0, num_decodes=0, mean_context=None
    )


def test_a_fit_finds_the_constants_and_says_how_sure_it_is() -> None:
    off = Fit(parameters=replace(TRUE, weights_ms=9.0, per_decode_ms=0.03), knee=KNEE)
    spread = {"weights_ms": 1.0, "per_decode_ms": 0.02, "per_pair_ms": 1e-12}
    found = fit_log(measured_of(), Prior(off, spread, "test"), engines(), count=16)
    constants = found.fit.parameters
    assert found.names == ("weights_ms", "per_decode_ms", "per_pair_ms")
    assert constants.weights_ms == pytest.approx(TRUE.weights_ms, rel=2e-3)
    assert constants.per_decode_ms == pytest.approx(TRUE.per_decode_ms, rel=0.1)
    # Held constants are the prior's.
    free = dict.fromkeys(found.names, 0.0)
    assert replace(constants, **free) == replace(off.parameters, **free)
    assert set(found.fit.intervals) == set(found.names)
    for name in ("weights_ms", "per_decode_ms"):
        low, high = found.fit.intervals[name]
        assert 0 < low < getattr(constants, name) < high
    assert found.fit.unidentified == ("per_pair_ms", "ingress_ms", "egress_ms")
    assert len(found.draws) == 400
    weights = [draw.parameters.weights_ms for draw in found.draws]
    assert np.percentile(weights, [2.5, 97.5]) == pytest.approx(found.fit.intervals["weights_ms"])
    assert found.fit.errors["drift"] < 1e-3
    assert found.fit.measured.num_decodes == int(found.predicted.result.steps.num_decodes.max())
    again = replay(TRACE_OF_LOG, engines(), FittedModel(found.fit), "engine")
    assert found.predicted.ttft_ms.tolist() == again.ttft_ms.tolist()


@given(
    seed=st.integers(0, 99),
    noise=st.sampled_from([0.0, 0.05, 0.3]),
    scale=st.sampled_from([0.5, 1.0, 3.0]),
)
@settings(max_examples=8, deadline=None)
def test_what_a_log_does_not_tell_stays_at_the_prior_and_inside_its_interval(
    seed: int, noise: float, scale: float
) -> None:
    rng = np.random.default_rng(seed)
    true = replace(TRUE, overhead_ms=scale * TRUE.overhead_ms, weights_ms=scale * TRUE.weights_ms)
    log = measured_of(parameters=true)
    factors = np.exp(noise * rng.standard_normal((2, 16)))
    log = replace(log, ttft_ms=log.ttft_ms * factors[0], decode_ms=log.decode_ms * factors[1])
    names = ("overhead_ms", "weights_ms", "per_decode_ms", "prompt_step_ms", "per_pair_ms")
    spread = {name: rng.uniform(0.05, 1.0) * getattr(TRUE, name) for name in names}
    found = fit_log(log, Prior(TRUTH, spread, "test"), engines(), count=16).fit
    for name in names:
        low, high = found.intervals[name]
        assert 0 <= low <= getattr(found.parameters, name) <= high
        if name in found.unidentified:
            assert getattr(found.parameters, name) == pytest.approx(getattr(TRUE, name))


TRACE_OF_LOG = measured_of().trace()


def test_of_several_knees_the_one_that_explains_the_log_is_taken() -> None:
    prior = Prior(TRUTH, {"weights_ms": 0.5}, "test", knees=(1.0, KNEE))
    found = fit_log(measured_of(), prior, engines(), count=16)
    assert found.fit.knee == KNEE
    other = fit_log(measured_of(), replace(prior, knees=(1.0,)), engines(), count=16)
    assert other.fit.knee == 1.0
    assert other.cost > found.cost


def test_a_log_that_tells_of_no_constant_leaves_all_at_the_prior() -> None:
    """As one of a machine that others disturbed, whose noise hides everything."""
    found = fit_log(measured_of(), Prior(TRUTH, {"egress_ms": 1.0}, "test"), engines(), count=16)
    assert found.fit.parameters == TRUE
    assert "egress_ms" in found.fit.unidentified
