"""KV that is loaded ahead of the request that will ask for it.

A prefetch names a prompt. The next planning looks for it behind all admissions: what the tiers have
of it beyond what the device holds is loaded into free blocks that nobody else needs soon, all of it
or, where there are too few, nothing. Once it has come, its blocks are let go: they are cached as if
a request had ended just then, may be hit, and are evicted when they are the oldest.

A block that has come is of use to the first request that hits it. One that nobody hits, because it
was evicted before or is there still, was loaded in vain.
"""

from typing import Final

from dynosim.engine.block_pool import Extent
from dynosim.engine.kv_cache import KvCache
from dynosim.engine.plan import KvLoad, StepPlan
from dynosim.engine.sequence import FINISHED, LOADING, Sequence
from dynosim.engine.vllm.offload import HostOffload
from dynosim.records import PrefetchLog

_ROOM: Final = 64  # for extents that were evicted, before they are looked for


class Prefetches:
    """Those of one engine."""

    __slots__ = (
        "_asked",
        "_brought",
        "_brought_max",
        "_cache",
        "_ended",
        "_loaded_blocks",
        "_loading",
        "_num_without_room",
        "_offload",
        "_used_blocks",
    )

    def __init__(self, cache: KvCache, offload: HostOffload | None) -> None:
        self._cache = cache
        self._offload = offload
        self._asked: list[Sequence] = []  # for the next planning to look at
        self._loading: dict[Sequence, int] = {}  # -> extents that it had hit before
        self._brought: dict[Extent, int] = {}  # -> blocks of it that have come and are unused
        self._brought_max = _ROOM
        self._ended: list[Sequence] = []  # to be taken
        self._loaded_blocks = 0
        self._used_blocks = 0
        self._num_without_room = 0

    @property
    def are_asked(self) -> bool:
        """Whether the next planning has any to look at."""
        return len(self._asked) > 0

    @property
    def num_loading(self) -> int:
        """Loads under way, those of prefetches dropped since included."""
        return len(self._loading)

    @property
    def watches_hits(self) -> bool:
        """Whether a hit may be one of blocks that have been loaded ahead."""
        return len(self._brought) > 0

    def unfinished(self) -> list[Sequence]:
        """All that have not ended."""
        loading = [sequence for sequence in self._loading if sequence.state == LOADING]
        return self._asked + loading

    def take_ended(self) -> list[Sequence]:
        """Those that have ended since the last call."""
        ended, self._ended = self._ended, []
        return ended

    def log(self) -> PrefetchLog:
        """What has become of all of them so far."""
        return PrefetchLog(self._loaded_blocks, self._used_blocks, self._num_without_room)

    def ask(self, sequence: Sequence) -> None:
        """Look for a prompt in the next planning."""
        self._asked.append(sequence)

    def begin(self, plan: StepPlan, spare_blocks: int) -> None:
        """A planning has served all requests, and so many blocks are left: load into them."""
        asked, self._asked = self._asked, []
        for sequence in asked:
            taken = self._load(plan, sequence, spare_blocks)
            if taken:
                spare_blocks -= taken
            else:
                self._end(sequence)

    def _load(self, plan: StepPlan, sequence: Sequence, spare_blocks: int) -> int:
        """Begin to load a prompt; returns how many spare blocks it takes, 0 if it does not.

        What is on its way to or from a tier just now is as good as not there. An extent that the
        device has in part is loaded as a whole, and takes the place of that part.
        """
        cache, offload = self._cache, self._offload
        if offload is None:
            return 0
        hit = cache.lookup(sequence)
        part = cache.partial_extent(hit)
        if part is not None and (part.refs > 0 or part.younger is not None):
            return 0  # somebody is about to complete it
        cache.keep_whole(hit)
        held = hit.path_blocks * cache.block_size
        end = offload.find(sequence, held)
        if end <= held:
            return 0
        num_blocks = cache.blocks_between(held, end)
        taken = hit.idle_blocks + num_blocks
        if taken > spare_blocks:
            self._num_without_room += 1
            return 0
        if part is not None:
            cache.pool.discard(part)
        cache.take_hit(sequence, hit)
        cache.pool.allocate(num_blocks)
        sequence.num_computed = held
        sequence.reserved_tokens = end
        sequence.state = LOADING
        sequence.load_step = plan.step
        self._loading[sequence] = len(hit.extents)
        load = KvLoad(sequence, held, end - held, num_blocks)
        plan.loads += (load,)
        offload.begin_load(plan, load, end)
        return taken

    def loaded(self, sequence: Sequence) -> None:
        """A load has ended: what came is cached, unless the prefetch was dropped meanwhile."""
        cache, offload = self._cache, self._offload
        assert offload is not None
        num_hit = self._loading.pop(sequence)
        if sequence.state != FINISHED:
            sequence.num_computed = sequence.reserved_tokens
            cache.register(sequence, sequence.num_computed)
            self._note_brought(sequence.held[num_hit:])
            offload.ended(sequence, sequence.num_computed)
            self._end(sequence)
        offload.freeing(sequence)
        cache.release(sequence)

    def drop(self, sequence: Sequence) -> None:
        """Nobody wants a prompt any more; what is being loaded is let go when it has come."""
        if sequence in self._loading:
            assert self._offload is not None
            self._offload.ended(sequence, 0)
        else:
            self._asked.remove(sequence)
        sequence.state = FINISHED

    def note_hit(self, extents: list[Extent]) -> None:
        """A request has hit extents: what of them was loaded ahead was of use."""
        for extent in extents:
            num_blocks = self._brought.pop(extent, 0)
            self._used_blocks += min(num_blocks, extent.num_cached)

    def _note_brought(self, extents: list[Extent]) -> None:
        brought = self._brought
        for extent in extents:
            brought[extent] = extent.num_cached
            self._loaded_blocks += extent.num_cached
        if len(brought) > self._brought_max:  # what was evicted can be hit no more
            self._brought = {
                extent: num_blocks for extent, num_blocks in brought.items() if extent.num_cached
            }
            self._brought_max = 2 * len(self._brought) + _ROOM

    def _end(self, sequence: Sequence) -> None:
        sequence.state = FINISHED
        self._ended.append(sequence)
