#!/usr/bin/env python3
"""What the frontend adds to a request, and how much it can take.

    python benchmarks/frontend.py
    python benchmarks/frontend.py --vllm-router ENV/bin/vllm-router --json

Two mock workers and the frontend run as processes, as `dynosim deploy --mock` starts them; the load
comes from one more (`lean_client.py`). Every target gets the same three loads, streamed completions
of prompts of 256 token ids, in rounds that alternate; medians of the rounds are told.

    rate     100 requests/s, evenly spaced, 16 tokens of 5 ms: what a request waits longer than one
             that is sent to the workers directly (of which each gets every second one)
    full     32 clients that ask again and again for 1 token: requests/s
    streams  1,000 clients at once, 64 tokens each of about 0.1 s: are all tokens delivered?

Processor time is that of the target's process. Times mean little while others use the machine:
`others_cores` tells how much they did. With --vllm-router the peer of that name serves in
front of the same workers, by turns and with its index of their KV events. `sglang-router` cannot:
it refuses prompts of token ids, and mock workers take no others.
"""

import argparse
import asyncio
import contextlib
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import msgspec
import numpy as np
from lean_client import Load, Measured

from dynosim_runtime.card import LiveCard
from dynosim_runtime.config import load_plan
from dynosim_runtime.discovery.make import make_discovery
from dynosim_runtime.launch.deployment import LocalDeployment, free_port
from dynosim_runtime.launch.options import deploy_options
from dynosim_runtime.launch.specs import deployment_discovery
from dynosim_runtime.tiny.model import write_tiny_model

CLIENT = Path(__file__).with_name("lean_client.py")
HOST = "127.0.0.1"
BLOCK_SIZE = 16
PLAN = {
    "name": "frontend-benchmark",
    "workload": {"synthetic": {"requests": 1, "isl": 256, "osl": 16, "rate_rps": 1}},
    "engine": {
        "block_size": BLOCK_SIZE,
        "num_gpu_blocks": 40_000,
        "max_num_seqs": 1024,
        "max_num_batched_tokens": 8192,
        "max_model_len": 4096,
    },
    "timing": {
        "kind": "linear",
        "base_ms": 4.0,
        "per_prefill_token_ms": 0.001,
        "per_decode_ms": 0.2,
    },
    "cluster": {"workers": 2},
    "router": {"mode": "kv"},
}
PEER_POLICIES = ("round_robin", "kv_aware")
PROC_STAT = Path("/proc/stat")
CLOCK_TICKS_PER_S = 100  # of /proc/PID/stat, on Linux


class Target(NamedTuple):
    """Where a load goes. `pid` is None for the workers themselves."""

    name: str
    urls: list[str]
    pid: int | None


class Run(NamedTuple):
    """One load on one target."""

    measured: Measured
    cpu_s: float  # of the target's process
    rss_mib: float
    others_cores: float  # that everything else on the machine kept busy meanwhile


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=6.0, help="of the load at a rate")
    parser.add_argument("--rate", type=float, default=100.0, help="requests/s")
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--vllm-router", type=Path, help="its executable")
    parser.add_argument("--json", action="store_true", help="print all figures as JSON")
    return parser.parse_args()


def loads(args: argparse.Namespace) -> dict[str, Load]:
    """By name; each is given its addresses and a seed of its own for every run."""
    to_all = functools.partial(Load, urls=[], model="model")
    return {
        "rate": to_all(num_requests=int(args.rate * args.seconds), rate_rps=args.rate),
        "full": to_all(num_requests=2000, concurrency=32, max_tokens=1),
        "streams": to_all(num_requests=args.streams, concurrency=args.streams, max_tokens=64),
    }


