#!/usr/bin/env python3
"""Races dynosim against NVIDIA Dynamo's compiled simulator on a Mooncake trace.

    python benchmarks/replay.py --trace mooncake_conversation.jsonl.gz \
        --peer-python ENV/bin/python --peer-script peer_replay.py

Both replay the same trace with the same configuration (polynomial timing, 64-token blocks, 16,384
blocks, 256 sequences, 8,192 batched tokens), in turn, each time in a fresh process. `--router kv`
compares KV-aware routing with its defaults; there ties are broken by lot (ours by seed) and runs
differ, so figures of both are means over the rounds.
Ours: `wall_time_ms` of the report, from opening the trace to the finished report, and the whole
process from start to exit. The peer: the time of its replay call. Without a peer only we run.
The peer also synthesises tokens and keeps every token's record, which dynosim's design avoids.
"""

import argparse
import gzip
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("DYNOSIM_SHARED", ROOT.parent / "shared"))
BLOCK_SIZE = 64
NUM_BLOCKS = 16384
MEANS = ("mean_ttft_ms", "mean_itl_ms", "mean_tpot_ms", "mean_e2e_latency_ms")
KEYS = (*MEANS, "p99_ttft_ms", "p99_e2e_latency_ms", "prefix_cache_reused_ratio")

OURS = """
import json, resource, sys
from dynosim.config import load_run
from dynosim.experiment.run import run
report = run(load_run(sys.argv[1], sys.argv[2:])).report
report["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps(report))
"""


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    default = SHARED / "traces" / "mooncake_conversation.jsonl.gz"
    parser.add_argument("--trace", type=Path, default=default)
    parser.add_argument("--workers", default="1,4,16,64,256", help="comma-separated")
    parser.add_argument("--router", choices=("round-robin", "kv"), default="round-robin")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--copies", type=int, default=1, help="repeat the trace this many times")
    parser.add_argument("--peer-python", default=os.environ.get("PEER_PYTHON"))
    parser.add_argument("--peer-script", type=Path, default=SHARED / "tools" / "peer_replay.py")
    parser.add_argument("--json", action="store_true", help="print all figures as JSON")
    return parser.parse_args()


def unpacked(trace: Path, copies: int, folder: Path) -> Path:
    """The trace as plain JSON lines (the peer reads no gzip), repeated one after the other."""
    opener = gzip.open if trace.suffix == ".gz" else open
    with opener(trace, "rt") as lines:
        rows = [json.loads(line) for line in lines if line.strip()]
    span_ms = max(row["timestamp"] for row in rows) + 3000
    num_ids = 1 + max(max(row["hash_ids"]) for row in rows)
    path = folder / f"trace_x{copies}.jsonl"
    with path.open("w") as out:
        for copy in range(copies):
            for row in rows:
                ids = [copy * num_ids + h for h in row["hash_ids"]]
                shifted = {"timestamp": row["timestamp"] + copy * span_ms, "hash_ids": ids}
                out.write(json.dumps({**row, **shifted}) + "\n")
    return path


def run_file(trace: Path, folder: Path) -> Path:
    """A run file with the common configuration; one more block, for vLLM's placeholder."""
    path = folder / "run.json"
    config = {
        "name": "replay benchmark",
        "workload": {"trace": str(trace), "format": "mooncake"},
        "engine": {
            "block_size": BLOCK_SIZE,
            "num_gpu_blocks": NUM_BLOCKS + 1,
            "max_num_seqs": 256,
            "max_num_batched_tokens": 8192,
            "max_model_len": NUM_BLOCKS * BLOCK_SIZE,
        },
        "timing": {"kind": "polynomial"},
        "router": {"mode": "round-robin"},
    }
    path.write_text(json.dumps(config))
    return path


def run_ours(config: Path, workers: int, router: str, seed: int) -> dict[str, Any]:
    """One cold process of dynosim."""
    started = time.perf_counter()
    command = [sys.executable, "-c", OURS, str(config), f"cluster.workers={workers}"]
    command += [f"router.mode={router}", f"seed={seed}"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    report: dict[str, Any] = json.loads(done.stdout)
    return report | {"process_s": time.perf_counter() - started}


def run_peer(args: argparse.Namespace, trace: Path, workers: int) -> dict[str, Any]:
    """One process of the peer; its replay call's time and its summary."""
    command = [args.peer_python, str(args.peer_script), str(trace), "--workers", str(workers)]
    command += ["--block-size", str(BLOCK_SIZE), "--num-gpu-blocks", str(NUM_BLOCKS)]
    command += ["--router", "kv_router" if args.router == "kv" else "round_robin"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    result = json.loads(done.stdout)
    summary: dict[str, Any] = result["summary"]
    return summary | {"replay_s": result["outer_wall_s"]}


def race(args: argparse.Namespace, trace: Path, config: Path, workers: int) -> dict[str, Any]:
    """Alternating rounds on one number of workers; medians."""
    ours, peers = [], []
    for seed in range(args.rounds):
        ours.append(run_ours(config, workers, args.router, seed))
        if args.peer_python:
            peers.append(run_peer(args, trace, workers))
    row: dict[str, Any] = {
        "workers": workers,
        "ours_s": statistics.median(run["wall_time_ms"] for run in ours) / 1e3,
        "simulate_s": statistics.median(run["simulate_wall_ms"] for run in ours) / 1e3,
        "process_s": statistics.median(run["process_s"] for run in ours),
        "peak_mb": max(run["peak_mb"] for run in ours),
        "events": ours[0]["num_scheduling_events"],
        "ours": {key: statistics.fmean(run[key] for run in ours) for key in KEYS},
    }
    if peers:
        row["peer_s"] = statistics.median(run["replay_s"] for run in peers)
        row["ratio"] = row["peer_s"] / row["ours_s"]
        row["peer"] = {key: statistics.fmean(run[key] for run in peers) for key in KEYS}
    return row


def print_rows(rows: list[dict[str, Any]]) -> None:
    """The table, then both reports' figures side by side."""
    head = ("workers", "peer s", "ours s", "ratio", "simulate s", "process s", "peak MB", "events")
    print(" ".join(f"{name:>10}" for name in head))
    for row in rows:
        peer = f"{row['peer_s']:.2f}" if "peer_s" in row else "-"
        ratio = f"{row['ratio']:.1f}x" if "ratio" in row else "-"
        cells = (row["workers"], peer, f"{row['ours_s']:.3f}", ratio, f"{row['simulate_s']:.3f}")
        cells += (f"{row['process_s']:.2f}", f"{row['peak_mb']:.0f}", row["events"])
        print(" ".join(f"{cell:>10}" for cell in cells))
    for row in rows:
        print(f"\n{row['workers']} workers")
        for key in KEYS:
            ours, peer = row["ours"][key], row.get("peer", {}).get(key)
            against = f"{peer:>16.6f} {100 * (ours / peer - 1):+9.4f} %" if peer else ""
            print(f"  {key:<28} {ours:>16.6f} {against}")


def main() -> None:
    """Run the race."""
    args = parse_args()
    if not args.trace.exists():
        sys.exit(f"{args.trace}: no such trace (give one with --trace)")
    with tempfile.TemporaryDirectory() as name:
        trace = unpacked(args.trace, args.copies, Path(name))
        config = run_file(trace, Path(name))
        rows = [race(args, trace, config, int(workers)) for workers in args.workers.split(",")]
    if args.json:
        print(json.dumps(rows, indent=2))
    else:
        print_rows(rows)


if __name__ == "__main__":
    main()
