"""`dynosim run`: the run, how sure it is, the JSON document and the files."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynosim import __version__
from dynosim.atomic import check_folder, parquet_writer, text_writer, write_files
from dynosim.cli.options import check_replays
from dynosim.cli.run_text import print_classes, print_parts, print_table
from dynosim.config import dump_run, load_run
from dynosim.config.formats import REPORT_SCHEMA
from dynosim.config.loading import written_out
from dynosim.config.schema import RunConfig
from dynosim.errors import EXIT_INTERRUPTED, ConfigError
from dynosim.experiment.progress import ProgressBar
from dynosim.experiment.run import RunOutcome, run
from dynosim.files.result_folder import RUN, check_files, check_results

if TYPE_CHECKING:
    from dynosim.experiment.intervals import Intervals


EVENT_FILES = ("kv_events.parquet", "kv_events.png")
TRACE_FILE = "trace.json.gz"
STARTUPS_FILE = "startups.parquet"
SCALING_FILES = ("replicas.parquet", "decisions.jsonl")
METRICS_FILES = ("metrics.parquet", "metrics.om")
AHEAD_BOUND = (
    "--reuse-bound: what speculative prefills leave in the caches is no reuse among the requests "
    "that count"
)
PREFETCH_BOUND = (
    "--reuse-bound: what prefetches load is found on a device that a cache without them could not "
    "have"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunArguments:
    """What `dynosim run` was asked for.

    `intervals` is the number of replays that tell how sure the result is; None: as many as the step
    times deserve.
    """

    file: Path
    overrides: Sequence[str]
    out: Path | None
    overwrite: bool
    as_json: bool
    exact_stepping: bool
    check: bool
    router_log: Path | None
    kv_events: bool
    perfetto: bool
    metrics_every_s: float | None
    intervals: int | None
    windows_s: float | None
    reuse_bound: bool


def run_command(asked: RunArguments) -> int:
    """Run the file and show the result; with `out`, write it too. Returns the exit code.

    On a terminal a long run shows how far it is; interrupted, it leaves nothing. Interrupted among
    the replays for intervals, the result is kept without them.
    Raises: DynosimError.
    """
    check_replays(asked.intervals)
    if asked.windows_s is not None and not 0 < asked.windows_s < float("inf"):
        raise ConfigError(f"--windows {asked.windows_s:g}: expected seconds above 0")
    every_s = asked.metrics_every_s
    if every_s is not None and not 0 < every_s < float("inf"):
        raise ConfigError(f"--metrics-every {every_s:g}: expected seconds above 0")
    config = load_run(asked.file, asked.overrides)
    if asked.reuse_bound:
        _check_bound(config)
    _check_out(asked)
    with ProgressBar("requests") as bar:
        outcome = run(
            config,
            exact_stepping=asked.exact_stepping,
            check=asked.check,
            router_log=asked.router_log,
            record_kv_events=asked.kv_events,
            record_trail=asked.perfetto,
            metrics_every_ms=None if every_s is None else every_s * 1e3,
            progress=_telling(bar) if sys.stderr.isatty() else None,
        )
    try:
        found = intervals_of(outcome, asked.intervals)
        code = 0
    except KeyboardInterrupt:
        print("interrupted: no intervals", file=sys.stderr)
        found, code = None, EXIT_INTERRUPTED
    document = report_document(
        outcome, found, windows_s=asked.windows_s, has_reuse_bound=asked.reuse_bound
    )
    if asked.out is not None:
        write_run(asked.out, outcome, document)
    if asked.as_json:
        sys.stdout.write(json.dumps(document, indent=2, allow_nan=False) + "\n")
    else:
        print_table(outcome, found, document["reuse_bound"])
        for title in ("stages", "windows"):
            print_parts(title, document[title])
        print_classes(document["classes"])
        if asked.out is not None:
            print(f"report: {asked.out / 'report.html'}", file=sys.stderr)
    return code


def _telling(bar: ProgressBar) -> Callable[[int, int], None]:
    """Tells the bar how many requests have ended; the report of many takes a while too."""
    return lambda ended, of: bar(ended, of, "making the report" if ended == of else "")


def _check_bound(config: RunConfig) -> None:
    """Refuse to work out the reuse of loads that it says nothing of. Raises: ConfigError."""
    if config.workload.has_warm_up:
        raise ConfigError(
            "--reuse-bound: what a warm-up leaves in the caches is no reuse of the requests that "
            "count (drop workload.warm_up_requests or warm_up_s)"
        )
    agents = config.workload.agents
    if agents is not None and agents.speculative_prefill:
        raise ConfigError(f"{AHEAD_BOUND} (drop workload.agents.speculative_prefill)")
    if agents is not None and agents.prefetch_lead_ms is not None:
        raise ConfigError(f"{PREFETCH_BOUND} (drop workload.agents.prefetch_lead_ms)")


def _check_out(asked: RunArguments) -> None:
    """Refuse places that cannot be written, or hold what is not to be overwritten."""
    out = asked.out
    if asked.router_log is not None:
        check_files([asked.router_log], overwrite=asked.overwrite, option="--router-log")
    if out is None:
        if asked.kv_events:
            raise ConfigError("--kv-events: needs --out, the folder to write them to")
        if asked.perfetto:
            raise ConfigError("--perfetto: needs --out, the folder to write the trace to")
        if asked.metrics_every_s is not None:
            raise ConfigError("--metrics-every: needs --out, the folder to write the metrics to")
        return
    check_folder(out)
    check_results(out, RUN, overwrite=asked.overwrite)


def intervals_of(outcome: RunOutcome, num_replays: int | None) -> "Intervals | None":
    """Intervals of the run's metrics; None for no replays. Progress is shown on a terminal."""
    if num_replays is None and outcome.config.timing.kind != "fitted":
        return None
    from dynosim.experiment.intervals import default_replays, prediction_intervals

    count = default_replays(outcome.timing) if num_replays is None else num_replays
    if count == 0:
        return None
    with ProgressBar("replays for the intervals") as bar:
        return prediction_intervals(
            outcome.config,
            outcome.trace,
            outcome.timing,
            num_replays=count,
            seed=outcome.config.seed,
            progress=bar if sys.stderr.isatty() else None,
        )


