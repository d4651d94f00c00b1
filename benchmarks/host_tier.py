#!/usr/bin/env python3
"""Hits of device and host tier: `aisimulate predict`, our twin, and LRU from the trace alone.

    python benchmarks/host_tier.py TRACE --aisimulate ENV/bin/aisimulate
    python benchmarks/host_tier.py TRACE --aisimulate ENV/bin/aisimulate --concurrency 1 --gb-s 0

One worker with polynomial step times, blocks of 64 tokens, requests as the trace has them; with
`--concurrency N` so many at a time. `--gb-s 0` moves blocks in no time. The model is that of
`dynosim trace reuse`: one request after the other, host written through, but with prompts alone, as
the peer does; so does the twin's here. Shares are of the prompt tokens of completed requests, at
first admission. The results are in `docs/tiers.md`.
"""

import argparse
import gzip
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from dynosim.config import load_run
from dynosim.experiment.run import run
from dynosim.memory.reuse import LruReuse
from dynosim.metrics.reuse import cache_visits
from dynosim.records import Trace
from dynosim.workload.readers import read_trace

BLOCK_SIZE = 64
SIZES = ((16_384, 0), (16_384, 16_384), (16_384, 32_768), (16_384, 65_536), (16_384, 131_072),
         (32_768, 65_536), (32_768, 131_072))  # fmt: skip
"""Blocks of device and host; no host is a run without one."""
CONTEXT = 1_000_000


@dataclass(frozen=True, slots=True)
class Hits:
    """Shares of prompt tokens."""

    device: float
    host: float


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("trace", type=Path, help="in Mooncake's format, plain or gzipped")
    parser.add_argument("--aisimulate", required=True, help="the command, in its environment")
    parser.add_argument("--requests", type=int, default=2000, help="only the first of the trace")
    parser.add_argument("--concurrency", type=int, help="in flight; as they arrive if not given")
    parser.add_argument("--speedup", type=float, default=1.0, help="of arrivals")
    parser.add_argument("--gb-s", type=float, default=32.0, help="each way between the tiers")
    parser.add_argument("--kv-bytes", type=int, default=262_144, help="KV of one token")
    parser.add_argument("--keep", type=Path, help="folder for the peer's records of requests")
    return parser.parse_args()


def cut(source: Path, rows: int, target: Path) -> None:
    """The first rows of a trace, plain."""
    opened = gzip.open(source, "rt") if source.suffix == ".gz" else source.open()
    with opened as lines:
        target.write_text("".join(islice(lines, rows)))


def theirs(args: argparse.Namespace, trace: Path, sizes: tuple[int, int], folder: Path) -> Hits:
    """What the peer's requests found at first admission."""
    device, host = sizes
    cache: dict[str, Any] = {
        "block_size": BLOCK_SIZE,
        "bytes_per_token": args.kv_bytes,
        "capacity": {"type": "fixed", "blocks": device},
    }
    if host:
        rates = {f"{way}_bandwidth_gbps": args.gb_s for way in ("d2h", "h2d")}
        cache["host_offload"] = {"num_host_blocks": host, **rates}
    worker = {
        "parallelism": {"replicas": 1, "tensor": 2},
        "scheduler": {"max_batched_tokens": 8192, "max_sequences": 256},
        "kv_cache": cache,
        "timing": {"type": "polynomial"},
    }
    load = {"type": "trace_timestamps", "speedup": args.speedup}
    if args.concurrency:
        load = {"type": "concurrency", "concurrency": args.concurrency}
    config = {
        "traffic": {
            "source": {"type": "trace", "paths": [str(trace)], "format": "mooncake"},
            "load": load,
        },
        "engine": {
            "mode": "aggregated",
            "model": "Qwen/Qwen3-32B",
            "hardware": "h200_sxm",
            "backend": "vllm",
            "context_length": CONTEXT,
            "workers": {"aggregated": worker},
        },
    }
    path = folder / "predict.yaml"
    path.write_text(yaml.safe_dump(config))
    out = (args.keep or folder) / f"{device}_{host}"
    command = [args.aisimulate, "predict", "--config", str(path), "--format", "json"]
    command += ["--output-dir", str(out), "--overwrite", "--capture-per-request"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return hits_of((out / "requests.jsonl").read_text().splitlines())


def hits_of(lines: list[str]) -> Hits:
    """The shares that records of requests tell."""
    rows = [row for row in map(json.loads, lines) if row["terminal_status"] == "completed"]
    if len(rows) < len(lines):
        print(f"{len(lines) - len(rows)} of {len(lines)} requests were not completed")
    tokens = sum(row["input_length"] for row in rows)

    def share(tier: str) -> float:
        found = sum(row[f"first_admission_{tier}reused_input_tokens"] for row in rows)
        return float(found / tokens)

    # Without a host tier the tiers are not told apart.
    is_split = "first_admission_g1_reused_input_tokens" in rows[0]
    return Hits(share("g1_"), share("host_")) if is_split else Hits(share(""), 0.0)


def model(trace: Trace, sizes: tuple[int, int]) -> Hits:
    """What LRU has, one request after the other; the device's answers take room there."""
    device, host = sizes
    on_device = LruReuse(cache_visits(trace, BLOCK_SIZE)).hits_of_requests(device)
    prompts = LruReuse(cache_visits(trace, BLOCK_SIZE, with_answers=False))
    behind = np.maximum(prompts.hits_of_requests(host) - on_device, 0)
    shares = [
        int(hits.sum()) * BLOCK_SIZE / int(trace.input_tokens.sum()) for hits in (on_device, behind)
    ]
    return Hits(*shares)


def twin(args: argparse.Namespace, trace: Path, sizes: tuple[int, int], folder: Path) -> Hits:
    """What the twin's requests found."""
    device, host = sizes
    gb_s = args.gb_s or 1e9
    tiers = {
        "kv_bytes_per_token": args.kv_bytes,
        "host": {
            "num_blocks": host,
            "preset": None,
            "latency_ms": 0.0,
            "read_gb_s": gb_s,
            "write_gb_s": gb_s,
            "prompt_only": True,
        },
    }
    workload: dict[str, Any] = {"trace": str(trace), "speedup": args.speedup}
    if args.concurrency:
        workload["concurrency"] = args.concurrency
    path = folder / "twin.yaml"
    run_file = {
        "name": "host tier",
        "workload": workload,
        "engine": {
            "block_size": BLOCK_SIZE,
            "num_gpu_blocks": device + 1,
            "async_scheduling": False,
        },
        "timing": {"kind": "polynomial"},
        "cluster": {"tiers": tiers if host else None},
    }
    path.write_text(yaml.safe_dump(run_file))
    report = run(load_run(path)).report
    if not host:
        return Hits(report["prefix_cache_reused_ratio"], 0.0)
    return Hits(report["device_reused_ratio"], report["onboarded_ratio"])


def main() -> None:
    """A line for each size."""
    args = parse_args()
    print(f"{'blocks':>15} {'aisimulate':>18} {'twin':>18} {'model':>18}")
    print(f"{'device':>7} {'host':>7}" + f" {'device':>10} {'host':>7}" * 3)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = folder / "trace.jsonl"
        cut(args.trace, args.requests, rows)
        trace = read_trace(rows)
        for sizes in SIZES:
            found = (
                theirs(args, rows, sizes, folder),
                twin(args, rows, sizes, folder),
                model(trace, sizes),
            )
            shares = "".join(f" {hits.device:>10.2%} {hits.host:>7.2%}" for hits in found)
            print(f"{sizes[0]:>7} {sizes[1]:>7}{shares}", flush=True)


if __name__ == "__main__":
    main()
