"""Where an error comes from, other capacities and loops, and intervals: on small replays."""

from dataclasses import replace

import numpy as np
import pytest
from recorded_runs import TRUE, engines, workload

from dynosim.compare.attribution import (
    HOST,
    KERNELS,
    attribute,
    blind_fit,
    implied_arrivals,
    swapped,
)
from dynosim.compare.prediction import intervals
from dynosim.fit.fitting import cost_with
from dynosim.fit.measurements import Measurements
from dynosim.fit.prior import Prior
from dynosim.fit.replay import Engines, replay
from dynosim.fit.scores import mean_absolute_error, scores
from dynosim.records import Trace
from dynosim.timing.fitted import (
    FACTOR_NAMES,
    PARAMETER_NAMES,
    Fit,
    FittedModel,
    FittedParameters,
)
from dynosim.timing.scaled import ScaledModel

KNEE = 2.5
TRUTH = Fit(parameters=TRUE, knee=KNEE)


def measured_of(
    trace: Trace, served_by: Engines, fit: Fit = TRUTH, arrival_ms: np.ndarray | None = None
) -> Measurements:
    """What an engine with these constants would leave behind."""
    run = replay(trace, served_by, FittedModel(fit), "engine", arrival_ms=arrival_ms)
    return Measurements(
        source="log",
        setup={},
        clock="engine",
        arrival_ms=trace.arrival_ms,
        input_tokens=trace.input_tokens,
        output_tokens=trace.output_tokens,
        ttft_ms=run.ttft_ms,
        decode_ms=run.decode_ms,
        block_tokens=0,
        hashes=((),) * len(trace),
    )


def without_hashes(trace: Trace) -> Trace:
    nothing = np.zeros(0, np.int64)
    return replace(trace, hash_ids=nothing, hash_offsets=np.zeros(len(trace) + 1, np.int64))


TRACE = without_hashes(workload(24))
COUNT = len(TRACE)


def error_of(measured: Measurements, fit: Fit, served_by: Engines) -> float:
    predicted = replay(measured.trace(), served_by, FittedModel(fit), "engine")
    return mean_absolute_error(scores(measured, predicted))


def test_every_constant_is_the_hosts_or_the_kernels_and_never_both() -> None:
    assert sorted(HOST + KERNELS) == sorted(PARAMETER_NAMES)


def test_swapped_constants_are_the_named_ones() -> None:
    base = Fit(parameters=FittedParameters(), knee=3.0, graph_sizes=(1, 2))
    other = Fit(
        parameters=FittedParameters(**{name: 5.0 + i for i, name in enumerate(PARAMETER_NAMES)})
    )
    for names in (HOST, KERNELS):
        found = swapped(base, other, names)
        for name in PARAMETER_NAMES:
            source = other if name in names else base
            assert getattr(found.parameters, name) == getattr(source.parameters, name)
        assert (found.knee, found.graph_sizes) == (3.0, (1, 2))


def test_a_blind_fit_has_nothing_that_a_log_could_tell() -> None:
    times = FittedModel(Fit(parameters=replace(TRUE, ingress_ms=5.0, egress_ms=1.0)))
    prior = Fit(
        parameters=replace(
            TRUE, prompt_step_ms=1.75, ingress_ms=9.0, egress_ms=2.0, curve_scale=0.9
        ),
        token_curve=((1, 2.0), (9, 3.0)),
    )
    expected = replace(
        prior.parameters,
        prompt_step_ms=0.75,  # less the host's millisecond
        per_decode_ms=0.0,
        ingress_ms=5.0,
        egress_ms=1.0,
    )
    assert blind_fit(prior, times) == replace(prior, parameters=expected)
    short = replace(prior, parameters=replace(TRUE, prompt_step_ms=0.5))
    assert blind_fit(short, times).parameters.prompt_step_ms == 0.0


