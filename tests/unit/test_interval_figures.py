"""Intervals are percentiles of replays, and replays differ by what is said to vary, no more."""

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from recorded_runs import TRUE
from timing_support import silicon_table

from dynosim.build.engine import prepare
from dynosim.config import RunConfig
from dynosim.experiment.intervals import (
    DEFAULT_REPLAYS,
    FORM_ERROR,
    INTERVAL_KEYS,
    JITTER_MS,
    Intervals,
    default_replays,
    form_error,
    jittered,
    prediction_intervals,
    scaled,
)
from dynosim.experiment.run import run
from dynosim.records import NO_REQUEST, Trace
from dynosim.timing.fitted import DRIFT, Fit, FittedModel, FittedParameters
from dynosim.timing.formulas import FixedModel
from dynosim.timing.host import HostTime
from dynosim.timing.model import StepTimeModel
from dynosim.timing.silicon_model import SiliconModel

LATENCIES = ("ttft_ms", "ttst_ms", "tpot_ms", "itl_ms", "e2e_latency_ms",
             "output_token_throughput_per_user")  # fmt: skip
STATISTICS = ("mean", "min", "max", "median", "p75", "p90", "p95", "p99", "std")
OTHERS = {
    "steady_mean_itl_ms", "duration_ms", "request_throughput_rps", "input_throughput_tok_s",
    "output_throughput_tok_s", "total_throughput_tok_s", "output_tok_s_per_gpu",
    "total_tok_s_per_gpu", "steady_request_throughput_rps", "steady_output_throughput_tok_s",
    "steady_output_tok_s_per_gpu", "goodput_rps", "goodput_output_throughput_tok_s",
    "sla_attainment", "prefix_cache_reused_ratio", "saturation_sustained_tok_s",
}  # fmt: skip


def trace_of(*arrival_ms: float, output_tokens: int = 5) -> Trace:
    count = len(arrival_ms)
    return Trace(
        arrival_ms=np.array(arrival_ms),
        input_tokens=np.full(count, 50),
        output_tokens=np.full(count, output_tokens),
        hash_ids=np.zeros(0, np.int64),
        hash_offsets=np.zeros(count + 1, np.int64),
        trace_block_size=16,
    )


def intervals_of(
    trace: Trace, timing: StepTimeModel, *, num_replays: int = 8, seed: int = 0, **sections: Any
) -> Intervals:
    """Of a recorded workload: a synthetic one that is known to be what is served."""
    plan: dict[str, Any] = {
        "workload": {"synthetic": {"requests": 1, "isl": 1, "osl": 1, "rate_rps": 1}},
        "engine": {"num_gpu_blocks": 400},
        "timing": {"kind": "fixed", "prefill_ms": 10.0, "decode_ms": 4.0},
    }
    config = RunConfig.model_validate({**plan, **sections})
    return prediction_intervals(
        config, trace, timing, num_replays=num_replays, seed=seed, is_workload_known=True
    )


