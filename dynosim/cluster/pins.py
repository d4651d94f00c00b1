"""Do the pins of a trace fit: one that no cache can keep is refused before anything starts.

So is a trace that asks for more different blocks to be pinned at once than all caches hold, were
each request over the moment it comes. What is too much for other reasons shows in the run: a pin
gives way to whoever needs its blocks.
"""

from collections.abc import Iterator
from heapq import heappop, heappush

from dynosim.cluster.spec import ClusterSpec, PoolSpec
from dynosim.errors import InfeasibleError
from dynosim.records import NO_REQUEST, Trace
from dynosim.workload.extents import PrefixExtents

_REMEDY = "pin less, for a shorter time, or give workers more blocks"


def check_pins(trace: Trace, cluster: ClusterSpec) -> None:
    """Refuse a pinned prompt that is larger than any cache.

    Raises: InfeasibleError naming the first such request.
    """
    largest = max(pool.engine.usable_blocks for pool in _pools(cluster))
    for row, _ in _pins(trace):
        blocks = int(trace.input_tokens[row]) // cluster.block_size
        if blocks > largest:
            raise InfeasibleError(
                f"{_name(trace, row)} pins {blocks:,} blocks, but a worker's cache has {largest:,} "
                f"({_REMEDY})"
            )


def check_pins_together(trace: Trace, extents: PrefixExtents, cluster: ClusterSpec) -> None:
    """Refuse a trace whose pins are more than all caches, by its own arrivals.

    A request whose arrival depends on another's end is left out. Raises: InfeasibleError naming the
    first request whose pin is too much.
    """
    capacity_blocks = sum(
        pool.workers * pool.ranks.number * pool.engine.usable_blocks for pool in _pools(cluster)
    )
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
        if pinned_blocks > capacity_blocks:
            raise InfeasibleError(
                f"{_name(trace, row)} pins blocks when so many are pinned that {pinned_blocks:,} "
                f"would be at once, at {now_ms / 1000.0:,.1f} s; all caches together have "
                f"{capacity_blocks:,} ({_REMEDY})"
            )


def _pins(trace: Trace) -> Iterator[tuple[int, float]]:
    """(request, time to live in ms) of those that pin."""
    for row, said in enumerate(trace.retention or ()):
        if said is not None and said.pin_ttl_ms is not None:
            yield row, said.pin_ttl_ms


def _pools(cluster: ClusterSpec) -> list[PoolSpec]:
    """Whose caches prompts are looked up in."""
    return [pool for pool in cluster.pools if pool.role != "decode"]


def _name(trace: Trace, row: int) -> str:
    name = "" if trace.request_ids is None else f" ({trace.request_ids[row]})"
    return f"{trace.source or 'trace'}: request {row}{name}"
