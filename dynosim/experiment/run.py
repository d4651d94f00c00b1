"""One configuration to one report: reads the workload, times the engine, simulates, summarizes."""

import gc
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from dynosim.build.cluster import cluster_spec, run_options
from dynosim.build.engine import Prepared, prepare
from dynosim.build.routing import check_tiers
from dynosim.build.workload import load_trace, stage_windows
from dynosim.cluster import ClusterSpec, Progress, check_requests_fit, simulate
from dynosim.cluster.assembly import extents_for
from dynosim.cluster.pins import check_pins_together
from dynosim.cluster.watch import Watch
from dynosim.config.cluster import POOL_ROLES
from dynosim.config.schema import RunConfig
from dynosim.engine.spec import EngineSpec
from dynosim.errors import ConfigError, InfeasibleError
from dynosim.experiment.sent_ahead import clients_run, tell, witness_for
from dynosim.metrics import summarize
from dynosim.metrics.cost import Power
from dynosim.records import RunResult, Trace
from dynosim.silicon import Capacity
from dynosim.timing.model import StepTimeModel

if TYPE_CHECKING:
    import polars as pl

    from dynosim.cluster.control import Process
    from dynosim.cluster.metrics_recorder import MetricsRecorder
    from dynosim.cluster.scaling import ScalingProcess
    from dynosim.planner.controller import Controller
    from dynosim.planner.look import Look
    from dynosim.planner.metric_series import MetricSeries
    from dynosim.router.witness import ChoiceWitness
    from dynosim.routerlog.replay import LogWriter


@dataclass(frozen=True, slots=True, repr=False)
class RunOutcome:
    """A finished run, with all that reports and plots need."""

    config: RunConfig
    trace: Trace
    timing: StepTimeModel
    result: RunResult
    capacity: Capacity
    report: dict[str, Any]  # what `summarize` returns, and what this module knows
    from_ms: float = 0.0  # where the results' clock is 0 on that of the load: after the warm-up
    looks: "tuple[Look, ...]" = ()  # of who decides on the number of workers
    series: "MetricSeries | None" = None  # of the frontend's metrics, if they were asked for

    def stage_rows(self) -> list[dict[str, Any]] | None:
        """The results of each load stage; None if the load has no stages."""
        from dynosim.metrics.parts import part_rows, stage_parts

        stages = self.trace.stages
        if stages is None:
            return None
        windows_s = stage_windows(self.config.workload)
        parts = stage_parts(windows_s, stages, from_ms=self.from_ms)
        return part_rows(self.result, parts, self.config.sla)

    def window_rows(self, length_s: float) -> list[dict[str, Any]]:
        """The results of each window of that length. Raises: ConfigError for far too many."""
        from dynosim.metrics.parts import part_rows, window_parts

        try:
            parts = window_parts(self.result.requests, length_s * 1e3)
        except ValueError as error:
            raise ConfigError(f"--windows {length_s:g}: {error} (make them longer)") from None
        return part_rows(self.result, parts, self.config.sla)

    def class_rows(self) -> list[dict[str, Any]] | None:
        """The results of each class of requests; None if the trace names none."""
        from dynosim.metrics.request_classes import class_rows

        return class_rows(self.result, self.trace)

    @property
    def requests(self) -> "pl.DataFrame":
        """A row per request; the columns of requests.parquet."""
        from dynosim.metrics import request_table

        return request_table(self.result, self.trace)

    @property
    def timeline(self) -> "pl.DataFrame":
        """What every worker did over time; the columns of timeline.parquet."""
        from dynosim.metrics import timeline_table

        return timeline_table(self.result)

    @property
    def startups(self) -> "pl.DataFrame | None":
        """What workers did before they served; None if none started during the run."""
        from dynosim.metrics.startups import startup_table

        log = self.result.startups
        return None if log is None else startup_table(log)

    @property
    def metrics(self) -> "pl.DataFrame | None":
        """The frontend's metrics over time: metrics.parquet; None unless they were asked for."""
        from dynosim.metrics.frontend_series import series_table

        return None if self.series is None else series_table(self.series)

    def to_pandas(self, table: Literal["requests", "timeline"] = "requests") -> Any:
        """One of the tables for pandas. Raises: ConfigError if that is not installed."""
        from dynosim.experiment.card import to_pandas

        return to_pandas(self.timeline if table == "timeline" else self.requests)

    def __repr__(self) -> str:
        from dynosim.experiment.card import line, report_facts

        return line("RunOutcome", self.config.name, report_facts(self.report))

    def _repr_html_(self) -> str:
        from dynosim.experiment.card import card_html, report_facts

        return card_html(self.config.name or "run", report_facts(self.report))


