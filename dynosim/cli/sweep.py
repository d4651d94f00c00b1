"""`dynosim sweep`: checks its arguments, runs the sweep, shows the frontier."""

import gc
import json
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynosim.atomic import check_folder
from dynosim.cli.options import check_replays
from dynosim.cli.text_table import print_wrapped
from dynosim.errors import EXIT_BAD_INPUT, EXIT_FAILURE, EXIT_NONE_FOUND, ConfigError
from dynosim.sweep.executor import Executor, LocalExecutor, num_cores

if TYPE_CHECKING:
    from dynosim.config.sweep_loading import SweepConfig
    from dynosim.sweep.outcome import SweepOutcome
    from dynosim.sweep.ray_executor import RayExecutor

RESULTS = Path("results")
_TITLES = {
    "output_tok_s_per_gpu": "tok/s/GPU",
    "median_output_token_throughput_per_user": "tok/s/user",
    "num_gpus": "GPUs",
    "mean_ttft_ms": "TTFT ms",
    "mean_itl_ms": "ITL ms",
}
EXECUTORS = ("local", "ray")


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepArguments:
    """What `dynosim sweep` was asked for.

    `intervals` is the number of replays that tell how sure each trial of the frontier is; None: as
    many as the step times deserve.
    """

    file: Path
    overrides: Sequence[str]
    out: Path | None
    jobs: int | None
    executor: str
    resume: bool
    overwrite: bool
    as_json: bool
    intervals: int | None
    fail_if_none: bool = False
    ray_address: str | None = None


def sweep_command(asked: SweepArguments, read: "Callable[[], SweepConfig] | None" = None) -> int:
    """Run the sweep file, or the sweep that `read` gives in its place; returns the exit code.

    Raises: DynosimError, SweepInterruptedError.
    """
    check_replays(asked.intervals)
    if asked.resume and asked.overwrite:
        raise ConfigError("--resume and --overwrite exclude each other (give one)")
    with _sigterm_interrupts(), _executor(asked) as executor:
        outcome, folder = _swept(asked, executor, read)
    if executor.num_lost:
        what = f"{executor.num_lost} tasks whose workers were lost were run again elsewhere"
        print(f"ray: {what}", file=sys.stderr)
    if asked.as_json:
        sys.stdout.write(json.dumps(outcome.summary, indent=2, allow_nan=False) + "\n")
    elif "answer" in outcome.summary:
        _print_answer(outcome, folder)
    else:
        print_frontier(outcome.summary)
    print(f"report: {folder / 'report.html'}", file=sys.stderr)
    return _exit_code(outcome.summary) or _none_code(outcome, fail_if_none=asked.fail_if_none)


def print_plan(summary: Mapping[str, Any]) -> None:
    """What became of points that were no trials, or were not tried."""
    if summary.get("num_same_points"):
        same = summary["num_same_points"]
        print(f"{same:,} combinations of values come to the same layouts: each is tried once")
    if "screen" in summary:
        from dynosim.sweep.screen_report import screen_text

        print_wrapped(f"screen: {screen_text(summary['screen'])}")


def _print_answer(outcome: "SweepOutcome", folder: Path) -> None:
    from dynosim.cli.capacity_text import print_answer
    from dynosim.cli.need_text import print_need
    from dynosim.sweep.answer import answer_of

    show = print_answer if outcome.sweep.load.need is None else print_need
    warnings = outcome.summary.get("warnings", ())
    print_plan(outcome.summary)
    show(outcome.sweep, answer_of(outcome.rows), folder, warnings)


def _executor(asked: SweepArguments) -> "LocalExecutor | RayExecutor":
    """What runs the trials. Raises: ConfigError."""
    if asked.executor not in EXECUTORS:
        raise ConfigError(f"--executor {asked.executor}: unknown (use {' or '.join(EXECUTORS)})")
    if asked.executor == "ray":
        from dynosim.sweep.ray_executor import RayExecutor

        return RayExecutor(asked.ray_address, asked.jobs)
    if asked.ray_address is not None:
        raise ConfigError("--ray-address has no effect (add --executor ray)")
    return LocalExecutor(asked.jobs or num_cores())


