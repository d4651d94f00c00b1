"""`dynosim verify`: recordings in, the accuracy matrix out; as text, JSON, or a page."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

from dynosim import __version__
from dynosim.atomic import check_folder, text_writer, write_files
from dynosim.cli.fit import plain
from dynosim.cli.options import check_replays
from dynosim.errors import ConfigError
from dynosim.experiment.progress import ProgressBar, ProgressLines
from dynosim.files.result_folder import check_files
from dynosim.files.user_text import parse_json
from dynosim.sweep.executor import num_cores
from dynosim.verify.curve_plot import plot_curve
from dynosim.verify.document import Occasion, document
from dynosim.verify.matrix import matrix_dict
from dynosim.verify.plan import Asked, Plan, plan_of
from dynosim.verify.text import verification_text
from dynosim.verify.verdict import LEVELS, RecordingVerdict
from dynosim.verify.verification import Verification, verify

DEFAULT_REPLAYS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyArguments:
    """What `dynosim verify` was asked for."""

    paths: Sequence[Path]
    level: str  # with commas
    model: str | None
    hardware: str | None
    engine_version: str | None
    to: Path | None
    before: Path | None
    remarks: Path | None
    plots: Path | None
    overwrite: bool
    as_json: bool
    intervals: int | None
    jobs: int | None


def verify_command(asked: VerifyArguments) -> int:
    """Judge, print, and write the page; returns 0. Raises: ConfigError, TraceError."""
    check_replays(asked.intervals)
    if asked.to is not None:
        check_files([asked.to], overwrite=asked.overwrite, option="--to")
    if asked.plots is not None:
        check_folder(asked.plots, "--plots")
    before = None if asked.before is None else read_before(asked.before)
    remarks = None if asked.remarks is None else _read(asked.remarks, "--remarks")
    levels = levels_of(asked.level)
    replays = DEFAULT_REPLAYS if asked.intervals is None else asked.intervals
    plan = plan_of(
        Asked(
            paths=asked.paths,
            levels=levels,
            model=asked.model,
            hardware=asked.hardware,
            version=asked.engine_version,
            replays=replays,
        )
    )
    if not plan.pieces:
        raise ConfigError(_nothing(asked, plan))
    verification = _verified(plan, asked.jobs or num_cores())
    if all(one.problem for one in verification.verdicts):
        raise ConfigError(_nothing(asked, plan, verification.verdicts))
    occasion = Occasion(
        date=date.today().isoformat(),
        command=_command(asked, levels),
        replays=replays,
        before=before,
        remarks=remarks,
    )
    if asked.to is not None:
        page = document(verification, occasion)
        write_files(asked.to.parent, {asked.to.name: text_writer(page)})
        print(f"written: {asked.to}", file=sys.stderr)
    if asked.plots is not None:
        _plot(verification, asked.plots, overwrite=asked.overwrite)
    if asked.as_json:
        print(json.dumps(plain(json_document(verification, occasion))))
    else:
        print(verification_text(verification))
    return 0


def _plot(verification: Verification, folder: Path, *, overwrite: bool) -> None:
    """A picture of every curve. Raises: ConfigError for one that is there already."""
    curves = {_file_name(one): one for one in verification.verdicts if one.series}
    check_files([folder / name for name in curves], overwrite=overwrite, option="--plots")
    writers = {name: partial(plot_curve, verdict) for name, verdict in curves.items()}
    write_files(folder, writers)
    for name in curves:
        print(f"written: {folder / name}", file=sys.stderr)


def _file_name(verdict: RecordingVerdict) -> str:
    return (
        "".join(one if one.isalnum() or one in "-_." else "_" for one in verdict.recording) + ".png"
    )


def levels_of(text: str) -> list[str]:
    """The levels in a list with commas, in their own order. Raises: ConfigError."""
    words = [word.strip() for word in text.split(",")]
    for word in words:
        if word not in LEVELS:
            raise ConfigError(f"--level {word}: no level (give some of {','.join(LEVELS)})")
    return [level for level in LEVELS if level in words]


def json_document(verification: Verification, occasion: Occasion) -> dict[str, Any]:
    """One JSON document."""
    return {
        "dynosim_version": __version__,
        "date": occasion.date,
        "replays": occasion.replays,
        **matrix_dict(verification.verdicts),
        **verification.to_dict(),
    }


def read_before(path: Path) -> tuple[RecordingVerdict, ...]:
    """The verdicts of an earlier `--json`. Raises: ConfigError."""
    try:
        rows = parse_json(_read(path, "--before"))["recordings"]
        return tuple(RecordingVerdict.from_dict(row) for row in rows)
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"--before {path}: not what `dynosim verify --json` prints: {error!r} (name its output)"
        ) from None


def _read(path: Path, option: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(f"{option} {path}: cannot be read: {error}") from None


def _verified(plan: Plan, jobs: int) -> Verification:
    display = ProgressBar("verdicts") if sys.stderr.isatty() else ProgressLines("verdicts")
    done = 0

    def progress(now: int, of: int, note: str) -> None:
        nonlocal done
        done = now
        display(now, of, note)

    try:
        with display:
            return verify(plan, jobs=jobs, progress=progress)
    except KeyboardInterrupt:
        print(
            f"{done} of {len(plan.pieces)} verdicts are kept: the same command goes on from there",
            file=sys.stderr,
        )
        raise


def _nothing(asked: VerifyArguments, plan: Plan, verdicts: Sequence[RecordingVerdict] = ()) -> str:
    """Why there is nothing to judge."""
    reasons = [f"{one.recording}, {one.level}: {one.problem}" for one in verdicts]
    reasons += [f"unreadable: {why}" for _, why in plan.unreadable]
    reasons += [f"{label}, {level}: {why}" for label, level, why in plan.untold]
    if not reasons:
        named = ", ".join(map(str, asked.paths))
        return f"{named}: no recordings (give logs, experiment lists or throughput curves)"
    return "\n".join(["nothing to verify", *reasons])


def _command(asked: VerifyArguments, levels: Sequence[str]) -> str:
    """What was asked, without where this machine keeps its files."""
    words = ["dynosim verify", *(path.name for path in asked.paths)]
    if len(levels) < len(LEVELS):
        words.append(f"--level {','.join(levels)}")
    if asked.model is not None:
        words.append(f"--model {asked.model}")
    if asked.hardware is not None:
        words.append(f"--hardware {asked.hardware}")
    if asked.engine_version is not None:
        words.append(f"--engine-version {asked.engine_version}")
    if asked.intervals is not None:
        words.append(f"--intervals {asked.intervals}")
    return " ".join(words)
