"""vLLM's offloading to host memory: what a scheduler offers to the tier, loads from it and awaits.

At the end of every planning all full chunks that the scheduled requests have computed by then are
offered, then those of requests that have ended since. A copy starts with the next step. No block is
held for a copy: a step that is given one of its blocks waits until it is done, as does a step that
takes the seat of a request whose chunks are being copied (`HostWork.flushed`). An admission finds,
behind what the device holds, what the tier does, and loads it as from elsewhere
(`dynosim.engine.vllm.remote`).

Which physical block is handed out is not known here. So one that was handed out twice while its
copy had not been reported is told once, where vLLM tells it twice; by then the copy is done. What a
request has filled but not lived to see hittable goes back to the blank blocks, and they are a
stack: how many there are tells whether one of them has been handed out since.

Beyond the nearest tier there may be others. What has been stored in one is written to the next at
once, or when the nearer one throws it out (`writes_evicted`); a load takes each chunk from the
nearest tier that has it, as far as `onboarding` says that this pays. What came from beyond is
offered to the nearest tier like anything that the device has.

Where paths name extents of several blocks, generated text is offered when its request ends, not
block by block, and never loaded.
"""

from typing import Final

from dynosim.blocks.kv_event import KvEvent
from dynosim.blocks.retention import PLAIN, Claim
from dynosim.blocks.tier import Tier
from dynosim.engine.block_pool import BlockPool, Extent
from dynosim.engine.host_cache import Accesses, HostCache, Span, TierProgress
from dynosim.engine.plan import CopyJob, CopySource, HostWork, KvLoad, LoadPart, StepPlan, Write
from dynosim.engine.retaining_cache import RetainingCache
from dynosim.engine.retaining_pool import RetainingPool
from dynosim.engine.sequence import DECODING, FINISHED, Sequence
from dynosim.engine.spec import HostCacheSpec
from dynosim.engine.tiers import Beyond, Onboarding
from dynosim.engine.vllm.seats import Seats

LATER: Final = -1
"""Chunks would be hit that are on their way into the tier, or out of it for somebody else."""

HOST: Final = Tier.HOST  # compiled code looks it up once


class _Ended:
    """A request that has given up its blocks since the last planning."""

    __slots__ = ("held", "mark", "num_tokens", "sequence")

    def __init__(self, sequence: Sequence, num_tokens: int, mark: int) -> None:
        self.sequence = sequence
        self.mark = mark  # blocks that had become idle before its own
        self.num_tokens = num_tokens  # that were computed
        self.held = sequence.held  # the request gets another list once they are freed


