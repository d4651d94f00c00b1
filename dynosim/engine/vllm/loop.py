"""vLLM's own loop: serve the running list in order, then admit those who wait.

Where blocks run out, the latest admitted or least urgent request loses its seat. Everything else
in this package is a shortcut through `serve`, or bookkeeping.
"""

from dynosim.engine.kv_cache import KvCache, PrefixHit
from dynosim.engine.plan import ScheduledRow, StepPlan
from dynosim.engine.sequence import DECODING, DRAINING, PREFILLING, WAITING, Sequence
from dynosim.engine.spec import EngineSpec
from dynosim.engine.vllm.seats import Seats
from dynosim.engine.waiting import WaitingQueue


class SchedulingLoop:
    """`serve`, then `admit`, make a plan; its tokens count as computed and its blocks as taken.

    `keep_rows` asks for plans that list every request, `names_emitting` for plans that name who
    yields a token.
    """

    __slots__ = (
        "_cache",
        "_cap_threshold",
        "_has_chunks",
        "_is_adaptive",
        "_is_fcfs",
        "_keep_rows",
        "_max_active",
        "_names_emitting",
        "_num_admissions",
        "_reserves_prompt",
        "_seats",
        "_token_budget",
        "_waiting",
        "_watermark_blocks",
    )

    def __init__(
        self,
        spec: EngineSpec,
        cache: KvCache,
        seats: Seats,
        waiting: WaitingQueue,
        *,
        keep_rows: bool,
        names_emitting: bool,
    ) -> None:
        self._cache = cache
        self._seats = seats
        self._waiting = waiting
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
        cache = self._cache
        budget = self._token_budget
        served: dict[Sequence, int] = {}  # -> tokens
        new_blocks: dict[Sequence, int] = {}
        is_over = False
        for sequence in list(self._seats.running):
            if sequence.state == WAITING or sequence.state == DRAINING:
                continue  # preempted in this very loop, or nothing left to schedule
            if budget == 0 or is_over:
                self._defer(plan, sequence)
                continue
            computed, num_tokens = self._wanted(sequence, cap, budget)
            need = cache.blocks_between(computed, computed + num_tokens)
            while need > cache.pool.free_blocks and sequence.state != WAITING:
                victim = self._choose_victim()
                restored = served.pop(victim, 0)
                budget += restored
                self._preempt(plan, victim, restored)
            if sequence.state == WAITING:
                is_over = True
                continue
            cache.pool.allocate(need)
            if sequence.state == DECODING:
                sequence.registration_lag = sequence.in_flight
            cache.register(sequence, computed + num_tokens)
            served[sequence] = num_tokens
            new_blocks[sequence] = need
            budget -= num_tokens
        for sequence, num_tokens in served.items():
            self._book(plan, sequence, num_tokens, new_blocks[sequence])
        return budget

    def admit(self, plan: StepPlan, budget: int, cap: int, num_waiting: int) -> bool:
        """Give seats to waiting requests while budget, seats and blocks last.

        Returns whether the next one is blocked until something ends.
        """
        cache = self._cache
        while budget > 0 and num_waiting > 0:
            if len(self._seats.running) >= self._max_active:
                return True
            sequence = self._waiting.peek()
            hit = cache.lookup(sequence)
            hit_tokens = (hit.path_blocks + hit.own_blocks) * cache.block_size
            num_tokens = sequence.prompt_tokens + sequence.generated_tokens - hit_tokens
            if 0 < cap < num_tokens:
                num_tokens = cap
            if num_tokens > budget:
                if not self._has_chunks:
                    return plan.num_prefills == 0
                num_tokens = budget
            if not self._has_room(sequence, hit, hit_tokens, num_tokens):
                return True
            self._seat(plan, sequence, hit, hit_tokens, num_tokens)
            budget -= num_tokens
            num_waiting -= 1
        return False

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
        else:
            computed = sequence.num_computed
            is_decode = plan.take_chunk(sequence, num_tokens)
        if self._keep_rows:
            plan.rows.append(
                ScheduledRow(sequence, num_tokens, is_decode, computed, new_blocks, -1)
            )

    # ---- preemption ----------------------------------------------------------------------------

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
        victim.num_computed += num_tokens
        self._cache.release(victim)
        victim.state = WAITING
        victim.finish_step = -1
        victim.num_computed = 0
        victim.preemptions += 1
        self._waiting.push_preempted(victim)
        plan.preempted += (victim,)

    # ---- admission -----------------------------------------------------------------------------

    def _has_room(
        self, sequence: Sequence, hit: PrefixHit, hit_tokens: int, num_tokens: int
    ) -> bool:
        """Whether the blocks for an admission are free (idle hits are, but must stay)."""
        cache = self._cache
        end = hit_tokens + num_tokens
        if self._reserves_prompt:
            end = sequence.prompt_tokens + sequence.generated_tokens
        need = cache.blocks_between(hit_tokens, end) + hit.idle_blocks
        if self._seats.running:
            need += self._watermark_blocks
        return need <= cache.pool.blank_blocks + cache.pool.idle_blocks

    def _seat(
        self, plan: StepPlan, sequence: Sequence, hit: PrefixHit, hit_tokens: int, num_tokens: int
    ) -> None:
        """Admit the head of the queue: reference its hits, then take its first chunk's blocks."""
        cache, seats = self._cache, self._seats
        self._waiting.pop()
        cache.take_hit(sequence, hit)
        new_blocks = cache.blocks_between(hit_tokens, hit_tokens + num_tokens)
        cache.pool.allocate(new_blocks)
        sequence.num_computed = hit_tokens
        sequence.state = PREFILLING
        sequence.order = self._num_admissions
        self._num_admissions += 1
        if sequence.cached_tokens < 0:
            sequence.cached_tokens = hit_tokens
        seats.running[sequence] = None
        seats.prefilling.append(sequence)
        plan.admitted.append(sequence)
        is_decode = plan.take_chunk(sequence, num_tokens)
        cache.register(sequence, hit_tokens + num_tokens)
        if self._keep_rows:
            plan.rows.append(
                ScheduledRow(sequence, num_tokens, is_decode, hit_tokens, new_blocks, hit_tokens)
            )


def _by_urgency(sequence: Sequence) -> tuple[int, float]:
    return sequence.priority, sequence.arrival_ms
