"""Where a prediction's error comes from: one part at a time is replaced by the measured one."""

import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from dynosim.build.engine import prepare
from dynosim.compare.attribution import HOST, KERNELS, blind_fit, swapped
from dynosim.config import RunConfig
from dynosim.config.timing import NEEDS_MODEL
from dynosim.engine.vllm.versions import graph_sizes
from dynosim.errors import DynosimError
from dynosim.experiment.run import RunOutcome
from dynosim.experiment.run import run as simulate
from dynosim.fit.deployment import Deployment
from dynosim.fit.fitting import fit_log
from dynosim.fit.log_file import read_measurements
from dynosim.fit.measurements import NEEDED_REQUESTS, Measurements
from dynosim.fit.prior import Prior, prior_of
from dynosim.fit.replay import Engines
from dynosim.metrics import summarize
from dynosim.records import FloatArray, IntArray, Trace
from dynosim.timing.fitted import PARAMETER_NAMES, Fit, FittedModel
from dynosim.timing.model import StepTimeModel
from dynosim_runtime.measure.deployment import Measured
from dynosim_runtime.measure.load import LoadRun
from dynosim_runtime.measure.measurement_log import measurement_log
from dynosim_runtime.validate.compare import compare_reports

MOST_FITTED = 400
"""Requests of a run that its own step times are fitted to; more tell little and take long."""

JITTER, CAPACITY = "arrival jitter", "KV capacity"
HOST_TIME, STEP_TIME, SCHEDULING = "host overhead", "step time", "scheduling"
STEP_AND_HOST = f"{STEP_TIME} and {HOST_TIME}"
IN_FORM = "none, tables in the fitted form"
UNTOLD = "constants that the run does not tell"

_STEP_CONSTANTS = {*HOST, *KERNELS} - {"ingress_ms", "egress_ms"}


@dataclass(slots=True)
class Attribution:
    """Mean |error| over the compared metrics, by the part that was measured; `none` is blind."""

    num_metrics: int
    mean_abs_error: dict[str, float] = field(default_factory=dict)
    not_swapped: dict[str, str] = field(default_factory=dict)  # part -> why not

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "num_metrics": self.num_metrics,
            "mean_abs_error": self.mean_abs_error,
            "not_swapped": self.not_swapped,
        }


def attribute(
    blind: RunOutcome, given: RunOutcome | None, measured: Measured
) -> Attribution | None:
    """Swap in arrivals, capacity, host and step times, and the other scheduling loop.

    `given` is the prediction with the measured capacity, if that is another one. None: there is no
    metric that both sides have.
    """
    swaps = _Swaps(blind, measured)
    if swaps.found.num_metrics == 0:
        return None
    swaps.add("none", blind.report)
    swaps.arrivals()
    swaps.capacity(given)
    swaps.step_times(given or blind)
    swaps.scheduling()
    return swaps.found


class _Swaps:
    """Predictions of one run with parts of it replaced, and their errors."""

    def __init__(self, blind: RunOutcome, measured: Measured) -> None:
        self._blind = blind
        self._measured = measured
        self.found = Attribution(len(self._errors(blind.report)))

    def _errors(self, report: dict[str, Any]) -> list[float]:
        rows = compare_reports(report, self._measured.report)
        return [abs(row.difference) for row in rows if row.difference is not None]

    def add(self, part: str, report: dict[str, Any]) -> None:
        """Note how far a prediction is off."""
        self.found.mean_abs_error[part] = float(np.mean(self._errors(report)))

    def _skip(self, part: str, reason: str) -> None:
        self.found.not_swapped[part] = reason

    def arrivals(self) -> None:
        """The times at which requests were sent, also where the twin would bring them itself."""
        run = self._measured.run
        reason = _why_no_arrivals(self._blind, run)
        if run is None or reason:
            self._skip(JITTER, reason)
        else:
            self.add(JITTER, report_as_sent(self._blind, run))

    def capacity(self, given: RunOutcome | None) -> None:
        """The KV blocks that the deployment tells."""
        if given is not None:
            self.add(CAPACITY, given.report)
        elif self._measured.capacity is None:
            self._skip(CAPACITY, "the deployment does not tell its KV blocks")
        else:
            self._skip(CAPACITY, "the blind prediction has the deployment's capacity already")

    def scheduling(self) -> None:
        """The engine's other loop."""
        config = self._blind.config
        update = {"async_scheduling": not config.engine.is_async}
        other = config.model_copy(update={"engine": config.engine.model_copy(update=update)})
        self.add(SCHEDULING, simulate(other, trace=self._blind.trace).report)

    def step_times(self, best: RunOutcome) -> None:
        """Constants fitted to the run's own requests; `best` has the best known capacity."""
        learned = _learn(self._blind, best, self._measured)
        if isinstance(learned, str):
            for part in (HOST_TIME, STEP_TIME):
                self._skip(part, learned)
            return
        base, fit = learned
        held = [name for name in fit.unidentified if name in _STEP_CONSTANTS]
        if held:
            self._skip(
                UNTOLD,
                f"{', '.join(held)}: kept as planned, and what they are off by shows in others",
            )
        if base is None:
            reason = (
                f"step times of kind {self._blind.config.timing.kind} do not tell the host's share:"
                " both are swapped together"
            )
            for part in (HOST_TIME, STEP_TIME):
                self._skip(part, reason)
        else:
            if not isinstance(self._blind.timing, FittedModel):
                self.add(IN_FORM, _timed(self._blind, FittedModel(base)).report)
            for part, names in ((HOST_TIME, HOST), (STEP_TIME, KERNELS)):
                model = FittedModel(swapped(base, fit, names))
                self.add(part, _timed(self._blind, model).report)
        timed = _timed(best, FittedModel(fit))
        self.add(STEP_AND_HOST, timed.report)
        run = self._measured.run
        if run is not None and not _why_no_arrivals(self._blind, run):
            self.add(f"{STEP_AND_HOST}, {JITTER}", report_as_sent(timed, run))


