#!/usr/bin/env python3
"""What the default sweep costs: all its processes from start to exit.

    python benchmarks/sweep.py --against FOLDER

Runs `dynosim sweep sweeps/qwen.yaml` (or another file) as it is, once beforehand so that step-time
tables are on disk. The same sweep file is given to both checkouts. Times: see `racing`; `wall s` is
time on the clock, which other work on the machine lengthens. Of a sweep that searches loads it says
how many probes there were, how many were stopped early, how many layouts were not pursued, and what
part of the workers' time went into which; `other s` is what a job's share of the clock has beside
probes: start, reading, waiting for the last layout, writing.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from racing import (
    ROOT,
    Checkout,
    Figures,
    hold_race,
    in_turn,
    median,
    parser_of,
    ratio,
    timed_process,
)

PROBE_FIGURES = ("probes", "stopped", "not pursued", "probes s", "stopped s", "other s")


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = parser_of(__doc__, rounds=3)
    parser.add_argument("--file", type=Path, default=ROOT / "sweeps" / "qwen.yaml")
    parser.add_argument("--jobs", type=int, default=2)
    return parser.parse_args()


def run_sweep(checkout: Checkout, args: argparse.Namespace, folder: Path) -> Figures:
    """One sweep into a new folder."""
    with tempfile.TemporaryDirectory(dir=folder) as out:
        command = [sys.executable, "-P", "-m", "dynosim", "sweep", str(args.file.resolve())]
        made = Path(out) / "sweep"
        command += ["--out", str(made), "--jobs", str(args.jobs)]
        figures = timed_process(command, checkout.env(), prints_json=False)
        return figures | probe_figures(made, figures["process_s"], args.jobs)


def probe_figures(folder: Path, wall_s: float, jobs: int) -> Figures:
    """What the ledger says of the probes of a finished sweep; nothing where loads were fixed."""
    lines = (folder / "ledger.jsonl").read_text().splitlines()
    probes = [probe for line in lines if (probe := json.loads(line).get("probe")) is not None]
    if not probes:
        return {}
    answer = json.loads((folder / "summary.json").read_text())["answer"]
    stopped = [probe for probe in probes if probe.get("is_stopped")]
    probes_s, stopped_s = _seconds(probes), _seconds(stopped)
    return {
        "probes": len(probes),
        "stopped": len(stopped),
        "not pursued": len(answer.get("not_pursued", ())),
        "probes s": probes_s,
        "stopped s": stopped_s,
        "other s": wall_s - probes_s / jobs,
    }


def _seconds(probes: list[Figures]) -> float:
    return sum(float(probe["wall_ms"]) for probe in probes) / 1000


def race(args: argparse.Namespace, sides: dict[str, Checkout], folder: Path) -> list[Figures]:
    """A row for each side."""

    def sweep(checkout: Checkout) -> Any:
        return lambda _: run_sweep(checkout, args, folder)

    running = {name: sweep(checkout) for name, checkout in sides.items()}
    run_sweep(sides["ours"], args, folder)
    found = in_turn(args.rounds, running)
    return [
        {
            "of": name,
            "user s": median(found[name], "process_user_s"),
            "wall s": median(found[name], "process_s"),
            "faster": ratio(found[name], found["ours"], "process_user_s"),
            **{key: median(found[name], key) for key in PROBE_FIGURES if key in found[name][0]},
        }
        for name in sides
    ]


if __name__ == "__main__":
    hold_race(parse_args(), race)
