#!/usr/bin/env python3
"""Races dynosim against NVIDIA Dynamo's compiled simulator on a Mooncake trace.

    python benchmarks/replay.py --trace mooncake_conversation.jsonl.gz \
        --peer-python ENV/bin/python --peer-script peer_replay.py

Both replay the same trace with the same configuration (polynomial timing, 64-token blocks, 16,384
blocks, 256 sequences, 8,192 batched tokens), in turn, each time in a fresh process. `--router kv`
compares KV-aware routing with its defaults; there ties are broken by lot (ours by seed) and runs
differ, so figures of both are means over the rounds.
With `--workers 2P2D` moving KV takes no time, unless `--gb-s` and `--kv-bytes` say how much.
Ours: the run from opening the trace to the finished report (`ours s`, `ratio`), and the whole
process of `dynosim run` (`process s`, `whole`), both against the peer's whole process.
`--host-blocks N` lays the same with a tier in host memory beside it (`host cost`: how many times as
long). Without a peer only we run; `--against FOLDER` compares with another checkout of dynosim.
Times: see `racing`.
The peer also synthesises tokens and keeps every token's record, which dynosim's design avoids.
"""

import argparse
from pathlib import Path
from statistics import fmean
from typing import Any

from racing import (
    Checkout,
    Figures,
    Layout,
    add_link,
    add_peer,
    checked_trace,
    hold_race,
    in_turn,
    layout,
    link_of,
    median,
    parser_of,
    ratio,
    run_file,
    run_peer,
    settings,
    unpacked,
)

MEANS = ("mean_ttft_ms", "mean_itl_ms", "mean_tpot_ms", "mean_e2e_latency_ms")
KEYS = (*MEANS, "p99_ttft_ms", "p99_e2e_latency_ms", "prefix_cache_reused_ratio")

HOST_TIER = "cluster.tiers={{kv_bytes_per_token: 131072, host: {{num_blocks: {}}}}}"

OURS = """
import json, sys
from resource import RUSAGE_SELF, getrusage
from dynosim.config import load_run
from dynosim.experiment.run import run
config = load_run(sys.argv[1], sys.argv[2:])
started = getrusage(RUSAGE_SELF).ru_utime
report = run(config).report
used = getrusage(RUSAGE_SELF)
figures = {"run_s": used.ru_utime - started, "peak_mb": used.ru_maxrss / 1024}
print(json.dumps(report | figures))
"""


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = parser_of(__doc__)
    add_peer(parser)
    add_link(parser)
    parser.add_argument(
        "--workers", default="1,4,16,64,256", help="comma-separated, such as 1,4,2P2D"
    )
    parser.add_argument(
        "--host-blocks", type=int, help="also with so many blocks in each worker's host memory"
    )
    parser.add_argument("--copies", type=int, default=1, help="repeat the trace this many times")
    return parser.parse_args()


def run_ours(checkout: Checkout, config: Path, asked: list[str]) -> Figures:
    """A replay: from file to report in a process that says so, and the whole of `dynosim run`."""
    overrides = [part for setting in asked for part in ("--set", setting)]
    whole = checkout.command("run", config, "--json", *overrides)
    return checkout.call(OURS, config, *asked) | {"process_user_s": whole["process_user_s"]}


def race(
    args: argparse.Namespace, sides: dict[str, Checkout], trace: Path, config: Path, workers: Layout
) -> tuple[Figures, dict[str, list[Figures]]]:
    """A row of the table, for one number of workers, and all figures."""

    link = link_of(args)

    def ours(checkout: Checkout) -> Any:
        return lambda seed: run_ours(checkout, config, settings(workers, args.router, seed, link))

    running = {name: ours(checkout) for name, checkout in sides.items()}
    if args.host_blocks:
        running["host"] = lambda seed: run_ours(
            sides["ours"],
            config,
            [*settings(workers, args.router, seed, link), HOST_TIER.format(args.host_blocks)],
        )
    if args.peer_python:
        running["peer"] = lambda _: run_peer(args, trace, workers, link)
    found = in_turn(args.rounds, running)
    own = found["ours"]
    row: Figures = {
        "workers": workers if isinstance(workers, int) else "{}P{}D".format(*workers),
        "ours s": median(own, "run_s"),
        "process s": median(own, "process_user_s"),
    }
    if "peer" in found:
        row["peer s"] = median(found["peer"], "process_user_s")
        row["ratio"] = ratio(found["peer"], own, "process_user_s", "run_s")
        row["whole"] = ratio(found["peer"], own, "process_user_s")
    if "before" in found:
        row["before s"] = median(found["before"], "run_s")
        row["faster"] = ratio(found["before"], own, "run_s")
        row["whole faster"] = ratio(found["before"], own, "process_user_s")
    if "host" in found:
        row["host s"] = median(found["host"], "run_s")
        row["host cost"] = ratio(found["host"], own, "run_s")
    row["peak MB"] = max(run["peak_mb"] for run in own)
    row["events"] = own[0]["num_scheduling_events"]
    return row, found


def print_agreement(workers: int | str, found: dict[str, list[Figures]]) -> None:
    """Both reports' figures side by side."""
    print(f"\n{workers} workers")
    for key in KEYS:
        ours = fmean(run[key] for run in found["ours"])
        against = ""
        if "peer" in found:
            peer = fmean(run[key] for run in found["peer"])
            against = f"{peer:>16.6f} {100 * (ours / peer - 1):+9.4f} %"
        print(f"  {key:<28} {ours:>16.6f} {against}")


def main() -> None:
    """Run the race."""
    raced: list[tuple[Figures, dict[str, list[Figures]]]] = []

    def races(args: argparse.Namespace, sides: dict[str, Checkout], folder: Path) -> list[Figures]:
        trace = unpacked(checked_trace(args), args.copies, folder)
        config = run_file(trace, folder)
        raced.extend(race(args, sides, trace, config, layout(n)) for n in args.workers.split(","))
        return [row for row, _ in raced]

    args = parse_args()
    hold_race(args, races)
    if not args.json:
        for row, found in raced:
            print_agreement(row["workers"], found)


if __name__ == "__main__":
    main()
