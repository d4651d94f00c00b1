#!/usr/bin/env python3
"""What the rotating router log costs: microseconds per request, and the pauses of a rotation.

    python benchmarks/router_log.py --workers 16 --pairs 1000000

Workers hold `pairs` (worker, block) pairs in all: chains of 64 blocks, a third of each shared by
all workers, and some ends evicted. Requests of 64 blocks come at random; each is placed, stores its
blocks, gets its first token and ends when 256 more have come. The same stream goes to a router
without and with a log, in turns; the best round of each counts. Then one rotation: every call of
`maintain` is timed, with a request between any two, and last the new file is replayed. Processor
time is what counts: others use the machine too.
"""

import argparse
import gc
import random
import tempfile
import time
from collections import deque
from pathlib import Path

from dynosim.blocks.hashing import sequence_hashes
from dynosim.indexer.base import BlockEvent, Removed, Stored
from dynosim.indexer.make import IndexSpec, make_indexer
from dynosim.router.decision import Decision
from dynosim.router.inputs import Arrive, End, FirstToken, Join, WorkerEvents
from dynosim.router.knobs import RouterSpec
from dynosim.router.kv_router import KvRouter
from dynosim.router.log.recorder import RouterLog
from dynosim.router.request import RoutingRequest
from dynosim.router.workers import WorkerCard
from dynosim.routerlog.replay import log_files, replay_log
from dynosim.routerlog.rotating import ROTATE_AT, RotatingLog
from dynosim.workers.ids import FIRST_RANK, WorkerId

BLOCK_SIZE = 16
CHAIN_BLOCKS = 64
SHARED_BLOCKS = 20
IN_HAND = 256


Inputs = KvRouter[BlockEvent] | RouterLog[BlockEvent]


class Load:
    """A stream of requests, made ahead so that only the router's time counts."""

    def __init__(self, inputs: Inputs, prompts: list[tuple[list[int], list[int]]]) -> None:
        self._inputs = inputs
        self._prompts = prompts
        self._in_hand: deque[int] = deque()
        self._number = 0

    def step(self) -> None:
        """One request comes, is placed and gets its first token; an old one ends."""
        self._number += 1
        number, now_ms = self._number, self._number * 0.7
        local, keys = self._prompts[number % len(self._prompts)]
        made = RoutingRequest(number, CHAIN_BLOCKS * BLOCK_SIZE, CHAIN_BLOCKS, local, keys)
        take = self._inputs.take
        decision = take(Arrive(now_ms, made))
        assert isinstance(decision, Decision)
        stored = [Stored(None, keys, local)]
        take(WorkerEvents(now_ms, decision.worker_id, FIRST_RANK, stored))
        take(FirstToken(now_ms, number))
        self._in_hand.append(number)
        if len(self._in_hand) > IN_HAND:
            take(End(now_ms, self._in_hand.popleft()))


def fill(inputs: Inputs, num_workers: int, num_pairs: int, rng: random.Random) -> None:
    """Let workers join and hold blocks."""
    num_chains = num_pairs // num_workers // CHAIN_BLOCKS
    shared = [[rng.getrandbits(64) for _ in range(SHARED_BLOCKS)] for _ in range(num_chains)]
    for worker_id in map(WorkerId, range(num_workers)):
        inputs.take(Join(0.0, WorkerCard(worker_id, BLOCK_SIZE, total_kv_blocks=10**6)))
        for head in shared:
            own = [rng.getrandbits(64) for _ in range(CHAIN_BLOCKS - SHARED_BLOCKS)]
            names = sequence_hashes([*head, *own])
            events: list[BlockEvent] = [Stored(None, names, [*head, *own])]
            if rng.random() < 0.1:
                events.append(Removed(names[:-8:-1]))
            inputs.take(WorkerEvents(0.0, worker_id, FIRST_RANK, events))


def time_steps(load: Load, log: RotatingLog | None, count: int) -> float:
    """Microseconds per request."""
    began_s = time.thread_time()
    for _ in range(count):
        load.step()
        if log is not None:
            log.maintain()
    return (time.thread_time() - began_s) / count * 1e6


def time_rotation(load: Load, log: RotatingLog, folder: Path) -> list[float]:
    """Milliseconds of each call of `maintain` while the file changes."""
    num_files = len(log_files(folder))
    calls_ms: list[float] = []
    while len(log_files(folder)) == num_files:
        began_s = time.thread_time()
        log.maintain()
        calls_ms.append((time.thread_time() - began_s) * 1e3)
        load.step()
    return calls_ms


def main() -> None:
    """Print what was measured."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--workers", type=int, default=16)
    parser.add_argument("--pairs", type=int, default=1_000_000)
    parser.add_argument("--requests", type=int, default=2000)
    args = parser.parse_args()
    rng = random.Random(1)
    settings, spec = RouterSpec(BLOCK_SIZE, mode="kv"), IndexSpec("compressed")
    prompts = []
    for _ in range(500):
        local = [rng.getrandbits(64) for _ in range(CHAIN_BLOCKS)]
        prompts.append((local, sequence_hashes(local)))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        log = RotatingLog(folder, max_bytes=1 << 40)
        plain, logged = KvRouter(settings, make_indexer(spec.kind)), log.open(settings, spec)
        for inputs in (plain, logged):
            fill(inputs, args.workers, args.pairs, random.Random(2))
        loads = Load(plain, prompts), Load(logged, prompts)
        for load in loads:
            time_steps(load, None, args.requests)
        gc.collect()
        rounds = [
            (time_steps(loads[0], None, args.requests), time_steps(loads[1], log, args.requests))
            for _ in range(5)
        ]
        without_us, with_us = (min(times) for times in zip(*rounds, strict=True))
        print(f"per request (4 inputs): {without_us:.1f} us without, {with_us:.1f} us with the log")
        log.flush()
        before = log_files(folder)[-1].stat().st_size
        log._limit_bytes = int(before / ROTATE_AT)  # due now
        calls_ms = time_rotation(loads[1], log, folder)
        last = log_files(folder)[-1]
        index = logged.router.index
        print(
            f"rotation of {index.size:,} pairs, {args.workers} workers: {len(calls_ms)} "
            f"calls, {sum(calls_ms):.0f} ms in all, longest {max(calls_ms):.0f} ms, last "
            f"{calls_ms[-1]:.0f} ms; new file {last.stat().st_size / 1e6:.1f} MB"
        )
        began_s = time.thread_time()
        log.close()
        assert replay_log(last).is_equal
        print(f"replay of the new file: {time.thread_time() - began_s:.1f} s")


if __name__ == "__main__":
    main()
