#!/usr/bin/env python3
"""What a request costs in large runs: copies of a trace on many workers.

    python benchmarks/scale.py --requests 1000000 --workers 1000 --router kv

Each 16 workers get the load of the trace (Mooncake's conversations: about 3.4 requests a second):
copies of it run side by side, with prefixes of their own, and one after the other until there are
enough requests. `request us` is CPU time of the run and its report, without making the copies;
`growth` is how many times that of 24,000 requests on 16 workers (`base us`), run in turn with it.
`peak MB` is the process's. `--against FOLDER` compares with another checkout. Times: see `racing`.
"""

import argparse
from pathlib import Path
from typing import Any

from racing import (
    Checkout,
    Figures,
    checked_trace,
    hold_race,
    in_turn,
    median,
    parser_of,
    ratio,
    run_file,
    settings,
)

BASE_REQUESTS, BASE_WORKERS = 24_000, 16

RUN = """
import json, sys
from resource import RUSAGE_SELF, getrusage
import numpy as np
from dynosim.build.workload import load_trace
from dynosim.config import load_run
from dynosim.experiment.run import run
from dynosim.records import Trace

def copied(trace, requests, workers, base_workers):
    beside = -(-workers // base_workers)
    stretch = beside * base_workers / workers
    rounds = -(-requests // (len(trace) * beside))
    span_ms = float(trace.arrival_ms.max()) + 3000.0
    copy = np.arange(beside * rounds)
    shift_ms = copy // beside * span_ms + copy % beside * (3000.0 / beside)
    num_ids = int(trace.hash_ids.max()) + 1
    ends = np.cumsum(np.tile(np.diff(trace.hash_offsets), len(copy)))
    tiled = Trace(
        arrival_ms=(trace.arrival_ms + shift_ms[:, None]).ravel() * stretch,
        input_tokens=np.tile(trace.input_tokens, len(copy)),
        output_tokens=np.tile(trace.output_tokens, len(copy)),
        hash_ids=(trace.hash_ids + num_ids * copy[:, None]).ravel(),
        hash_offsets=np.concatenate(([0], ends)),
        trace_block_size=trace.trace_block_size,
    )
    return tiled.take(np.argsort(tiled.arrival_ms, kind="stable")[:requests])

config = load_run(sys.argv[1], sys.argv[5:])
trace = copied(load_trace(config), *map(int, sys.argv[2:5]))
started = getrusage(RUSAGE_SELF).ru_utime
report = run(config, trace=trace).report
used = getrusage(RUSAGE_SELF)
run_s = used.ru_utime - started
assert report["num_requests"] == len(trace)
print(json.dumps({
    "run_s": run_s, "request_us": run_s / len(trace) * 1e6, "peak_mb": used.ru_maxrss / 1024,
}))
"""


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = parser_of(__doc__, rounds=1)
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--router", choices=("round-robin", "kv"), default="round-robin")
    return parser.parse_args()


def race(args: argparse.Namespace, sides: dict[str, Checkout], folder: Path) -> list[Figures]:
    """A row for each side."""
    config = run_file(checked_trace(args).resolve(), folder)

    def ours(checkout: Checkout, requests: int, workers: int) -> Any:
        asked = [requests, workers, BASE_WORKERS, *settings(workers, args.router, seed=0)]
        return lambda _: checkout.call(RUN, config, *asked)

    running = {}
    for name, checkout in sides.items():
        running[f"{name} base"] = ours(checkout, BASE_REQUESTS, BASE_WORKERS)
        running[name] = ours(checkout, args.requests, args.workers)
    found = in_turn(args.rounds, running)
    return [
        {
            "of": name,
            "requests": args.requests,
            "workers": args.workers,
            "user s": median(found[name], "run_s"),
            "request us": median(found[name], "request_us"),
            "base us": median(found[f"{name} base"], "request_us"),
            "growth": ratio(found[name], found[f"{name} base"], "request_us"),
            "peak MB": max(run["peak_mb"] for run in found[name]),
        }
        for name in sides
    ]


if __name__ == "__main__":
    hold_race(parse_args(), race)