def run(
    config: RunConfig,
    *,
    exact_stepping: bool = False,
    check: bool = False,
    trace: Trace | None = None,
    prepared: Prepared | None = None,
    router_log: Path | None = None,
    record_kv_events: bool = False,
    record_trail: bool = False,
    metrics_every_ms: float | None = None,
    witness: "ChoiceWitness | None" = None,
    progress: Progress | None = None,
    watch: Watch | None = None,
    processes: "Sequence[Process]" = (),
    controller: "Controller | None" = None,
) -> RunOutcome:
    """Simulate `config`. `trace` is the workload if it has been loaded already, `prepared` what
    `prepare` gives, perhaps with other step times.

    `router_log` is a file to write the router's inputs and decisions to, for `replay_log`;
    `record_kv_events` keeps every KV event in the result, `record_trail` what single requests did
    in steps; every `metrics_every_ms` the frontend's metrics are kept; `witness` notes what some
    requests' workers were chosen from. `wall_time_ms` in the report is real time from before the
    trace is opened to the end. `check` tests the laws of conservation on the result. `progress` is
    told several times a second how many requests have ended, and of how many. `watch` may end the
    run early. `processes` watch and steer it, see `dynosim.cluster.control`. `controller` decides
    on the number of workers, in place of the one that is configured.

    Pins that ask for more than all caches hold are refused only where the workload is loaded here:
    who gives another load, as a search does, wants to see what becomes of it.

    Raises: ConfigError, TraceError, InfeasibleError; InvariantError if a law is broken.
    """
    started = time.perf_counter()
    check_tiers(config.router, config.cluster.tiers)
    with collector_paused():
        is_own_load = trace is None
        trace = load_trace(config) if trace is None else trace
        prepared = prepare(config) if prepared is None else prepared
        _check_fit(config, trace, prepared)
        seen = witness_for(witness, trace)
        log = None if router_log is None else _log_writer(router_log, config.router.policy)
        cluster = cluster_spec(
            config,
            prepared,
            open_log=None if log is None else log.open,
            records_events=record_kv_events,
            witness=seen,
        )
        if trace.wishes is not None or config.router.mode == "direct":
            from dynosim.cluster.wishes import check_wishes

            _check_ranks(trace, prepared)
            is_direct = config.router.mode == "direct"
            pools = [cluster.cards(role) for role in POOL_ROLES]
            if not config.cluster.is_disagg:
                pools = [cluster.cards()]
            check_wishes(trace, pools, all_name_workers=is_direct)
        options = run_options(config, exact_stepping=exact_stepping, records_trail=record_trail)
        if is_own_load and trace.retention is not None and options.concurrency is None:
            check_pins_together(trace, extents_for(trace, cluster), cluster)
        control = _control(config, cluster, controller)
        if control is not None:
            processes = (control, *processes)
        played, cluster = _played(config, cluster)
        processes = (*played, *processes)
        recorder = _recorder(config, metrics_every_ms)
        if recorder is not None:
            processes = (*processes, recorder)
        result = simulate(
            trace, cluster, options, processes=processes, progress=progress, watch=watch
        )
        series = None if recorder is None else recorder.finish(result.end_ms)
        if log is not None:
            log.close()
        if witness is not None and seen is not None and seen is not witness:
            tell(witness, seen, trace)
        if check:
            _check(result, trace)
        from_ms = 0.0
        result, trace, ahead = clients_run(result, trace)
        if config.workload.has_warm_up:
            from dynosim.experiment.warm_up import measured_run

            result, trace, from_ms = measured_run(result, trace, config.workload)
            series = None if series is None else series.since(from_ms)
        report = summarize(
            result,
            prepared.timing,
            sla=config.sla,
            wall_time_ms=0.0,
            gpu_hour=config.cost.price_of(config.hardware),
            power=_power(config),
            prefill_timing=None if prepared.prefill is None else prepared.prefill.timing,
        )
    report["skipped_lines"] = trace.skipped_lines
    report["assumed_lengths"] = trace.assumed_lengths
    report["max_model_len"] = prepared.engine.max_model_len
    report |= ahead | prepared.capacity.report_keys()
    report["wall_time_ms"] = (time.perf_counter() - started) * 1e3
    return RunOutcome(
        config,
        trace,
        prepared.timing,
        result,
        prepared.capacity,
        report,
        from_ms,
        looks=() if control is None else tuple(control.looks),
        series=series,
    )


