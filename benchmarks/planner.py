#!/usr/bin/env python3
"""What a planner in the loop costs, and how long a simulated day with one takes.

    python benchmarks/planner.py          # the Mooncake conversation trace, ticks of 10 s
    python benchmarks/planner.py --day    # 24 h, one million requests, up to 64 workers

The replay: the configuration of `replay.py` without a planner and with two kinds of one, in turn,
each time in a fresh process. The planner looks every 10 s, at what engines report (`throughput`),
or also at demand and latencies (`sla`). It is advisory: all that it does but launching and draining
is paid for, while everybody replays the very same events. `cost` is how many times as long it takes
from opening the trace to the finished report, by the second run of a process; `cold`, by its first
one, in which it also imports its parts; `look us`, what each look and its scrape add.

The day: a synthetic load whose rate follows a cosine, in quarters of an hour, and a planner that
takes the cluster from a few workers to many and back. `workers` are the fewest and the most it had
ready, `ever` all there have been, `base MB` what the process had before, `peak MB` the most.
`process s` is on the clock. Times: see `racing`.
"""

import argparse
import json
from collections.abc import Callable
from math import cos, pi
from pathlib import Path
from typing import Any

from racing import (
    BLOCK_SIZE,
    NUM_BLOCKS,
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
    unpacked,
)

TICK_MS = 10_000.0
STAGE_S = 900
TARGETS = ("throughput", "sla")
LOWEST_SHARE = 0.2  # of the day's highest rate, at night

RUN = """
import json, sys
from resource import RUSAGE_SELF, getrusage
from dynosim.config import load_run
from dynosim.experiment.run import run
config = load_run(sys.argv[1], sys.argv[2:])
before = getrusage(RUSAGE_SELF)
outcome = run(config)
used = getrusage(RUSAGE_SELF)
again_s = None
if IS_SHORT:
    run(config)
    again_s = getrusage(RUSAGE_SELF).ru_utime - used.ru_utime
ready = [
    sum(worker.phase.value == "ready" for pool in look.seen.pools for worker in pool.workers)
    for look in outcome.looks
]
print(json.dumps(outcome.report | {
    "run_s": used.ru_utime - before.ru_utime,
    "again_s": again_s,
    "system_s": used.ru_stime - before.ru_stime,
    "base_mb": before.ru_maxrss / 1024,
    "peak_mb": used.ru_maxrss / 1024,
    "looks": len(outcome.looks),
    "least_ready": min(ready, default=0),
    "most_ready": max(ready, default=0),
    "ever": len(outcome.result.workers.pool),
    "step_rows": len(outcome.result.steps.start_ms),
}))
"""


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = parser_of(__doc__)
    parser.add_argument("--router", default="round-robin,kv", help="comma-separated")
    parser.add_argument("--workers", default="4,16", help="of the replay, comma-separated")
    parser.add_argument("--day", action="store_true", help="the day, not the replay")
    parser.add_argument("--requests", type=int, default=1_000_000, help="of the day")
    parser.add_argument("--hours", type=float, default=24.0, help="from night to night")
    parser.add_argument("--most", type=int, default=64, help="workers of the day")
    return parser.parse_args()


def planner(target: str, most: int, **more: Any) -> str:
    """The setting that has a planner look at what engines report at every tick."""
    section = {
        "optimization_target": target,
        "enable_load_scaling": True,
        "load_adjustment_interval_ms": TICK_MS,
        "max_gpu_budget": most,
        **more,
    }
    return f"planner={json.dumps(section)}"


def side(
    checkout: Checkout, config: Path, asked: list[str], *, is_short: bool
) -> Callable[[int], Figures]:
    """Who runs a configuration with some settings; what is short runs twice."""
    code = RUN.replace("IS_SHORT", str(is_short))
    return lambda _: checkout.call(code, config, *asked)