def in_line(values: tuple[float, ...], percent: float) -> float:
    """The percentile, in line between neighbours of the sorted sample."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def test_the_figures_with_intervals_are_latencies_rates_and_shares() -> None:
    latencies = {f"{name}_{metric}" for name in STATISTICS for metric in LATENCIES}
    steady = {
        f"steady_{name}_{metric}"
        for name in ("mean", "median", "p90", "p99")
        for metric in ("ttft_ms", "tpot_ms", "e2e_latency_ms")
    }
    assert len(INTERVAL_KEYS) == len(set(INTERVAL_KEYS))
    assert set(INTERVAL_KEYS) == latencies | steady | OTHERS


def test_bounds_hold_95_percent_of_the_replays() -> None:
    found = intervals_of(
        trace_of(0.0, 30.0, 31.0, 90.0),
        FixedModel(10.0, 4.0),
        num_replays=7,
        sla={"ttft_ms": 0.001},
    )
    assert found.num_replays == 7
    assert found.metrics["sla_attainment"] == (0.0, 0.0)
    assert "saturation_sustained_tok_s" not in found.metrics  # nothing waited
    assert set(found.samples) == set(found.metrics)
    for key, samples in found.samples.items():
        assert len(samples) == 7
        known = tuple(value for value in samples if value is not None)
        assert found.metrics[key] == pytest.approx((in_line(known, 2.5), in_line(known, 97.5)))
    low, high = found.metrics["duration_ms"]
    assert low < high
    document = found.to_dict()
    assert document["metrics"]["duration_ms"] == [low, high]
    assert (document["level"], document["replays"]) == (0.95, 7)
    assert document["varied"] == ["arrivals", "seed of the router"]


def test_a_figure_that_some_replays_lack_is_of_the_others() -> None:
    """Only in some replays does the third come early enough to wait for a step of the second."""
    engine = {"num_gpu_blocks": 400, "max_num_seqs": 1, "async_scheduling": False}
    config: dict[str, Any] = {"engine": engine}
    found = intervals_of(
        trace_of(0.0, 100.0, 110.0), FixedModel(10.0, 4.0), **config, num_replays=12
    )
    samples = found.samples["saturation_sustained_tok_s"]
    assert len(samples) == 12
    assert None in samples
    known = [value for value in samples if value is not None]
    low, high = found.metrics["saturation_sustained_tok_s"]
    assert min(known) <= low <= high <= max(known)


def test_without_a_fit_arrivals_move_by_the_jitter_and_nothing_else_does() -> None:
    """Alone in the engine, a request takes the same time whenever it comes."""
    found = intervals_of(trace_of(0.0, 500.0), FixedModel(10.0, 4.0), num_replays=40)
    times = {round(value, 9) for value in found.samples["max_e2e_latency_ms"] if value is not None}
    assert times == {26.0}
    moved = [value - 526.0 for value in found.samples["duration_ms"] if value is not None]
    assert -JITTER_MS <= min(moved) < -JITTER_MS / 2
    assert JITTER_MS / 2 < max(moved) <= JITTER_MS
    assert len(set(moved)) == 40


def test_every_draw_is_replayed_once_and_all_steps_err_together() -> None:
    """A lone request tells the draw by its time: draws differ by far more than the form's error."""
    draws = tuple(replace(TRUE, weights_ms=10.0 * 2**power) for power in range(8))
    fit = Fit(parameters=TRUE, draws=draws, knee=2.5)
    found = intervals_of(trace_of(0.0), FittedModel(fit), num_replays=8)
    exact = [time_of(Fit(parameters=draw, knee=2.5)) for draw in draws]
    samples = sorted(value for value in found.samples["max_e2e_latency_ms"] if value is not None)
    errors = [sample / time - 1 for sample, time in zip(samples, exact, strict=True)]
    assert 0.1 * FORM_ERROR < float(np.std(errors)) < 3 * FORM_ERROR
    assert abs(float(np.mean(errors))) < 3 * FORM_ERROR
    twice = intervals_of(trace_of(0.0), FittedModel(fit), num_replays=16)
    again = sorted(value for value in twice.samples["max_e2e_latency_ms"] if value is not None)
    assert [round(np.log2(time / exact[0])) for time in again[::2]] == [
        round(np.log2(time / exact[0])) for time in again[1::2]
    ]


def time_of(fit: Fit) -> float:
    config = RunConfig.model_validate(
        {
            "workload": {"synthetic": {"requests": 1, "isl": 50, "osl": 5, "rate_rps": 1}},
            "engine": {"num_gpu_blocks": 400},
            "timing": {"kind": "fixed", "prefill_ms": 10.0, "decode_ms": 4.0},
        }
    )
    prepared = replace(prepare(config), timing=FittedModel(fit))
    report = run(config, trace=trace_of(0.0), prepared=prepared).report
    return float(report["max_e2e_latency_ms"])


def test_a_fit_without_draws_is_its_own_only_draw() -> None:
    fit = Fit(parameters=TRUE, knee=2.5)
    found = intervals_of(trace_of(0.0), FittedModel(fit), num_replays=6)
    errors = [
        value / time_of(fit) - 1
        for value in found.samples["max_e2e_latency_ms"]
        if value is not None
    ]
    assert len(set(errors)) == 6
    assert max(abs(error) for error in errors) < 5 * FORM_ERROR
    assert found.varied == ("all step times together", "arrivals", "seed of the router")


def test_routers_get_seeds_of_their_own() -> None:
    found = intervals_of(
        trace_of(*[0.0] * 12),
        FixedModel(10.0, 4.0),
        router={"mode": "random"},
        cluster={"workers": 3},
        engine={"num_gpu_blocks": 400, "max_num_seqs": 1},
    )
    counts = {round(value / 26.0) for value in found.samples["duration_ms"] if value is not None}
    assert len(counts) > 1


def test_a_synthetic_workload_is_drawn_anew_with_seeds_of_its_own() -> None:
    lengths = {"dist": "lognormal", "mean": 60, "std": 30}
    config = RunConfig.model_validate(
        {
            "workload": {"synthetic": {"requests": 9, "isl": lengths, "osl": 5, "rate_rps": 20}},
            "engine": {"num_gpu_blocks": 400},
            "timing": {"kind": "fixed", "prefill_ms": 10.0, "decode_ms": 4.0},
        }
    )
    found = prediction_intervals(
        config, trace_of(0.0), FixedModel(10.0, 4.0), num_replays=4, seed=0
    )
    assert len(set(found.samples["input_throughput_tok_s"])) == 4
    assert found.varied == ("seed of the workload", "seed of the router")


