"""Do the pins of a trace fit: one that no cache can keep is refused before anything starts.

So is a trace that asks for more different blocks to be pinned at once than all caches hold, were
each request over the moment it comes. Both go for each tier, too, that heeds pins. What is too much
for other reasons shows in the run: on a device a pin gives way to whoever needs its blocks, and a
tier takes nothing while it has no other blocks.
"""

from collections.abc import Iterator
from heapq import heappop, heappush
from typing import NamedTuple

from dynosim.cluster.spec import ClusterSpec, PoolSpec
from dynosim.errors import InfeasibleError
from dynosim.memory.tiers import TierSpec, TiersSpec
from dynosim.records import NO_REQUEST, Trace
from dynosim.workload.extents import PrefixExtents


def check_pins(trace: Trace, cluster: ClusterSpec) -> None:
    """Refuse a pinned prompt that is larger than any cache, or than a tier that heeds pins.

    Raises: InfeasibleError naming the first such request.
    """
    for cache in _caches(cluster):
        for row, _ in _pins(trace):
            blocks = int(trace.input_tokens[row]) // cluster.block_size
            if blocks > cache.largest_blocks:
                raise InfeasibleError(
                    f"{_name(trace, row)} pins {blocks:,} blocks, but {cache.largest_has} "
                    f"{cache.largest_blocks:,} ({cache.remedy})"
                )


def check_pins_together(trace: Trace, extents: PrefixExtents, cluster: ClusterSpec) -> None:
    """Refuse a trace whose pins are more than all caches, or a tier, by its own arrivals.

    So is one that `check_pins` refuses. A request whose arrival depends on another's end is left
    out. Raises: InfeasibleError naming the first request whose pin is too much.
    """
    check_pins(trace, cluster)
    caches = _caches(cluster)
    for row, now_ms, pinned_blocks in _pinned_together(trace, extents):
        for cache in caches:
            if pinned_blocks > cache.total_blocks:
                raise InfeasibleError(
                    f"{_name(trace, row)} pins blocks when so many are pinned that "
                    f"{pinned_blocks:,} would be at once, at {now_ms / 1000.0:,.1f} s; "
                    f"{cache.total_have} {cache.total_blocks:,} ({cache.remedy})"
                )


class _Cache(NamedTuple):
    """The devices' caches, or one tier, and how messages speak of them."""

    largest_blocks: int  # of one
    total_blocks: int
    largest_has: str
    total_have: str
    remedy: str


def _caches(cluster: ClusterSpec) -> list[_Cache]:
    """All that pins must fit."""
    pools = [pool for pool in cluster.pools if pool.role != "decode"]
    found = [
        _Cache(
            max(pool.engine.usable_blocks for pool in pools),
            sum(pool.workers * pool.ranks.number * pool.engine.usable_blocks for pool in pools),
            "a worker's cache has",
            "all caches together have",
            "pin less, for a shorter time, or give workers more blocks",
        )
    ]
    tiers: dict[TierSpec, set[str]] = {}
    for pool in pools:
        for tier in () if pool.tiers is None else pool.tiers.tiers:
            if pool.tiers is not None and tier.policy == "priority":
                tiers.setdefault(tier, set()).update(_places(pool, pool.tiers, tier))
    return [*found, *(_tier_cache(tier, len(places)) for tier, places in tiers.items())]


def _tier_cache(tier: TierSpec, count: int) -> _Cache:
    whose = "the {} tier" if tier.scope == "cluster" else "the {} tier of a " + tier.scope
    return _Cache(
        tier.num_blocks,
        count * tier.num_blocks,
        f"{whose.format(tier.name)} has",
        f"all of the {tier.name} tier has",
        f"pin less, for a shorter time, or raise the capacity of cluster.tiers.{tier.name}",
    )


def _places(pool: PoolSpec, tiers: TiersSpec, tier: TierSpec) -> list[str]:
    """Where a pool has such tiers, one in each place."""
    if tier.scope == "cluster":
        return [""]
    if tier.scope == "worker":
        return [f"{pool.name} {number}" for number in range(pool.workers)]
    return [pool.place_of(number)[tiers.domain] for number in range(pool.workers)]


def _pinned_together(trace: Trace, extents: PrefixExtents) -> Iterator[tuple[int, float, int]]:
    """(request, when it comes, blocks that are pinned then), were each over at once."""
    until_ms: dict[int, float] = {}  # by extent
    ends: list[tuple[float, int]] = []  # heap, of extents; outdated ones among them
    pinned_blocks = 0
    for row, ttl_ms in _pins(trace):
        if trace.previous_turn is not None and trace.previous_turn[row] != NO_REQUEST:
            continue
        now_ms = float(trace.arrival_ms[row])
        while ends and ends[0][0] <= now_ms:
            end_ms, extent = heappop(ends)
            if until_ms[extent] == end_ms:
                del until_ms[extent]
                pinned_blocks -= int(extents.extent_blocks[extent])
        end_ms = now_ms + ttl_ms
        first, last = extents.path_offsets[row : row + 2].tolist()
        for extent in extents.path[first:last].tolist():
            if extent not in until_ms:
                pinned_blocks += int(extents.extent_blocks[extent])
            if until_ms.get(extent, 0.0) < end_ms:
                until_ms[extent] = end_ms
                heappush(ends, (end_ms, extent))
        yield row, now_ms, pinned_blocks


def _pins(trace: Trace) -> Iterator[tuple[int, float]]:
    """(request, time to live in ms) of those that pin."""
    for row, said in enumerate(trace.retention or ()):
        if said is not None and said.pin_ttl_ms is not None:
            yield row, said.pin_ttl_ms


def _name(trace: Trace, row: int) -> str:
    name = "" if trace.request_ids is None else f" ({trace.request_ids[row]})"
    return f"{trace.source or 'trace'}: request {row}{name}"
