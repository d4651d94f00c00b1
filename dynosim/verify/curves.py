"""Throughput curves: output over time, and the means of TTFT and TPOT."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dynosim.errors import ConfigError, TraceError
from dynosim.experiment.intervals import jittered
from dynosim.experiment.run import RunOutcome
from dynosim.records import FloatArray, RequestLog
from dynosim.silicon.hardware import usual_name
from dynosim.verify.curve_file import Curve, read_curve
from dynosim.verify.twin import Twin, blind_twin, serve
from dynosim.verify.verdict import CURVE, THROUGHPUT, Verdict

MS_PER_S = 1000.0
_SHIFTS_S = np.linspace(-1.0, 1.0, 41)
"""A counter that is read once a second does not say where within its second the clock began."""


def judge_curve(
    path: Path, level: str, *, hardware: str | None, replays: int, seed: int, label: str
) -> Verdict:
    """The verdict on a curve. Raises: TraceError, ConfigError."""
    if level != "apriori":
        raise ConfigError(f"a throughput curve tells nothing that level {level} needs")
    curve = read_curve(path)
    with_cache = _twin(curve, hardware, is_caching=curve.is_caching)
    outcome, output, varied = serve(
        with_cache,
        _statistics,
        {name: value for name, value in curve.means.items() if name == THROUGHPUT},
        trace=curve.trace,
        replays=replays,
        seed=seed,
        moved=jittered,
    )
    without = _twin(curve, hardware, is_caching=False)
    latencies = serve(
        without,
        _statistics,
        {name: value for name, value in curve.means.items() if name != THROUGHPUT},
        trace=curve.trace,
        replays=replays,
        seed=seed,
        moved=jittered,
    )[1]
    config = with_cache.config
    return Verdict(
        recording=label,
        kind=CURVE,
        level=level,
        setup={
            "model": config.model or "",
            "hardware": config.hardware or "",
            "version": curve.version or "",
            "layout": f"TP {config.engine.tensor_parallel}"
            + (f" x {config.cluster.workers}" if config.cluster.workers > 1 else ""),
        },
        figures=(*output, *latencies),
        distances={"curve": deviation(curve.second, curve.tok_s, outcome.result.requests)},
        blocks_predicted=with_cache.prepared.capacity.num_gpu_blocks,
        timing=outcome.timing.description,
        varied=varied,
        notes=(
            *with_cache.notes,
            "the engine's limits and the router are not recorded: vLLM's defaults, fewest in flight",
            *(("curve: with prefix caching; TTFT and TPOT: without, as recorded",)
              if curve.is_caching else ()),
        ),
    )  # fmt: skip


def _twin(curve: Curve, hardware: str | None, *, is_caching: bool) -> Twin:
    setup = curve.setup
    for key in ("model", "tensor_parallel"):
        if not setup.get(key):
            raise TraceError("missing; add it", path=curve.source, field=f"setup.{key}")
    named = setup.get("hardware") or hardware
    if not named:
        raise TraceError(
            "missing; add it, or give --hardware", path=curve.source, field="setup.hardware"
        )
    engine: dict[str, Any] = {
        "tensor_parallel": setup["tensor_parallel"],
        "enable_prefix_caching": is_caching,
    }
    if curve.version is not None:
        engine["version"] = curve.version
    return blind_twin(
        {
            "model": setup["model"],
            "hardware": usual_name(str(named)),
            "workload": {"trace": curve.source},
            "engine": engine,
            "cluster": {"workers": setup.get("engines", 1)},
            "router": {"mode": "least-loaded"},
        },
        "clients",
        source=curve.source,
    )


def _statistics(outcome: RunOutcome) -> Mapping[str, float]:
    report = outcome.report
    names = (THROUGHPUT, "mean_ttft_ms", "mean_tpot_ms")
    return {name: float(report[name]) for name in names if report[name] is not None}


def deviation(second: FloatArray, tok_s: FloatArray, requests: RequestLog) -> float:
    """Mean absolute deviation of predicted output, second by second, over the measured mean.

    The predicted curve is moved by up to a second to where it fits best.
    """
    return float(
        min(
            np.abs(output_by_second(requests, second + shift) - tok_s[1:]).mean()
            for shift in _SHIFTS_S
        )
        / tok_s[1:].mean()
    )


def output_by_second(requests: RequestLog, second: FloatArray) -> FloatArray:
    """Output tokens a second between each two moments; a request's tokens are spread evenly."""
    at_ms = second * MS_PER_S
    total = np.zeros(len(second))
    served = requests.output_tokens > 0
    for first_ms, last_ms, tokens in zip(
        requests.first_token_ms[served].tolist(),
        requests.finish_ms[served].tolist(),
        requests.output_tokens[served].tolist(),
        strict=True,
    ):
        span_ms = max(last_ms - first_ms, 1e-9)
        made = 1 + (tokens - 1) * np.clip((at_ms - first_ms) / span_ms, 0.0, 1.0)
        total += np.where(at_ms >= first_ms, made, 0.0)
    return np.diff(total) / np.diff(second)
