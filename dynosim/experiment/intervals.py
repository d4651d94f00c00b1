"""How sure a prediction is: the same run, replayed with other constants, arrivals and seeds.

What is varied, as far as the run has it: the constants of fitted step times (plausible draws of the
fit), all step times together by what the physical form gets wrong, of step times that nobody fitted
the host's share and the engine version whose measurements stand in for one that was not measured,
the synthetic workload's and the router's seed, and the arrivals of a recorded workload, by what
lies between a client and the scheduler.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import cycle
from typing import Any, TypeGuard

import numpy as np

from dynosim.build.engine import prepare
from dynosim.build.workload import load_trace
from dynosim.config.report_keys import METRICS, STATISTICS, STEADY_METRICS, STEADY_STATISTICS
from dynosim.config.schema import RunConfig
from dynosim.experiment.run import run
from dynosim.records import NO_REQUEST, FloatArray, Trace
from dynosim.timing.fitted import DRIFT, Fit, FittedModel
from dynosim.timing.model import StepTimeModel
from dynosim.timing.roofline import RooflineModel
from dynosim.timing.silicon_model import SiliconModel

LEVEL = 0.95
DEFAULT_REPLAYS = 16

JITTER_MS = 15.0
"""Spread of the way from a client to the scheduler (tokenisation, two processes), which logs do not
hold: arrivals of a draw are moved by a uniform amount of so much. vLLM 0.19 took 15 to 30 ms."""

FORM_ERROR = 0.005
"""Standard deviation of what the physical form gets wrong of all step times together: the scale of
errors that a fit of a request log reckons with."""

_NORMAL_95 = 1.96
"""Standard deviations around the middle between which 95 % of a normal distribution lie."""

INTERVAL_KEYS: tuple[str, ...] = (
    *(f"{name}_{metric}" for metric in METRICS for name in STATISTICS),
    *(f"steady_{name}_{metric}" for metric in STEADY_METRICS for name in STEADY_STATISTICS),
    "steady_mean_itl_ms",
    "duration_ms",
    "request_throughput_rps",
    "input_throughput_tok_s",
    "output_throughput_tok_s",
    "total_throughput_tok_s",
    "output_tok_s_per_gpu",
    "total_tok_s_per_gpu",
    "steady_request_throughput_rps",
    "steady_output_throughput_tok_s",
    "steady_output_tok_s_per_gpu",
    "goodput_rps",
    "goodput_output_throughput_tok_s",
    "sla_attainment",
    "prefix_cache_reused_ratio",
    "saturation_sustained_tok_s",
)
"""Keys of the report that get an interval."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Intervals:
    """Where the metrics of a run lie in 95 % of its replays."""

    num_replays: int
    varied: tuple[str, ...]  # what differed between them, in words
    metrics: dict[str, tuple[float, float]]  # key of the report -> 2.5 and 97.5 percentile
    samples: dict[str, tuple[float | None, ...]] = field(default_factory=dict)  # of each replay

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "level": LEVEL,
            "replays": self.num_replays,
            "varied": list(self.varied),
            "metrics": {key: list(bounds) for key, bounds in self.metrics.items()},
        }


def default_replays(timing: StepTimeModel) -> int:
    """Replays where nobody says how many: none where step times are not known to be uncertain."""
    has_draws = isinstance(timing, FittedModel) and bool(timing.fit.draws)
    return DEFAULT_REPLAYS if has_draws or _alternatives(timing) else 0


def prediction_intervals(
    config: RunConfig,
    trace: Trace,
    timing: StepTimeModel,
    *,
    num_replays: int,
    seed: int,
    is_workload_known: bool = False,
    progress: Progress | None = None,
) -> Intervals:
    """Replay `config` with other draws; the same `seed` gives the same intervals.

    A generated workload is drawn anew, unless `trace` is known to be what is served: then, as for
    a recorded one, arrivals are moved. `progress(done, all)` is told after each replay.

    Raises: what `dynosim.experiment.run.run` raises; ValueError for less than two replays.
    """
    if num_replays < 2:
        raise ValueError(f"intervals need two replays at least, got {num_replays}")
    rng = np.random.default_rng(seed)
    prepared = prepare(config)
    is_redrawn = config.workload.trace is None and not is_workload_known
    drawn = _drawn_timings(timing, num_replays, rng)
    first = prepared.prefill
    drawn_first = None
    if first is not None:  # draws of their own, the same from one call to the next
        drawn_first = _drawn_timings(first.timing, num_replays, np.random.default_rng(seed))
    samples: dict[str, list[float | None]] = {key: [] for key in INTERVAL_KEYS}
    for index, drawn_timing in enumerate(drawn):
        if first is not None and drawn_first is not None:
            first = replace(first, timing=drawn_first[index])
        varied = config.model_copy(update={"seed": int(rng.integers(1 << 62))})
        replayed = load_trace(varied) if is_redrawn else jittered(trace, rng)
        timed = replace(prepared, timing=drawn_timing, prefill=first)
        report = run(varied, trace=replayed, prepared=timed).report
        for key, values in samples.items():
            values.append(None if report[key] is None else float(report[key]))
        if progress is not None:
            progress(index + 1, num_replays)
    known = {key: [v for v in values if v is not None] for key, values in samples.items()}
    metrics = {key: _bounds(values) for key, values in known.items() if values}
    of_replays = {key: tuple(samples[key]) for key in metrics}
    return Intervals(num_replays, _varied(timing, is_redrawn), metrics, of_replays)


