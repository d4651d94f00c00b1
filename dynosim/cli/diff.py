"""`dynosim diff`: what differs between two runs or two sweeps, and whether it is too much."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dynosim.cli.diff_text import print_run_diff, print_sweep_diff
from dynosim.compare.condition import Condition, parse_condition
from dynosim.compare.result_folder import RunFolder, SweepFolder, read_folder
from dynosim.compare.run_diff import Change, diff_runs, number_changes
from dynosim.compare.sweep_diff import diff_sweeps, watched_changes
from dynosim.errors import EXIT_NOT_MET, ConfigError

SCHEMA = "dynosim.diff/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class DiffArguments:
    """What `dynosim diff` was asked for."""

    a: Path
    b: Path
    as_json: bool
    fail_if: Sequence[str]


def diff_command(asked: DiffArguments) -> int:
    """Show what differs; returns 3 if a condition of `fail_if` is true, else 0.

    Raises: ConfigError.
    """
    conditions = [parse_condition(text) for text in asked.fail_if]
    a, b = read_folder(asked.a), read_folder(asked.b)
    found: dict[str, object]
    if isinstance(a, RunFolder) and isinstance(b, RunFolder):
        runs = diff_runs(a, b)
        changes, found, kind = number_changes(a.report, b.report), runs.to_dict(), "run"
        true = _true(conditions, changes)
        if not asked.as_json:
            print_run_diff(runs, a, b)
    elif isinstance(a, SweepFolder) and isinstance(b, SweepFolder):
        sweeps = diff_sweeps(a, b)
        changes, found, kind = watched_changes(sweeps), sweeps.to_dict(), "sweep"
        true = _true(conditions, changes)
        if not asked.as_json:
            print_sweep_diff(sweeps, a, b)
    else:
        kinds = ["a run" if isinstance(one, RunFolder) else "a sweep" for one in (a, b)]
        raise ConfigError(
            f"{asked.a} is {kinds[0]}, {asked.b} is {kinds[1]}: give two runs or two sweeps"
        )
    if asked.as_json:
        document = {
            "schema": SCHEMA,
            "kind": kind,
            "a": str(asked.a),
            "b": str(asked.b),
            **found,
            "failed_if": [condition.text for condition in true],
        }
        sys.stdout.write(json.dumps(document, indent=2, allow_nan=False) + "\n")
    for condition in true:
        print(f"failed: {condition.text}: {_words(changes[condition.key])}", file=sys.stderr)
    return EXIT_NOT_MET if true else 0


def _true(conditions: Sequence[Condition], changes: Mapping[str, Change]) -> list[Condition]:
    return [condition for condition in conditions if condition.holds(changes)]


def _words(change: Change) -> str:
    percent = "" if change.percent is None else f" ({change.percent:+.2f} %)"
    return f"{change.a:g} in A, {change.b:g} in B{percent}"