def _why_no_arrivals(blind: RunOutcome, run: LoadRun | None) -> str:
    """Empty if the times of sending are known of every request."""
    if run is None:
        return "only summaries were measured: when requests were sent is not known"
    if len(run.records) != len(blind.trace):
        return "the measured requests are not those of the plan's workload"
    if any(record.dispatch_ms is None for record in run.records):
        return "some requests were never sent"
    return ""


def report_as_sent(outcome: RunOutcome, run: LoadRun) -> dict[str, Any]:
    """The prediction for requests that come when they were sent, waits counted from when due."""
    sent_ms = np.array([record.dispatch_ms for record in run.records], dtype=np.float64)
    due_ms = np.array([record.arrival_ms for record in run.records], dtype=np.float64)
    order: IntArray = np.argsort(sent_ms, kind="stable")
    workload = outcome.config.workload.model_copy(update={"concurrency": None})
    config = outcome.config.model_copy(update={"workload": workload})
    trace = as_sent(outcome.trace, sent_ms, order)
    prepared = replace(prepare(outcome.config), timing=outcome.timing)
    sent = simulate(config, trace=trace, prepared=prepared)
    log = replace(sent.result.requests, arrival_ms=due_ms[order])
    result = replace(sent.result, requests=log)
    return summarize(result, outcome.timing, sla=config.sla, wall_time_ms=0.0)


def as_sent(trace: Trace, sent_ms: FloatArray, order: IntArray) -> Trace:
    """The trace in another order, each request with an arrival of its own."""
    sent = trace.take(order)
    return replace(
        sent, arrival_ms=sent_ms[order], previous_turn=None, delay_ms=None, dependencies=None
    )


def _timed(outcome: RunOutcome, timing: StepTimeModel) -> RunOutcome:
    """The same run with other step times."""
    prepared = replace(prepare(outcome.config), timing=timing)
    return simulate(outcome.config, trace=outcome.trace, prepared=prepared)


def _learn(blind: RunOutcome, best: RunOutcome, measured: Measured) -> tuple[Fit | None, Fit] | str:
    """The blind step times in the fit's form (None: not to be had) and the fit; or why there is
    none."""
    config, run = blind.config, measured.run
    if run is None:
        return "only summaries were measured"
    if config.cluster.workers != 1:
        return "step times are learned from the log of one engine, and several were measured"
    if len(run.records) < NEEDED_REQUESTS:
        return f"{len(run.records)} requests are too few to fit ({NEEDED_REQUESTS} are needed)"
    text = measurement_log(config, blind.trace, run)
    if text is None:
        return "not every request of the workload was completed"
    try:
        log = _read_log(text)
        base, prior = _prior(config, blind.timing, log)
        engines = Engines(prepare(best.config).engine)
        fitted = fit_log(log, prior, engines, count=min(len(log), MOST_FITTED), seed=config.seed)
    except DynosimError as error:
        return f"the run's own log cannot be fitted: {error}"
    return base, fitted.fit


def _read_log(text: bytes) -> Measurements:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "measurements.jsonl"
        path.write_bytes(text)
        return read_measurements(path)


def _prior(config: RunConfig, timing: StepTimeModel, log: Measurements) -> tuple[Fit | None, Prior]:
    """The blind step times in the form that is fitted, and where the fit starts."""
    if isinstance(timing, FittedModel):
        spread = _spread(timing.fit, log)
        return timing.fit, Prior(timing.fit, spread, source=timing.description)
    has_tables = config.timing.kind in NEEDS_MODEL
    is_cpu = config.hardware is None or config.hardware.startswith("cpu")
    engine = config.engine
    deployment = Deployment(
        model=config.model_source if has_tables else None,
        hardware=config.hardware_source if has_tables else None,
        engine=engine,
        graph_sizes=() if is_cpu else graph_sizes(engine.version, engine.max_num_seqs),
        assumed=(),
    )
    prior = prior_of(deployment, log)
    if not has_tables:
        return None, prior
    base = blind_fit(prior.fit, timing)
    stated_ms = getattr(config.timing, "step_overhead_ms", None)
    if stated_ms is not None:
        base = replace(base, parameters=replace(base.parameters, overhead_ms=stated_ms))
    return base, prior


def _spread(fit: Fit, log: Measurements) -> dict[str, float]:
    """How far the constants of a fit may move: half of what they are.

    The way in and out shows as one constant, whose size may be all of the fastest first token.
    """
    unused = {"weights_ms", "per_token_ms"} if fit.token_curve else {"curve_scale"}
    spread = {
        name: 0.5 * getattr(fit.parameters, name)
        for name in PARAMETER_NAMES
        if name not in unused | {"ingress_ms", "egress_ms"}
    }
    spread["ingress_ms"] = 0.5 * float(np.percentile(log.ttft_ms, 5)) + 1e-3
    return spread
