"""Throughput curves: output over time, and the means of TTFT and TPOT."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from dynosim.errors import ConfigError, TraceError
from dynosim.experiment.intervals import jittered
from dynosim.experiment.run import RunOutcome
from dynosim.fit.deployment import Deployment, deployment_of
from dynosim.records import FloatArray, RequestLog
from dynosim.verify.curve_file import ThroughputCurve, read_curve
from dynosim.verify.deployed import deployed_twin, setup_words
from dynosim.verify.twin import Twin, serve
from dynosim.verify.verdict import CURVE, THROUGHPUT, RecordingVerdict

MS_PER_S = 1000.0


def judge_curve(
    path: Path, level: str, *, hardware: str | None, replays: int, seed: int, label: str
) -> RecordingVerdict:
    """The verdict on a curve. Raises: TraceError, ConfigError."""
    if level != "apriori":
        raise ConfigError(f"a throughput curve tells nothing that level {level} needs")
    curve = read_curve(path)
    deployment = _deployment(curve, hardware, is_caching=curve.is_caching)
    with_cache = _twin(curve, deployment)
    outcome, output, varied = serve(
        with_cache,
        _statistics,
        {name: value for name, value in curve.means.items() if name == THROUGHPUT},
        trace=curve.trace,
        replays=replays,
        seed=seed,
        moved=jittered,
    )
    without = _twin(curve, _deployment(curve, hardware, is_caching=False))
    latencies = serve(
        without,
        _statistics,
        {name: value for name, value in curve.means.items() if name != THROUGHPUT},
        trace=curve.trace,
        replays=replays,
        seed=seed,
        moved=jittered,
    )[1]
    return RecordingVerdict(
        recording=label,
        kind=CURVE,
        level=level,
        setup=setup_words(deployment, curve.version or "", _engines(curve)),
        figures=(*output, *latencies),
        distances={"curve": deviation(curve.second, curve.tok_s, outcome.result.requests)},
        series={
            "second": curve.second[1:].tolist(),
            "measured": curve.tok_s[1:].tolist(),
            "predicted": output_by_second(outcome.result.requests, curve.second).tolist(),
        },
        blocks_predicted=with_cache.prepared.capacity.num_gpu_blocks,
        timing=outcome.timing.description,
        timing_notes=outcome.timing.notes,
        varied=varied,
        notes=(
            *with_cache.notes,
            "how requests were balanced is not recorded: fewest in flight",
            *(("curve: with prefix caching; TTFT and TPOT: without, as recorded",)
              if curve.is_caching else ()),
        ),
    )  # fmt: skip


def _twin(curve: ThroughputCurve, deployment: Deployment) -> Twin:
    return deployed_twin(
        deployment,
        "clients",
        trace=curve.trace,
        workers=_engines(curve),
        version=curve.version,
        num_gpu_blocks=None,
        source=curve.source,
    )


def _deployment(curve: ThroughputCurve, hardware: str | None, *, is_caching: bool) -> Deployment:
    setup = curve.setup
    needed = {"model": "add it", "tensor_parallel": "add it"}
    if not hardware:
        needed["hardware"] = "add it, or give --hardware"
    for key, remedy in needed.items():
        if not setup.get(key):
            raise TraceError(f"missing; {remedy}", path=curve.source, field=f"setup.{key}")
    kwargs = {
        "tensor_parallel_size": setup["tensor_parallel"],
        "enable_prefix_caching": is_caching,
    }
    stated = {"model": setup["model"], "vllm_version": curve.version, "engine_kwargs": kwargs}
    named = str(setup.get("hardware") or hardware)
    return deployment_of(stated, hardware=named)


def _engines(curve: ThroughputCurve) -> int:
    number = curve.setup.get("engines", 1)
    if type(number) is not int or number < 1:
        raise TraceError(
            f"expected a number from 1, got {number!r}", path=curve.source, field="setup.engines"
        )
    return number


def _statistics(outcome: RunOutcome) -> Mapping[str, float]:
    report = outcome.report
    names = (THROUGHPUT, "mean_ttft_ms", "mean_tpot_ms")
    return {name: float(report[name]) for name in names if report[name] is not None}


def deviation(second: FloatArray, tok_s: FloatArray, requests: RequestLog) -> float:
    """Mean absolute deviation of predicted output, second by second, over the measured mean."""
    gap = np.abs(output_by_second(requests, second) - tok_s[1:])
    return float(gap.mean() / tok_s[1:].mean())


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
