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
"""

from typing import Final

from dynosim.engine.block_pool import BlockPool, Extent
from dynosim.engine.host_cache import Accesses, HostCache
from dynosim.engine.plan import CopyJob, HostWork, StepPlan
from dynosim.engine.sequence import DECODING, FINISHED, Sequence
from dynosim.engine.spec import HostCacheSpec
from dynosim.engine.vllm.seats import Seats

LATER: Final = -1
"""Chunks would be hit that are on their way into the tier, or out of it for somebody else."""


class _Progress:
    """How far a request is with the tier."""

    __slots__ = ("accesses", "blank_below", "num_jobs", "num_offered")

    def __init__(self) -> None:
        self.num_offered = 0  # leading chunks
        self.num_jobs = 0  # under way
        self.blank_below: int | None = None  # blank blocks when its own were freed, after its end
        self.accesses = Accesses()


class HostOffload:
    """The host tier of one engine, and the copies under way."""

    __slots__ = (
        "_block_size",
        "_chunk_blocks",
        "_chunk_tokens",
        "_ended",
        "_jobs",
        "_last_job",
        "_lowest_blank",
        "_pool",
        "_progress",
        "_prompt_only",
        "_seats",
        "cache",
    )

    def __init__(self, spec: HostCacheSpec, block_size: int, seats: Seats, pool: BlockPool) -> None:
        self.cache = HostCache(spec.num_chunks, spec.policy, spec.store_threshold)
        self._block_size = block_size
        self._chunk_blocks = spec.blocks_per_chunk
        self._chunk_tokens = spec.blocks_per_chunk * block_size
        self._prompt_only = spec.prompt_only
        self._seats = seats
        self._pool = pool
        self._lowest_blank = pool.num_blocks  # blank blocks since the last planning
        self._jobs: dict[int, CopyJob] = {}  # under way, by number
        self._last_job = -1
        self._progress: dict[Sequence, _Progress] = {}
        # Since the last planning: who, how many tokens are computed, where they are.
        self._ended: list[tuple[Sequence, int, list[Extent]]] = []

    @property
    def is_idle(self) -> bool:
        """Whether no copy is under way, and none to be decided on."""
        return not self._jobs and not self._ended

    # ---- loads ---------------------------------------------------------------------------------

    def find(self, sequence: Sequence, local_tokens: int) -> int:
        """Up to which token the tier holds what comes behind `local_tokens`; 0: nothing; or LATER.

        All known tokens count, also the last, which has to be computed again. What is less than a
        chunk is nothing.
        """
        progress = self._progress.get(sequence)
        if progress is not None and progress.num_jobs:
            return LATER  # it lost its seat while its chunks are being stored
        size, known = self._chunk_tokens, sequence.prompt_tokens + sequence.generated_tokens
        if known // size * size - local_tokens < size:
            return 0
        first = end = local_tokens // size
        is_pending = is_loading = False
        while end < known // size:
            chunk = self.cache.get(self._key(sequence, end))
            if chunk is None:
                break
            is_pending |= chunk.is_pending
            is_loading |= chunk.num_loads > 0
            end += 1
        if is_pending:
            return LATER
        if end == first or end * size - local_tokens < size:
            return 0
        return LATER if is_loading else end * size

    def begin_load(self, plan: StepPlan, sequence: Sequence, local_tokens: int, end: int) -> None:
        """Load what was found; what lies before its end will not be offered."""
        assert plan.host is not None
        chunks = range(local_tokens // self._chunk_tokens, end // self._chunk_tokens)
        keys = [self._key(sequence, chunk) for chunk in chunks]
        progress = self._progress_of(sequence)
        self.cache.pin(keys, progress.accesses)
        progress.num_offered = chunks.stop
        num_blocks = (end - local_tokens) // self._block_size
        plan.host.loads.append(self._begin(sequence, keys, num_blocks, [], is_load=True))

    def done(self, number: int) -> CopyJob:
        """A copy has been reported."""
        job = self._jobs.pop(number)
        if job.is_load:
            self.cache.unpin(job.keys)
        else:
            self.cache.stored(job.keys)
        progress = self._progress[job.sequence]
        progress.num_jobs -= 1
        if job.sequence.state == FINISHED and not self._is_awaited(job.sequence):
            self._drop_if_idle(job.sequence)
        return job

    # ---- stores --------------------------------------------------------------------------------

    def ended(self, sequence: Sequence, num_tokens: int) -> None:
        """A request gives up its blocks for good; so many of its tokens are computed."""
        self._ended.append((sequence, num_tokens, list(sequence.held)))

    def freeing(self, sequence: Sequence) -> None:
        """The blocks of a request that has ended are about to be freed."""
        progress = self._progress.get(sequence)
        if progress is not None:
            progress.blank_below = self._pool.blank_blocks

    def note_blank_blocks(self) -> None:
        """A planning is about to free blocks: so few blank ones there were."""
        self._lowest_blank = min(self._lowest_blank, self._pool.blank_blocks)

    def offer_all(self, plan: StepPlan) -> None:
        """Offer what a plan computes, in its order, then what was left since the last one."""
        work = plan.host
        assert work is not None
        for row in plan.rows:
            sequence = row.sequence
            num_tokens = min(self._computed_tokens(sequence), self._known_tokens(sequence))
            self._offer(work, sequence, num_tokens, sequence.held)
        ended, self._ended = self._ended, []
        for sequence, num_tokens, held in ended:
            self._offer(work, sequence, num_tokens, held)
        for sequence, _, _ in ended:
            self._end(sequence)
        self.note_blank_blocks()
        work.flushed = self._to_flush(plan)
        self._lowest_blank = self._pool.num_blocks

    def _offer(
        self, work: HostWork, sequence: Sequence, num_tokens: int, held: list[Extent]
    ) -> None:
        """Offer the full chunks of so many tokens that have not been; all of them, or none."""
        if self._prompt_only:
            num_tokens = min(num_tokens, sequence.prompt_tokens)
        progress = self._progress_of(sequence)
        first, end = progress.num_offered, num_tokens // self._chunk_tokens
        if end <= first:
            return
        keys = [self._key(sequence, chunk) for chunk in range(first, end)]
        stored = self.cache.offer(keys, progress.accesses)
        if stored is None:
            work.refused.append(sequence)
            return
        progress.num_offered = end
        work.evicted += stored.evicted
        if stored.new:
            size = self._chunk_blocks
            starts = [(first + keys.index(key)) * size for key in stored.new]
            sources = [extent for start in starts for extent in held[start : start + size]]
            num_blocks = len(starts) * size
            job = self._begin(sequence, stored.new, num_blocks, sources, is_load=False)
            work.stores.append(job)
            if len(sources) < num_blocks:
                job.blank_sources = starts[-1] + size - len(held)

    def _end(self, sequence: Sequence) -> None:
        """All that a request has had there is ranked anew."""
        accesses = self._progress_of(sequence).accesses
        last = len(sequence.path) // self._chunk_blocks
        keys = [self._key(sequence, chunk) for chunk in range(last)]
        self.cache.end([key for key in keys if key in accesses.seen], accesses)
        self._drop_if_idle(sequence)

    def _to_flush(self, plan: StepPlan) -> list[int]:
        """Stores of requests that lose their seat, or whose blocks this step has been given."""
        given = {
            extent
            for sequence in (*plan.admitted, *[load.sequence for load in plan.loads])
            for extent in sequence.held
        }
        flushed: list[int] = []
        for job in self._jobs.values():
            if job.is_load:
                continue
            is_given = False
            if job.sequence.state == FINISHED:  # else its blocks are its own
                num_lost = sum([source.num_cached == 0 for source in job.sources])
                is_given = num_lost > job.num_lost or not given.isdisjoint(job.sources)
                job.num_lost = num_lost
                num_left = self._blank_sources_left(job)
                is_given |= num_left < job.blank_sources
                job.blank_sources = num_left
            if is_given or job.sequence in plan.preempted:
                flushed.append(job.number)
        return flushed

    def _blank_sources_left(self, job: CopyJob) -> int:
        """Of the blank blocks that a copy reads, those not handed out yet: the last go first."""
        below = self._progress[job.sequence].blank_below
        if job.blank_sources == 0 or below is None:
            return job.blank_sources
        return min(job.blank_sources, max(self._lowest_blank - below, 0))

    # ---- inside --------------------------------------------------------------------------------

    def _begin(
        self,
        sequence: Sequence,
        keys: list[int],
        num_blocks: int,
        sources: list[Extent],
        *,
        is_load: bool,
    ) -> CopyJob:
        self._last_job += 1
        job = CopyJob(self._last_job, sequence, keys, num_blocks, sources, is_load=is_load)
        self._jobs[job.number] = job
        self._progress_of(sequence).num_jobs += 1
        return job

    def _key(self, sequence: Sequence, chunk: int) -> int:
        """The content of a chunk's last block."""
        return sequence.path[(chunk + 1) * self._chunk_blocks - 1]

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

    def _progress_of(self, sequence: Sequence) -> _Progress:
        found = self._progress.get(sequence)
        if found is None:
            found = self._progress[sequence] = _Progress()
        return found

    def _is_awaited(self, sequence: Sequence) -> bool:
        """Whether what a request has left is still to be offered."""
        return any([one is sequence for one, _, _ in self._ended])

    def _drop_if_idle(self, sequence: Sequence) -> None:
        if not self._progress[sequence].num_jobs:
            del self._progress[sequence]
