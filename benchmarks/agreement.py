#!/usr/bin/env python3
"""Compares every request's times with those of NVIDIA Dynamo's compiled simulator.

    python benchmarks/agreement.py --trace TRACE --peer-python ENV/bin/python --workers 1,4,16

Same trace, configuration and (polynomial) timing on both sides, see `replay.py`. Requests are
paired by arrival, lengths and, among equals, first token time. Printed per figure: ours, the
peer's, the difference; then the largest difference of any single request. `--workers 2P2D` takes
prefill and decode workers; moving KV takes no time then, unless `--gb-s` and `--kv-bytes` say more.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from racing import (
    SHARED,
    Layout,
    Link,
    add_link,
    layout,
    link_of,
    peer_settings,
    run_file,
    settings,
    unpacked,
)

from dynosim.build.engine import prepare
from dynosim.build.workload import load_trace
from dynosim.cluster import ClusterSpec, PoolSpec, RunOptions, simulate
from dynosim.config import RunConfig, load_run
from dynosim.experiment.run import run
from dynosim.records import RequestLog
from dynosim.timing.formulas import PolynomialModel
from dynosim.timing.step import StepShape

STATISTICS = ("mean", "median", "p90", "p95", "p99")


def peer_requests(args: argparse.Namespace, trace: Path, workers: Layout) -> list[dict[str, Any]]:
    """The peer's per-request records."""
    with tempfile.NamedTemporaryFile(suffix=".jsonl") as out:
        command = [args.peer_python, str(args.peer_script), str(trace)]
        command += [*peer_settings(workers, link_of(args)), "--per-request", out.name]
        subprocess.run(command, check=True, capture_output=True)
        with open(out.name) as lines:
            return [json.loads(line) for line in lines]


def columns(rows: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """The peer's columns in the order in which requests are paired."""
    names = {
        "arrival": "arrival_time_ms",
        "input": "input_length",
        "output": "output_length",
        "first": "first_token_ms",
        "last": "last_token_ms",
        "cached": "reused_input_tokens",
    }
    data = {key: np.array([row[name] for row in rows], float) for key, name in names.items()}
    return paired(data)


def paired(data: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Columns sorted by arrival, lengths and first token."""
    arrival = np.round(data["arrival"], 3)
    order = np.lexsort((data["first"], data["output"], data["input"], arrival))
    return {key: values[order] for key, values in data.items()}


class RoundedPolynomial(PolynomialModel):
    """The same formulas, prefill and decode part of every step rounded to 1 ns as the peer does."""

    def step_ms(self, step: StepShape) -> float:
        prompts = StepShape.of_prompts(step.num_prefills, step.prefill_tokens, step.prefix_tokens)
        decodes = StepShape.of_decodes(step.num_decodes, step.decode_context_tokens)
        prefill_ms, decode_ms = super().step_ms(prompts), super().step_ms(decodes)
        return round(prefill_ms, 6) + round(decode_ms, 6)


def our_requests(config: RunConfig, *, is_rounded: bool) -> RequestLog:
    """Replay on our side; rounding needs every step on its own."""
    if not is_rounded:
        return run(config).result.requests
    trace, prepared = load_trace(config), prepare(config)
    engine = prepared.engine
    pool = PoolSpec(
        engine=engine,
        times=RoundedPolynomial(engine.usable_blocks * engine.block_size),
        workers=config.cluster.workers,
    )
    return simulate(trace, ClusterSpec(pools=(pool,)), RunOptions(exact_stepping=True)).requests


def our_columns(
    config: Path, workers: Layout, link: Link, *, is_rounded: bool
) -> dict[str, np.ndarray]:
    """Ours, likewise."""
    asked = settings(workers, "round-robin", 0, link)
    log = our_requests(load_run(config, asked), is_rounded=is_rounded)
    return paired(
        {
            "arrival": log.arrival_ms,
            "input": log.input_tokens.astype(float),
            "output": log.output_tokens.astype(float),
            "first": log.first_token_ms,
            "last": log.finish_ms,
            "cached": log.cached_tokens.astype(float),
        }
    )


def statistic(sample: np.ndarray, name: str) -> float:
    """Mean, median or nearest-rank percentile."""
    if name == "mean":
        return float(sample.mean())
    share = 0.5 if name == "median" else int(name[1:]) / 100
    return float(np.sort(sample)[int((len(sample) - 1) * share + 0.5)])


def report(ours: dict[str, np.ndarray], peer: dict[str, np.ndarray], workers: str) -> None:
    """Print one comparison."""
    print(f"\n{workers} workers, {len(ours['first'])} requests")
    for latency, end in (("ttft_ms", "first"), ("e2e_ms", "last")):
        a, b = ours[end] - ours["arrival"], peer[end] - peer["arrival"]
        for name in STATISTICS:
            x, y = statistic(a, name), statistic(b, name)
            print(f"  {name + '_' + latency:<16} {x:>16.6f} {y:>16.6f} {100 * (x / y - 1):+.6f} %")
        gap = np.abs(ours[end] - peer[end])
        equal = int((gap < 1e-3).sum())
        print(f"  any request      largest difference {gap.max():.2e} ms; {equal} within 1 us")
    same = int((ours["cached"] == peer["cached"]).sum())
    print(f"  reused tokens    equal for {same} of {len(ours['cached'])} requests")


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    default = SHARED / "traces" / "mooncake_conversation.jsonl.gz"
    parser.add_argument("--trace", type=Path, default=default)
    parser.add_argument("--workers", default="4,16")
    parser.add_argument("--peer-python", default=os.environ.get("PEER_PYTHON"))
    parser.add_argument("--peer-script", type=Path, default=SHARED / "tools" / "peer_replay.py")
    parser.add_argument("--rounded", action="store_true", help="round steps as the peer does")
    add_link(parser)
    args = parser.parse_args()
    if not args.peer_python:
        sys.exit("give the python of an environment with ai-dynamo-runtime 1.6.1: --peer-python")
    with tempfile.TemporaryDirectory() as folder:
        trace = unpacked(args.trace, 1, Path(folder))
        config = run_file(trace, Path(folder))
        for name in args.workers.split(","):
            workers = layout(name)
            if args.rounded and not isinstance(workers, int):
                sys.exit(f"--rounded: not with prefill and decode workers ({name})")
            peer = columns(peer_requests(args, trace, workers))
            ours = our_columns(config, workers, link_of(args), is_rounded=args.rounded)
            report(ours, peer, name)


if __name__ == "__main__":
    main()
