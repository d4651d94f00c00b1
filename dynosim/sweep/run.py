"""Runs a sweep from its description to its files."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from dynosim.atomic import locked_folder
from dynosim.config.schema import RunConfig
from dynosim.config.sweep_loading import SweepConfig
from dynosim.config.timing import FittedTiming, ProfileTiming
from dynosim.errors import DynosimError, TraceError
from dynosim.files.digest import digest, file_sha256
from dynosim.files.result_folder import SWEEP, check_kind
from dynosim.sweep.artifacts import load_writers, write_artifacts
from dynosim.sweep.executor import Answer, LocalExecutor
from dynosim.sweep.frontier_intervals import (
    known_intervals,
    make_intervals,
    wanted_replays,
    with_intervals,
)
from dynosim.sweep.ledger import Ledger, Record, new_ledger, resumed_ledger
from dynosim.sweep.load_search import LoadSearch
from dynosim.sweep.load_sweep import load_plan, probes_table, records_of, request_at, same_as
from dynosim.sweep.need_search import Family, NeedSearch
from dynosim.sweep.need_sweep import (
    at_need,
    capacity_ledger,
    families_of,
    need_records,
    need_request,
    sized,
    sizing_table,
)
from dynosim.sweep.operating_point import config_at_capacity
from dynosim.sweep.outcome import SweepOutcome
from dynosim.sweep.progress import Progress
from dynosim.sweep.results import Row, judge
from dynosim.sweep.space import Trial, trials_of
from dynosim.sweep.status import BAD_INPUT, FAILED
from dynosim.sweep.study import LayoutStudy
from dynosim.sweep.trial import TRIAL, request_for

if TYPE_CHECKING:
    import polars as pl


class SweepInterruptedError(DynosimError):
    """Ctrl-C during a sweep; the message says what was kept and how to go on."""

    exit_code = 130


def run_sweep(
    sweep: SweepConfig,
    folder: Path,
    executor: LocalExecutor,
    *,
    resume: bool = False,
    overwrite: bool = False,
    intervals: int | None = None,
) -> SweepOutcome:
    """Run every trial that is not finished yet, then write all files to `folder`.

    `intervals` is the number of replays that tell how sure each trial of the frontier is; None: as
    many as its step times deserve.
    Raises: ConfigError, TraceError for input that no trial could use; ConfigError if another sweep
    is running in `folder`; SweepInterruptedError.
    """
    families = [] if sweep.load.need is None else families_of(sweep)
    trials = [family.trial for family in families] or trials_of(sweep)
    check_inputs(trials)
    if families:
        families = [at_need(family, sweep) for family in families]
        trials = [family.trial for family in families]
    sweep_hash = load_hash(sweep, hash_of(trials))
    check_kind(folder, SWEEP)
    with locked_folder(folder, work="a sweep"):
        ledger = (
            resumed_ledger(folder, sweep_hash=sweep_hash)
            if resume
            else new_ledger(folder, sweep_hash=sweep_hash, overwrite=overwrite)
        )
        load_writers()
        tried = (
            _finish_need(sweep, families, ledger, executor)
            if families
            else _finish_space(sweep, trials, ledger, executor)
        )
        return _finish(tried, ledger, executor, intervals)


@dataclass(frozen=True, slots=True)
class _Tried:
    """All that was run, before it is judged. `tables` are further files, by name."""

    sweep: SweepConfig
    trials: Sequence[Trial]
    records: Mapping[int, Record]
    num_resumed: int
    probes: "pl.DataFrame | None" = None
    tables: "Mapping[str, pl.DataFrame]" = field(default_factory=dict)


def _finish_space(
    sweep: SweepConfig, trials: Sequence[Trial], ledger: Ledger, executor: LocalExecutor
) -> _Tried:
    """Run what the ledger lacks of all points of the space."""
    if sweep.load.search == "fixed":
        num_resumed = _finish_trials(sweep, trials, ledger, executor)
        return _Tried(sweep, trials, ledger.records, num_resumed)
    num_resumed, search = _finish_loads(sweep, trials, ledger, executor)
    records = records_of(search, same_as(trials))
    return _Tried(sweep, trials, records, num_resumed, probes_table(sweep, trials, search))


def _finish_need(
    sweep: SweepConfig, families: Sequence[Family], ledger: Ledger, executor: LocalExecutor
) -> _Tried:
    """Find the fewest workers of every layout, then what those carry.

    Raises: SweepInterruptedError, TraceError.
    """
    runnable = [family for family in families if family.trial.config is not None]
    plan = load_plan(sweep)
    needs = NeedSearch(
        runnable, plan.attainment, ledger, goes_by_attainment=plan.goes_by_attainment
    )
    num_resumed = sum(map(len, ledger.probes.values()))
    progress = _progress(sweep, len(runnable), needs.num_finished, "sizes")

    def told(family: Family) -> None:
        if needs.is_finished(family.index):
            progress.advance(family.trial.values, {})

    try:
        with progress:
            needs.finish(executor, partial(need_request, sweep), told)
    except KeyboardInterrupt:
        raise SweepInterruptedError(
            f"interrupted: {needs.num_probes} probes of {len(runnable)} layouts are kept in "
            f"{ledger.path.parent} (give the same command with --resume to go on)"
        ) from None
    sizes = sized(sweep, families, needs)
    seen = capacity_ledger(ledger, sizes.sought)
    _, loads = _finish_loads(sizes.sweep, sizes.sought, seen, executor)
    return _Tried(
        sizes.sweep,
        sizes.trials,
        need_records(families, sizes, needs, loads),
        num_resumed,
        probes_table(sizes.sweep, sizes.trials, loads),
        {"sizing.parquet": sizing_table(runnable, needs)},
    )


def _finish(
    tried: _Tried, ledger: Ledger, executor: LocalExecutor, intervals: int | None
) -> SweepOutcome:
    """Judge what was run, make the intervals that the ledger lacks, write all files beside it."""
    sweep, folder = tried.sweep, ledger.path.parent
    rows = judge(sweep, tried.trials, tried.records)
    wanted = wanted_replays(rows, intervals)
    failures = _finish_intervals(sweep, rows, wanted, ledger, executor)
    rows = with_intervals(sweep, rows, known_intervals(ledger, wanted))
    summary = write_artifacts(
        folder,
        sweep,
        rows,
        sweep_hash=ledger.sweep_hash,
        sweep_yaml=sweep_text(sweep),
        interval_failures=failures,
        probes=tried.probes,
        tables=tried.tables,
    )
    return SweepOutcome(sweep, rows, summary, folder, tried.num_resumed, tried.probes)


def _finish_trials(
    sweep: SweepConfig, trials: Sequence[Trial], ledger: Ledger, executor: LocalExecutor
) -> int:
    """Run what the ledger lacks; returns how many trials it had. Raises: SweepInterruptedError."""
    finished = {i for i, record in ledger.records.items() if record["status"] != FAILED}
    runnable = [trial for trial in trials if trial.config is not None]
    todo = [trial for trial in runnable if trial.index not in finished]
    num_resumed = len(runnable) - len(todo)
    try:
        _run_trials(sweep, todo, ledger, executor, num_done=num_resumed)
    except KeyboardInterrupt:
        kept = sum(record["status"] != FAILED for record in ledger.records.values())
        raise SweepInterruptedError(
            f"interrupted: {kept} of {len(runnable)} trials are kept in {ledger.path.parent} "
            "(give the same command with --resume to go on)"
        ) from None
    return num_resumed


def _finish_loads(
    sweep: SweepConfig, trials: Sequence[Trial], ledger: Ledger, executor: LocalExecutor
) -> tuple[int, LoadSearch]:
    """Try every layout at the loads that it lacks.

    Returns how many probes the ledger had, and all that there are now.
    Raises: SweepInterruptedError, TraceError.
    """
    same = same_as(trials)
    layouts = [trial for trial in trials if same.get(trial.index) == trial.index]
    is_exhaustive = sweep.load.exhaustive or sweep.load.need is not None  # few are left by then
    search = LoadSearch(layouts, load_plan(sweep), ledger, is_exhaustive=is_exhaustive)
    num_resumed = search.num_probes
    progress = _progress(sweep, len(layouts), _half_done(search), "layouts")

    def told(layout: Trial, study: LayoutStudy, answer: Answer) -> None:
        best = study.at_capacity
        report = {} if best is None else best.report
        progress.advance(layout.values, report, _half_done(search))

    try:
        with progress:
            search.finish(executor, partial(request_at, sweep), told)
    except KeyboardInterrupt:
        raise SweepInterruptedError(
            f"interrupted: {search.num_probes} probes of {len(layouts)} layouts are kept in "
            f"{ledger.path.parent} (give the same command with --resume to go on)"
        ) from None
    return num_resumed, search


def _half_done(search: LoadSearch) -> int:
    """Layouts that count as done: one whose capacity is located is half done."""
    return (search.num_located + search.num_finished) // 2


def _finish_intervals(
    sweep: SweepConfig,
    rows: Sequence[Row],
    wanted: Mapping[int, int],
    ledger: Ledger,
    executor: LocalExecutor,
) -> dict[int, str]:
    """Make what the ledger lacks; returns why some failed. Raises: SweepInterruptedError.

    They are of the load that a row tells of, not of the workload's own.
    """
    configs = {
        row.trial.index: config_at_capacity(sweep, row)
        for row in rows
        if row.trial.index in wanted and row.trial.config is not None
    }
    try:
        return make_intervals(rows, wanted, ledger, executor, configs=configs)
    except KeyboardInterrupt:
        kept = len(known_intervals(ledger, wanted))
        raise SweepInterruptedError(
            f"interrupted: all trials, and the intervals of {kept} of {len(wanted)}, are kept in "
            f"{ledger.path.parent} (give the same command with --resume to go on; with --intervals "
            "0 it writes the results without them)"
        ) from None


def _run_trials(
    sweep: SweepConfig,
    todo: Sequence[Trial],
    ledger: Ledger,
    executor: LocalExecutor,
    *,
    num_done: int,
) -> None:
    by_index = {trial.index: trial for trial in todo}
    requests = [(t.index, request_for(t.config)) for t in todo if t.config is not None]
    progress = _progress(sweep, num_done + len(todo), num_done, "trials")
    with progress, closing(executor.run(TRIAL, requests)) as answers:
        for index, answer in answers:
            if answer["status"] == BAD_INPUT:
                raise TraceError(answer["reason"])
            trial = by_index[index]
            ledger.append(trial, answer)
            progress.advance(trial.values, answer["report"])


def _progress(sweep: SweepConfig, total: int, done: int, unit: str) -> Progress:
    objective, goal = next(iter(sweep.objectives.items()))
    return Progress(total=total, done=done, objective=objective, is_max=goal == "max", unit=unit)


def check_inputs(trials: Sequence[Trial]) -> None:
    """Refuse unknown models and hardware and missing files before any process starts.

    Raises: ConfigError.
    """
    from dynosim.silicon.catalogue import model_entry
    from dynosim.silicon.hardware import hardware_sheet

    configs = [trial.config for trial in trials if trial.config is not None]
    for model in dict.fromkeys(config.model_source for config in configs):
        if model is not None:
            model_entry(model)
    for hardware in dict.fromkeys(config.hardware_source for config in configs):
        if hardware is not None:
            hardware_sheet(hardware)
    for path in _trace_files(configs):
        if not path.is_file():
            raise TraceError("no such file (check workload.trace)", path=str(path))


def hash_of(trials: Sequence[Trial]) -> str:
    """Equal for sweeps whose trials would all give the same: configurations and file contents."""
    configs = [trial.config for trial in trials if trial.config is not None]
    traces = {str(path.name): file_sha256(path) for path in _trace_files(configs)}
    timings = {str(path.name): file_sha256(path) for path in _timing_files(configs)}
    known = [[trial.config_hash for trial in trials], traces]
    return digest([*known, timings] if timings else known)


def load_hash(sweep: SweepConfig, trials_hash: str) -> str:
    """The hash of a sweep: its trials', and what decides at which loads they are tried."""
    if sweep.load.search == "fixed":
        return trials_hash
    sla = sweep.constraints.sla
    sought = None if sla is None else sla.model_dump(mode="json")
    return digest([trials_hash, sweep.load.model_dump(mode="json"), sought])


def _trace_files(configs: Sequence[RunConfig]) -> list[Path]:
    places = {
        (config.workload.trace, config.base_dir): config
        for config in configs
        if config.workload.trace is not None
    }
    return [config.resolve(name) for (name, _), config in places.items() if name is not None]


def _timing_files(configs: Sequence[RunConfig]) -> list[Path]:
    """Files of fitted or profiled step times; a missing one is left to the trials to report."""
    timings = (
        config.resolve(config.timing.file)
        for config in configs
        if isinstance(config.timing, FittedTiming | ProfileTiming)
    )
    return [path for path in dict.fromkeys(timings) if path.is_file()]


def sweep_text(sweep: SweepConfig) -> str:
    """The sweep file with its overrides applied, as YAML."""
    import yaml

    return yaml.safe_dump(sweep.source_data, sort_keys=False, allow_unicode=True)