def report_document(
    outcome: RunOutcome,
    intervals: "Intervals | None" = None,
    *,
    windows_s: float | None = None,
    has_reuse_bound: bool = False,
) -> dict[str, Any]:
    """report.json: the report, how sure it is, and what is needed to run it again.

    `windows_s` asks for the results by windows of time, `has_reuse_bound` for the reuse that there
    could have been.
    """
    trace = outcome.trace
    return {
        "schema": REPORT_SCHEMA,
        **outcome.report,
        "intervals": None if intervals is None else intervals.to_dict(),
        "stages": outcome.stage_rows(),
        "windows": None if windows_s is None else outcome.window_rows(windows_s),
        "reuse_bound": _reuse_bound(outcome) if has_reuse_bound else None,
        "classes": outcome.class_rows(),
        "name": outcome.config.name,
        "seed": outcome.config.seed,
        "notes": list(outcome.timing.notes),
        "trace_source": trace.source,
        "kv_cache_breakdown": outcome.capacity.breakdown,
        "dynosim_version": __version__,
        "config": written_out(outcome.config),
    }


def _reuse_bound(outcome: RunOutcome) -> dict[str, Any]:
    from dynosim.metrics.reuse import reuse_bound

    for key, problem in (("speculative_prefills", AHEAD_BOUND), ("prefetches", PREFETCH_BOUND)):
        if outcome.report[key] is not None:
            remedy = f"drop the rows of {outcome.trace.source} that are such"
            raise ConfigError(f"{problem} ({remedy})")
    return reuse_bound(outcome.result, outcome.trace)


