"""What requests do with the block pool: look up, take, register and free their blocks.

Registering makes full blocks hittable. It happens when a step is scheduled, not when it has run, so
a request admitted later in the same step can already hit what its neighbour is about to compute.
"""

from dynosim.engine.block_pool import BlockPool, Extent
from dynosim.engine.retaining_pool import RetainingPool
from dynosim.engine.sequence import Sequence


class PrefixHit:
    """What an admission would find in the cache."""

    __slots__ = ("extents", "idle_blocks", "own_blocks", "path_blocks")

    def __init__(
        self, extents: list[Extent], path_blocks: int, own_blocks: int, idle_blocks: int
    ) -> None:
        self.extents = extents  # along the request's path
        self.path_blocks = path_blocks
        self.own_blocks = own_blocks  # private blocks behind them, left by a preemption
        self.idle_blocks = idle_blocks  # of all these, the ones nobody references now


class KvCache:
    """Block bookkeeping of one engine, in terms of sequences.

    `registers_decodes`: generated blocks are registered as they fill. They need be only if somebody
    can hit or receive them. Prefixes are reused in multiples of `reuse_blocks`.
    """

    __slots__ = (
        "_retaining",
        "_reuse_blocks",
        "block_size",
        "has_prefix_caching",
        "pool",
        "registers_decodes",
    )

    def __init__(
        self,
        pool: BlockPool,
        block_size: int,
        *,
        has_prefix_caching: bool,
        reuse_blocks: int = 1,
    ) -> None:
        self.pool = pool
        self._retaining = pool if isinstance(pool, RetainingPool) else None
        self._reuse_blocks = reuse_blocks
        self.block_size = block_size
        self.has_prefix_caching = has_prefix_caching
        self.registers_decodes = pool.publishes_all

    def blocks_between(self, computed: int, end: int) -> int:
        """Blocks to take when a sequence grows from `computed` to `end` tokens."""
        block_size = self.block_size
        return -(-end // block_size) + (-computed // block_size)

    def blocks_of(self, sequence: Sequence) -> int:
        """Blocks of a sequence that does not decode."""
        return -(-max(sequence.num_computed, sequence.reserved_tokens) // self.block_size)

    def blocks_to_take(self, sequence: Sequence, computed: int, end: int) -> int:
        """The same for one that may have been given blocks by a load, computed or not."""
        if sequence.reserved_tokens > computed:
            computed = min(sequence.reserved_tokens, end)
        return self.blocks_between(computed, end)

    def lookup(self, sequence: Sequence) -> PrefixHit:
        """The longest cached prefix that leaves at least one token to compute."""
        if not self.has_prefix_caching:
            return PrefixHit([], 0, 0, 0)
        known = sequence.prompt_tokens
        if not sequence.remote_tokens:  # else an answer may have begun there, and not come yet
            known += sequence.generated_tokens
        limit = (known - 1) // self.block_size
        extents, num_blocks, idle = self.pool.lookup(sequence.path, limit)
        own, own_blocks = sequence.own, 0
        if own is not None and num_blocks >= sequence.path_blocks:
            own_blocks = min(own.num_cached, limit - num_blocks)
        hit = PrefixHit(extents, num_blocks, own_blocks, idle + own_blocks)
        if self._reuse_blocks > 1:
            self._cut_hit(hit, (num_blocks + own_blocks) % self._reuse_blocks)
        return hit

    def _cut_hit(self, hit: PrefixHit, num_blocks: int) -> None:
        """Leave out so many blocks at a hit's end, at a place where extents part."""
        if num_blocks <= hit.own_blocks:
            hit.own_blocks -= num_blocks
            hit.idle_blocks -= num_blocks
            return
        num_blocks -= hit.own_blocks
        hit.idle_blocks -= hit.own_blocks
        hit.own_blocks = 0
        while num_blocks > 0:
            last = hit.extents.pop()
            num_blocks -= last.num_cached
            hit.path_blocks -= last.num_cached
            if last.refs == 0:
                hit.idle_blocks -= last.num_cached

    def keep_whole(self, hit: PrefixHit) -> None:
        """Leave out the last extent of a hit if it is cached in part.

        Whoever loads holds that part while others go on: two who both completed it would share what
        each has of its own. Extents of one block, as in conformance, are always whole.
        """
        sizes = self.pool.extent_blocks
        if sizes is None or not hit.extents:
            return
        last = hit.extents[-1]
        if last.num_cached < sizes[last.content]:
            hit.extents.pop()
            hit.path_blocks -= last.num_cached
            if last.refs == 0:
                hit.idle_blocks -= last.num_cached

    def partial_extent(self, hit: PrefixHit) -> Extent | None:
        """The last extent of a hit if it is cached in part; see `keep_whole`."""
        sizes = self.pool.extent_blocks
        if sizes is None or not hit.extents:
            return None
        last = hit.extents[-1]
        return last if last.num_cached < sizes[last.content] else None

    def whole_blocks(self, hit: PrefixHit) -> int:
        """Blocks of a hit without the last extent, if that is cached in part; see `keep_whole`."""
        sizes = self.pool.extent_blocks
        if sizes is not None and hit.extents:
            last = hit.extents[-1]
            if last.num_cached < sizes[last.content]:
                return hit.path_blocks - last.num_cached
        return hit.path_blocks + hit.own_blocks

    def take_hit(self, sequence: Sequence, hit: PrefixHit) -> None:
        """Let an admitted sequence hold what it hit."""
        if hit.extents:
            self.pool.reference(hit.extents)
        if hit.own_blocks > 0:
            assert sequence.own is not None
            if sequence.own.num_cached > hit.own_blocks:  # the last token must be computed
                self.pool.shrink(sequence.own, hit.own_blocks)
            self.pool.reference([sequence.own])
        else:
            sequence.own = None
        sequence.held = hit.extents
        sequence.covered_blocks = hit.path_blocks
        sequence.own_published = hit.own_blocks
        sequence.registration_lag = 0

    def register(self, sequence: Sequence, computed: int) -> None:
        """Make the full blocks among the first `computed` tokens hittable."""
        if not self.has_prefix_caching:
            return
        full = (computed - sequence.registration_lag) // self.block_size
        path_blocks = sequence.path_blocks
        if sequence.covered_blocks < path_blocks and sequence.covered_blocks < full:
            self._cover(sequence, full if full < path_blocks else path_blocks)
        if self.pool.publishes_all and full - path_blocks > sequence.own_published:
            parent = sequence.path[-1] if sequence.path else None
            first = sequence.own_published
            sequence.own_published = full - path_blocks
            self.pool.publish_stored(-1 - sequence.index, first, full - path_blocks - first, parent)

    def decode(self, sequence: Sequence, computed: int) -> None:
        """Give a decoding sequence the block for its next token, if that needs one; register it."""
        if computed % self.block_size == 0:
            self.pool.allocate(1)
        self.register(sequence, computed + 1)

    def release(self, sequence: Sequence) -> None:
        """Free all blocks, the last one first; full ones stay cached."""
        block_size = self.block_size
        computed = sequence.num_computed
        blocks = self.blocks_of(sequence)
        sequence.reserved_tokens = 0
        pool = self.pool
        if not self.has_prefix_caching:
            pool.blank_blocks += blocks
            return
        own_blocks = (computed - sequence.registration_lag) // block_size - sequence.path_blocks
        private = blocks - sequence.covered_blocks
        if own_blocks > 0:
            own = sequence.own
            if own is None:
                own = sequence.own = Extent(-1 - sequence.index)
            own.num_cached = own_blocks
            private -= own_blocks
        if self._retaining is not None:
            mine = sequence.own if own_blocks > 0 else None
            self._retaining.claim(sequence.held, mine, sequence.claims)
        if own_blocks > 0 and sequence.own is not None:
            pool.release_private(sequence.own)
        pool.blank_blocks += private
        pool.release(sequence.held)
        sequence.held = []
        sequence.covered_blocks = 0

    def _cover(self, sequence: Sequence, target_blocks: int) -> None:
        """Extend a sequence's hold along its path up to `target_blocks` blocks."""
        pool = self.pool
        sizes = pool.extent_blocks
        contents = sequence.path
        held = sequence.held
        missing = target_blocks - sequence.covered_blocks
        sequence.covered_blocks = target_blocks
        tells, announced = pool.events is not None, pool.announced
        extent = held[-1] if held else None
        room = 0
        if extent is not None:
            room = (1 if sizes is None else sizes[extent.content]) - extent.num_cached
        while missing > 0:
            if extent is None or room == 0:
                content = contents[len(held)]
                extent = pool.open_extent(content)
                held.append(extent)
                room = 1 if sizes is None else sizes[content]
            added = room if room < missing else missing
            if tells and (announced is None or announced[extent.content]):
                parent = contents[len(held) - 2] if len(held) > 1 else None
                pool.publish_stored(extent.content, extent.num_cached, added, parent)
            extent.num_cached += added
            missing -= added
            room = 0  # if any is left, nothing is missing