class HostOffload:
    """The host tier of one engine, and the copies under way.

    `pool` is the device's. `cache` is the nearest tier; it may be shared with other engines. Where
    the extents that paths name are single blocks, a chunk may be of several. Loads end at multiples
    of `reuse_blocks`, where prefixes can be reused.
    """

    __slots__ = (
        "_beyond",
        "_block_size",
        "_chunk_blocks",
        "_chunk_tokens",
        "_ended",
        "_extent_blocks",
        "_found",
        "_jobs",
        "_last_job",
        "_loading",
        "_lowest_blank",
        "_num_orphans",
        "_pool",
        "_prompt_only",
        "_retaining",
        "_reuse_blocks",
        "_seats",
        "cache",
    )

    def __init__(
        self,
        spec: HostCacheSpec,
        block_size: int,
        seats: Seats,
        pool: BlockPool,
        *,
        reuse_blocks: int = 1,
    ) -> None:
        extent_blocks = pool.extent_blocks
        assert spec.blocks_per_chunk == 1 or extent_blocks is None
        self._pool = pool
        self._lowest_blank = pool.num_blocks  # blank blocks since the last planning
        self._retaining: list[RetainingCache] = []  # of all tiers, those that know worth
        self.cache = HostCache(spec.num_chunks, spec.policy, spec.store_threshold)
        if spec.policy == "priority" and isinstance(pool, RetainingPool):
            cache = RetainingCache(spec.num_chunks, spec.policy, spec.store_threshold)
            self._retaining, self.cache = [cache], cache
        self._beyond: Beyond | None = None
        self._found: list[LoadPart] = []  # what the last search found, part by part
        self._block_size = block_size
        self._chunk_blocks = spec.blocks_per_chunk
        self._chunk_tokens = spec.blocks_per_chunk * block_size
        self._extent_blocks = extent_blocks
        self._prompt_only = spec.prompt_only
        self._reuse_blocks = reuse_blocks
        self._seats = seats
        self._jobs: dict[int, CopyJob] = {}  # under way, by number
        self._last_job = -1
        self._num_orphans = 0  # stores under way of requests that have ended
        self._loading: dict[int, int] = {}  # content -> loads under way to this engine
        self._ended: list[_Ended] = []

    @property
    def is_idle(self) -> bool:
        """Whether no copy is under way, and none to be decided on."""
        return not self._jobs and not self._ended

    @property
    def has_offers(self) -> bool:
        """Whether requests have ended that are yet to offer what they leave."""
        return len(self._ended) > 0

    @property
    def may_change(self) -> bool:
        """Whether what a request finds in the tiers may change while nobody is served."""
        return (self._beyond is not None and self._beyond.is_live) or not self.is_idle

    @property
    def has_orphans(self) -> bool:
        """Whether blocks of nobody are being stored, or will be: a step may have to wait."""
        return len(self._ended) > 0 or self._num_orphans > 0

    @property
    def safe_blocks(self) -> int:
        """Free blocks that are handed out before any that is being stored for nobody, or will be.

        Blocks become idle in the order in which they are handed out again: those of an ended
        request come after all that were idle before.
        """
        pool = self._pool
        oldest = pool.released_blocks
        for one in self._ended:
            oldest = min(oldest, one.mark)
        for job in self._jobs.values():
            if not job.is_load and job.sequence.state == FINISHED:
                oldest = min(oldest, job.mark)
        return pool.blank_blocks + pool.idle_blocks - (pool.released_blocks - oldest)

    # ---- loads ---------------------------------------------------------------------------------

    def find(self, sequence: Sequence, local_tokens: int) -> int:
        """Up to which token the tier holds what comes behind `local_tokens`; 0: nothing; or LATER.

        All known tokens count, also the last, which has to be computed again. What is less than a
        chunk is nothing.
        """
        progress = sequence.tier_progress
        if progress is not None and progress.num_jobs:
            return LATER  # it lost its seat while its chunks are being stored
        size, known = self._chunk_tokens, sequence.prompt_tokens + sequence.generated_tokens
        if known // size * size - local_tokens < size:
            return 0
        first, limit = local_tokens // size, known // size
        if self._reuse_blocks > 1:  # what its last token needs must be there before it
            limit = (known - 1) // size
        end = self._search(sequence, first, limit)
        if end == LATER:
            return LATER
        if self._beyond is not None and self._beyond.onboarding is not None and end > first:
            end = self._worth_loading(self._beyond.onboarding, known, first, end)
        if end % self._reuse_blocks:
            end = max(first, end - end % self._reuse_blocks)
            self._shorten_found(end - first)
        if end == first or end * size - local_tokens < size:
            return 0
        for part in self._found:
            if part.span.content in self._loading:
                return LATER
        return end * size

    def _search(self, sequence: Sequence, first: int, limit: int) -> int:
        """Up to which of a request's chunks the tiers hold all from `first` on; or LATER.

        The parts are in `_found`.
        """
        sizes, found = self._extent_blocks, list[LoadPart]()
        self._found = found
        end, before = first, 0
        is_pending = False
        for content in self._chunks(sequence):
            length = 1 if sizes is None else sizes[content]
            if before + length > end:
                for tier in range(1 if self._beyond is None else len(self._beyond.caches) + 1):
                    extent = self._cache_of(tier).get(content)
                    if extent is None or before + extent.num_chunks <= end:
                        continue
                    if extent.num_stores > 0:
                        if tier > 0:
                            continue
                        is_pending = True
                    held = min(before + extent.num_chunks, limit)
                    found.append(LoadPart(tier, Span(content, end - before, held - before)))
                    end = held
                if end < before + length:
                    break
            before += length
            if before >= limit:
                break
        return LATER if is_pending else end

    def _cache_of(self, tier: int) -> HostCache:
        if tier == 0 or self._beyond is None:
            return self.cache
        return self._beyond.caches[tier - 1]

    def _worth_loading(self, onboarding: Onboarding, known: int, first: int, end: int) -> int:
        """Up to which chunk it is worth to load; cuts `_found` there."""
        counts = [(part.tier, part.span.end - part.span.first) for part in self._found]
        size = self._chunk_tokens
        num_chunks = onboarding.chosen_chunks(known, first * size, counts)
        self._shorten_found(num_chunks)
        return first + num_chunks

    def _shorten_found(self, num_chunks: int) -> None:
        """Leave so many chunks of what was found."""
        kept: list[LoadPart] = []
        for part in self._found:
            span = part.span
            if num_chunks <= 0:
                break
            span.end = min(span.end, span.first + num_chunks)
            num_chunks -= span.end - span.first
            kept.append(part)
        self._found = kept

    def begin_load(self, plan: StepPlan, load: KvLoad, end: int) -> None:
        """Load what was found; what lies before its end will not be offered."""
        work, sequence, size = plan.host, load.sequence, self._chunk_tokens
        assert work is not None
        found, self._found = self._found, []
        progress = self._progress_of(sequence)
        spans = [part.span for part in found if part.tier == 0]
        self.cache.pin(spans, progress.accesses)
        for part in found:
            content = part.span.content
            self._loading[content] = self._loading.get(content, 0) + 1
        progress.num_offered = end // size
        num_blocks = (end - load.hit_tokens) // self._block_size
        job = self._begin(sequence, progress, spans, num_blocks, is_load=True)
        if len(spans) < len(found):
            self._take_beyond(job, found, progress, load.hit_tokens // size)
        load.job = job
        work.loads += (job,)

    def _take_beyond(
        self, job: CopyJob, found: list[LoadPart], progress: TierProgress, first: int
    ) -> None:
        """Let a load take parts from the tiers beyond the nearest, which is offered them then."""
        job.beyond = tuple([part for part in found if part.tier > 0])
        num_chunks = sum([part.span.end - part.span.first for part in job.beyond])
        job.num_blocks -= num_chunks * self._chunk_blocks
        num_offered = first
        for part in found:
            if part.tier > 0:
                break
            num_offered += part.span.end - part.span.first
        progress.num_offered = num_offered
        for part in job.beyond:
            self._cache_of(part.tier).use([part.span])

    def done(self, number: int) -> CopyJob:
        """A copy has been reported."""
        job = self._jobs[number]
        del self._jobs[number]
        sequence = job.sequence
        if job.is_load:
            self.cache.unpin(job.spans)
            self._end_loading(job.spans)
            for part in job.beyond:
                self._cache_of(part.tier).unpin([part.span])
                self._end_loading([part.span])
        else:
            self.cache.stored(job.spans)
            self._publish_stored(0, job.spans, sequence.path)
            if self._beyond is not None and not self._beyond.writes_evicted:
                self._write(1, job.spans)
            if sequence.state == FINISHED:
                self._num_orphans -= 1
        self._progress_of(sequence).num_jobs -= 1
        return job

    def _end_loading(self, spans: list[Span]) -> None:
        for span in spans:
            num_left = self._loading[span.content] - 1
            if num_left:
                self._loading[span.content] = num_left
            else:
                del self._loading[span.content]

    def use_tiers(self, cache: HostCache, beyond: Beyond) -> None:
        """Use these tiers, from the start."""
        self.cache = cache
        self._beyond = beyond
        self._retaining.clear()
        for one in (cache, *beyond.caches):
            if isinstance(one, RetainingCache):
                self._retaining.append(one)

    def at(self, now_ms: float) -> None:
        """It is this time now, for tiers that know what their blocks are worth."""
        for cache in self._retaining:
            cache.at(now_ms)

    def drop_all(self) -> None:
        """The engine is gone: a shared tier keeps neither its pins nor places for its copies."""
        for job in self._jobs.values():
            if not job.is_load:
                self.cache.lose(job.spans)
                continue
            self.cache.unpin(job.spans)
            for part in job.beyond:
                self._cache_of(part.tier).unpin([part.span])
        self._jobs.clear()

    # ---- tiers beyond the nearest --------------------------------------------------------------

    def _write(self, tier: int, spans: list[Span]) -> None:
        """Chunks are to be in a tier, too; where it has no room they are not."""
        beyond = self._beyond
        if beyond is None or tier > len(beyond.caches):
            return
        cache = self._cache_of(tier)
        if cache.is_view:
            self._write(tier + 1, spans)
            return
        new = cache.offer(spans, Accesses())
        if self._retaining:
            self._hand_on_worth(tier, spans)
        if not new:
            return
        evicted = cache.evicted
        self._publish_evicted(tier, evicted)
        if beyond.writes_evicted and evicted:
            self._write(tier + 1, _whole(evicted))
        num_chunks = sum([span.end - span.first for span in new])
        beyond.writes.append(Write(tier, new, num_chunks * self._chunk_blocks))

    def _hand_on_worth(self, tier: int, spans: list[Span]) -> None:
        """A tier has been offered chunks by a nearer one: it learns what they are worth."""
        cache, nearer = self._cache_of(tier), self._cache_of(tier - 1)
        if nearer.is_view:
            nearer = self._cache_of(tier - 2)
        if isinstance(cache, RetainingCache) and isinstance(nearer, RetainingCache):
            for span in spans:
                cache.take_over(span.content, nearer.worth_of(span.content))

    def written(self, write: Write) -> None:
        """Chunks have arrived in a tier beyond the nearest."""
        self._cache_of(write.tier).stored(write.spans)
        self._publish_stored(write.tier, write.spans, [])
        if self._beyond is not None and not self._beyond.writes_evicted:
            self._write(write.tier + 1, write.spans)

    def lost(self, write: Write) -> None:
        """Chunks will not arrive."""
        self._cache_of(write.tier).lose(write.spans)

    # ---- stores --------------------------------------------------------------------------------

    def ended(self, sequence: Sequence, num_tokens: int) -> None:
        """A request gives up its blocks for good; so many of its tokens are computed."""
        mark = self._pool.released_blocks
        self._ended.append(_Ended(sequence, num_tokens, mark))
        for job in self._jobs.values():
            if job.sequence is sequence and not job.is_load:
                self._num_orphans += 1
                # Who had no seat gave its blocks up long ago: any that is handed out may be one.
                job.mark = mark if num_tokens else 0
                self._note_sources(job, sequence.held)

    def freeing(self, sequence: Sequence) -> None:
        """The blocks of a request that has ended are about to be freed."""
        if sequence.tier_progress is not None:
            sequence.tier_progress.blank_below = self._pool.blank_blocks

    def note_blank_blocks(self) -> None:
        """A planning is about to free blocks: so few blank ones there were."""
        self._lowest_blank = min(self._lowest_blank, self._pool.blank_blocks)

    def offer_all(self, plan: StepPlan) -> None:
        """Offer what a plan computes, in its order, then what was left since the last one."""
        work = plan.host
        assert work is not None
        if self._extent_blocks is None:
            for row in plan.rows:
                self._offer_computed(work, row.sequence)
        else:
            for sequence in plan.chunked:
                self._offer_computed(work, sequence)
        if self._ended:
            self._offer_left(work)
        self.note_blank_blocks()
        if self._num_orphans or plan.preempted:
            work.flushed = tuple(self._to_flush(plan))
        self._lowest_blank = self._pool.num_blocks

    def offer_rest(self) -> HostWork:
        """Offer what was left by the last requests, where no step follows."""
        work = HostWork()
        self._offer_left(work)
        return work

    def _offer_left(self, work: HostWork) -> None:
        ended, self._ended = self._ended, []
        for one in ended:
            job = self._offer(work, one.sequence, one.num_tokens)
            if job is not None:
                job.mark = one.mark
                self._note_sources(job, one.held)
        for one in ended:
            self._end(one.sequence, one.num_tokens)

    def _offer_computed(self, work: HostWork, sequence: Sequence) -> None:
        num_tokens = min(self._computed_tokens(sequence), self._known_tokens(sequence))
        self._offer(work, sequence, num_tokens)

    def _offer(self, work: HostWork, sequence: Sequence, num_tokens: int) -> CopyJob | None:
        """Offer the full chunks of so many tokens that have not been, all of them or none; returns
        the store, if there is one."""
        if self._prompt_only:
            num_tokens = min(num_tokens, sequence.prompt_tokens)
        progress = self._progress_of(sequence)
        first, end = progress.num_offered, num_tokens // self._chunk_tokens
        if end <= first:
            return None
        cache = self.cache
        new = cache.offer(self._spans(sequence, first, end), progress.accesses)
        if new is None:
            work.refused += (sequence,)
            return None
        progress.num_offered = end
        if self._retaining:
            self._claim(sequence, first, end)
        if not new:
            return None
        evicted = cache.evicted
        if evicted:
            if self._extent_blocks is None:
                work.evicted += tuple(evicted)
            self._publish_evicted(0, evicted)
            if self._beyond is not None and self._beyond.writes_evicted:
                self._write(1, _whole(evicted))
        num_blocks = 0
        for span in new:
            num_blocks += (span.end - span.first) * self._chunk_blocks
        job = self._begin(sequence, progress, new, num_blocks, is_load=False)
        work.stores += (job,)
        return job

    def _claim(self, sequence: Sequence, first: int, end: int) -> None:
        """A request says what its chunks `first` to before `end` are worth, the last one first."""
        said: list[tuple[int, tuple[Claim, ...]]] = []
        claims, sizes, before = sequence.claims, self._extent_blocks, 0
        for place, content in enumerate(sequence.path):
            if before >= end:
                break
            before += 1 if sizes is None else sizes[content]
            if before > first:
                said.append((content, PLAIN if claims is None else claims.path[place]))
        if before < end:
            said.append((-1 - sequence.index, PLAIN if claims is None else claims.own))
        for content, wanted in reversed(said):
            for cache in self._retaining:
                cache.claim(content, wanted)

    def _end(self, sequence: Sequence, num_tokens: int) -> None:
        """All that a request has had there is ranked anew; so many of its tokens are computed."""
        progress = self._progress_of(sequence)
        contents = self._chunks(sequence)
        if self._extent_blocks is not None:
            contents = [*contents, -1 - sequence.index]  # generated text
        if self._retaining:
            self._claim(sequence, 0, num_tokens // self._chunk_tokens)
        self.cache.end(contents, progress.accesses)
        claims = sequence.claims
        if claims is not None and claims.ends_session:
            for cache in self._retaining:
                cache.end_session(claims.session)

    def _to_flush(self, plan: StepPlan) -> list[int]:
        """Stores of requests that lose their seat, or whose blocks this step has been given."""
        flushed: list[int] = []
        given: set[Extent] = set()
        for job in self._jobs.values():
            if job.is_load:
                continue
            is_given = False
            if job.sequence.state == FINISHED:  # else its blocks are its own
                if not given:
                    for sequence in plan.admitted:
                        given.update(sequence.held)
                    for load in plan.loads:
                        given.update(load.sequence.held)
                num_lost = job.count_lost()
                is_given = num_lost > job.num_lost
                is_given |= any([source.extent in given for source in job.sources])
                num_left = self._blank_sources_left(job)
                is_given |= num_left < job.blank_sources
                job.blank_sources = num_left
                job.num_lost = num_lost
            if is_given or job.sequence in plan.preempted:
                flushed.append(job.number)
        return flushed

    def _blank_sources_left(self, job: CopyJob) -> int:
        """Of the blank blocks that a copy reads, those not handed out yet: the last go first."""
        below = self._progress_of(job.sequence).blank_below
        if job.blank_sources == 0 or below is None:
            return job.blank_sources
        return min(job.blank_sources, max(self._lowest_blank - below, 0))

    # ---- inside --------------------------------------------------------------------------------

    def _begin(
        self,
        sequence: Sequence,
        progress: TierProgress,
        spans: list[Span],
        num_blocks: int,
        *,
        is_load: bool,
    ) -> CopyJob:
        self._last_job += 1
        job = CopyJob(self._last_job, sequence, spans, num_blocks, is_load=is_load)
        self._jobs[job.number] = job
        progress.num_jobs += 1
        if not is_load and sequence.state == FINISHED:
            self._num_orphans += 1
        return job

    def _label(self, tier: int) -> Tier | None:
        return HOST if self._beyond is None else self._beyond.labels[tier]

    def _publish_stored(self, tier: int, spans: list[Span], path: list[int]) -> None:
        """Tell that chunks of one block are in a tier, each extent with the one before it."""
        pool, events, label = self._pool, self._pool.events, self._label(tier)
        if events is None or label is None or self._chunk_blocks > 1:
            return
        place = 0  # in the path, in whose order the spans are
        for span in spans:
            content, first = span.content, span.first
            if not pool.announces(content):
                continue
            parent: int | None = None
            if path:
                while content >= 0 and path[place] != content:
                    place += 1
                if content < 0:
                    parent = path[-1]
                elif place > 0:
                    parent = path[place - 1]
            events.append(KvEvent(True, content, first, span.end - first, parent, label))

    def _publish_evicted(self, tier: int, spans: list[Span]) -> None:
        """Tell that chunks of one block are no more in a tier."""
        pool, events, label = self._pool, self._pool.events, self._label(tier)
        if events is None or label is None or self._chunk_blocks > 1:
            return
        for span in spans:
            content, first = span.content, span.first
            if pool.announces(content):
                events.append(KvEvent(False, content, first, span.end - first, None, label))

    def _chunks(self, sequence: Sequence) -> list[int]:
        """The extents that hold a request's chunks: a chunk has the content of its last block."""
        if self._chunk_blocks == 1:
            return sequence.path
        return sequence.path[self._chunk_blocks - 1 :: self._chunk_blocks]

    def _spans(self, sequence: Sequence, first: int, end: int) -> list[Span]:
        """A request's chunks `first` to before `end`; beyond its path they are its own."""
        spans: list[Span] = []
        sizes, before = self._extent_blocks, 0
        for content in self._chunks(sequence):
            length = 1 if sizes is None else sizes[content]
            if before + length > first:
                spans.append(
                    Span(content, max(first - before, 0), min(end - before, length)),
                )
            before += length
            if before >= end:
                return spans
        spans.append(Span(-1 - sequence.index, max(first - before, 0), end - before))
        return spans

    def _note_sources(self, job: CopyJob, held: list[Extent]) -> None:
        """The request of a store gives up its blocks: from now on others may get them."""
        job.sources = self._sources(job.sequence, job.spans, held)
        if self._extent_blocks is None and len(job.sources) < job.num_blocks:
            last = self._chunks(job.sequence).index(job.spans[-1].content)
            job.blank_sources = (last + 1) * self._chunk_blocks - len(held)

    def _sources(
        self, sequence: Sequence, spans: list[Span], held: list[Extent]
    ) -> tuple[CopySource, ...]:
        """Where the blocks of chunks are."""
        size = self._chunk_blocks
        if size == 1:
            return tuple(_places(spans, held, sequence.own))
        wanted = {span.content for span in spans}
        starts = [
            place * size
            for place, content in enumerate(self._chunks(sequence))
            if content in wanted
        ]
        return tuple(
            [CopySource(extent, 0, 1) for start in starts for extent in held[start : start + size]]
        )

    def _computed_tokens(self, sequence: Sequence) -> int:
        """Once the step is done that has just been planned."""
        if sequence.state == DECODING:
            return sequence.anchor + self._seats.decodes.step
        return sequence.num_computed

    def _known_tokens(self, sequence: Sequence) -> int:
        """Prompt and delivered tokens."""
        if sequence.state != DECODING:
            return sequence.prompt_tokens + sequence.generated_tokens
        scheduled = sequence.anchor + self._seats.decodes.step + 1
        return scheduled - max(sequence.in_flight, 1)

    def _progress_of(self, sequence: Sequence) -> TierProgress:
        found = sequence.tier_progress
        if found is None:
            found = sequence.tier_progress = TierProgress()
        return found


def _places(spans: list[Span], held: list[Extent], own: Extent | None) -> list[CopySource]:
    """Where chunks are among the extents that a request holds, both in the order of its path."""
    sources: list[CopySource] = []
    place = 0
    for span in spans:
        content = span.content
        if own is not None and own.content == content:
            sources.append(CopySource(own, span.first, span.end))
            continue
        found = place
        while found < len(held) and held[found].content != content:
            found += 1
        if found < len(held):
            sources.append(CopySource(held[found], span.first, span.end))
            place = found + 1
    return sources


def _whole(spans: list[Span]) -> list[Span]:
    """All chunks of extents up to the ends of these."""
    return [Span(span.content, 0, span.end) for span in spans]
