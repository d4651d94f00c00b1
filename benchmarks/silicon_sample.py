#!/usr/bin/env python3
"""Blind TPOT of closed loops against AIConfigurator's own silicon sample, beside its own estimate.

    python benchmarks/silicon_sample.py [--rows 96] [--model PART] [--calibration] [--json]
        [--set engine.kv_cache_dtype=auto]

The sample is what ships with aiconfigurator-core: vLLM on H100 and H200. Scored are so many rows,
an equal share of every deployment (model, GPU, version, precision, parallelism), evenly over its
loads; `--rows 0`: all. Apart: rows with a queue for memory (`--queued`), and the rows on which
constants of ours were chosen (`--calibration`). For each row ours is a run of the twin as `dynosim
run` makes it, the library's is its `run_agg`; errors are (predicted - measured) / measured.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import yaml
from silicon_bounds import computes_its_prompts
from silicon_library import BUDGET_TOKENS, Library
from silicon_rows import SampleRow, read_sample, select
from silicon_setup import mean_lengths, run_data, setup_of

from dynosim.config import load_run
from dynosim.config.workload import WorkloadConfig
from dynosim.errors import DynosimError
from dynosim.experiment.run import run
from dynosim.silicon.catalogue import core_folder

_REFUSED_NOTE = "what the roofline allows"
"""In the note of every operation that the guard found outside the roofline."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One row: measured, ours, the library's; errors as shares, None where there is no answer."""

    row: SampleRow
    ttft_ms: float | None
    tpot_ms: float | None
    timing_source: str | None
    is_guarded: bool  # the guard refused some of the tables
    problem: str | None  # why ours has no answer
    library: dict[str, float]  # way of asking -> TPOT, ms
    library_ttft_ms: float | None

    def error(self, tpot_ms: float | None) -> float | None:
        return None if tpot_ms is None else tpot_ms / self.row.tpot_ms - 1

    @property
    def is_complete(self) -> bool:
        return self.tpot_ms is not None and len(self.library) == len(WAYS)


WAYS = ("nominal, 8192", "nominal, prompt", "mean, 8192", "mean, prompt")
"""How the library is asked: with the row's lengths or with the mean of what was sent, and with a
step of 8,192 prompt tokens or of one prompt."""


def compare(row: SampleRow, overrides: Sequence[str], library: Library, folder: Path) -> Compared:
    """One row by the twin and by the library."""
    predictions = {
        f"{name}, {step}": library.estimate(row, setup_of(row), lengths, tokens)
        for name, lengths in (("nominal", (row.isl, row.osl)), ("mean", mean_lengths(row)))
        for step, tokens in (("8192", BUDGET_TOKENS), ("prompt", lengths[0]))
    }
    first = predictions["mean, 8192"]
    report, problem = _predicted(row, overrides, folder)
    return Compared(
        row=row,
        ttft_ms=report.get("mean_ttft_ms"),
        tpot_ms=report.get("mean_tpot_ms"),
        timing_source=report.get("timing_source"),
        is_guarded=_REFUSED_NOTE in (report.get("timing_notes") or ""),
        problem=problem,
        library={way: one.tpot_ms for way, one in predictions.items() if one is not None},
        library_ttft_ms=None if first is None else first.ttft_ms,
    )


def _predicted(
    row: SampleRow, overrides: Sequence[str], folder: Path
) -> tuple[dict[str, Any], str | None]:
    """Our report; or an empty one and why."""
    path = folder / "run.yaml"
    data = run_data(row, has_sampling="sampling" in WorkloadConfig.model_fields)
    path.write_text(yaml.safe_dump(data))
    try:
        return run(load_run(path, overrides)).report, None
    except DynosimError as error:
        return {}, str(error)


def summary(compared: Iterable[Compared]) -> dict[str, Any]:
    """Median |error| and median error of TPOT, over the rows that both sides answer."""
    rows = [one for one in compared if one.is_complete]
    if not rows:
        return {"rows": 0}
    answers = {"ours": [one.error(one.tpot_ms) for one in rows]}
    answers |= {way: [one.error(one.library[way]) for one in rows] for way in WAYS}
    known = {name: [e for e in errors if e is not None] for name, errors in answers.items()}
    return {
        "rows": len(rows),
        "guarded": sum(one.is_guarded for one in rows),
        **{
            name: {
                "median_abs_error": median(abs(error) for error in errors),
                "median_error": median(errors),
            }
            for name, errors in known.items()
        },
    }


