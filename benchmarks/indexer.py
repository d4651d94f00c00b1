#!/usr/bin/env python3
"""Races the KV indexes on the block events and queries of a Mooncake trace.

    python benchmarks/indexer.py --trace mooncake_conversation.jsonl.gz --peer-python ENV/bin/python

Requests go to workers at random (seeded). Each worker keeps an LRU cache of 16,384 blocks of 64
tokens. A request is one query with all its complete prompt blocks; what its cache then evicts is
one removed event, and what it had not yet is one stored event, both at the time of the arrival.
Every index gets the same stream, one call after the other, each call timed.

Blocks are those of queries and of stored events. The offered rate that an index keeps up with is
found by simulated queueing: arrivals squeezed into ever shorter durations before a single server
with the measured call times; it keeps up while it serves at least 95 % of the offered rate.

With --peer-python NVIDIA Dynamo's compiled `RadixTree` runs the same stream, called from Python as
ours is. It takes events as JSON; these bytes are made outside the timed part (row `peer`), or in it
(`peer+json`). It works in a thread of its own, and handing calls over within one processor is much
faster than waking up another one, so everything runs on one processor; `peer 2 cpus` is without.
Rounds alternate; the best of each index counts, since others use the machine too.
"""

import argparse
import functools
import gc
import json
import os
import pickle
import random
import subprocess
import sys
import tempfile
import time
from array import array
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dynosim.blocks.hashing import trace_local_hashes, trace_sequence_hashes
from dynosim.indexer.base import Removed, Stored
from dynosim.indexer.make import INDEXES, make_indexer
from dynosim.workload.readers import read_trace

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("DYNOSIM_SHARED", ROOT.parent / "shared"))
BLOCK_SIZE = 64
CAPACITY_BLOCKS = 16384
KEEPS_UP = 0.95

PEER = """
import gc, json, os, pickle, sys, time

with_json, cpu = sys.argv[2] == "1", int(sys.argv[4])
if cpu >= 0:
    os.sched_setaffinity(0, {cpu})

from dynamo._core import RadixTree

ops = pickle.load(open(sys.argv[1], "rb"))

def payload(number, op):
    _, _, worker, parent, names, local = op
    if local is None:
        data = {"removed": {"block_hashes": names.tolist()}}
    else:
        blocks = [{"block_hash": n, "tokens_hash": h} for n, h in zip(names, local)]
        data = {"stored": {"parent_hash": parent, "blocks": blocks}}
    return json.dumps({"event_id": number, "data": data, "dp_rank": 0}).encode()

ready = [None if op[2] < 0 or with_json else payload(i, op) for i, op in enumerate(ops)]
tree, times, checks = RadixTree(), [], []
gc.collect()
gc.freeze()
clock = time.perf_counter
for number, op in enumerate(ops):
    if op[2] < 0:
        blocks = op[4].tolist()
        start = clock()
        found = tree.find_matches(blocks).scores
        times.append(clock() - start)
        checks.append(sum(found.values()))
    elif with_json:
        start = clock()
        tree.apply_event(op[2], payload(number, op))
        times.append(clock() - start)
    else:
        data, worker = bytes(bytearray(ready[number])), op[2]  # as if just received
        start = clock()
        tree.apply_event(worker, data)
        times.append(clock() - start)
pickle.dump((times, checks), open(sys.argv[3], "wb"))
"""


class Op(NamedTuple):
    """One call: a query (worker -1), a stored event, or a removed event (no local hashes).

    Hashes become lists just before each call, untimed, as a decoder would make them.
    """

    at_ms: float
    num_blocks: int  # that count
    worker: int
    parent: int | None
    names: "array[int]"  # of a query: its local hashes
    local: "array[int] | None"


