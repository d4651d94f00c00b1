#!/usr/bin/env python3
"""Prefill and decode workers apart: dynosim beside `aisimulate predict`, on the same requests.

    python benchmarks/predict.py --aisimulate ENV/bin/aisimulate --gb-s 100
    python benchmarks/predict.py --aisimulate ENV/bin/aisimulate --gb-s 100 --timing tables

400 requests come at 4 a second, by lot from a fixed seed: prompts of 2,000 to 6,000 tokens, answers
of 100 to 300, nothing shared. `--timing tables` takes the silicon tables of both, without what we
add for host and clients; `default` adds that. The results are in `docs/fidelity.md`.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from random import Random
from typing import Any

import yaml
from racing import BLOCK_SIZE, NUM_BLOCKS, Link, layout, settings

from dynosim.config import load_run
from dynosim.experiment.run import run

HASH_BLOCK = 512
KEYS = ("mean_ttft_ms", "p99_ttft_ms", "mean_tpot_ms", "mean_itl_ms", "mean_e2e_latency_ms")
RATES = ("output_throughput_tok_s", "request_throughput_rps")
ALONE = {"trust_tables": True, "step_overhead_ms": 0, "ingress_ms": 0, "egress_ms": 0}
TIMINGS: dict[str, dict[str, Any]] = {
    "polynomial": {"kind": "polynomial"},
    "tables": {"kind": "aiconfigurator", **ALONE},
    "default": {"kind": "aiconfigurator"},
}


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--aisimulate", required=True, help="the command, in its environment")
    parser.add_argument("--workers", default="2P2D")
    parser.add_argument("--timing", choices=tuple(TIMINGS), default="polynomial")
    parser.add_argument("--model", default="Qwen/Qwen3-32B")
    parser.add_argument("--gpu", default="h200_sxm")
    parser.add_argument("--tensor-parallel", type=int, default=2)
    parser.add_argument("--gb-s", type=float, help="a worker's link; without it KV takes no time")
    parser.add_argument("--kv-bytes", type=int, default=262144, help="KV of one token")
    return parser.parse_args()


def write_trace(path: Path) -> None:
    """The requests."""
    draw, at_ms = Random(1), 0.0
    with path.open("w") as out:
        for number in range(400):
            prompt, answer = draw.randint(2000, 6000), draw.randint(100, 300)
            row = {
                "timestamp": round(at_ms, 3),
                "input_length": prompt,
                "output_length": answer,
                "hash_ids": [number * 100 + i for i in range(-(-prompt // HASH_BLOCK))],
            }
            out.write(json.dumps(row) + "\n")
            at_ms += draw.expovariate(0.004)


def theirs(args: argparse.Namespace, trace: Path, folder: Path) -> dict[str, float]:
    """The peer's report."""
    kind = "polynomial" if args.timing == "polynomial" else "default"

    def pool(workers: int) -> dict[str, Any]:
        capacity = {"type": "fixed", "blocks": NUM_BLOCKS}
        return {
            "parallelism": {"replicas": workers, "tensor": args.tensor_parallel},
            "scheduler": {"max_batched_tokens": 8192, "max_sequences": 256},
            "kv_cache": {"block_size": BLOCK_SIZE, "capacity": capacity},
            "timing": {"type": kind},
        }

    prefill, decode = pools_of(args.workers)
    engine: dict[str, Any] = {
        "mode": "disaggregated",
        "model": args.model,
        "hardware": args.gpu,
        "backend": "vllm",
        "workers": {"prefill": pool(prefill), "decode": pool(decode)},
    }
    if args.gb_s:
        transfer = {"bytes_per_token": args.kv_bytes, "bandwidth_gb_per_second": args.gb_s}
        engine["kv_transfer"] = transfer
    source = {"type": "trace", "paths": [str(trace)], "format": "mooncake"}
    config = {"traffic": {"source": source, "load": {"type": "trace_timestamps"}}, "engine": engine}
    path = folder / "predict.yaml"
    path.write_text(yaml.safe_dump(config))
    command = [args.aisimulate, "predict", "--config", str(path), "--format", "json"]
    command += ["--output-dir", str(folder / "theirs")]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    report: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return report


def ours(args: argparse.Namespace, trace: Path, folder: Path) -> dict[str, Any]:
    """Our report; one more block, for vLLM's placeholder, and the peer's only loop."""
    engine: dict[str, Any] = {
        "block_size": BLOCK_SIZE,
        "num_gpu_blocks": NUM_BLOCKS + 1,
        "max_num_seqs": 256,
        "max_num_batched_tokens": 8192,
        "async_scheduling": False,
        "tensor_parallel": args.tensor_parallel,
    }
    config: dict[str, Any] = {
        "name": "beside aisimulate",
        "workload": {"trace": str(trace), "format": "mooncake"},
        "engine": engine,
        "timing": TIMINGS[args.timing],
    }
    if args.timing == "polynomial":
        engine["max_model_len"] = NUM_BLOCKS * BLOCK_SIZE
    else:
        config |= {"model": args.model, "hardware": {"name": args.gpu}}
    path = folder / "run.json"
    path.write_text(json.dumps(config))
    link = Link(gb_s=args.gb_s or 1e9, kv_bytes=args.kv_bytes, moves="destination_missing")
    asked = settings(pools_of(args.workers), "round-robin", 0, link)
    return run(load_run(str(path), asked)).report


def pools_of(text: str) -> tuple[int, int]:
    """How many workers each pool has."""
    workers = layout(text)
    if isinstance(workers, int):
        sys.exit(f"--workers {text}: expected prefill and decode workers, such as 2P2D")
    return workers


def main() -> None:
    """Print both reports, side by side."""
    args = parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        trace = folder / "trace.jsonl"
        write_trace(trace)
        peer, own = theirs(args, trace, folder), ours(args, trace, folder)
    print(f"{'':<28} {'dynosim':>12} {'aisimulate':>12}")
    for key in (*KEYS, *RATES):
        difference = 100 * (own[key] / peer[key] - 1)
        print(f"{key:<28} {own[key]:>12.4f} {peer[key]:>12.4f} {difference:+.4f} %")


if __name__ == "__main__":
    main()