def scaled(fit: Fit, factor: float) -> Fit:
    """The fit with all step times longer by a factor."""
    parameters = fit.parameters
    names = ["overhead_ms", "prompt_step_ms", "per_decode_ms", "per_context_token_ms"]
    names += ["mixed_context_token_ms", "per_pair_ms"]
    names += ["curve_scale"] if fit.token_curve else ["weights_ms", "per_token_ms"]
    changes = {name: factor * getattr(parameters, name) for name in names}
    return replace(fit, parameters=replace(parameters, **changes))


def form_error(fit: Fit) -> float:
    """Standard deviation of the error that all steps of a run have in common.

    A fit to single steps knows how far it is off steps it has not seen, a fit to requests how much
    the engine's speed drifted.
    """
    return max(FORM_ERROR, fit.errors.get("step_ms", 0.0), fit.errors.get(DRIFT, 0.0))


def _drawn_timings(
    timing: StepTimeModel, count: int, rng: np.random.Generator
) -> list[StepTimeModel]:
    """Step times of all replays. What was not fitted to anything knows no error of its own, but
    of the host's share how much hosts differ."""
    if _has_unsure_host(timing):
        return _on_other_hosts(timing, count, rng)
    if not isinstance(timing, FittedModel):
        versions = (timing, *_alternatives(timing))
        return [versions[index % len(versions)] for index in range(count)]
    fit = timing.fit
    draws = fit.draws or (fit.parameters,)
    order = rng.permutation(len(draws))  # fewer replays than draws are a sample of all of them
    factors = np.maximum(1 + form_error(fit) * rng.standard_normal(count), 0.0).tolist()
    return [
        FittedModel(scaled(replace(fit, parameters=draws[order[index % len(draws)]]), factor))
        for index, factor in enumerate(factors)
    ]


def _has_unsure_host(timing: StepTimeModel) -> TypeGuard[SiliconModel | RooflineModel]:
    if not isinstance(timing, SiliconModel | RooflineModel):
        return False
    return timing.host.interval != (1.0, 1.0)


def _on_other_hosts(
    timing: SiliconModel | RooflineModel, count: int, rng: np.random.Generator
) -> list[StepTimeModel]:
    """The same engine on hosts of its class, as faster or slower as they are told to be, by each of
    the versions' measurements in turn."""
    low, high = np.log(timing.host.interval)
    factors = np.exp(rng.normal((low + high) / 2, (high - low) / (2 * _NORMAL_95), count))
    versions = (timing, *_alternatives(timing))
    return [
        version.with_host(version.host.scaled(factor))
        for version, factor in zip(cycle(versions), factors.tolist(), strict=False)
    ]


def _alternatives(timing: StepTimeModel) -> tuple[SiliconModel, ...]:
    """Step times by the measurements of other engine versions than the nearest."""
    return timing.alternatives if isinstance(timing, SiliconModel) else ()


def jittered(trace: Trace, rng: np.random.Generator) -> Trace:
    """The trace with its timed arrivals moved; requests keep their order, the first comes at 0."""
    arrival_ms: FloatArray = trace.arrival_ms.copy()
    timed = np.ones(len(trace), np.bool_)
    if trace.previous_turn is not None:
        timed = trace.previous_turn == NO_REQUEST
    moved_ms = arrival_ms[timed] + rng.uniform(0, JITTER_MS, int(timed.sum()))
    moved_ms = np.maximum.accumulate(moved_ms)
    if len(moved_ms):
        arrival_ms[timed] = moved_ms - moved_ms[0]
    return trace.at(arrival_ms)


def _bounds(values: list[float]) -> tuple[float, float]:
    tail = 100 * (1 - LEVEL) / 2
    return float(np.percentile(values, tail)), float(np.percentile(values, 100 - tail))


def _varied(timing: StepTimeModel, is_redrawn: bool) -> tuple[str, ...]:
    words = ["seed of the workload" if is_redrawn else "arrivals", "seed of the router"]
    if _has_unsure_host(timing):
        words.insert(0, "host time of steps")
    if _alternatives(timing):
        words.insert(0, "engine version of the measurements")
    if isinstance(timing, FittedModel):
        words.insert(0, "all step times together")
        if timing.fit.draws:
            words.insert(0, "constants of step times")
    return tuple(words)
