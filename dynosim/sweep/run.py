"""Runs a sweep from its description to its files."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynosim.atomic import locked_folder
from dynosim.config.schema import RunConfig
from dynosim.config.sweep_loading import SweepConfig
from dynosim.config.timing import FittedTiming, ProfileTiming
from dynosim.errors import DynosimError, TraceError
from dynosim.sweep.artifacts import load_writers, write_artifacts
from dynosim.sweep.executor import Executor
from dynosim.sweep.frontier_intervals import (
    known_intervals,
    make_intervals,
    wanted_replays,
    with_intervals,
)
from dynosim.sweep.ledger import Ledger, Record, new_ledger, resumed_ledger
from dynosim.sweep.plan import TrialPlan, plan_of
from dynosim.sweep.results import Row, judge
from dynosim.sweep.space import Trial, digest
from dynosim.sweep.status import FAILED
from dynosim.sweep.work import LoadWork, TrialWork, Work

CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class SweepOutcome:
    """A finished sweep."""

    sweep: SweepConfig
    rows: list[Row]
    summary: dict[str, Any]  # as in summary.json
    folder: Path
    num_resumed: int  # trials that an earlier call had finished

    @property
    def num_failed(self) -> int:
        """Trials that crashed."""
        return sum(row.status == FAILED for row in self.rows)


class SweepInterruptedError(DynosimError):
    """Ctrl-C during a sweep; the message says what was kept and how to go on."""

    exit_code = 130


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
    plan = plan_of(sweep)
    check_inputs(plan.examples)
    sweep_hash = load_hash(sweep, plan_hash(plan))
    with locked_folder(folder, work="a sweep"):
        ledger = (
            resumed_ledger(folder, sweep_hash=sweep_hash)
            if resume
            else new_ledger(folder, sweep_hash=sweep_hash, overwrite=overwrite)
        )
        return _finish(sweep, plan, ledger, executor, intervals)


def _finish(
    sweep: SweepConfig,
    plan: TrialPlan,
    ledger: Ledger,
    executor: Executor,
    intervals: int | None,
) -> SweepOutcome:
    """Run what the ledger lacks, then write all files beside it."""
    folder = ledger.path.parent
    load_writers()
    work_class = TrialWork if sweep.load.search == "fixed" else LoadWork
    work = work_class(sweep, ledger, executor)
    trials, records = _finish_trials(plan, work, folder)
    rows = judge(sweep, trials, records)
    wanted = wanted_replays(rows, intervals)
    failures = _finish_intervals(rows, wanted, ledger, executor)
    rows = with_intervals(sweep, rows, known_intervals(ledger, wanted))
    summary = write_artifacts(
        folder,
        sweep,
        rows,
        sweep_hash=ledger.sweep_hash,
        sweep_yaml=sweep_text(sweep),
        interval_failures=failures,
        probes=work.probes(trials),
    )
    return SweepOutcome(sweep, rows, summary, folder, work.num_resumed)


def _finish_trials(
    plan: TrialPlan, work: Work, folder: Path
) -> tuple[list[Trial], dict[int, Record]]:
    """All trials of the plan, and what each gave. Raises: SweepInterruptedError, TraceError."""
    trials: list[Trial] = []
    records: dict[int, Record] = {}
    try:
        with work:
            while batch := plan.next_batch():
                trials += batch
                records |= work.finish(batch, num_to_come=plan.num_to_come)
                plan.told(records)
    except KeyboardInterrupt:
        raise SweepInterruptedError(
            f"interrupted: {work.kept} are kept in {folder} "
            "(give the same command with --resume to go on)"
        ) from None
    return trials, records


def _finish_intervals(
    rows: Sequence[Row], wanted: Mapping[int, int], ledger: Ledger, executor: Executor
) -> dict[int, str]:
    """Make what the ledger lacks; returns why some failed. Raises: SweepInterruptedError."""
    try:
        return make_intervals(rows, wanted, ledger, executor)
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
    traces = {str(path.name): _file_digest(path) for path in _trace_files(configs)}
    timings = {str(path.name): _file_digest(path) for path in _timing_files(configs)}
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


def _file_digest(path: Path) -> str:
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            sha.update(chunk)
    return sha.hexdigest()


def sweep_text(sweep: SweepConfig) -> str:
    """The sweep file with its overrides applied, as YAML."""
    import yaml

    return yaml.safe_dump(sweep.source_data, sort_keys=False, allow_unicode=True)