def _swept(
    asked: SweepArguments, executor: Executor, read: "Callable[[], SweepConfig] | None"
) -> "tuple[SweepOutcome, Path]":
    """The sweep that was asked for, and its folder. The workers get ready while it is read."""
    from dynosim.config import load_sweep
    from dynosim.sweep.run import run_sweep

    gc.enable()  # a sweep may run for hours: it is off while a process starts
    sweep = load_sweep(asked.file, asked.overrides) if read is None else read()
    folder = asked.out if asked.out is not None else RESULTS / sweep.name
    check_folder(folder)
    outcome = run_sweep(
        sweep,
        folder,
        executor,
        resume=asked.resume,
        overwrite=asked.overwrite,
        intervals=asked.intervals,
    )
    return outcome, folder


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """Inside, a polite kill ends the sweep as Ctrl-C does."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _exit_code(summary: dict[str, Any]) -> int:
    counts = summary["counts"]
    failed = [trial for trial in summary["not_run"] if trial["status"] == "failed"]
    if failed:
        first = failed[0]
        text = f"trial {first['trial_id']}: {first['reason']}"
        print(f"error: {counts['failed']} trials failed, the first: {text}", file=sys.stderr)
        return EXIT_FAILURE
    if not counts["ok"]:
        reason = summary["not_run"][0]["reason"]
        print(f"error: no point of the space can be run, the first: {reason}", file=sys.stderr)
        return EXIT_BAD_INPUT
    without = summary.get("intervals_failed")
    if without:
        first = without[0]
        text = f"trial {first['trial_id']}: {first['reason']}"
        print(f"error: {len(without)} trials got no intervals, the first: {text}", file=sys.stderr)
        return EXIT_FAILURE
    return 0


def _none_code(outcome: "SweepOutcome", *, fail_if_none: bool) -> int:
    """The exit code where no layout is as it was asked to be.

    A load that no layout meets the SLA at, however small, is a bad question; that nothing meets it
    at a given load is an answer, and fails only if that was asked for.
    """
    from dynosim.cli.capacity_text import unmet_text
    from dynosim.sweep.answer import answer_of

    if "answer" not in outcome.summary:
        is_none = outcome.sweep.constraints.sla is not None and not outcome.summary["top"]
        return EXIT_NONE_FOUND if is_none and fail_if_none else 0
    answer = answer_of(outcome.rows)
    if answer.best is not None:
        return 0
    if answer.nearest is None:
        print(f"error: {unmet_text(outcome.sweep, answer)}", file=sys.stderr)
        return EXIT_NONE_FOUND if fail_if_none else EXIT_BAD_INPUT
    return EXIT_NONE_FOUND if fail_if_none else 0


def print_frontier(summary: dict[str, Any]) -> None:
    """The counts, the frontier and the best, on stdout."""
    from dynosim.plots.trials import short_names

    counts = summary["counts"]
    parts = [f"{counts['ok']} finished"]
    others = {"infeasible": "infeasible", "failed": "failed", "screened": "screened out"}
    parts += [f"{counts[key]} {word}" for key, word in others.items() if counts.get(key)]
    print(f"{summary['name']}: {summary['num_trials']} trials, {', '.join(parts)}")
    print_plan(summary)
    if counts["ok"]:
        print("one load: tok/s/GPU is the load over the GPUs, unless overloaded")
    rows = summary["pareto"]
    if rows:
        first, goal = next(iter(summary["objectives"].items()))
        sign = -1 if goal == "max" else 1
        print("Pareto frontier:")
        names = short_names(list(dict.fromkeys(key for row in rows for key in row["values"])))
        best_first = sorted(rows, key=lambda r: sign * r[first])
        _print_columns([_cells(summary, row, names) for row in best_first])
        _print_what_was_varied(rows)
    if summary["top"]:
        best = summary["top"][0]
        shape = ", ".join(f"{key}={value}" for key, value in best["values"].items())
        print(f"best within the constraints: {best['config']} ({shape})")
    elif counts["ok"]:
        print("no trial meets the SLA: nothing is recommended")
    for warning in summary.get("warnings", ()):
        print(f"warning: {warning}")


def _cells(
    summary: dict[str, Any], row: dict[str, Any], names: Mapping[str, str]
) -> dict[str, str]:
    """A frontier row by column title; `names` are those of what was varied."""
    numbers = dict.fromkeys((*summary["objectives"], "num_gpus", "mean_ttft_ms", "mean_itl_ms"))
    words = _sla_words(row) if summary["constraints"].get("sla") else []
    words += ["saturated"] if row["saturated"] else []
    words += _frontier_words(row)
    return {
        "trial": str(row["trial_id"]),
        **{name: str(row["values"].get(key, "-")) for key, name in names.items()},
        **{_TITLES.get(key, key): _number(row[key]) + _between(row, key) for key in numbers},
        "": ", ".join(words),
    }


def _sla_words(row: dict[str, Any]) -> list[str]:
    verdict = "meets SLA" if row["meets_sla"] else "misses SLA"
    share = row.get("meets_sla_share")
    if share is None or share == float(row["meets_sla"]):
        return [verdict]
    return [f"{verdict} (meets it in {100 * share:.0f} % of replays)"]


def _frontier_words(row: dict[str, Any]) -> list[str]:
    """Said of those only that another trial of the frontier beats in some replay."""
    share = row.get("is_pareto_share")
    return [] if share in (None, 1) else [f"on the frontier in {100 * share:.0f} %"]


def _between(row: dict[str, Any], key: str) -> str:
    """The interval of a number, if it was made."""
    bounds = row.get("intervals", {}).get("metrics", {}).get(key)
    return "" if bounds is None else f" ({_number(bounds[0])}..{_number(bounds[1])})"


def _print_what_was_varied(rows: list[dict[str, Any]]) -> None:
    """What the intervals stand for, once for all trials that have the same kind."""
    kinds = dict.fromkeys(
        (row["intervals"]["replays"], tuple(row["intervals"]["varied"]))
        for row in rows
        if "intervals" in row
    )
    for replays, varied in kinds:
        print(f"(low..high): 95 % of {replays} replays with other {', '.join(varied)}")


def _print_columns(rows: list[dict[str, str]]) -> None:
    titles = list(rows[0])
    widths = [max(len(title), *(len(row[title]) for row in rows)) for title in titles]
    for cells in (titles, *(list(row.values()) for row in rows)):
        padded = [cell.rjust(width) for cell, width in zip(cells, widths, strict=True)]
        print("  ".join([*padded[:-1], cells[-1]]).rstrip())


def _number(value: float | int | None) -> str:
    if value is None:
        return "-"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:,.3g}"
