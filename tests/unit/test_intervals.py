"""Intervals of predictions: what is varied, what stays, and that the truth lies inside."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recorded_runs import TRUE

from dynosim.build.workload import load_trace
from dynosim.config import RunConfig, load_run
from dynosim.experiment.intervals import (
    FORM_ERROR,
    INTERVAL_KEYS,
    Intervals,
    default_replays,
    form_error,
    prediction_intervals,
    scaled,
)
from dynosim.experiment.run import run
from dynosim.fit.fitting import DECODE_SHARE
from dynosim.silicon.fitted_file import write_fit
from dynosim.timing.fitted import Fit, FittedModel
from dynosim.timing.formulas import FixedModel
from dynosim.timing.step import StepShape

PLAN = """
workload:
  synthetic: {requests: 60, isl: 300, osl: 40, rate_rps: 10}
engine: {num_gpu_blocks: 4000, max_num_seqs: 16}
timing: {kind: fitted, file: timing.json}
"""


def fit_with_draws(spread: float, count: int = 32) -> Fit:
    rng = np.random.default_rng(5)
    draws = tuple(
        replace(TRUE, weights_ms=TRUE.weights_ms * (1 + spread * float(rng.standard_normal())))
        for _ in range(count)
    )
    return Fit(parameters=TRUE, knee=2.5, draws=draws)


def configured(tmp_path: Path, fit: Fit, *overrides: str) -> RunConfig:
    write_fit(fit, tmp_path / "timing.json")
    plan = tmp_path / "run.yaml"
    plan.write_text(PLAN)
    return load_run(plan, overrides)


def intervals_of(config: RunConfig, fit: Fit, **how: Any) -> Intervals:
    given: dict[str, Any] = {"num_replays": 12, "seed": 0, **how}
    return prediction_intervals(config, load_trace(config), FittedModel(fit), **given)


def width(found: Intervals, key: str) -> float:
    low, high = found.metrics[key]
    return high / low - 1


def test_wider_draws_make_wider_intervals_and_the_prediction_lies_inside(tmp_path: Path) -> None:
    narrow, wide = fit_with_draws(0.002), fit_with_draws(0.1)
    config = configured(tmp_path, wide)
    report = run(config).report
    tight = intervals_of(config, narrow, is_workload_known=True)
    loose = intervals_of(config, wide, is_workload_known=True)
    assert width(loose, "mean_tpot_ms") > 3 * width(tight, "mean_tpot_ms")
    for key in ("mean_tpot_ms", "mean_ttft_ms", "p90_e2e_latency_ms", "output_throughput_tok_s"):
        low, high = loose.metrics[key]
        assert low < report[key] < high, key
    assert loose.varied[0] == "constants of step times"
    assert "arrivals" in loose.varied


def test_fewer_replays_than_draws_take_a_sample_of_all(tmp_path: Path) -> None:
    rising = tuple(replace(TRUE, weights_ms=8 + 0.1 * number) for number in range(-16, 17))
    fit = Fit(parameters=TRUE, knee=2.5, draws=rising)
    config = configured(tmp_path, fit)
    low, high = intervals_of(config, fit, is_workload_known=True).metrics["mean_tpot_ms"]
    predicted = run(config).report["mean_tpot_ms"]
    assert low < 0.98 * predicted and high > 1.02 * predicted


def test_same_seed_same_intervals_and_progress_is_told(tmp_path: Path) -> None:
    fit = fit_with_draws(0.05)
    config = configured(tmp_path, fit)
    told: list[tuple[int, int]] = []
    first = intervals_of(
        config, fit, num_replays=3, progress=lambda done, of: told.append((done, of))
    )
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert intervals_of(config, fit, num_replays=3) == first
    assert intervals_of(config, fit, num_replays=3, seed=1) != first
    assert first.to_dict()["level"] == 0.95
    assert set(first.metrics) <= set(INTERVAL_KEYS)


def test_replays_work_out_the_prefixes_once(tmp_path: Path) -> None:
    fit = fit_with_draws(0.05)
    config = configured(tmp_path, fit)
    trace = load_trace(config)
    known: dict[str, Any] = {"num_replays": 3, "seed": 0, "is_workload_known": True}
    prediction_intervals(config, trace, FittedModel(fit), **known)
    extents = dict(trace.of_prompts)
    assert len(extents) == 1
    prediction_intervals(config, trace, FittedModel(fit), **known)
    assert [*map(id, trace.of_prompts.values())] == [*map(id, extents.values())]


def test_a_synthetic_workload_is_drawn_anew_unless_it_is_known(tmp_path: Path) -> None:
    fit = fit_with_draws(0.0001)
    config = configured(
        tmp_path, fit, "workload.synthetic.isl={dist: lognormal, mean: 300, std: 200}"
    )
    anew = intervals_of(config, fit)
    known = intervals_of(config, fit, is_workload_known=True)
    assert "seed of the workload" in anew.varied and "arrivals" not in anew.varied
    assert width(anew, "mean_ttft_ms") > 2 * width(known, "mean_ttft_ms")


def test_turns_keep_following_and_closed_loops_have_no_arrivals_to_move(tmp_path: Path) -> None:
    fit = fit_with_draws(0.05)
    sessions = "workload.synthetic={sessions: 10, turns: 3, isl: 200, osl: 10, rate_rps: 5}"
    config = configured(tmp_path, fit, sessions)
    found = intervals_of(config, fit, is_workload_known=True, num_replays=4)
    assert found.metrics["request_throughput_rps"][0] > 0
    closed = configured(
        tmp_path, fit, "workload.synthetic={requests: 20, isl: 200, osl: 10, arrival: closed}",
        "workload.concurrency=4",
    )  # fmt: skip
    assert intervals_of(closed, fit, is_workload_known=True, num_replays=4).metrics


def test_without_draws_nothing_is_varied_by_default(tmp_path: Path) -> None:
    fit = fit_with_draws(0.1)
    assert default_replays(FittedModel(fit)) == 16
    assert default_replays(FittedModel(replace(fit, draws=()))) == 0
    assert default_replays(FixedModel(1.0, 1.0)) == 0
    config = configured(tmp_path, fit)
    plain = prediction_intervals(
        config, load_trace(config), FixedModel(9.0, 5.0), num_replays=4, seed=0
    )
    assert plain.varied == ("seed of the workload", "seed of the router")
    with pytest.raises(ValueError, match="two replays"):
        intervals_of(config, fit, num_replays=1)


def test_all_step_times_grow_by_the_factor() -> None:
    for fit in (
        Fit(parameters=TRUE),
        Fit(parameters=TRUE, token_curve=((1.0, 8.0), (1024.0, 50.0))),
    ):
        base, longer = FittedModel(fit), FittedModel(scaled(fit, 1.1))
        for step in ((0, 0, 0, 8, 4000), (1, 512, 64, 3, 900)):
            assert longer.step_ms(StepShape(*step)) == pytest.approx(
                1.1 * base.step_ms(StepShape(*step))
            )


def test_form_error_is_what_fits_reckon_with_or_have_found() -> None:
    assert FORM_ERROR == DECODE_SHARE
    fit = Fit(parameters=TRUE)
    assert form_error(fit) == FORM_ERROR
    assert form_error(replace(fit, errors={"step_ms": 0.04, "mean_ttft_ms": -0.2})) == 0.04