async def run(target: Target, load: Load, seed: int, pids: list[int]) -> Run:
    """One load in a process of its own; `pids` are all others of this benchmark.

    Raises: CalledProcessError.
    """
    load = msgspec.structs.replace(load, urls=target.urls, seed=seed)
    cpu_s, others_s, start_s = cpu_seconds(target.pid), others_seconds(pids), time.perf_counter()
    client = await asyncio.create_subprocess_exec(
        sys.executable, str(CLIENT), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    output, _ = await client.communicate(msgspec.json.encode(load))
    if client.returncode:
        raise subprocess.CalledProcessError(client.returncode, str(CLIENT))
    wall_s, others_s = time.perf_counter() - start_s, others_seconds(pids) - others_s
    measured = msgspec.json.decode(output, type=Measured)
    return Run(measured, cpu_seconds(target.pid) - cpu_s, rss_mib(target.pid), others_s / wall_s)


def others_seconds(pids: list[int]) -> float:
    """Processor time of all processes but this, those given, and children that have ended."""
    user, nice, system, _, _, *more = map(int, PROC_STAT.read_text().split()[1:9])
    ended = os.times()
    own_s = sum(map(cpu_seconds, pids)) + ended.children_user + ended.children_system
    return (user + nice + system + sum(more)) / CLOCK_TICKS_PER_S - own_s - time.process_time()


def cpu_seconds(pid: int | None) -> float:
    """Processor time that a process has used, all its threads together."""
    if pid is None:
        return 0.0
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / CLOCK_TICKS_PER_S


def rss_mib(pid: int | None) -> float:
    """Memory of a process."""
    if pid is None:
        return 0.0
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    [kib] = [line.split()[1] for line in lines if line.startswith("VmRSS:")]
    return int(kib) / 1024


@contextlib.asynccontextmanager
async def cluster(folder: Path) -> AsyncIterator[tuple[LocalDeployment, list[LiveCard]]]:
    """Frontend and workers, and the workers' cards."""
    write_tiny_model(folder / "model")
    path = folder / "plan.yaml"
    path.write_text(json.dumps({**PLAN, "model": str(folder / "model")}))  # JSON is YAML
    plan = load_plan(path)
    options = deploy_options(plan, path, mock=True, real=False, port=0, out=folder / "out")
    async with LocalDeployment(plan, options) as deployment:
        discovery = make_discovery(deployment_discovery(plan, deployment.out), plan.live.lease_s)
        async for cards in discovery.watch():
            if len(cards) == 2:
                break
        await discovery.close()
        yield deployment, list(cards.values())


@contextlib.asynccontextmanager
async def peer(
    executable: Path, policy: str, cards: Iterable[LiveCard], folder: Path
) -> AsyncIterator[Target]:
    """`vllm-router` in front of the workers. Raises: SystemExit if it does not serve in time."""
    port, metrics_port = free_port(HOST, 0), free_port(HOST, 0)
    command = [
        str(executable), "--host", HOST, "--port", str(port),
        "--prometheus-port", str(metrics_port), "--log-level", "warning", "--policy", policy,
        "--kv-event-block-size", str(BLOCK_SIZE), "--kv-event-model", "model",
        "--worker-urls", *(card.url for card in cards),
    ]  # fmt: skip
    if policy == "kv_aware":
        for card in cards:
            command += ["--kv-event-source", f"{card.url}={card.events[0].endpoint}"]
    with (folder / f"{policy}.log").open("w") as log:
        process = await asyncio.create_subprocess_exec(*command, stdout=log, stderr=log)
    target = Target(f"vllm-router {policy}", [f"http://{HOST}:{port}"], process.pid)
    try:
        if not await answers(target.urls[0]):
            sys.exit(f"{target.name} does not serve:\n{(folder / f'{policy}.log').read_text()}")
        yield target
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def answers(url: str) -> bool:
    """Whether a server completes a prompt within 20 s."""
    body = {"model": "model", "prompt": [5, 6, 7], "max_tokens": 1}
    async with aiohttp.ClientSession() as session:
        for _ in range(80):
            with contextlib.suppress(aiohttp.ClientError):
                async with session.post(f"{url}/v1/completions", json=body) as response:
                    if response.status == 200:
                        return True
            await asyncio.sleep(0.25)
    return False


async def race(args: argparse.Namespace, folder: Path) -> dict[str, dict[str, list[Run]]]:
    """All rounds; runs by load and target."""
    runs: dict[str, dict[str, list[Run]]] = {}
    async with contextlib.AsyncExitStack() as stack:
        deployment, cards = await stack.enter_async_context(cluster(folder))
        [pid] = [status.pid for status in deployment.processes if status.role == "frontend"]
        targets = [
            Target("direct", [card.url for card in cards], None),
            Target("dynosim", [deployment.url], pid),
        ]
        for policy in PEER_POLICIES if args.vllm_router else ():
            served = peer(args.vllm_router, policy, cards, folder)
            targets.append(await stack.enter_async_context(served))
        pids = [status.pid for status in deployment.processes if status.pid is not None]
        pids += [target.pid for target in targets[2:] if target.pid is not None]
        seed = 0
        for number in range(args.rounds + 1):  # the first one warms up and does not count
            for name, load in loads(args).items():
                for target in targets[number % len(targets) :] + targets[: number % len(targets)]:
                    seed += 1
                    done = await run(target, load, seed, pids)
                    if number > 0:
                        runs.setdefault(name, {}).setdefault(target.name, []).append(done)
            print(f"round {number} of {args.rounds} done", file=sys.stderr)
    return runs


def figures(runs: dict[str, dict[str, list[Run]]], target: str) -> dict[str, Any]:
    """What the runs of a target come to: medians over the rounds."""
    rate, full, streams = (runs[name][target] for name in ("rate", "full", "streams"))
    direct = runs["rate"]["direct"]

    def added(value: Callable[[Measured], float]) -> float:
        pairs = zip(rate, direct, strict=True)
        return statistics.median(
            value(one.measured) - value(other.measured) for one, other in pairs
        )

    return {
        "target": target,
        "others_cores": statistics.median(one.others_cores for one in rate),
        "ttft_ms_p50": statistics.median(percentile(one.measured.ttft_ms, 50) for one in rate),
        "added_ttft_ms_p50": added(lambda one: percentile(one.ttft_ms, 50)),
        "added_ttft_ms_p99": added(lambda one: percentile(one.ttft_ms, 99)),
        "added_e2e_ms_p50": added(lambda one: percentile(one.e2e_ms, 50)),
        "added_e2e_ms_p99": added(lambda one: percentile(one.e2e_ms, 99)),
        "added_per_token_us": added(lambda one: percentile(gaps_ms(one), 50)) * 1e3,
        "rate_cpu_ms_per_request": per_request_ms(rate),
        "requests_per_s": statistics.median(
            len(one.measured.e2e_ms) / one.measured.wall_s for one in full
        ),
        "cpu_ms_per_request": per_request_ms(full),
        "streams_complete": min(len(one.measured.e2e_ms) for one in streams),
        "streams_tokens_per_s": statistics.median(
            one.measured.tokens / one.measured.wall_s for one in streams
        ),
        "streams_ttft_ms_p99": statistics.median(
            percentile(one.measured.ttft_ms, 99) for one in streams
        ),
        "streams_cpu_us_per_token": statistics.median(
            one.cpu_s / one.measured.tokens for one in streams
        )
        * 1e6,
        "rss_mib": max(one.rss_mib for one in streams),
        "errors": [error for one in rate + full + streams for error in one.measured.errors],
    }


def percentile(values: list[float], percent: float) -> float:
    """Of values that are there, else nan."""
    return float(np.percentile(values, percent)) if values else float("nan")


def gaps_ms(measured: Measured) -> list[float]:
    """Each request's mean time between tokens; they have 16."""
    pairs = zip(measured.ttft_ms, measured.e2e_ms, strict=True)
    return [(e2e_ms - ttft_ms) / 15 for ttft_ms, e2e_ms in pairs]


def per_request_ms(runs: list[Run]) -> float:
    """Processor time of the target."""
    return statistics.median(one.cpu_s / max(len(one.measured.e2e_ms), 1) for one in runs) * 1e3


def print_rows(rows: list[dict[str, Any]]) -> None:
    """The table, one figure a line."""
    print(f"{'':26}" + "".join(f"{row['target']:>24}" for row in rows))
    for name in rows[0]:
        if name not in ("target", "errors"):
            print(f"{name:26}" + "".join(f"{row[name]:24.2f}" for row in rows))
    print(f"{'errors':26}" + "".join(f"{len(row['errors']):24}" for row in rows))
    for row in rows:
        for error in row["errors"][:3]:
            print(f"{row['target']}: {error}", file=sys.stderr)


def main() -> None:
    """Run the race."""
    args = parse_args()
    if args.vllm_router is None:
        print("no --vllm-router: without the peer", file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        runs = asyncio.run(race(args, Path(folder)))
    rows = [figures(runs, target) for target in sorted(runs["rate"])]
    if args.json:
        print(json.dumps(rows, indent=2))
    else:
        print_rows(rows)


if __name__ == "__main__":
    main()
