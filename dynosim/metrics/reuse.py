"""How much of a trace's prompts caches of any size would have: its blocks, and curves over them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

import numpy as np

from dynosim.engine.spec import EvictionPolicy
from dynosim.errors import TraceError
from dynosim.memory.reuse import CacheVisits, LruReuse, OptimalReuse, tier_hits
from dynosim.records import RequestStatus, RunResult, Trace, WorkerLog
from dynosim.workload.extents import prefix_extents

_NUM_ROWS, _NUM_POINTS = 9, 80


def cache_visits(
    trace: Trace, block_size: int, *, single_blocks: bool = False, with_answers: bool = True
) -> CacheVisits:
    """What the requests of `trace` touch in the cache of an engine, in the order of its rows.

    All full blocks of prompts; the last is not to be hit if it ends the prompt, because an engine
    computes at least one token. With answers also the full blocks of tokens computed behind it,
    the last answered token not being one. `single_blocks`: extents of one block each. Prompts
    without hash ids touch nothing that others do.
    """
    found = prefix_extents(trace, block_size, single_blocks=single_blocks)
    blocks = found.extent_blocks[found.path]
    ends_prompt = (found.path_blocks > 0) & (trace.input_tokens % block_size == 0)
    lasts = found.path_offsets[1:][ends_prompt] - 1
    assert bool((blocks[lasts] == 1).all()), "prompts that end with a block are cut before it"
    is_hittable = np.ones(len(blocks), np.bool_)
    is_hittable[lasts] = False
    computed = trace.input_tokens + np.maximum(trace.output_tokens, 1) - 1
    answers = computed // block_size - trace.input_tokens // block_size
    return CacheVisits(
        extents=found.path,
        blocks=blocks,
        is_hittable=is_hittable,
        offsets=found.path_offsets,
        answer_blocks=answers if with_answers else np.zeros_like(answers),
    )


def reuse_bound(result: RunResult, trace: Trace) -> dict[str, Any]:
    """What the prompts of a run could have found in caches, as shares of the prompt tokens of its
    completed requests, to lay beside `prefix_cache_reused_ratio`; ready for JSON.

    `optimal`: in one cache with as many blocks as all workers ever had at once, their tiers
    included, that knows the future and holds nothing for requests in flight. No routing and no
    eviction has more, requests being scheduled in the order in which they were; where it is not
    known, in that which gives the most. `lru`: the same cache without foresight. `endless`: with
    room for all.
    """
    log = result.requests
    completed = log.status == RequestStatus.COMPLETED
    # Of those scheduled in one step, whoever counts less goes first: who is not completed has no
    # hits, and a short prompt computes its end anyway, for longer ones to find.
    order = np.lexsort((log.input_tokens, completed, log.scheduled_ms))
    order = order[~np.isnan(log.scheduled_ms[order])]
    visits = cache_visits(trace.take(order), result.block_size)
    counts = completed[order].repeat(np.diff(visits.offsets))
    visits = replace(visits, is_hittable=visits.is_hittable & counts)
    blocks = most_blocks(result.workers) + sum(tier.capacity_blocks for tier in result.tiers)
    lru = LruReuse(visits)
    hits = {
        "lru": lru.hits(blocks),
        "optimal": OptimalReuse(visits).hits(blocks),
        "endless": lru.hits(lru.working_set_blocks),
    }
    tokens = int(log.input_tokens[completed].sum())
    shares = {
        name: count * result.block_size / tokens if tokens else None for name, count in hits.items()
    }
    return {"capacity_blocks": blocks, **shares}


def most_blocks(workers: WorkerLog) -> int:
    """The most KV blocks that workers held at any one time."""
    starts, ends = workers.launched_ms, workers.ended_ms
    return max(
        int(workers.usable_blocks[(starts <= at) & ~(ends <= at)].sum())
        for at in set(starts.tolist())
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ReuseQuestion:
    """What is to be known of a trace's reuse. Capacities are in blocks.

    Without `capacities` they double up to the one that LRU needs for all there is. With
    `device_blocks` they are those of a host tier behind a device of so many, which keeps the
    youngest and writes through: what the device has, the host has been given too.
    `enough` is the share of what an endless cache has that is worth asking the room for.
    """

    block_size: int
    capacities: tuple[int, ...] | None = None
    policies: tuple[EvictionPolicy, ...] = ("lru",)
    device_blocks: int = 0
    with_answers: bool = True
    enough: float = 0.9


def reuse_by_capacity(trace: Trace, question: ReuseQuestion) -> dict[str, Any]:
    """What caches of some sizes have of the prompts of `trace`, ready for JSON.

    All shares are of prompt tokens. `optimal` is what a cache as large as all tiers together has
    that knows the future. Raises: TraceError if the trace does not tell what prompts share.
    """
    if not len(trace.hash_ids):
        raise TraceError("it has no hash ids, so that reuse is unknown", path=trace.source)
    return _ReuseTable(trace, question).summary()


class _ReuseTable:
    def __init__(self, trace: Trace, question: ReuseQuestion) -> None:
        self._trace, self._question = trace, question
        visits = self._visits()
        self._lru, self._optimum = LruReuse(visits), OptimalReuse(visits)
        self._prompt_tokens = int(trace.input_tokens.sum())
        self._most_hits = self._lru.hits(self._lru.working_set_blocks)

    def summary(self) -> dict[str, Any]:
        question = self._question
        capacities = question.capacities or _doublings(self._lru.working_set_blocks)
        device_hits = self._lru.hits(question.device_blocks)
        return {
            "source": self._trace.source,
            "requests": len(self._trace),
            "skipped_lines": self._trace.skipped_lines,
            "assumed_lengths": self._trace.assumed_lengths,
            "prompt_tokens": self._prompt_tokens,
            "block_size": question.block_size,
            "with_answers": question.with_answers,
            "reusable": self._share(self._most_hits),
            "lru_working_set_blocks": self._lru.working_set_blocks,
            "device_blocks": question.device_blocks,
            "device": self._share(device_hits) if question.device_blocks else None,
            "capacities": [self._row(capacity) for capacity in sorted(set(capacities))],
            "enough": self._enough(),
        }

    def _row(self, capacity: int) -> dict[str, Any]:
        question = self._question
        row: dict[str, Any] = {
            "blocks": capacity,
            "tokens": capacity * question.block_size,
        }
        for policy in question.policies:
            row[policy] = self._share(self._hits(policy, capacity))
        return row | {"optimal": self._share(self._optimum.hits(question.device_blocks + capacity))}

    def _hits(self, policy: EvictionPolicy, capacity: int) -> int:
        device = self._question.device_blocks
        if policy == "lru":  # the youngest blocks of the host begin with those of the device
            return self._lru.hits(max(device, capacity))
        on_device = self._lru.hits_of_requests(device)
        behind = tier_hits(self._visits(single_blocks=True), capacity, policy, on_device)
        return int(on_device.sum() + behind.sum())

    def _enough(self) -> dict[str, Any]:
        """How many blocks have that share of what an endless cache has; 0: the device does."""
        device, share = self._question.device_blocks, self._question.enough
        wanted = ceil(share * self._most_hits)
        lru = self._lru.capacity_for(wanted)
        optimal = self._optimum.capacity_for(wanted, at_most=lru)
        return {
            "share": share,
            "lru_blocks": lru if lru > device else 0,
            "optimal_blocks": max(optimal - device, 0),
        }

    def _visits(self, *, single_blocks: bool = False) -> CacheVisits:
        question = self._question
        return cache_visits(
            self._trace,
            question.block_size,
            single_blocks=single_blocks,
            with_answers=question.with_answers,
        )

    def _share(self, hits: int) -> float:
        return hits * self._question.block_size / self._prompt_tokens


def _doublings(last: int) -> tuple[int, ...]:
    """`last`, its half, and so on, for as many rows as are easily read."""
    return tuple(max(1, last >> halvings) for halvings in range(_NUM_ROWS))


def curve_capacities(summary: Mapping[str, Any]) -> tuple[int, ...]:
    """Capacities for a smooth curve, evenly on a logarithmic axis: from a thousandth of what LRU
    needs, or the smallest of the table's, to twice that, or the largest."""
    listed = [row["blocks"] for row in summary["capacities"]]
    working_set = max(summary["lru_working_set_blocks"], 1)
    first, last = min(working_set / 1000, *listed), max(2 * working_set, *listed)
    return tuple(np.geomspace(max(first, 1), last, _NUM_POINTS).astype(np.int64).tolist())
