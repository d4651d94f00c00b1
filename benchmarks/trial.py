#!/usr/bin/env python3
"""What a trial costs inside a sweep, against NVIDIA Dynamo's compiled simulator.

    python benchmarks/trial.py --peer-python ENV/bin/python --peer-script peer_replay.py

Ours: the second and later trials of a process that has loaded the trace, each from its request to
its answer, as a sweep's worker runs them. The peer has no sweeps: a trial is a process of it, which
loads the trace again. `--router kv` compares KV-aware routing; `--against FOLDER` another checkout
of dynosim, both with `--pure` if that is given. Times: see `racing`.
"""

import argparse
from pathlib import Path
from typing import Any

from racing import (
    Checkout,
    Figures,
    add_peer,
    checked_trace,
    hold_race,
    in_turn,
    median,
    parser_of,
    ratio,
    run_file,
    run_peer,
    settings,
    unpacked,
)

TRIALS = """
import json, statistics, sys
from resource import RUSAGE_SELF, getrusage
from dynosim.config import load_run
from dynosim.sweep.trial import request_for, run_trial
request = request_for(load_run(sys.argv[1], sys.argv[3:]))
times = []
for _ in range(int(sys.argv[2]) + 1):
    started = getrusage(RUSAGE_SELF).ru_utime
    answer = run_trial(request)
    assert answer["status"] == "ok", answer
    times.append(getrusage(RUSAGE_SELF).ru_utime - started)
print(json.dumps({"trial_s": statistics.median(times[1:])}))
"""


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = parser_of(__doc__)
    add_peer(parser)
    parser.add_argument("--workers", default="4,16", help="comma-separated")
    parser.add_argument("--trials", type=int, default=5, help="timed in each process")
    return parser.parse_args()


def race(
    args: argparse.Namespace, sides: dict[str, Checkout], trace: Path, config: Path, workers: int
) -> Figures:
    """All sides in turn on one number of workers."""

    def ours(checkout: Checkout) -> Any:
        asked = settings(workers, args.router, seed=0)
        return lambda _: checkout.call(TRIALS, config, args.trials, *asked)

    running = {name: ours(checkout) for name, checkout in sides.items()}
    if args.peer_python:
        running["peer"] = lambda _: run_peer(args, trace, workers)
    found = in_turn(args.rounds, running)
    row: Figures = {"workers": workers, "ours ms": 1e3 * median(found["ours"], "trial_s")}
    if "peer" in found:
        row["peer s"] = median(found["peer"], "process_user_s")
        row["ratio"] = ratio(found["peer"], found["ours"], "process_user_s", "trial_s")
    if "before" in found:
        row["before ms"] = 1e3 * median(found["before"], "trial_s")
        row["faster"] = ratio(found["before"], found["ours"], "trial_s")
    return row


def races(args: argparse.Namespace, sides: dict[str, Checkout], folder: Path) -> list[Figures]:
    """A row for each number of workers."""
    trace = unpacked(checked_trace(args), 1, folder)
    config = run_file(trace, folder)
    return [race(args, sides, trace, config, int(n)) for n in args.workers.split(",")]


if __name__ == "__main__":
    hold_race(parse_args(), races)
