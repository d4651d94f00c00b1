"""vLLM's own loop: serve the running list in order, then admit those who wait.

Where blocks run out, the latest admitted or least urgent request loses its seat. Everything else
in this package is a shortcut through `serve`, or bookkeeping.
"""

from dynosim.engine.kv_cache import KvCache, PrefixHit
from dynosim.engine.plan import KvLoad, ScheduledRow, StepPlan
from dynosim.engine.sequence import (
    DECODING,
    DRAINING,
    PREFILLING,
    SPECULATING,
    WAITING,
    Sequence,
)
from dynosim.engine.spec import EngineSpec
from dynosim.engine.vllm.offload import LATER, HostOffload
from dynosim.engine.vllm.prefetches import Prefetches
from dynosim.engine.vllm.remote import RemoteRequests
from dynosim.engine.vllm.seats import Seats
from dynosim.engine.vllm.speculation import Speculation
from dynosim.engine.vllm.under_way import StepsUnderWay
from dynosim.engine.waiting import WaitingQueue


class SchedulingLoop:
    """`serve`, then `admit`, make a plan; its tokens count as computed and its blocks as taken.

    `keep_rows` asks for plans that list every request, `names_emitting` for plans that name who
    yields a token.
    """

    __slots__ = (
        "_cache",
        "_cap_threshold",
        "_drafting",
        "_has_chunks",
        "_is_adaptive",
        "_is_fcfs",
        "_keep_rows",
        "_max_active",
        "_names_emitting",
        "_num_admissions",
        "_offload",
        "_prefetches",
        "_remote",
        "_reserves_prompt",
        "_seats",
        "_slot_tokens",
        "_token_budget",
        "_under_way",
        "_waiting",
        "_watermark_blocks",
    )

    def __init__(
        self,
        spec: EngineSpec,
        cache: KvCache,
        seats: Seats,
        waiting: WaitingQueue,
        remote: RemoteRequests,
        under_way: StepsUnderWay | None,
        offload: HostOffload | None,
        prefetches: Prefetches,
        drafting: Speculation | None,
        *,
        keep_rows: bool,
        names_emitting: bool,
    ) -> None:
        self._cache = cache
        self._seats = seats
        self._waiting = waiting
        self._remote = remote
        self._under_way = under_way
        self._offload = offload
        self._prefetches = prefetches
        self._drafting = drafting
        self._slot_tokens = 0 if drafting is None else drafting.slot_tokens
        self._token_budget = spec.max_num_batched_tokens
        self._cap_threshold = spec.long_prefill_token_threshold
        self._is_adaptive = spec.long_prefill_token_threshold_adaptive
        self._max_active = spec.max_active
        self._has_chunks = spec.enable_chunked_prefill
        self._reserves_prompt = spec.scheduler_reserve_full_isl
        self._watermark_blocks = spec.watermark_blocks
        self._is_fcfs = spec.policy == "fcfs"
        self._keep_rows = keep_rows
        self._names_emitting = names_emitting
        self._num_admissions = 0

    def serve(self, plan: StepPlan, cap: int) -> int:
        """Give running requests their tokens, one by one; returns what is left of the budget.

        `cap`, unless 0, limits the tokens of a prompt.
        """
        cache, drafting = self._cache, self._drafting
        budget, slot_tokens = self._token_budget, self._slot_tokens
        served: dict[Sequence, int] = {}  # -> tokens
        new_blocks: dict[Sequence, int] = {}
        is_over = False
        for sequence in list(self._seats.running):
            if sequence.state == WAITING or sequence.state == DRAINING:
                continue  # preempted in this very loop, or nothing left to schedule
            if budget <= slot_tokens or is_over:
                self._defer(plan, sequence)
                continue
            computed, num_tokens = self._wanted(sequence, cap, budget - slot_tokens)
            if num_tokens == 0 and sequence.state == SPECULATING:
                continue  # it ends with what is under way
            end = computed + num_tokens
            need = cache.blocks_to_take(sequence, computed, self._reach(end))
            if need > cache.pool.free_blocks:
                budget += self._make_room(plan, sequence, need, served)
            if sequence.state == WAITING or need > cache.pool.free_blocks:
                is_over = True
                self._defer(plan, sequence)
                continue
            cache.pool.allocate(need)
            if sequence.state == DECODING:
                sequence.registration_lag = sequence.in_flight
            elif drafting is not None:
                drafting.reserve(sequence, end)
            cache.register(sequence, end)
            served[sequence] = num_tokens
            new_blocks[sequence] = need
            budget -= num_tokens + slot_tokens
        for sequence, num_tokens in served.items():
            self._book(plan, sequence, num_tokens, new_blocks[sequence])
        return budget

    def admit(
        self,
        plan: StepPlan,
        budget: int,
        cap: int,
        num_waiting: int,
        *,
        loads_only: bool = False,
    ) -> bool:
        """Give seats to waiting requests while budget, seats and blocks last; let others load.

        `num_waiting` of them do not load. Those who have loaded are first. Returns whether the next
        one is blocked until something ends. With `loads_only` it stops before the first seat.
        """
        cache, remote, slot_tokens = self._cache, self._remote, self._slot_tokens
        while budget > slot_tokens and num_waiting > 0:
            if len(self._seats.running) >= self._max_active:
                return True
            sequence = remote.peek() if remote.num_ready > 0 else self._waiting.peek()
            known = sequence.prompt_tokens + sequence.generated_tokens
            hit: PrefixHit | None = None
            if sequence.num_computed > 0:  # all may have been loaded, but one must be computed
                computed = min(sequence.num_computed, known - 1)
            else:
                hit = self._lookup(sequence)
                computed = (hit.path_blocks + hit.own_blocks) * cache.block_size
                if self._offload is not None:
                    whole = cache.whole_blocks(hit) * cache.block_size
                    sequence.remote_tokens = self._offload.find(sequence, whole)
                    if sequence.remote_tokens == LATER:
                        self._pass_over(plan)
                        num_waiting -= 1
                        continue
            used = 0
            if hit is None or computed >= sequence.remote_tokens:
                if loads_only:
                    return False
                room = budget - slot_tokens
                num_tokens = self._first_chunk(known - computed, room, cap)
                padding = self._padding(plan, computed, known - computed)
                if num_tokens == 0 or num_tokens + padding > room:
                    return plan.num_prefills == 0
                has_place = self._seat(plan, sequence, hit, computed, num_tokens, padding)
                used = num_tokens + padding + slot_tokens
            else:
                cache.keep_whole(hit)
                has_place = self._load(plan, sequence, hit, hit.path_blocks * cache.block_size)
            if not has_place:
                return True
            budget -= used
            num_waiting -= 1
        return False

    def _first_chunk(self, num_tokens: int, budget: int, cap: int) -> int:
        """Of so many tokens those that an admission computes at once; 0: none, since not all."""
        if 0 < cap < num_tokens:
            num_tokens = cap
        if num_tokens <= budget:
            return num_tokens
        return budget if self._has_chunks else 0

    def _reach(self, end: int) -> int:
        """Up to where a request needs blocks that computes up to `end`."""
        return end if self._drafting is None else self._drafting.reach(end)

    def long_prefill_cap(self, num_requests: int) -> int:
        """Tokens a prompt may take per step; 0: no cap (a lone request is never capped)."""
        if num_requests <= 1:
            return 0
        if self._is_adaptive:
            return max(self._cap_threshold, self._token_budget // num_requests)
        return self._cap_threshold

    # ---- running requests ----------------------------------------------------------------------

    def _wanted(self, sequence: Sequence, cap: int, budget: int) -> tuple[int, int]:
        """Tokens of a running request computed so far, and tokens it takes in this step."""
        if sequence.state == DECODING:
            return sequence.anchor + self._seats.decodes.step, 1
        if sequence.state == SPECULATING and self._drafting is not None:
            return sequence.num_computed, self._drafting.wanted(sequence, cap, budget)
        wanted = sequence.known_tokens - sequence.num_computed
        if 0 < cap < wanted:
            wanted = cap
        return sequence.num_computed, min(wanted, budget)

    def _defer(self, plan: StepPlan, sequence: Sequence) -> None:
        """Leave a running request out of this step; an unfinished prefill just stays."""
        if sequence.state == DECODING:
            self._seats.decodes.delay(sequence)
            plan.deferred += (sequence,)

    def _book(self, plan: StepPlan, sequence: Sequence, num_tokens: int, new_blocks: int) -> None:
        """Enter a served request into the plan."""
        if sequence.state == DECODING:
            computed = sequence.anchor + self._seats.decodes.step
            is_decode = True
            plan.num_decodes += 1
            plan.decode_context_tokens += computed + 1
            if self._names_emitting:
                plan.emitting.append(sequence)
        elif sequence.state == SPECULATING and self._drafting is not None:
            computed = sequence.num_computed
            is_decode = True
            self._drafting.book(plan, sequence, num_tokens)
        else:
            computed = sequence.num_computed
            is_decode = plan.take_chunk(sequence, num_tokens)
        if self._keep_rows:
            plan.rows.append(
                ScheduledRow(sequence, num_tokens, is_decode, computed, new_blocks, -1)
            )

    # ---- preemption ----------------------------------------------------------------------------

    def _make_room(
        self, plan: StepPlan, sequence: Sequence, need: int, served: dict[Sequence, int]
    ) -> int:
        """Preempt others, in the end the request itself, until it finds so many blocks.

        Returns the tokens that were to go to them in this step.
        """
        restored = 0
        while need > self._cache.pool.free_blocks and sequence.state != WAITING:
            victim = self._choose_victim()
            if self._under_way is not None and self._under_way.writes(victim):
                break  # its blocks would not be free at once
            num_tokens = served.pop(victim, 0)
            if num_tokens > 0:
                restored += num_tokens + self._slot_tokens
            self._preempt(plan, victim, num_tokens)
        return restored

    def _choose_victim(self) -> Sequence:
        """The running request to preempt: the latest admitted, or the least urgent."""
        running = self._seats.running
        if self._is_fcfs:
            return next(reversed(running))
        return max(running, key=_by_urgency)

    def _preempt(self, plan: StepPlan, victim: Sequence, num_tokens: int) -> None:
        """Take a request's seat and blocks, also those for `num_tokens` tokens of this step.

        As in vLLM, full blocks that the dropped tokens would have filled stay hittable.
        """
        self._seats.vacate(victim)
        if victim.state != PREFILLING:
            known = victim.num_computed + 1 - victim.in_flight
            victim.generated_tokens = known - victim.prompt_tokens
        if self._under_way is not None and self._under_way.drops_tokens:
            self._under_way.withdraw(victim)
        victim.num_computed += num_tokens
        if self._offload is not None:
            self._offload.note_blank_blocks()
        self._cache.release(victim)
        victim.state = WAITING
        victim.finish_step = -1
        victim.num_computed = 0
        victim.drafts = 0
        victim.preemptions += 1
        self._waiting.push_preempted(victim)
        plan.preempted += (victim,)

    # ---- admission -----------------------------------------------------------------------------

    def _lookup(self, sequence: Sequence) -> PrefixHit:
        """What a waiting request finds in the cache."""
        hit = self._cache.lookup(sequence)
        if self._drafting is not None:
            self._drafting.shorten(hit)
        return hit

    def _padding(self, plan: StepPlan, computed: int, num_tokens: int) -> int:
        """Placeholder drafts of an admission that lacks so many tokens."""
        drafting = self._drafting
        return 0 if drafting is None else drafting.padding(plan, computed, num_tokens)

    def _has_room(
        self, sequence: Sequence, hit: PrefixHit | None, computed: int, reach: int
    ) -> bool:
        """Whether the blocks for an admission are free that takes them up to `reach`."""
        end = reach
        if self._reserves_prompt:
            end = max(end, sequence.prompt_tokens + sequence.generated_tokens)
        need = self._blocks_to_leave(hit) + self._cache.blocks_to_take(sequence, computed, end)
        return need <= self._cache.pool.free_blocks

    def _blocks_to_leave(self, hit: PrefixHit | None) -> int:
        """Free blocks that an admission cannot have: idle hits, which must stay, a watermark."""
        blocks = 0 if hit is None else hit.idle_blocks
        if self._seats.running:
            blocks += self._watermark_blocks
        return blocks

    def _seat(
        self,
        plan: StepPlan,
        sequence: Sequence,
        hit: PrefixHit | None,
        computed: int,
        num_tokens: int,
        padding: int,
    ) -> bool:
        """Admit the next one, if there is room: reference its hits, then take the blocks of its
        first chunk, and of `padding` placeholders behind it.

        `hit` is None for one that has loaded: it holds blocks already.
        """
        cache, seats, drafting = self._cache, self._seats, self._drafting
        end = computed + num_tokens + padding
        reach = self._reach(end)
        if not self._has_room(sequence, hit, computed, reach):
            return False
        is_back = self._remote.num_ready > 0
        if is_back:
            self._remote.pop()
        else:
            self._waiting.pop()
        if hit is not None:
            self._take_hit(sequence, hit)
        new_blocks = cache.blocks_to_take(sequence, computed, reach)
        cache.pool.allocate(new_blocks)
        sequence.num_computed = computed
        sequence.state = PREFILLING
        sequence.remote_tokens = 0
        sequence.order = self._num_admissions
        self._num_admissions += 1
        if sequence.cached_tokens < 0:
            sequence.cached_tokens = computed
        seats.running[sequence] = None
        seats.prefilling.append(sequence)
        plan.admitted.append(sequence)
        is_decode = plan.take_chunk(sequence, num_tokens)
        if drafting is not None:
            drafting.admit(plan, sequence, padding, is_decode=is_decode, is_back=is_back)
        cache.register(sequence, end)
        if self._keep_rows:
            row = ScheduledRow(sequence, end - computed, is_decode, computed, new_blocks, computed)
            plan.rows.append(row)
        return True

    def _take_hit(self, sequence: Sequence, hit: PrefixHit) -> None:
        """Let an admitted request hold what it hit, some of which may have been loaded ahead."""
        if self._prefetches.watches_hits:
            self._prefetches.note_hit(hit.extents)
        self._cache.take_hit(sequence, hit)

    def spare_blocks(self, plan: StepPlan) -> int:
        """Free blocks that nobody served will need soon: beside what prompts under way still lack,
        a block is left for every request with a seat."""
        seated = len(self._seats.running)
        needed = self._blocks_to_leave(None) + self._reserved_blocks(plan) + seated
        return self._cache.pool.free_blocks - needed

    # ---- loads ---------------------------------------------------------------------------------

    def _load(self, plan: StepPlan, sequence: Sequence, hit: PrefixHit, hit_tokens: int) -> bool:
        """Let the head of the queue load what it did not hit; returns whether there is room.

        Its blocks are taken now, and not given back until the load has ended: so they must not be
        those that a prefill under way, or another load, will need.
        """
        cache = self._cache
        known = sequence.prompt_tokens + sequence.generated_tokens
        end = sequence.remote_tokens
        new_blocks = cache.blocks_between(hit_tokens, end)
        taken, free = self._blocks_to_leave(hit), cache.pool.free_blocks
        lacks_room = taken + new_blocks > free - self._reserved_blocks(plan)
        if self._reserves_prompt and taken + cache.blocks_between(hit_tokens, known) > free:
            lacks_room = True
        if lacks_room:
            if self._offload is not None:
                sequence.remote_tokens = 0  # by then the tier may hold something else
            return False
        self._waiting.pop()
        self._take_hit(sequence, hit)
        cache.pool.allocate(new_blocks)
        sequence.num_computed = hit_tokens
        sequence.reserved_tokens = end
        sequence.remote_tokens = 0
        if sequence.cached_tokens < 0:
            sequence.cached_tokens = hit_tokens
            sequence.external_tokens = end - hit_tokens
        self._remote.start(sequence, plan.step)
        load = KvLoad(sequence, hit_tokens, end - hit_tokens, new_blocks)
        plan.loads += (load,)
        if self._offload is not None:
            self._offload.begin_load(plan, load, end)
        return True

    def _pass_over(self, plan: StepPlan) -> None:
        """Look at the head of the queue in the next step; see `take_back`."""
        assert plan.host is not None
        sequence = self._waiting.pop()
        sequence.remote_tokens = 0
        plan.host.asked_later += (sequence,)

    def take_back(self, passed_over: tuple[Sequence, ...]) -> None:
        """Return those who were passed over to their places at the head."""
        for sequence in reversed(passed_over):
            self._waiting.push_preempted(sequence)

    def _reserved_blocks(self, plan: StepPlan) -> int:
        """Blocks that prefills under way still need, with a seat or on their way to one.

        With drafts a step more has to be sure of its blocks, also that of who asks to load.
        """
        drafting, ahead = self._drafting, 0
        blocks = self._remote.reserved_blocks
        if drafting is not None:
            ahead = drafting.step_tokens
            blocks += self._cache.blocks_between(0, ahead)
        for sequence in self._seats.prefilling:
            if drafting is not None and drafting.is_through(plan, sequence):
                continue
            known = sequence.prompt_tokens + sequence.generated_tokens + ahead
            blocks += self._cache.blocks_to_take(sequence, sequence.num_computed, known)
        return blocks


def _by_urgency(sequence: Sequence) -> tuple[int, float]:
    return sequence.priority, sequence.arrival_ms
