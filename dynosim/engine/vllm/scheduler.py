"""vLLM's scheduler as an `EngineCore`: its parts put together, its requests counted.

Two ways lead through the same state: step by step (`plan_step`, `finish_step`) and, while nothing
but decoding can happen, in bulk (`uniform_steps`, `advance`, `finish_due`).
"""

from collections.abc import Iterator, Sized

from mypy_extensions import mypyc_attr

from dynosim.blocks.kv_event import KvEvent
from dynosim.engine.block_pool import BlockPool
from dynosim.engine.host_cache import HostCache
from dynosim.engine.kv_cache import KvCache
from dynosim.engine.plan import DraftWork, HostWork, KvLoad, StepPlan, Write
from dynosim.engine.retaining_pool import RetainingPool
from dynosim.engine.sequence import FINISHED, LOADING, SPECULATING, WAITING, Sequence
from dynosim.engine.spec import EngineSpec
from dynosim.engine.tiers import Beyond
from dynosim.engine.vllm import asynchronous
from dynosim.engine.vllm.bulk import UniformSteps
from dynosim.engine.vllm.foreseen import ForeseenService
from dynosim.engine.vllm.loop import SchedulingLoop
from dynosim.engine.vllm.offload import HostOffload
from dynosim.engine.vllm.prefetches import Prefetches
from dynosim.engine.vllm.remote import RemoteRequests
from dynosim.engine.vllm.seats import Seats
from dynosim.engine.vllm.speculation import Speculation
from dynosim.engine.vllm.under_way import StepsUnderWay
from dynosim.engine.waiting import make_queue
from dynosim.records import PrefetchLog

NOBODY: list[Sequence] = []  # never changed


