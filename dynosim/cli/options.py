"""Options that several commands have, each said once. Only typer is imported here."""

from pathlib import Path
from typing import Annotated

import typer

from dynosim.errors import ConfigError

AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the file, as in a.b=v."),
]
SkipBadLines = Annotated[
    bool, typer.Option("--skip-bad-lines", help="Leave bad trace lines out and count them.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace results of the same kind.")]
FailIfNone = Annotated[
    bool, typer.Option("--fail-if-none", help="Exit with 3 if nothing meets the SLA.")
]
FailIfAny = Annotated[
    bool, typer.Option("--fail-if-any", help="Exit with 3 if a controller fails a scenario.")
]
PlanFile = Annotated[
    Path, typer.Argument(help="Run file, or a sweep's topN folder.", show_default=False)
]


def with_skip(overrides: list[str] | None, skip_bad_lines: bool) -> list[str]:
    """The overrides of a run or sweep file, with what `--skip-bad-lines` stands for."""
    return [*(overrides or []), *(["workload.skip_bad_lines=true"] if skip_bad_lines else [])]


def check_replays(intervals: int | None) -> None:
    """Refuse a number of replays that tells no interval. Raises: ConfigError."""
    if intervals == 1:
        raise ConfigError("--intervals 1: one replay has no spread (use 16 or more, or 0 for none)")