@pytest.mark.parametrize("has_given", [True, False])
def test_each_part_of_an_attribution_is_one_replay_with_that_part_swapped(has_given: bool) -> None:
    small, ample = engines(num_gpu_blocks=200), engines()
    measured = measured_of(TRACE, ample)
    slower = replace(TRUE, weights_ms=12.0, overhead_ms=3.0, per_decode_ms=0.0)
    blind = Fit(parameters=slower, knee=KNEE)
    found = attribute(
        measured,
        blind=blind,
        fitted=TRUTH,
        blind_engines=small,
        given_engines=ample if has_given else None,
    )
    known = ample if has_given else small
    kernels = replace(slower, weights_ms=TRUE.weights_ms)
    host = replace(slower, overhead_ms=TRUE.overhead_ms, per_decode_ms=TRUE.per_decode_ms)
    other_loop = small.scheduling(is_async=True)
    expected = {
        "none": error_of(measured, blind, small),
        "step time": error_of(measured, replace(blind, parameters=kernels), small),
        "host overhead": error_of(measured, replace(blind, parameters=host), small),
        "scheduling": error_of(measured, blind, other_loop),
    }
    if has_given:
        expected["KV capacity"] = error_of(measured, blind, ample)
    expected["step time and host overhead"] = error_of(measured, TRUTH, known)
    last = "step time, host overhead and arrival jitter"
    assert list(found) == [*expected, last]
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert expected["none"] > 0.05
    if has_given:
        assert found["step time and host overhead"] == found[last] == 0.0
    else:
        assert found[last] <= found["step time and host overhead"] + 0.01


def test_implied_arrivals_explain_first_tokens_better_and_keep_their_order() -> None:
    rng = np.random.default_rng(5)
    moved_ms = np.maximum.accumulate(TRACE.arrival_ms + rng.uniform(0, 7.0, len(TRACE)))
    measured = measured_of(TRACE, engines(), arrival_ms=moved_ms)
    found_ms = implied_arrivals(measured, engines(), FittedModel(TRUTH))
    assert (np.diff(found_ms) >= 0).all() and found_ms.min() >= 0
    assert np.abs(found_ms - measured.arrival_ms).max() <= 7.5  # half of the jitter to each side

    def misfit(arrival_ms: np.ndarray) -> float:
        run = replay(TRACE, engines(), FittedModel(TRUTH), "engine", arrival_ms=arrival_ms)
        scale = 0.01 * measured.ttft_ms + 3.0
        return float(np.log1p(((run.ttft_ms - measured.ttft_ms) / scale) ** 2).sum())

    assert misfit(found_ms) < 0.6 * misfit(measured.arrival_ms)
    again_ms = implied_arrivals(measured, engines(), FittedModel(TRUTH))
    assert found_ms.tolist() == again_ms.tolist()


def test_arrivals_that_fit_already_are_left() -> None:
    measured = measured_of(TRACE, engines())
    found_ms = implied_arrivals(measured, engines(), FittedModel(TRUTH))
    assert found_ms.tolist() == measured.arrival_ms.tolist()


@pytest.mark.parametrize("common_error", [0.0, 0.05])
def test_intervals_are_percentiles_of_replays_with_drawn_constants(common_error: float) -> None:
    measured = measured_of(TRACE, engines())
    draws = [Fit(parameters=replace(TRUE, weights_ms=6.0 + n), knee=KNEE) for n in range(5)]
    found, unseen = intervals(
        measured, engines(), draws, common_error=common_error, count=3, seed=4, first_unseen=20
    )
    rng = np.random.default_rng(4)
    tables, rest = [], []
    for index in (0, 2, 4):  # spread over the draws
        arrival_ms = measured.arrival_ms + rng.uniform(0, 15.0, len(measured))
        factor = 1 + common_error * rng.standard_normal()
        arrival_ms = np.maximum.accumulate(arrival_ms)
        # What all steps are off by together: no term of theirs is left out.
        timing = ScaledModel(FittedModel(draws[index]), factor)
        run = replay(TRACE, engines(), timing, "engine", arrival_ms=arrival_ms)
        tables.append({score.name: score.predicted for score in scores(measured, run)})
        unfitted = scores(measured, run, slice(20, None))
        rest.append({score.name: score.predicted for score in unfitted})
    for drawn, bounds in ((tables, found), (rest, unseen)):
        for name in drawn[0]:
            low, middle, high = sorted(table[name] for table in drawn)
            expected = (low + 0.05 * (middle - low), middle + 0.95 * (high - middle))
            assert bounds[name] == pytest.approx(expected, rel=1e-9), name
        assert len(bounds) == 16


HELD = Prior(TRUTH, {"overhead_ms": 0.5}, "test")


def test_a_cost_is_that_of_the_fit_as_it_is() -> None:
    measured = measured_of(TRACE, engines())
    assert cost_with(measured, TRUTH, engines(), COUNT) == 0.0
    slower = Fit(parameters=replace(TRUE, weights_ms=9.0), knee=KNEE)
    assert cost_with(measured, slower, engines(), COUNT) > 10.0


def test_factors_are_kernels() -> None:
    assert set(FACTOR_NAMES) < set(KERNELS)
