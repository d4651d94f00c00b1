"""Runs of one load under each contestant, and what each came to over time."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np

from dynosim.build.engine import Prepared, prepare
from dynosim.build.workload import load_trace
from dynosim.config.schema import RunConfig
from dynosim.experiment.run import RunOutcome, run
from dynosim.metrics.report import Latencies, meets_sla
from dynosim.planner.controller import Controller
from dynosim.records import FloatArray, RequestStatus, RunResult, Trace

Tell = Callable[[str], None]
"""Takes a line about what was just done."""


@dataclass(frozen=True, slots=True)
class OfferedLoad:
    """What is offered, of one seed; its time in bins of `bin_ms`, up to the last arrival."""

    seed: int
    trace: Trace
    bin_ms: float
    num_bins: int
    mean_rps: float
    mean_isl: float
    mean_osl: float


@dataclass(frozen=True, slots=True)
class Played:
    """One run: what came of it."""

    outcome: RunOutcome

    @property
    def report(self) -> dict[str, Any]:
        """The run's report."""
        return self.outcome.report

    @property
    def attainment(self) -> float:
        """Share of all requests within the SLA."""
        return float(self.report["sla_attainment"] or 0.0)


class Replayer:
    """Where all runs of a comparison take place: the engine once, the load once for each seed."""

    def __init__(self, base: RunConfig, num_seeds: int, bin_s: float | None) -> None:
        self.prepared: Prepared = prepare(base)
        configs = [
            base.model_copy(update={"seed": base.seed + number}) for number in range(num_seeds)
        ]
        traces = [load_trace(config) for config in configs]
        span_ms = max(_span_ms(trace) for trace in traces)
        bin_ms = _bin_ms(span_ms) if bin_s is None else bin_s * 1e3
        self.loads = [
            _load(config.seed, trace, bin_ms) for config, trace in zip(configs, traces, strict=True)
        ]

    @property
    def bin_ms(self) -> float:
        """Length of the bins of time."""
        return self.loads[0].bin_ms

    def play(
        self, config: RunConfig, load: OfferedLoad, controller: Controller | None = None
    ) -> Played:
        """Run the load under `config`, or under `controller` in place of the configured one."""
        seeded = config.model_copy(update={"seed": load.seed})
        return Played(run(seeded, trace=load.trace, prepared=self.prepared, controller=controller))


def _span_ms(trace: Trace) -> float:
    known = trace.arrival_ms[~np.isnan(trace.arrival_ms)]
    return float(known.max()) if len(known) else 0.0


def _bin_ms(span_ms: float) -> float:
    """A round length that makes about 120 bins, of 10 s at least."""
    steps_s = (10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600)
    return 1e3 * next((step for step in steps_s if span_ms <= 120e3 * step), steps_s[-1])


def _load(seed: int, trace: Trace, bin_ms: float) -> OfferedLoad:
    span_ms = _span_ms(trace)
    return OfferedLoad(
        seed=seed,
        trace=trace,
        bin_ms=bin_ms,
        num_bins=max(1, ceil((span_ms + 1e-9) / bin_ms)),
        mean_rps=len(trace.input_tokens) / max(span_ms, 1.0) * 1e3,
        mean_isl=float(np.mean(trace.input_tokens)),
        mean_osl=float(np.mean(trace.output_tokens)),
    )


# ---- over time -----------------------------------------------------------------------------------


def good_by_bin(played: Played, load: OfferedLoad) -> tuple[FloatArray, FloatArray]:
    """Requests that arrived in each bin, and those of them within the SLA."""
    log, sla = played.outcome.result.requests, played.outcome.config.sla
    assert sla is not None, "a comparison has one"
    completed = np.asarray(log.status == RequestStatus.COMPLETED)
    good = meets_sla(Latencies.of(log), completed, sla)
    came = ~np.isnan(log.arrival_ms)
    places = (log.arrival_ms[came] // load.bin_ms).astype(np.int64)
    places = np.minimum(places, load.num_bins - 1)
    num = np.bincount(places, minlength=load.num_bins)
    within = np.bincount(places, weights=good[came], minlength=load.num_bins)
    return num.astype(np.float64), within.astype(np.float64)


def attainment_by_bin(played: Played, load: OfferedLoad) -> FloatArray:
    """Share of the requests of each bin within the SLA; 1 where nobody came."""
    num, good = good_by_bin(played, load)
    return np.where(num > 0, good / np.maximum(num, 1.0), 1.0)


def held_by_bin(result: RunResult, load: OfferedLoad) -> dict[str, FloatArray]:
    """GPU hours of each bin, and its workers on average that start, serve and drain.

    What is after the last bin counts to it.
    """
    workers, num_ranks = result.workers, result.workers.ranks_per_worker
    end_ms = np.where(np.isnan(workers.ended_ms), result.end_ms, workers.ended_ms)
    ready_ms = np.where(np.isnan(workers.ready_ms), end_ms, np.minimum(workers.ready_ms, end_ms))
    drain_ms = end_ms
    if workers.draining_ms is not None:
        drain_ms = np.where(np.isnan(workers.draining_ms), end_ms, workers.draining_ms)
    drain_ms = np.maximum(np.minimum(drain_ms, end_ms), ready_ms)
    edges = np.arange(load.num_bins + 1) * load.bin_ms
    edges[-1] = max(edges[-1], result.end_ms)
    lengths = np.diff(edges)

    def overlap(from_ms: FloatArray, to_ms: FloatArray, weight: FloatArray) -> FloatArray:
        low = np.maximum(from_ms[:, None], edges[None, :-1])
        high = np.minimum(to_ms[:, None], edges[None, 1:])
        return np.asarray((np.maximum(high - low, 0.0) * weight[:, None]).sum(axis=0))

    one = np.full(len(end_ms), 1.0 / num_ranks)
    gpus = workers.gpus.astype(float)
    return {
        "gpu_hours": overlap(workers.launched_ms, end_ms, gpus) / 3.6e6,
        "starting": overlap(workers.launched_ms, ready_ms, one) / lengths,
        "ready": overlap(ready_ms, drain_ms, one) / lengths,
        "draining": overlap(drain_ms, end_ms, one) / lengths,
    }


def meets(attainments: Sequence[float], target: float) -> bool:
    """Whether runs keep the SLA on average, up to rounding."""
    return float(np.mean(attainments)) >= target - 1e-12