def replay(
    args: argparse.Namespace, sides: dict[str, Checkout], config: Path, workers: int, router: str
) -> list[Figures]:
    """A row for each kind of planner."""
    asked = settings(workers, router, seed=0)
    running: dict[str, Callable[[int], Figures]] = {}
    for name, checkout in sides.items():
        running[name] = side(checkout, config, asked, is_short=True)
        for target in TARGETS:
            told = [*asked, planner(target, workers, advisory=True)]
            running[f"{name} {target}"] = side(checkout, config, told, is_short=True)
    found = in_turn(args.rounds, running)
    rows = []
    for target in TARGETS:
        without, planned = found["ours"], found[f"ours {target}"]
        for key in ("num_scheduling_events", "mean_ttft_ms", "p99_e2e_latency_ms"):
            assert planned[0][key] == without[0][key], f"{key} differs: nothing was to be changed"
        row: Figures = {
            "workers": workers,
            "router": router,
            "target": target,
            "without s": median(without, "again_s"),
            "cost": ratio(planned, without, "again_s"),
            "cold": ratio(planned, without, "run_s"),
            "looks": planned[0]["looks"],
            "look us": 1e6 * _more_s(planned, without) / planned[0]["looks"],
        }
        if "before" in found:
            before = found[f"before {target}"]
            row["cost before"] = ratio(before, found["before"], "again_s")
            row["faster"] = ratio(before, planned, "again_s")
        rows.append(row)
    return rows


def _more_s(planned: list[Figures], without: list[Figures]) -> float:
    """How much longer the quickest run takes than the quickest other one."""
    return float(min(one["again_s"] for one in planned) - min(one["again_s"] for one in without))


def day_file(args: argparse.Namespace, folder: Path) -> Path:
    """The run file of the day."""
    number = round(args.hours * 3600 / STAGE_S)
    shares = [1 - (1 - LOWEST_SHARE) * (1 + cos(2 * pi * i / number)) / 2 for i in range(number)]
    unit_rps = args.requests / STAGE_S / sum(shares)
    path = folder / "day.json"
    lognormal = {"dist": "lognormal"}
    config = {
        "name": "a day",
        "workload": {
            "synthetic": {
                "isl": {**lognormal, "mean": 2000, "std": 1600, "min": 16, "max": 16_000},
                "osl": {**lognormal, "mean": 1500, "std": 1200, "min": 2, "max": 12_000},
                "shared_prefix_tokens": 512,
                "prefix_groups": 16,
            },
            "stages": [{"rate_rps": share * unit_rps, "duration_s": STAGE_S} for share in shares],
        },
        "engine": {
            "block_size": BLOCK_SIZE,
            "num_gpu_blocks": NUM_BLOCKS + 1,
            "max_num_seqs": 256,
            "max_num_batched_tokens": 8192,
            "max_model_len": 32_768,
        },
        "timing": {"kind": "polynomial"},
        "cluster": {"workers": args.most // 4, "startup": {"boot_s": {"mean": 120, "p95": 180}}},
        "sla": {"ttft_ms": 2000, "itl_ms": 25},
    }
    path.write_text(json.dumps(config))
    return path


def day(
    args: argparse.Namespace, sides: dict[str, Checkout], config: Path, router: str
) -> list[Figures]:
    """A row for each checkout."""
    told = [f"router.mode={router}", planner("sla", args.most, ttft_ms=2000, itl_ms=25)]
    running = {
        name: side(checkout, config, told, is_short=False) for name, checkout in sides.items()
    }
    return [
        {
            "side": name,
            "router": router,
            "requests": runs[0]["num_requests"],
            "run s": median(runs, "run_s"),
            "system s": median(runs, "system_s"),
            "process s": median(runs, "process_s"),
            "base MB": median(runs, "base_mb"),
            "peak MB": max(run["peak_mb"] for run in runs),
            "looks": runs[0]["looks"],
            "workers": "{least_ready} to {most_ready}".format(**runs[0]),
            "ever": runs[0]["ever"],
            "events": runs[0]["num_scheduling_events"],
            "step rows": runs[0]["step_rows"],
        }
        for name, runs in in_turn(args.rounds, running).items()
    ]


def main() -> None:
    """Run the race."""

    def races(args: argparse.Namespace, sides: dict[str, Checkout], folder: Path) -> list[Figures]:
        routers = args.router.split(",")
        if args.day:
            config = day_file(args, folder)
            return [row for router in routers for row in day(args, sides, config, router)]
        config = run_file(unpacked(checked_trace(args), 1, folder), folder)
        return [
            row
            for router in routers
            for number in args.workers.split(",")
            for row in replay(args, sides, config, int(number), router)
        ]

    hold_race(parse_args(), races)


if __name__ == "__main__":
    main()