class Timing(NamedTuple):
    """What running a stream gave."""

    times_s: list[float]  # by call
    checks: list[int]  # by query: matched blocks summed over workers
    size: int
    lookups: int


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    default = SHARED / "traces" / "mooncake_conversation.jsonl.gz"
    parser.add_argument("--trace", type=Path, default=default)
    parser.add_argument("--workers", default="16,1000", help="comma-separated")
    parser.add_argument("--indexes", default=",".join(INDEXES), help="comma-separated")
    parser.add_argument("--rounds", type=int, default=3, help="of the fast ones; the best counts")
    parser.add_argument("--limit-s", type=float, default=4.0, help="then an index is cut off")
    parser.add_argument("--peer-python", default=os.environ.get("PEER_PYTHON"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print all figures as JSON")
    return parser.parse_args()


def make_ops(path: Path, num_workers: int, seed: int) -> list[Op]:
    """The stream of a trace: queries, and the events of the workers' caches."""
    trace = read_trace(path)
    local_hashes, offsets = trace_local_hashes(trace, BLOCK_SIZE)
    all_names = trace_sequence_hashes(local_hashes, offsets)
    draw = random.Random(seed).randrange
    caches: list[OrderedDict[int, None]] = [OrderedDict() for _ in range(num_workers)]
    ops = []
    for request, at_ms in enumerate(trace.arrival_ms.tolist()):
        part = slice(offsets[request], offsets[request + 1])
        local, names = array("Q", local_hashes[part].tobytes()), all_names[part].tolist()
        worker = draw(num_workers)
        ops.append(Op(at_ms, len(local), -1, None, local, None))
        num_known, evicted = use(caches[worker], names)
        if evicted:
            ops.append(Op(at_ms, 0, worker, None, array("Q", evicted), None))
        if num_known < len(names):
            parent = names[num_known - 1] if num_known else None
            new = array("Q", names[num_known:])
            ops.append(Op(at_ms, len(new), worker, parent, new, local[num_known:]))
    return ops


def use(cache: OrderedDict[int, None], names: list[int]) -> tuple[int, list[int]]:
    """Pass a prompt through a cache; returns the blocks it had, and which it had to evict."""
    num_known = 0
    while num_known < len(names) and names[num_known] in cache:
        num_known += 1
    for name in names[:num_known]:
        cache.move_to_end(name)  # safe from what follows
    evicted = []
    while len(cache) + len(names) - num_known > CAPACITY_BLOCKS:
        evicted.append(cache.popitem(last=False)[0])
    for name in reversed(names):  # the deepest block goes first
        cache[name] = None
        cache.move_to_end(name)
    return num_known, evicted


def run_ours(kind: str, ops: list[Op], limit_s: float) -> Timing:
    """Run the stream, or what of it can be done in time, through one of our indexes."""
    index = make_indexer(kind)
    gc.collect()
    gc.freeze()
    clock = time.perf_counter
    times, checks = [], []
    stop = clock() + limit_s
    for op in ops:
        names, worker = op.names.tolist(), op.worker
        if worker < 0:
            start = clock()
            found = index.find_matches(names)
            end = clock()
            checks.append(sum(mask.bit_count() * depth for mask, depth in found.classes))
        else:
            event = (
                Removed(names) if op.local is None else Stored(op.parent, names, op.local.tolist())
            )
            start = clock()
            index.apply(worker, event)
            end = clock()
        times.append(end - start)
        if end > stop:
            break
    gc.unfreeze()
    return Timing(times, checks, index.size, index.counters.lookups)


def run_peer(python: str, path: Path, *, with_json: bool, cpu: int) -> Timing:
    """The same with the peer's tree, in a process of its own on one processor (-1: on any)."""
    out = path.with_suffix(".out")
    command = [python, "-c", PEER, str(path), str(int(with_json)), str(out), str(cpu)]
    subprocess.run(command, check=True)
    times, checks = pickle.loads(out.read_bytes())
    return Timing(times, checks, 0, 0)


def figures(name: str, timing: Timing, ops: list[Op]) -> dict[str, Any]:
    """What a run comes to."""
    done = ops[: len(timing.times_s)]
    blocks = np.array([op.num_blocks for op in done])
    times_s = np.array(timing.times_s)
    is_query = np.array([op.worker < 0 for op in done])
    rate = threshold(np.array([op.at_ms for op in done]), blocks, times_s)
    p50, p99 = np.percentile(times_s[is_query] * 1e6, [50, 99])
    return {
        "index": name,
        "share": len(done) / len(ops),
        "blocks_per_s": blocks.sum() / times_s.sum(),
        "calls_per_s": len(done) / times_s.sum(),
        "keeps_up_blocks_per_s": rate,
        "query_us_p50": p50,
        "query_us_p99": p99,
        "event_us_mean": times_s[~is_query].mean() * 1e6,
        "lookups_per_query": timing.lookups / is_query.sum(),
        "size": timing.size,
    }


def threshold(at_ms: np.ndarray, blocks: np.ndarray, times_s: np.ndarray) -> float:
    """The highest offered rate (blocks/s) that a single server keeps up with."""
    arrival = (at_ms - at_ms[0]) / (at_ms[-1] - at_ms[0])  # of a duration of 1
    done_before = np.concatenate([[0.0], np.cumsum(times_s)])
    best = 0.0
    for duration_s in np.geomspace(60.0, times_s.sum() / 4, 60):
        # Each call starts when it has arrived and the one before is done.
        finish = done_before[-1] + (arrival * duration_s - done_before[:-1]).max()
        offered = blocks.sum() / duration_s
        if blocks.sum() / finish >= KEEPS_UP * offered:
            best = max(best, offered)
    return best


def race(args: argparse.Namespace, num_workers: int) -> list[dict[str, Any]]:
    """All indexes on one number of workers; rows of figures."""
    ops = make_ops(args.trace, num_workers, args.seed)
    runs: dict[str, list[Timing]] = {}
    cpu = min(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ops.pickle"
        if args.peer_python:
            path.write_bytes(pickle.dumps([tuple(op) for op in ops]))
        for number in range(args.rounds):
            for kind in args.indexes.split(","):
                is_slow = kind in runs and sum(runs[kind][0].times_s) > args.limit_s / 4
                if not is_slow:
                    runs.setdefault(kind, []).append(run_pinned(kind, ops, args.limit_s, cpu))
            if args.peer_python:
                peer = functools.partial(run_peer, args.peer_python, path)
                runs.setdefault("peer", []).append(peer(with_json=False, cpu=cpu))
                if number == 0:
                    runs["peer+json"] = [peer(with_json=True, cpu=cpu)]
                    runs["peer 2 cpus"] = [peer(with_json=False, cpu=-1)]
    check_agreement(runs)
    rows = []
    for name, timings in runs.items():
        each = [figures(name, timing, ops) for timing in timings]
        best = max(each, key=lambda row: float(row["blocks_per_s"]))
        rows.append({"workers": num_workers, **best})
    return rows


def run_pinned(kind: str, ops: list[Op], limit_s: float, cpu: int) -> Timing:
    """`run_ours` on one processor."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        return run_ours(kind, ops, limit_s)
    finally:
        os.sched_setaffinity(0, allowed)


def check_agreement(runs: dict[str, list[Timing]]) -> None:
    """All exact indexes must have found the same. Raises: SystemExit if not."""
    exact = {name: t for name, t in runs.items() if name not in ("naive", "inverted")}
    longest = max((t[0].checks for t in exact.values()), key=len, default=[])
    for name, timings in exact.items():
        for timing in timings:
            if timing.checks != longest[: len(timing.checks)]:
                sys.exit(f"{name} gives other answers than the rest")


def print_rows(rows: list[dict[str, Any]]) -> None:
    """The table."""
    head = ("workers", "index", "share", "Mblocks/s", "calls/s", "keeps up", "query p50 us",
            "p99 us", "event us", "look-ups", "size")  # fmt: skip
    print(" ".join(f"{name:>12}" for name in head))
    for row in rows:
        cells = (
            row["workers"], row["index"], f"{100 * row['share']:.0f} %",
            f"{row['blocks_per_s'] / 1e6:.2f}", f"{row['calls_per_s']:.0f}",
            f"{row['keeps_up_blocks_per_s'] / 1e6:.2f}", f"{row['query_us_p50']:.1f}",
            f"{row['query_us_p99']:.1f}", f"{row['event_us_mean']:.1f}",
            f"{row['lookups_per_query']:.1f}", row["size"],
        )  # fmt: skip
        print(" ".join(f"{cell:>12}" for cell in cells))


def main() -> None:
    """Run the race."""
    args = parse_args()
    if not args.trace.exists():
        sys.exit(f"{args.trace}: no such trace (give one with --trace)")
    rows = [row for n in args.workers.split(",") for row in race(args, int(n))]
    if args.json:
        print(json.dumps(rows, indent=2))
    else:
        print_rows(rows)


if __name__ == "__main__":
    main()