def _recorder(config: RunConfig, every_ms: float | None) -> "MetricsRecorder | None":
    """Who keeps the frontend's metrics; None: nobody."""
    if every_ms is None:
        return None
    from dynosim.build.controllers import frontend_labels
    from dynosim.cluster.metrics_recorder import MetricsRecorder

    return MetricsRecorder(every_ms, frontend_labels(config))


def _control(
    config: RunConfig, cluster: ClusterSpec, controller: "Controller | None"
) -> "ScalingProcess | None":
    """What drives `controller`, or the configured one; None: nobody scales the cluster."""
    if controller is None and not config.is_scaled:
        return None
    from dynosim.build.controllers import scaling_process, scaling_spec
    from dynosim.cluster.scaling import ScalingProcess

    if controller is None:
        return scaling_process(config, cluster)
    return ScalingProcess(controller, scaling_spec(config))


def _played(config: RunConfig, cluster: ClusterSpec) -> "tuple[Sequence[Process], ClusterSpec]":
    """The processes of the configured scenario, and the cluster to which it can happen."""
    if not config.scenario:
        return (), cluster
    from dynosim.build.scenario import (
        keeps_generations_apart,
        scenario_events,
        troubles_kv_events,
    )
    from dynosim.cluster.scenario import play
    from dynosim.cluster.spec import with_numbered_events, without_mixing

    if keeps_generations_apart(config.scenario):
        cluster = without_mixing(cluster)
    if troubles_kv_events(config.scenario):
        cluster = with_numbered_events(cluster)
    return play(scenario_events(config.scenario, cluster)), cluster


def _check_fit(config: RunConfig, trace: Trace, prepared: Prepared) -> None:
    """Refuse requests that no worker of a pool can ever hold. Raises: InfeasibleError."""
    for pool, engine in zip(
        config.pools(),
        [one.engine for one in (prepared.prefill, prepared) if one is not None],
        strict=True,
    ):
        if pool.engine.max_model_len is None:
            check_requests_fit(trace, engine)
    if prepared.prefill is not None:
        _check_contexts(trace, prepared.prefill.engine, prepared.engine)


def _check_contexts(trace: Trace, prefill: EngineSpec, decode: EngineSpec) -> None:
    """Refuse prompts that one pool takes and the other can never hold. Raises: InfeasibleError."""
    least, most = sorted((prefill.max_model_len, decode.max_model_len))
    prompts = trace.input_tokens
    rows = np.flatnonzero((prompts >= least) & (prompts < most))
    if not len(rows):
        return
    ours, theirs = ("decode", "prefill") if decode.max_model_len == least else ("prefill", "decode")
    source, row, others = trace.source or "trace", int(rows[0]), len(rows) - 1
    raise InfeasibleError(
        f"cluster.{ours}.engine.max_model_len: {least} is less than the {theirs} workers' {most}: "
        f"{source}: request {row} ({prompts[row]} input tokens) fits there and never here, and so "
        f"do {others} others; raise it, or state the same for both to have such prompts rejected "
        "and counted"
    )


def _check_ranks(trace: Trace, prepared: Prepared) -> None:
    """Where engines choose among their ranks, nobody else can. Raises: ConfigError."""
    if prepared.ranks.rule is not None:
        raise ConfigError(
            f"{trace.source or 'trace'}: requests say which worker they want, but engines choose "
            "among their data-parallel ranks themselves (set engine.rank_balancing: router)"
        )


def _power(config: RunConfig) -> Power | None:
    """What the GPUs draw; None where that is not known, or they are not told."""
    from dynosim.silicon.hardware import hardware_sheet

    if config.hardware_source is None:
        return None
    sheet = hardware_sheet(config.hardware_source)
    if sheet.tdp_w is None or sheet.idle_w is None:
        return None
    return Power(sheet.idle_w, sheet.tdp_w, config.cost.pue)


def _check(result: RunResult, trace: Trace) -> None:
    from dynosim.metrics import check_conservation

    check_conservation(result, trace)


def _log_writer(path: Path, policy: str | None) -> "LogWriter":
    from dynosim.routerlog.replay import LogWriter

    return LogWriter(path, policy)


@contextmanager
def collector_paused() -> Iterator[None]:
    """No garbage collection inside: a run makes many objects and no cycles."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