@pytest.mark.parametrize("has_turns", [False, True])
def test_moved_arrivals_keep_their_order_and_begin_at_zero(has_turns: bool) -> None:
    trace = trace_of(0.0, 1.0, 2.0, 30.0, 31.0, 90.0)
    if has_turns:
        turns = np.array([NO_REQUEST, 0, NO_REQUEST, NO_REQUEST, 1, NO_REQUEST])
        trace = replace(trace, previous_turn=turns, arrival_ms=trace.arrival_ms + 7.0)
    timed = [0, 2, 3, 5] if has_turns else list(range(6))
    rng = np.random.default_rng(3)
    for _ in range(20):
        moved = jittered(trace, rng)
        times, before = moved.arrival_ms[timed], trace.arrival_ms[timed]
        assert times[0] == 0.0
        assert (np.diff(times) >= 0).all()
        assert (np.abs(times - before + before[0]) <= JITTER_MS).all()
        assert not np.array_equal(times, before - before[0])
        if has_turns:
            assert moved.arrival_ms[[1, 4]].tolist() == trace.arrival_ms[[1, 4]].tolist()
    assert trace.arrival_ms[3] in (30.0, 37.0)  # the trace itself is left as it was


def test_a_longer_fit_is_longer_in_every_constant_of_the_steps() -> None:
    """What lies outside the steps, and what is a shape and no time, stays."""
    names = [field.name for field in fields(FittedParameters)]
    parameters = FittedParameters(**{name: 1.0 + place for place, name in enumerate(names)})
    stays = {name for name in names if name.startswith("factor_at_")} | {"ingress_ms", "egress_ms"}
    for curve, unused in (
        ((), {"curve_scale"}),
        (((1.0, 8.0), (9.0, 9.0)), {"weights_ms", "per_token_ms"}),
    ):
        longer = scaled(Fit(parameters=parameters, token_curve=curve), 2.0).parameters
        grown = {name for name in names if getattr(longer, name) == 2 * getattr(parameters, name)}
        same = {name for name in names if getattr(longer, name) == getattr(parameters, name)}
        assert (grown, same) == (set(names) - stays - unused, stays | unused)


def test_the_form_errs_by_the_largest_error_that_is_known() -> None:
    fit = Fit(parameters=TRUE)
    assert form_error(replace(fit, errors={"step_ms": 0.01, DRIFT: 0.03})) == 0.03
    assert form_error(replace(fit, errors={"step_ms": 0.04, DRIFT: 0.03})) == 0.04
    assert form_error(replace(fit, errors={DRIFT: 0.001})) == FORM_ERROR


def test_two_replays_are_the_least_and_sixteen_the_default() -> None:
    model = FixedModel(10.0, 4.0)
    assert intervals_of(trace_of(0.0), model, num_replays=2).num_replays == 2
    with pytest.raises(ValueError, match="got 1"):
        intervals_of(trace_of(0.0), model, num_replays=1)
    fit = Fit(parameters=TRUE, draws=(TRUE,))
    assert default_replays(FittedModel(fit)) == DEFAULT_REPLAYS == 16


def test_progress_counts_up_to_the_last_replay() -> None:
    told: list[tuple[int, int]] = []
    config = RunConfig.model_validate(
        {
            "workload": {"synthetic": {"requests": 2, "isl": 5, "osl": 2, "rate_rps": 20}},
            "engine": {"num_gpu_blocks": 400},
            "timing": {"kind": "fixed", "prefill_ms": 10.0, "decode_ms": 4.0},
        }
    )
    prediction_intervals(
        config,
        trace_of(0.0),
        FixedModel(10.0, 4.0),
        num_replays=2,
        seed=0,
        progress=lambda done, of: told.append((done, of)),
    )
    assert told == [(1, 2), (2, 2)]


def test_a_blind_prediction_varies_with_hosts_as_far_as_they_are_told_to_differ() -> None:
    host = HostTime(base_ms=4.0, interval=(0.5, 2.0))
    tables = SiliconModel(silicon_table(), host=host)
    found = intervals_of(trace_of(0.0), tables, num_replays=40)
    assert found.varied[0] == "host time of steps"
    times = [value for value in found.samples["max_e2e_latency_ms"] if value is not None]
    sure = SiliconModel(silicon_table(), host=HostTime(base_ms=4.0))
    certain = intervals_of(trace_of(0.0), sure, num_replays=2)
    assert "host time of steps" not in certain.varied
    (alone, _) = certain.samples["max_e2e_latency_ms"]
    assert alone is not None
    factors = sorted((time - alone) / (4.0 * 5) + 1 for time in times)  # five steps
    assert 0.3 < factors[0] < 0.8 and 1.25 < factors[-1] < 3.0
    assert len(set(factors)) == 40