@mypyc_attr(allow_interpreted_subclasses=True)
class VllmScheduler:
    """Scheduler and block manager of one vLLM engine.

    `extent_blocks` are the sizes of the extents that request paths name (None: they are single
    blocks, as they must be where KV comes from elsewhere). `keep_rows` asks for step-by-step plans
    that list every request; `names_emitting` for plans that name who yields a token;
    `publish_events` for KV events, with `announced` only about the extents flagged in it. With
    `retains` its cache heeds what requests say of their blocks.
    """

    __slots__ = (
        "_arrival_unblocks",
        "_awaits_copies",
        "_bulk",
        "_cache",
        "_drafting",
        "_fails_bad_loads",
        "_foreseen",
        "_has_cap",
        "_head_is_blocked",
        "_head_may_change",
        "_is_async",
        "_keep_rows",
        "_loop",
        "_max_active",
        "_names_emitting",
        "_offload",
        "_prefetches",
        "_remote",
        "_seats",
        "_takes_kv",
        "_token_budget",
        "_under_way",
        "_waiting",
        "decodes",
        "events",
        "has_work",
        "num_preemptions",
        "num_running",
        "num_waiting",
        "pool",
        "retention",
        "running",
    )

    def __init__(
        self,
        spec: EngineSpec,
        extent_blocks: list[int] | None = None,
        *,
        keep_rows: bool = False,
        names_emitting: bool = False,
        publish_events: bool = False,
        announced: list[bool] | None = None,
        retains: bool = False,
    ) -> None:
        drafts = spec.speculation
        names_emitting = names_emitting or spec.async_scheduling or drafts is not None
        make_pool = RetainingPool if retains else BlockPool
        pool = make_pool(
            spec.usable_blocks, extent_blocks, publish_events=publish_events, announced=announced
        )
        cache = KvCache(
            pool,
            spec.block_size,
            has_prefix_caching=spec.enable_prefix_caching,
            reuse_blocks=spec.reuse_blocks,
        )
        seats, waiting = Seats(spec.block_size), make_queue(spec.policy)
        self.pool = pool
        self.retention = pool if isinstance(pool, RetainingPool) else None
        self.decodes = seats.decodes
        self.running = seats.running  # in admission order
        self.events: Sized = () if self.pool.events is None else self.pool.events
        self.num_running = 0
        self.num_waiting = 0
        self.num_preemptions = 0
        self.has_work = False  # whether a step is worth planning
        self._cache = cache
        self._seats = seats
        self._waiting = waiting
        assert drafts is None or keep_rows, "drafts are followed step by step only"
        self._drafting = None if drafts is None else Speculation(drafts, spec, seats)
        self._remote = _remote_requests(spec, cache, self._drafting)
        self._under_way = _steps_under_way(spec)
        self._offload = _offload(spec, seats, pool)
        self._prefetches = Prefetches(cache, self._offload)
        self._loop = SchedulingLoop(
            spec,
            cache,
            seats,
            waiting,
            self._remote,
            self._under_way,
            self._offload,
            self._prefetches,
            self._drafting,
            keep_rows=keep_rows,
            names_emitting=names_emitting,
        )
        self._foreseen = ForeseenService(spec, cache, seats, names_emitting=names_emitting)
        self._bulk = UniformSteps(cache, seats)
        self._head_is_blocked = False
        self._awaits_copies = False
        self._max_active = spec.max_active
        self._token_budget = spec.max_num_batched_tokens
        self._takes_kv = spec.takes_kv
        self._has_cap = spec.long_prefill_token_threshold > 0
        # The more requests, the smaller the first chunk, and a smaller one may find room.
        is_adaptive = self._has_cap and spec.long_prefill_token_threshold_adaptive
        head_may_shrink = is_adaptive and not spec.scheduler_reserve_full_isl
        self._arrival_unblocks = spec.policy != "fcfs" or head_may_shrink
        self._is_async = spec.async_scheduling
        self._fails_bad_loads = spec.kv_load_failure_policy == "fail"
        self._keep_rows = keep_rows
        # Whether what the head of the queue hits may change with others' decode steps, such that it
        # can be admitted: if requests begin with others' answers, or their parts differ in worth.
        self._head_may_change = retains and not spec.scheduler_reserve_full_isl
        self._names_emitting = names_emitting

    @property
    def num_loading(self) -> int:
        """Loads that have not ended, those of requests dropped since included."""
        return len(self._remote.loads) + self._prefetches.num_loading

    @property
    def prefetch_log(self) -> PrefetchLog:
        """What has been loaded ahead of requests so far."""
        return self._prefetches.log()

    def take_prefetched(self) -> list[Sequence]:
        """The prefetches that have ended since the last call; they belong to the caller."""
        return self._prefetches.take_ended()

    @property
    def num_held(self) -> int:
        """Requests that have ended but whose blocks have not been sent yet."""
        return len(self._remote.held)

    @property
    def deferred_blocks(self) -> int:
        """Blocks of requests dropped while a step under way still writes to them."""
        if self._under_way is None:
            return 0
        return sum([self._cache.blocks_of(sequence) for sequence in self._under_way.deferred()])

    @property
    def used_blocks(self) -> int:
        """KV blocks that requests refer to."""
        return self.pool.num_blocks - self.pool.blank_blocks - self.pool.idle_blocks

    def take_events(self) -> list[KvEvent]:
        """The KV events since the last call; they belong to the caller."""
        return self.pool.take_events()

    def decoding(self) -> Iterator[tuple[Sequence, int]]:
        """Every decoding request, with the tokens scheduled for it so far."""
        return self._seats.decoding()

    def unfinished(self) -> list[tuple[Sequence, int]]:
        """Every request that has not ended, with the tokens scheduled for it so far."""
        waiting = self._waiting.sequences() + self._remote.waiting() + self._prefetches.unfinished()
        return self._seats.unfinished() + [(s, s.generated_tokens + s.in_flight) for s in waiting]

    # ---- requests ------------------------------------------------------------------------------

    def add(self, sequence: Sequence) -> bool:
        """Queue a request; returns whether the very next step could admit it.

        One that can never fit blocks the queue for ever, as in vLLM. A prefetch is no request: it
        never waits.
        """
        if sequence.is_prefetch:
            self._prefetches.ask(sequence)
            self.has_work = True
            return True
        if sequence.path_blocks * self._cache.block_size > sequence.prompt_tokens:
            self._cache.registers_decodes = True
            self._head_may_change = True
        if sequence.remote_tokens > sequence.prompt_tokens:
            sequence.remote_tokens = sequence.prompt_tokens
        if self._arrival_unblocks:
            self._head_is_blocked = False
        matters = self.num_waiting == 0 or not self._head_is_blocked
        self._waiting.push(sequence)
        self.num_waiting += 1
        self.has_work = True
        return matters and self.num_running < self._max_active

    def abort(self, sequence: Sequence) -> int:
        """Drop a request, if it has not ended: its blocks are free, the full ones stay cached.

        Those of one that loads are free when the load has ended. Returns the tokens that were
        scheduled for it.
        """
        if sequence.state == FINISHED:
            return sequence.output_tokens
        if sequence.is_prefetch:
            self._prefetches.drop(sequence)
            self._note_work()
            return 0
        num_tokens = self._seats.scheduled_tokens(sequence)
        has_seat = sequence.state != WAITING and sequence.state != LOADING
        if has_seat:
            self._leave_seat(sequence)
        if self._offload is not None:
            computed = sequence.num_computed if has_seat else 0
            if sequence.state == SPECULATING:  # drafts under way are not its text
                computed = min(computed, sequence.known_tokens)
            self._offload.ended(sequence, computed)
        if has_seat:
            self._free(sequence)
        else:
            self._leave_queue(sequence)
        self._note_ended(sequence)
        self.decodes.drop_outdated()
        return num_tokens

    def _leave_queue(self, sequence: Sequence) -> None:
        """Let go of a request without a seat, and of the blocks that it has nevertheless."""
        self.num_waiting -= 1
        if not self._remote.has(sequence):
            self._waiting.discard(sequence)
        elif self._remote.drop(sequence):
            self._cache.release(sequence)

    def _leave_seat(self, sequence: Sequence) -> None:
        """Take a request's seat."""
        self._seats.vacate(sequence)
        self.num_running -= 1

    def _free(self, sequence: Sequence) -> None:
        """Free a request's blocks, as soon as no step writes to them."""
        if self._under_way is not None and self._under_way.writes(sequence):
            self._under_way.defer(sequence)
        else:
            self._free_now(sequence)

    def _free_now(self, sequence: Sequence) -> None:
        """Free the blocks of a request that has ended."""
        if self._offload is not None:
            self._offload.freeing(sequence)
        self._cache.release(sequence)
        self._end_session(sequence)

    def _end_session(self, sequence: Sequence) -> None:
        """A request's blocks are free: if it is the last of its session, that is over."""
        claims = sequence.claims
        if claims is not None and claims.ends_session and self.retention is not None:
            self.retention.end_session(claims.session)

    def _free_or_hold(self, sequence: Sequence) -> None:
        """Free a complete request's blocks, unless they are yet to be sent."""
        if self._offload is not None:
            self._offload.ended(sequence, sequence.prompt_tokens + sequence.output_tokens - 1)
        if sequence.is_sent:
            self._remote.held[sequence] = None
        else:
            self._free(sequence)

    def _note_ended(self, sequence: Sequence) -> None:
        """A request is gone."""
        sequence.state = FINISHED
        self._head_is_blocked = False
        self._note_work()

    def _note_work(self) -> None:
        self.has_work = (
            self.num_running > 0
            or self.num_waiting > self._remote.num_loading
            or self._prefetches.are_asked
        )

    # ---- KV from and for elsewhere -------------------------------------------------------------

    def loaded(self, sequence: Sequence, num_valid_tokens: int) -> bool:
        """A load has ended; returns whether the very next step could admit somebody for that."""
        remote = self._remote
        if sequence.state != FINISHED:  # else dropped meanwhile
            if num_valid_tokens >= sequence.reserved_tokens or not self._fails_bad_loads:
                remote.end(sequence, num_valid_tokens)
                self.has_work = True
                return self._may_admit()
            remote.drop(sequence)
            self.num_waiting -= 1
            self._note_ended(sequence)
        del remote.loads[sequence]
        self._cache.release(sequence)
        return self._may_admit()

    @property
    def num_host_chunks(self) -> int:
        """Chunks that have a place in the host tier."""
        return 0 if self._offload is None else len(self._offload.cache)

    @property
    def is_copying(self) -> bool:
        """Whether copies between device and host tier are under way, or to be decided on."""
        return self._offload is not None and not self._offload.is_idle

    @property
    def has_offers(self) -> bool:
        """Whether requests have ended that are yet to offer what they leave to the host tier."""
        return self._offload is not None and self._offload.has_offers

    @property
    def awaits_copies(self) -> bool:
        """Whether a request was passed over, as its chunks are on their way to or from a tier."""
        return self._awaits_copies and self.num_waiting > self._remote.num_loading

    def use_tiers(self, cache: HostCache, beyond: Beyond) -> None:
        """Use these tiers, some of them perhaps shared with other engines, from the start."""
        assert self._offload is not None
        self._offload.use_tiers(cache, beyond)

    def tell_tiers(self, now_ms: float) -> None:
        """It is this time now, for tiers that retain blocks for a time."""
        if self._offload is not None:
            self._offload.at(now_ms)

    def written(self, write: Write) -> None:
        """Chunks have arrived in a tier beyond the nearest."""
        assert self._offload is not None
        self._offload.written(write)

    def lost(self, write: Write) -> None:
        """Chunks that were to be written will not arrive."""
        assert self._offload is not None
        self._offload.lost(write)

    def drop_copies(self) -> None:
        """The engine is gone, and with it all copies under way."""
        if self._offload is not None:
            self._offload.drop_all()

    def offer_rest(self) -> HostWork:
        """Offer what the last requests have left, where no step follows."""
        assert self._offload is not None
        return self._offload.offer_rest()

    def copied(self, number: int) -> bool:
        """A copy has ended; returns as `loaded` does."""
        assert self._offload is not None
        job = self._offload.done(number)
        if job.is_load and job.sequence.is_prefetch:
            self._prefetches.loaded(job.sequence)
        elif job.is_load:
            return self.loaded(job.sequence, job.sequence.reserved_tokens)
        return self._may_admit()

    def holds(self, sequence: Sequence) -> bool:
        """Whether a request has ended and `sent` is awaited for it."""
        return sequence in self._remote.held

    def sent(self, sequence: Sequence) -> bool:
        """The blocks held for a request are free, the last one first; returns as `loaded` does."""
        del self._remote.held[sequence]
        self._cache.release(sequence)
        self._end_session(sequence)
        return self._may_admit()

    def _may_admit(self) -> bool:
        """Something has changed for who waits; returns whether anybody could be admitted."""
        self._head_is_blocked = False
        return self.has_work and self.num_running < self._max_active

    # ---- step by step --------------------------------------------------------------------------

    def plan_step(self) -> StepPlan:
        """Decide the next step; its tokens count as computed and its blocks as taken at once."""
        decodes, loop = self.decodes, self._loop
        plan = StepPlan(decodes.step)
        if self._offload is not None:
            plan.host = HostWork()
        if self._drafting is not None:
            plan.drafts = DraftWork()
        if self._is_async:
            asynchronous.retire(decodes, decodes.step)
        cap = loop.long_prefill_cap(self.num_running + self.num_waiting) if self._has_cap else 0
        budget = None if self._keep_rows else self._foreseen.serve(plan, cap)
        if budget is None:
            budget = loop.serve(plan, cap)
        self._admit(plan, budget, cap)
        if self._prefetches.are_asked:
            self._prefetch(plan)
        decodes.context_tokens += decodes.count
        decodes.step += 1
        if self._drafting is not None:
            self._drafting.launch(plan)
        elif plan.prefilled:
            self._seats.start_decoding(plan)
        if self._names_emitting:
            self._launch(plan)
        if self._offload is not None:
            self._offload.offer_all(plan)
        return plan

    def _launch(self, plan: StepPlan) -> None:
        """A step goes off that names who yields a token."""
        plan.emitting += plan.prefilled
        plan.emitting.sort(key=_by_order)
        if self._is_async:
            if self._drafting is None:
                asynchronous.launch(plan)
            if self._under_way is not None and not plan.is_empty:
                self._under_way.begin(plan)

    def _admit(self, plan: StepPlan, budget: int, cap: int) -> None:
        """Complete a plan that serves the running requests with those who wait."""
        self._head_is_blocked = False
        if plan.preempted:
            self._note_preempted(len(plan.preempted))
        elif self.num_waiting > self._remote.num_loading:
            num_asking = self.num_waiting - self._remote.num_loading
            self._head_is_blocked = self._loop.admit(plan, budget, cap, num_asking)
            if plan.host is not None:
                self._take_back(plan.host)
            self.num_waiting -= len(plan.admitted)
            self.num_running += len(plan.admitted)
            if plan.loads:
                self._note_work()

    def _prefetch(self, plan: StepPlan) -> None:
        """Load ahead what is asked for, where no request lacks the blocks for it."""
        lacks_blocks = self._head_is_blocked or len(plan.preempted) > 0
        self._prefetches.begin(plan, 0 if lacks_blocks else self._loop.spare_blocks(plan))
        self._note_work()

    def _take_back(self, work: HostWork) -> None:
        """Those who were passed over wait on."""
        self._awaits_copies = len(work.asked_later) > 0
        if work.asked_later:
            self._loop.take_back(work.asked_later)

    def finish_step(self, plan: StepPlan) -> list[Sequence]:
        """Deliver the step's tokens; returns the requests that ended, in order, blocks freed."""
        if self._is_async or self._drafting is not None:
            if self._under_way is not None:
                for sequence in self._under_way.end(plan):
                    self._free_now(sequence)
                    self._head_is_blocked = False
            if self._drafting is None:
                complete = asynchronous.deliver(plan, self.decodes, self._cache)
            else:
                complete = self._drafting.deliver(plan, self._cache)
            for sequence in complete:
                if sequence.state == WAITING:  # it had been preempted
                    self._leave_queue(sequence)
                    if self._offload is not None:
                        self._offload.ended(sequence, 0)
                else:
                    self._leave_seat(sequence)
                    self._free_or_hold(sequence)
                self._note_ended(sequence)
            return complete
        finishes = self.decodes.finishes
        if not finishes or finishes[0][0] > plan.step + 1:
            return NOBODY
        return self._finish_until(plan.step + 1)

    def _note_preempted(self, num_preempted: int) -> None:
        """Count those who went from their seats back to the queue."""
        self.num_preemptions += num_preempted
        self.num_running -= num_preempted
        self.num_waiting += num_preempted

    def _finish_until(self, done_step: int) -> list[Sequence]:
        """Free the requests whose last token came from a step before `done_step`, in order."""
        finished = self.decodes.pop_due(done_step)
        for sequence in finished:
            del self.running[sequence]
            self._free_or_hold(sequence)
            sequence.state = FINISHED
            self.num_running -= 1
            self._head_is_blocked = False
        self._note_work()
        return finished

    # ---- in bulk -------------------------------------------------------------------------------

    def begin_loads(self) -> tuple[KvLoad, ...]:
        """Start the loads at the head of the queue, where the next step is sure to serve all.

        The blocks that it opens have to be taken first, as the loads' evictions come after its own.
        """
        decodes, pool = self.decodes, self.pool
        num_asking = self.num_waiting - self._remote.num_loading
        if num_asking == 0 or not self._head_may_load():
            return ()
        budget, need = self._token_budget - decodes.count, decodes.blocks_next_step()
        if self._seats.prefilling or budget <= 0 or need > pool.free_blocks:
            return ()
        if decodes.finishes and decodes.finishes[0][0] <= decodes.step:
            return ()
        if pool.publishes_all and need > pool.blank_blocks:  # each is told in its turn
            return ()
        pool.allocate(need)
        plan = StepPlan(decodes.step)
        if self._offload is not None:
            plan.host = HostWork()
        self._head_is_blocked = self._loop.admit(plan, budget, 0, num_asking, loads_only=True)
        if plan.host is not None:
            self._take_back(plan.host)
        pool.blank_blocks += need  # for the step
        if plan.loads:
            self._note_work()
        return plan.loads

    def _head_may_load(self) -> bool:
        """Whether loads of the head of the queue may start before the next step is planned."""
        if self._head_is_blocked or self._remote.num_ready > 0 or self._prefetches.are_asked:
            return False
        if not self._takes_kv or self._has_cap or self._cache.registers_decodes:
            return False
        return self._offload is None or self._offload.is_idle  # else they may have to wait for it

    def uniform_steps(self) -> int:
        """Steps from here in which the same sequences decode and nothing else can happen."""
        if self._seats.prefilling or self._prefetches.are_asked:
            return 0
        if self.num_waiting > self._remote.num_loading:
            # What the head begins with may come to be cached with anybody's next tokens; where it
            # is worth less than what follows, it may be evicted, and then less need be held.
            may_shrink = self._head_may_change and self.num_running < self._max_active
            if may_shrink or not self._head_is_blocked:
                return 0
        offload = self._offload
        if offload is None:
            return self._bulk.count()
        safe_blocks = self.pool.free_blocks
        if offload.has_orphans:
            if self.retention is not None:
                return 0  # what is worth little, or was of a session that is over, goes at any time
            safe_blocks = offload.safe_blocks
        if self.num_waiting > self._remote.num_loading:
            if offload.may_change:
                return 0  # what the head finds there
            # What the device evicts of what the head finds may be loaded: it has to be asked then.
            safe_blocks = min(safe_blocks, self.pool.blank_blocks)
        return self._bulk.count_within(safe_blocks)

    def advance(self, num_steps: int) -> None:
        """Do uniform decode steps, at most as many as `uniform_steps` allows."""
        self._bulk.advance(num_steps)

    def finish_due(self) -> list[Sequence]:
        """The requests whose last token the steps done in bulk have made, in order."""
        finishes = self.decodes.finishes
        if not finishes or finishes[0][0] > self.decodes.step:
            return NOBODY
        return self._finish_until(self.decodes.step)

    def overlap(self, plan: StepPlan) -> None:
        """The steps of a run begin to be planned: the token before is always still in flight."""
        asynchronous.overlap(plan)

    def last_of_run(self, plan: StepPlan) -> StepPlan:
        """The last step that `advance` did; the same sequences are in it as in `plan`."""
        last = self._bulk.last(plan)
        if self._under_way is not None:
            self._under_way.replace(last)
        return last

    def may_publish(self, num_steps: int) -> bool:
        """Whether uniform steps could cause KV events that somebody wants; or have, by loads."""
        return len(self.events) > 0 or self._bulk.may_publish(num_steps)

    def quiet_steps(self, max_steps: int) -> int:
        """Uniform steps, at least 1, of which only the last may open blocks."""
        return 1 if len(self.events) > 0 else self._bulk.quiet(max_steps)


def _by_order(sequence: Sequence) -> int:
    return sequence.order


def _remote_requests(
    spec: EngineSpec, cache: KvCache, drafting: Speculation | None
) -> RemoteRequests:
    """What of requests has to do with KV that comes from elsewhere, or goes there."""
    tokens_ahead = 0 if drafting is None else drafting.step_tokens
    return RemoteRequests(cache, is_fcfs=spec.policy == "fcfs", tokens_ahead=tokens_ahead)


def _steps_under_way(spec: EngineSpec) -> StepsUnderWay | None:
    """Steps that others may interfere with; None: nobody can."""
    if not spec.async_scheduling or not (spec.takes_kv or spec.gives_kv):
        return None
    return StepsUnderWay(defers_frees=spec.takes_kv, drops_tokens=spec.gives_kv)


def _offload(spec: EngineSpec, seats: Seats, pool: BlockPool) -> HostOffload | None:
    """Copies to and from host memory, if there is a cache in it."""
    host = spec.host_cache
    if host is None:
        return None
    return HostOffload(host, spec.block_size, seats, pool, reuse_blocks=spec.reuse_blocks)