def summaries(compared: Sequence[Compared]) -> dict[str, Any]:
    """By model and precision, and altogether."""
    groups: dict[str, list[Compared]] = {}
    for one in compared:
        groups.setdefault(one.row.label, []).append(one)
    return {name: summary(of) for name, of in sorted(groups.items())} | {"all": summary(compared)}


def text_of(title: str, compared: Sequence[Compared]) -> str:
    """A line for each row, then the medians."""
    lines = [
        title,
        f"{'row':<76}{'measured':>9}{'ours':>8}{'err':>7}{'lib':>8}{'err':>7}{'ttft':>8}",
    ]
    lines += [_line(one) for one in compared]
    lines.append("")
    lines.append(f"{'median |error| (error) of TPOT':<48}{'rows':>5}{'guard':>6}{'ours':>15}")
    lines[-1] += "".join(f"{way:>18}" for way in WAYS)
    for name, found in summaries(compared).items():
        if found["rows"]:
            cells = "".join(f"{_cell(found[way]):>18}" for way in WAYS)
            counts = f"{found['rows']:>5}{found['guarded']:>6}"
            lines.append(f"{name:<48}{counts}{_cell(found['ours']):>15}{cells}")
    return "\n".join(lines)


def _cell(found: dict[str, float]) -> str:
    return f"{found['median_abs_error']:.1%} ({found['median_error']:+.1%})"


def _line(one: Compared) -> str:
    row = one.row
    name = f"{row.label} {' '.join(row.deployment[2:])} {row.isl}/{row.osl} c{row.concurrency}"
    if one.problem is not None:
        return f"{name:<76}{row.tpot_ms:>9.2f}  {one.problem[:60]}"
    library = one.library.get("mean, 8192")
    error, theirs = one.error(one.tpot_ms), one.error(library)
    cells = f"{row.tpot_ms:>9.2f}{one.tpot_ms:>8.2f}{_share(error)}"
    cells += f"{library:>8.2f}{_share(theirs)}" if library is not None else f"{'-':>15}"
    ttft = "" if one.ttft_ms is None else f"{one.ttft_ms / row.ttft_ms - 1:>+8.0%}"
    return f"{name:<76}{cells}{ttft}{' guard' if one.is_guarded else ''}"


def _share(error: float | None) -> str:
    return f"{'-':>7}" if error is None else f"{error:>+7.1%}"


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=96, help="rows to score; 0: all")
    parser.add_argument("--model", default="", help="only models whose name has this in it")
    parser.add_argument("--calibration", action="store_true", help="only the calibration rows")
    parser.add_argument("--queued", action="store_true", help="only the rows with a queue")
    parser.add_argument("--ranks", action="store_true", help="rows of data-parallel ranks too")
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Prints the comparison; 2 where the library is not installed."""
    args = parse_args(arguments)
    folder = core_folder()
    if folder is None:
        print("error: the sample is part of aiconfigurator-core: install it", file=sys.stderr)
        return 2
    rows = read_sample(folder / "systems" / "silicon_sample.csv")
    found = select(rows, args.rows, with_ranks=args.ranks, is_possible=computes_its_prompts)
    chosen, title = found.scored, "scored rows"
    if args.calibration:
        chosen, title = (
            found.calibration,
            "calibration rows (constants of ours were chosen on them)",
        )
    elif args.queued:
        chosen, title = found.queued, "rows with a queue for memory"
    chosen = tuple(row for row in chosen if args.model.lower() in row.model.lower())
    with tempfile.TemporaryDirectory(prefix="dynosim-sample-") as name:
        library = Library()
        compared = []
        for row in chosen:
            compared.append(compare(row, args.overrides, library, Path(name)))
            print(f"{len(compared)}/{len(chosen)} {_line(compared[-1])}", file=sys.stderr)
    if args.json:
        document = {
            "rows": [asdict(one) for one in compared],
            "summaries": summaries(compared),
            "left_out": found.left_out,
        }
        print(json.dumps(document, indent=2))
    else:
        print(text_of(title, compared))
        refused = sum(one.problem is not None for one in compared)
        print(f"\nnot answered by us: {refused}; with a queue, apart: {len(found.queued)};"
              f" left out: {found.left_out or 'none'}")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
