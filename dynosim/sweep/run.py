"""Runs a sweep from its description to its files."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from dynosim.atomic import locked_folder
from dynosim.config.schema import RunConfig
from dynosim.config.sweep_loading import SweepConfig
from dynosim.config.timing import FittedTiming, ProfileTiming
from dynosim.errors import TraceError
from dynosim.files.digest import digest, file_sha256
from dynosim.files.result_folder import SWEEP, check_kind
from dynosim.sweep.artifacts import load_writers, write_artifacts
from dynosim.sweep.executor import Executor
from dynosim.sweep.frontier_intervals import (
    known_intervals,
    make_intervals,
    wanted_replays,
    with_intervals,
)
from dynosim.sweep.ledger import Ledger, Record, new_ledger, resumed_ledger
from dynosim.sweep.need_sweep import at_need, families_of
from dynosim.sweep.need_work import finish_need
from dynosim.sweep.operating_point import config_at_capacity
from dynosim.sweep.outcome import SweepOutcome
from dynosim.sweep.plan import TrialPlan, plan_of
from dynosim.sweep.results import Row, judge
from dynosim.sweep.screening import Screening
from dynosim.sweep.space import Trial
from dynosim.sweep.work import (
    LoadWork,
    SweepInterruptedError,
    TrialWork,
    Tried,
    interruptible,
)


def run_sweep(
    sweep: SweepConfig,
    folder: Path,
    executor: Executor,
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
    finish: Callable[[Ledger], Tried]
    if sweep.load.need is None:
        plan = plan_of(sweep)
        check_inputs(plan.examples)
        trials_hash = plan_hash(plan)
        finish = partial(_finish_space, sweep, plan, executor=executor)
    else:
        families = families_of(sweep)
        check_inputs([family.trial for family in families])
        families = [at_need(family, sweep) for family in families]
        trials_hash = hash_of([family.trial for family in families])
        finish = partial(finish_need, sweep, families, executor=executor)
    sweep_hash = load_hash(sweep, trials_hash)
    check_kind(folder, SWEEP)
    with locked_folder(folder, work="a sweep"):
        ledger = (
            resumed_ledger(folder, sweep_hash=sweep_hash)
            if resume
            else new_ledger(folder, sweep_hash=sweep_hash, overwrite=overwrite)
        )
        load_writers()
        return _finish(finish(ledger=ledger), ledger, executor, intervals)


def _finish(
    tried: Tried, ledger: Ledger, executor: Executor, intervals: int | None
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


def _finish_space(sweep: SweepConfig, plan: TrialPlan, ledger: Ledger, executor: Executor) -> Tried:
    """Run what the ledger lacks of a plan. Raises: SweepInterruptedError, TraceError."""
    work_class = TrialWork if sweep.load.search == "fixed" else LoadWork
    work = work_class(sweep, ledger, executor)
    trials: list[Trial] = []
    records: dict[int, Record] = {}
    with interruptible(ledger, lambda: work.kept), work:
        while batch := plan.next_batch():
            trials += batch
            records |= work.finish(batch, num_to_come=plan.num_to_come)
            plan.told(records)
    if plan.screening is None:
        return Tried(sweep, trials, records, work.num_resumed, work.probes(trials))
    known = with_predictions(plan.screening, records)
    return Tried(sweep, plan.examples, known, work.num_resumed, work.probes(plan.examples))


def with_predictions(screening: Screening, records: Mapping[int, Record]) -> dict[int, Record]:
    """The records of what was tried, with what the screen had said, and of what was not."""
    told = {
        index: {**record, "report": {**record["report"], **screening.keys_of(index)}}
        for index, record in records.items()
    }
    return screening.records() | told


def _finish_intervals(
    sweep: SweepConfig,
    rows: Sequence[Row],
    wanted: Mapping[int, int],
    ledger: Ledger,
    executor: Executor,
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


def check_inputs(trials: Sequence[Trial]) -> None:
    """Refuse unknown models and hardware and missing files before any process starts.

    Raises: ConfigError.
    """
    from dynosim.silicon.catalogue import model_entry
    from dynosim.silicon.hardware import hardware_sheet

    configs = [
        pool for trial in trials if trial.config is not None for pool in trial.config.pools()
    ]
    for model in dict.fromkeys(config.model_source for config in configs):
        if model is not None:
            model_entry(model)
    for hardware in dict.fromkeys(config.hardware_source for config in configs):
        if hardware is not None:
            hardware_sheet(hardware)
    for path in _trace_files(configs):
        if not path.exists():
            raise TraceError("no such file (check workload.trace)", path=str(path))


def hash_of(trials: Sequence[Trial]) -> str:
    """Equal for sweeps whose trials would all give the same: configurations and file contents."""
    configs = [trial.config for trial in trials if trial.config is not None]
    traces = {str(path.name): _sha256(path) for path in _trace_files(configs)}
    timings = {str(path.name): file_sha256(path) for path in _timing_files(configs)}
    known = [[trial.config_hash for trial in trials], traces]
    return digest([*known, timings] if timings else known)


def plan_hash(plan: TrialPlan) -> str:
    """Equal for sweeps that would run the same trials, and all would give the same."""
    given = hash_of(plan.examples)
    return digest([given, plan.search_hash]) if plan.search_hash else given


def load_hash(sweep: SweepConfig, trials_hash: str) -> str:
    """The hash of a sweep: its trials', and what decides at which loads they are tried."""
    if sweep.load.search == "fixed":
        return trials_hash
    sla = sweep.constraints.sla
    sought = None if sla is None else sla.model_dump(mode="json")
    load = sweep.load.model_dump(mode="json", exclude={"exhaustive"})  # more of the same probes
    return digest([trials_hash, load, sought])


def _sha256(trace: Path) -> str:
    """Of a trace file's bytes, or of all files of a recording that is a folder."""
    if not trace.is_dir():
        return file_sha256(trace)
    files = sorted(path for path in trace.rglob("*") if path.is_file())
    return digest([[str(path.relative_to(trace)), file_sha256(path)] for path in files])


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
        for whole in configs
        for config in whole.pools()
        if isinstance(config.timing, FittedTiming | ProfileTiming)
    )
    return [path for path in dict.fromkeys(timings) if path.is_file()]


def sweep_text(sweep: SweepConfig) -> str:
    """The sweep file with its overrides applied, as YAML."""
    import yaml

    return yaml.safe_dump(sweep.source_data, sort_keys=False, allow_unicode=True)
