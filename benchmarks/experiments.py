#!/usr/bin/env python3
"""Holds the twin's blind predictions against published experiments, each a run file of ours.

    python benchmarks/experiments.py --file MEASURED.json [--only ID ...] [--set key=value ...]
        [--capacity given] [--json]

The run files in `experiments/` say what was run: model, GPU, engine arguments, workload. MEASURED
is a JSON list of what came out, one object an experiment: `id, kv_blocks_of_16, measured_ms` (by
`e2e_mean`, `ttft_mean`, `itl_mean` and percentiles), `unfit` (why it should be left out; null: it
should not) and `model_config`, used where no known model has that name. Times are the client's,
over all requests of all stages. `--set` changes a key of every run file, as in `dynosim run`;
`--capacity given` takes the measured blocks in place of `num_gpu_blocks: auto`. Medians are over
the experiments that are fit.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynosim.config import load_run
from dynosim.config.schema import RunConfig
from dynosim.errors import ConfigError, DynosimError
from dynosim.experiment.run import run
from dynosim.silicon.catalogue import model_entry

RUN_FILES = Path(__file__).parent / "experiments"
BLOCK_TOKENS = 16
REPORT_KEYS = {"e2e": "e2e_latency_ms", "ttft": "ttft_ms", "itl": "itl_ms"}
"""By the measured value's name, ours."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A predicted value beside the measured one, in ms or blocks."""

    predicted: float
    measured: float

    @property
    def error(self) -> float:
        """Of the prediction, relative to what was measured."""
        return self.predicted / self.measured - 1.0


@dataclass(frozen=True, slots=True)
class Compared:
    """An experiment, predicted and measured."""

    config: RunConfig
    unfit: str | None
    figures: dict[str, Figure]  # by measured name; `blocks` among them
    timing_source: str
    wall_s: float
    error: str = ""  # why nothing was predicted


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--file", type=Path, required=True, help="measured values, JSON")
    parser.add_argument("--only", action="append", metavar="ID", help="this experiment; repeatable")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="changes")
    parser.add_argument("--capacity", choices=("auto", "given"), default="auto", help="KV blocks")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Prints the comparison; 2 for bad input."""
    args = parse_args(arguments)
    try:
        compared = [
            compare(measured, args.changes, is_given=args.capacity == "given")
            for measured in read_measured(args.file, args.only)
        ]
    except DynosimError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(json.dumps(document(compared), indent=2) if args.json else text(compared))
    return 0


def read_measured(path: Path, only: Sequence[str] | None) -> list[dict[str, Any]]:
    """The measured experiments that there are run files of. Raises: ConfigError."""
    try:
        data = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"--file {path}: cannot be read: {error}") from None
    if not isinstance(data, list) or not all(isinstance(row, dict) and "id" in row for row in data):
        raise ConfigError(f"--file {path}: expected a list of experiments, each with an `id`")
    known = {row["id"]: row for row in data if run_file(row["id"]).is_file()}
    for name in only or ():
        if name not in known:
            raise ConfigError(f"--only {name}: no such experiment (there are {', '.join(known)})")
    return [row for name, row in known.items() if not only or name in only]


def run_file(name: str) -> Path:
    """Where the run file of an experiment is."""
    return RUN_FILES / f"{name}.yaml"


def compare(measured: dict[str, Any], changes: Sequence[str], *, is_given: bool) -> Compared:
    """One experiment, run as its file says. Raises: ConfigError for a bad change."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        model = model_of(measured, Path(folder))
        blocks = measured["kv_blocks_of_16"]
        given = [f"engine.num_gpu_blocks={blocks}"] if is_given else []
        config = load_run(run_file(measured["id"]), [f"model={model}", *given, *changes])
        try:
            outcome = run(config)
        except DynosimError as error:
            return Compared(config, measured["unfit"], {}, "", 0.0, str(error))
    values = measured["measured_ms"]
    figures = {
        name: Figure(outcome.report[report_key(name)], value) for name, value in values.items()
    }
    figures["blocks"] = Figure(
        outcome.capacity.num_gpu_blocks * config.engine.block_size / BLOCK_TOKENS, blocks
    )
    source = outcome.report["timing_source"]
    return Compared(config, measured["unfit"], figures, source, time.perf_counter() - started)


def model_of(measured: dict[str, Any], folder: Path) -> str:
    """The model's name if that is known, else the folder with its measured configuration."""
    name = str(measured["model"])
    try:
        model_entry(name)
    except ConfigError:
        path = folder / name.replace("/", "--")
        path.mkdir()
        (path / "config.json").write_text(json.dumps(measured["model_config"]))
        return str(path)
    return name


def report_key(name: str) -> str:
    """`ttft_p90` as the report calls it."""
    metric, statistic = name.split("_")
    return f"{statistic}_{REPORT_KEYS[metric]}"


def medians(compared: Iterable[Compared]) -> dict[str, float]:
    """Median absolute error of each value over the experiments that are fit."""
    errors: dict[str, list[float]] = {}
    for one in compared:
        if one.unfit is None:
            for name, figure in one.figures.items():
                errors.setdefault(name, []).append(abs(figure.error))
    return {name: statistics.median(values) for name, values in errors.items()}


def document(compared: Sequence[Compared]) -> dict[str, Any]:
    """Everything, for machines."""
    return {
        "median_abs_error": medians(compared),
        "experiments": [
            {
                "id": one.config.name,
                "model": one.config.model,
                "tensor_parallel": one.config.engine.tensor_parallel,
                "unfit": one.unfit,
                "timing_source": one.timing_source,
                "error": one.error or None,
                "wall_s": one.wall_s,
                "figures": {
                    name: {
                        "predicted": figure.predicted,
                        "measured": figure.measured,
                        "error": figure.error,
                    }
                    for name, figure in one.figures.items()
                },
            }
            for one in compared
        ],
    }


TEXT = ("e2e_mean", "ttft_mean", "itl_mean")
MORE = ("e2e_p90", "e2e_p99", "ttft_p90", "ttft_p99", "blocks")


def text(compared: Sequence[Compared]) -> str:
    """Predicted, measured and error of the means; errors of the rest; medians last."""
    head = ["id", "model", "TP"]
    for name in TEXT:
        head += [name, "measured", "error"]
    rows = [[*head, *MORE]]
    for one in compared:
        row = [one.config.name, str(one.config.model).split("--")[-1].split("/")[-1]]
        row.append(str(one.config.engine.tensor_parallel))
        for name in TEXT if one.figures else ():
            figure = one.figures[name]
            row += [f"{figure.predicted:.1f}", f"{figure.measured:.1f}", f"{figure.error:+.1%}"]
        row += [f"{one.figures[name].error:+.1%}" for name in MORE if name in one.figures]
        row += [""] * (len(head) + len(MORE) - len(row))
        rows.append(row)
    found = medians(compared)
    last = ["median |error| of the fit", "", ""]
    for name in TEXT:
        last += ["", "", f"{found.get(name, float('nan')):.1%}"]
    rows.append([*last, *(f"{found.get(name, float('nan')):.1%}" for name in MORE)])
    notes = [f"{one.config.name}: left out: {one.unfit}" for one in compared if one.unfit]
    notes += [f"{one.config.name}: not predicted: {one.error}" for one in compared if one.error]
    return "\n".join([*aligned(rows), *notes])


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """The rows in columns, the model's name to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if place < 2 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


if __name__ == "__main__":
    sys.exit(main())
