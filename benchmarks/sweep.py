#!/usr/bin/env python3
"""What the default sweep costs: all its processes from start to exit.

    python benchmarks/sweep.py --against FOLDER

Runs `dynosim sweep sweeps/qwen.yaml` (or another file) as it is, once beforehand so that step-time
tables are on disk. The same sweep file is given to both checkouts. Times: see `racing`; `wall s` is
time on the clock, which other work on the machine lengthens.
"""

import argparse
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
        command += ["--out", str(Path(out) / "sweep"), "--jobs", str(args.jobs)]
        return timed_process(command, checkout.env(), prints_json=False)


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
        }
        for name in sides
    ]


if __name__ == "__main__":
    hold_race(parse_args(), race)
