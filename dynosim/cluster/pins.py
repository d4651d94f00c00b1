"""Do the pins of a trace fit: a pin that no cache can keep is refused before anything starts.

Refused is a pinned prompt that is larger than a cache, and a trace that asks for more different
blocks to be pinned at one time than all caches hold, were each request over the moment it comes.
What is too much for other reasons shows in the run: a pin gives way to whoever needs its blocks.
"""

from heapq import heappop, heappush

from dynosim.cluster.spec import ClusterSpec
from dynosim.errors import InfeasibleError
from dynosim.records import NO_REQUEST, Retention, Trace
from dynosim.workload.extents import PrefixExtents

_REMEDY = "pin less, for a shorter time, or give workers more blocks"


def check_pins(
    trace: Trace, extents: PrefixExtents, cluster: ClusterSpec, *, is_timed: bool
) -> None:
    """Refuse pins beyond the caches. `is_timed`: requests come when the trace says, and no worker
    comes or goes.

    Raises: InfeasibleError naming the first request whose pin is too much.
    """
    if trace.retention is None or not cluster.enable_prefix_caching:
        return
    pools = [pool for pool in cluster.pools if pool.role != "decode"]
    largest = max(pool.engine.usable_blocks for pool in pools)
    rows = [row for row, said in enumerate(trace.retention) if said and said.pin_ttl_ms is not None]
    for row in rows:
        blocks = int(trace.input_tokens[row]) // cluster.block_size
        if blocks > largest:
            raise InfeasibleError(
                f"{_name(trace, row)} pins {blocks:,} blocks, but a worker's cache has {largest:,} "
                f"({_REMEDY})"
            )
    if is_timed:
        ranks = [pool.workers * pool.ranks.number * pool.engine.usable_blocks for pool in pools]
        _check_together(trace, trace.retention, extents, rows, sum(ranks))


def _check_together(
    trace: Trace,
    retention: tuple[Retention | None, ...],
    extents: PrefixExtents,
    rows: list[int],
    capacity_blocks: int,
) -> None:
    """Go through the pins in the order of their arrivals; each lasts from there for its time."""
    until_ms: dict[int, float] = {}  # by extent
    ends: list[tuple[float, int]] = []  # heap, of extents; outdated ones among them
    pinned_blocks = 0
    for row in rows:
        said = retention[row]
        if trace.previous_turn is not None and trace.previous_turn[row] != NO_REQUEST:
            continue  # nobody knows when it comes
        now_ms = float(trace.arrival_ms[row])
        while ends and ends[0][0] <= now_ms:
            end_ms, extent = heappop(ends)
            if until_ms[extent] == end_ms:
                del until_ms[extent]
                pinned_blocks -= int(extents.extent_blocks[extent])
        assert said is not None and said.pin_ttl_ms is not None
        end_ms = now_ms + said.pin_ttl_ms
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


def _name(trace: Trace, row: int) -> str:
    name = "" if trace.request_ids is None else f" ({trace.request_ids[row]})"
    return f"{trace.source or 'trace'}: request {row}{name}"