def write_run(out: Path, outcome: RunOutcome, document: Mapping[str, Any]) -> None:
    """Write all files of a run to the folder `out`, or none; an earlier run's are gone then."""
    from dynosim.metrics import request_table, timeline_table
    from dynosim.plots.run_html import write_run_html

    config_yaml = dump_run(outcome.config)
    events = _event_files(outcome) | _trace_file(outcome) | _startups_file(outcome)
    events |= _scaling_files(outcome) | _metrics_files(outcome)
    write_files(
        out,
        {
            # first, since the folder is known as a run's by it
            "report.json": text_writer(json.dumps(document, indent=2, allow_nan=False) + "\n"),
            "requests.parquet": parquet_writer(
                lambda: request_table(outcome.result, outcome.trace)
            ),
            "timeline.parquet": parquet_writer(lambda: timeline_table(outcome.result)),
            "report.html": lambda path: write_run_html(
                path,
                title=outcome.config.name or "run",
                config_yaml=config_yaml,
                report=document,
                result=outcome.result,
                trace=outcome.trace,
            ),
            "config.yaml": text_writer(config_yaml),
            **events,
        },
    )
    for name in (*EVENT_FILES, TRACE_FILE, STARTUPS_FILE, *SCALING_FILES, *METRICS_FILES):
        if name not in events:
            (out / name).unlink(missing_ok=True)


def _scaling_files(outcome: RunOutcome) -> dict[str, Callable[[Path], None]]:
    """The number of workers over time, and what was decided on it, if anybody did."""
    if outcome.result.scaling is None:
        return {}
    from dynosim.metrics.scaling import replica_table
    from dynosim.planner.look import decision_row

    decisions = [look.decision for look in outcome.looks if look.decision is not None]
    lines = [json.dumps(decision_row(one), allow_nan=False) + "\n" for one in decisions]
    tables, log = SCALING_FILES
    return {
        tables: parquet_writer(lambda: replica_table(outcome.result)),
        log: text_writer("".join(lines)),
    }


def _metrics_files(outcome: RunOutcome) -> dict[str, Callable[[Path], None]]:
    """The frontend's metrics over time, if they were asked for."""
    series = outcome.series
    if series is None:
        return {}
    from dynosim.metrics.frontend_series import openmetrics_text, series_table

    def write_text(path: Path) -> None:
        with path.open("w", encoding="utf-8") as file:
            file.writelines(openmetrics_text(series))

    table, text = METRICS_FILES
    return {table: parquet_writer(lambda: series_table(series)), text: write_text}


def _startups_file(outcome: RunOutcome) -> dict[str, Callable[[Path], None]]:
    """What workers did before they served, if any started."""
    log = outcome.result.startups
    if log is None:
        return {}
    from dynosim.metrics.startups import startup_table

    return {STARTUPS_FILE: parquet_writer(lambda: startup_table(log))}


def _trace_file(outcome: RunOutcome) -> dict[str, Callable[[Path], None]]:
    """The whole run for Perfetto, if its trail was kept."""
    if outcome.result.trail is None:
        return {}
    from dynosim.plots.perfetto import write_perfetto

    result, trace, title = outcome.result, outcome.trace, outcome.config.name
    return {TRACE_FILE: lambda path: write_perfetto(path, result, trace, title)}


def _event_files(outcome: RunOutcome) -> dict[str, Callable[[Path], None]]:
    """The KV events as a table and as a picture, if they were recorded."""
    log = outcome.result.kv_events
    if log is None:
        return {}
    from dynosim.metrics.tables import event_table
    from dynosim.plots.event_density import write_event_density_png

    num_workers = len(outcome.result.workers)
    return {
        "kv_events.parquet": parquet_writer(lambda: event_table(log)),
        "kv_events.png": lambda path: write_event_density_png(path, log, num_workers),
    }
