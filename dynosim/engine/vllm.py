"""vLLM's V1 scheduler as pure decisions: which request computes how many tokens in which step.

It follows vLLM 0.32 (`v1/core/sched`): one full-attention KV cache group, no speculative decoding.
The scheduler knows no clock: a driver asks for a plan, lets it take as long as its timing model
says, and hands it back. Two ways lead through the same state, and a property test holds them equal:

* step by step: `plan_step`, `finish_step`;
* in bulk: while nothing but decoding can happen, `uniform_steps` tells for how many steps, and
  `advance` does them at once.

Planning does not cost more when more sequences decode, except in *ordered* steps, where blocks or
budget are so short that the order of the running list decides who gets them.

Invariants: `running` is in admission order; without a long-prefill cap at most one running request
is partly prefilled, and it is the last one.
"""

from collections.abc import Iterator

from dynosim.engine.block_pool import BlockPool
from dynosim.engine.decode_set import DecodeSet
from dynosim.engine.kv_cache import KvCache, PrefixHit
from dynosim.engine.plan import ScheduledRow, StepPlan
from dynosim.engine.sequence import DECODING, DRAINING, FINISHED, PREFILLING, WAITING, Sequence
from dynosim.engine.spec import EngineSpec
from dynosim.engine.waiting import make_queue

NOBODY: list[Sequence] = []  # never changed


class VllmScheduler:
    """Scheduler and block manager of one vLLM engine.

    `extent_blocks` are the sizes of the extents that request paths name (None: they are single
    blocks). `keep_rows` asks for
    step-by-step plans that list every request; `names_emitting` for plans that name who yields a
    token; `publish_events` for KV events, with `announced` only about the extents flagged in it.
    """

    def __init__(
        self,
        spec: EngineSpec,
        extent_blocks: list[int] | None = None,
        *,
        keep_rows: bool = False,
        names_emitting: bool = False,
        publish_events: bool = False,
        announced: list[bool] | None = None,
    ) -> None:
        self.spec = spec
        self.pool = BlockPool(
            spec.usable_blocks,
            extent_blocks,
            publish_events=publish_events,
            announced=announced,
        )
        self.take_events = self.pool.take_events  # without a call between
        self.decodes = DecodeSet(spec.block_size)
        self.running: dict[Sequence, None] = {}  # an ordered set, in admission order
        self.num_waiting = 0
        self.num_preemptions = 0
        self._cache = KvCache(
            self.pool, spec.block_size, has_prefix_caching=spec.enable_prefix_caching
        )
        self._waiting = make_queue(spec.policy)
        self._prefilling: list[Sequence] = []
        self._draining: list[Sequence] = []  # asynchronous scheduling only
        self._usable_blocks = spec.usable_blocks
        self._head_is_blocked = False
        self._num_admissions = 0
        self._max_active = spec.max_active
        self._watermark_blocks = spec.watermark_blocks
        self._reserves_prompt = spec.scheduler_reserve_full_isl
        self._token_budget = spec.max_num_batched_tokens
        self._cap_threshold = spec.long_prefill_token_threshold
        # The more requests, the smaller the first chunk, and a smaller one may find room.
        is_adaptive = spec.long_prefill_token_threshold_adaptive and self._cap_threshold > 0
        self._head_may_shrink = is_adaptive and not self._reserves_prompt
        self._is_async = spec.async_scheduling
        self._is_fcfs = spec.policy == "fcfs"
        self._keep_rows = keep_rows
        self._names_emitting = names_emitting or spec.async_scheduling
        # Generated blocks are registered as they fill only if somebody can hit or hear of them.
        self._registers_decodes = publish_events and announced is None

    # ---- the driver's side ---------------------------------------------------------------------

    @property
    def has_work(self) -> bool:
        """Whether a step is worth planning."""
        return bool(self.running) or self.num_waiting > 0

    @property
    def num_running(self) -> int:
        """Requests with a seat."""
        return len(self.running)

    @property
    def used_blocks(self) -> int:
        """KV blocks that requests refer to."""
        return self._usable_blocks - self.pool.blank_blocks - self.pool.idle_blocks

    def decoding(self) -> Iterator[tuple[Sequence, int]]:
        """Every decoding request, with the tokens scheduled for it so far."""
        step = self.decodes.step
        for sequence in self.running:
            if sequence.state == DECODING:
                yield sequence, sequence.anchor + step + 1 - sequence.prompt_tokens

    def unfinished(self) -> list[tuple[Sequence, int]]:
        """Every request that has not ended, with the tokens scheduled for it so far."""
        step = self.decodes.step
        found: list[tuple[Sequence, int]] = []
        for sequence in self.running:
            computed = sequence.num_computed
            if sequence.state == DECODING:
                computed = sequence.anchor + step
            is_generating = sequence.state == DECODING or sequence.state == DRAINING
            generated = computed + 1 - sequence.prompt_tokens
            found.append((sequence, generated if is_generating else sequence.generated_tokens))
        waiting = self._waiting.sequences()
        return found + [(s, s.generated_tokens + s.in_flight) for s in waiting]

    def add(self, sequence: Sequence) -> bool:
        """Queue a request; returns whether the very next step could admit it.

        One that can never fit blocks the queue for ever, as in vLLM.
        """
        if sequence.path_blocks * self.spec.block_size > sequence.prompt_tokens:
            self._registers_decodes = True
        if not self._is_fcfs or self._head_may_shrink:
            self._head_is_blocked = False
        matters = self.num_waiting == 0 or not self._head_is_blocked
        self._waiting.push(sequence)
        self.num_waiting += 1
        return matters and len(self.running) < self._max_active

    def abort(self, sequence: Sequence) -> None:
        """Drop a request, if it has not ended: its blocks are free, the full ones stay cached."""
        if sequence.state == FINISHED:
            return
        if sequence.state == WAITING:
            self._waiting.discard(sequence)
            self.num_waiting -= 1
        else:
            self._vacate(sequence)
            self._cache.release(sequence)
        sequence.state = FINISHED
        self._head_is_blocked = False
        self.decodes.drop_outdated()

    def plan_step(self) -> StepPlan:
        """Decide the next step; its tokens count as computed and its blocks as taken at once."""
        decodes = self.decodes
        plan = StepPlan(decodes.step)
        if self._is_async:
            self._retire(decodes.step)
        cap = self._long_prefill_cap() if self._cap_threshold else 0
        budget = self._serve_running(plan, cap)
        self._head_is_blocked = False
        if self.num_waiting > 0 and not plan.preempted:
            self._admit(plan, budget, cap)
        decodes.context_tokens += decodes.count
        decodes.step += 1
        if plan.prefilled:
            self._start_decoding(plan)
        if self._names_emitting:
            self._note_emitting(plan)
        return plan

    def finish_step(self, plan: StepPlan) -> list[Sequence]:
        """Deliver the step's tokens; returns the requests that ended, in order, blocks freed."""
        if self._is_async:
            return self._finish_async(plan)
        return self._finish_until(plan.step + 1)

    def finish_due(self) -> list[Sequence]:
        """The requests whose last token the steps done in bulk have made, in order."""
        return self._finish_until(self.decodes.step)

    def uniform_steps(self) -> int:
        """Steps from here in which the same sequences decode and nothing else can happen."""
        decodes = self.decodes
        if self._prefilling or decodes.count == 0:
            return 0
        if self.num_waiting > 0 and not self._head_is_blocked:
            return 0
        pool = self.pool
        free_blocks = pool.blank_blocks + pool.idle_blocks
        return decodes.steps_within(decodes.finishes[0][0] - decodes.step, free_blocks)

    def advance(self, num_steps: int) -> None:
        """Do uniform decode steps, at most as many as `uniform_steps` allows."""
        decodes = self.decodes
        opened = decodes.blocks_opened(num_steps)
        if opened:
            self.pool.allocate(opened)
        decodes.context_tokens += decodes.count * num_steps
        decodes.step += num_steps
        if self._registers_decodes:
            for sequence in self.running:
                if sequence.state == DECODING:
                    self._register(sequence, sequence.anchor + decodes.step)

    def overlap(self, plan: StepPlan) -> None:
        """The steps of a run begin to be planned: the token before is always still in flight."""
        for sequence in plan.emitting:
            sequence.registration_lag = 1

    def last_of_run(self, plan: StepPlan) -> StepPlan:
        """The last step that `advance` did; the same sequences are in it as in `plan`."""
        decodes = self.decodes
        last = StepPlan(decodes.step - 1)
        last.num_decodes = decodes.count
        last.decode_context_tokens = decodes.context_tokens - decodes.count
        last.emitting = plan.emitting
        return last

    def may_publish(self, num_steps: int) -> bool:
        """Whether uniform steps could cause KV events that somebody wants."""
        pool = self.pool
        if pool.publishes_all:  # a block is full one step before the next is opened
            return self.decodes.blocks_opened(num_steps + 1) > 0
        return pool.idle_blocks > 0 and pool.blank_blocks < self.decodes.blocks_opened(num_steps)

    def quiet_steps(self, max_steps: int) -> int:
        """Uniform steps, at least 1, of which only the last may open blocks."""
        return max(self.decodes.steps_within(max_steps, 0), 1)

    def _finish_until(self, done_step: int) -> list[Sequence]:
        """Free the requests whose last token came from a step before `done_step`, in order."""
        finishes = self.decodes.finishes
        if not finishes or finishes[0][0] > done_step:
            return NOBODY
        finished = self.decodes.pop_due(done_step)
        for sequence in finished:
            self._finish(sequence)
        return finished

    # ---- running requests ----------------------------------------------------------------------

    def _long_prefill_cap(self) -> int:
        """Tokens a prompt may take per step; 0: no cap (a lone request is never capped)."""
        num_requests = len(self.running) + self.num_waiting
        if num_requests <= 1:
            return 0
        if self.spec.long_prefill_token_threshold_adaptive:
            return max(self._cap_threshold, self._token_budget // num_requests)
        return self._cap_threshold

    def _serve_running(self, plan: StepPlan, cap: int) -> int:
        """Give running requests their tokens; returns what is left of the budget."""
        if self._keep_rows:
            return self._serve_in_order(plan, cap)
        decodes = self.decodes
        budget = self._token_budget - decodes.count
        need = decodes.blocks_next_step()
        prefilling = self._prefilling
        num_tokens = 0
        if prefilling:
            if cap > 0 or len(prefilling) > 1:
                return self._serve_in_order(plan, cap)
            sequence = prefilling[0]
            computed = sequence.num_computed
            num_tokens = sequence.prompt_tokens + sequence.generated_tokens - computed
            if num_tokens > budget:
                num_tokens = budget
            need += self._cache.blocks_between(computed, computed + num_tokens)
        if need > self.pool.blank_blocks + self.pool.idle_blocks:
            return self._serve_in_order(plan, cap)
        plan.num_decodes = decodes.count
        plan.decode_context_tokens = decodes.context_tokens
        if need:
            self.pool.allocate(need)
        if self._names_emitting or self._registers_decodes:
            self._serve_each(plan)
        if num_tokens > 0:
            self._compute_chunk(plan, prefilling[0], num_tokens)
        return budget - num_tokens

    def _serve_each(self, plan: StepPlan) -> None:
        """Note what a step means to each decoding sequence, where somebody wants to know."""
        for sequence in self.running:
            if sequence.state == DECODING:
                sequence.registration_lag = sequence.in_flight
                if self._registers_decodes:
                    self._register(sequence, sequence.anchor + self.decodes.step + 1)
                if self._names_emitting:
                    plan.emitting.append(sequence)

    def _serve_in_order(self, plan: StepPlan, cap: int) -> int:
        """Serve the running list one by one, preempting where blocks run out.

        This is vLLM's own loop; `_serve_running` avoids it where its outcome is foreseeable.
        """
        budget = self._token_budget
        served: dict[Sequence, int] = {}  # -> tokens
        new_blocks: dict[Sequence, int] = {}
        is_over = False
        for sequence in list(self.running):
            if sequence.state == WAITING or sequence.state == DRAINING:
                continue  # preempted in this very loop, or nothing left to schedule
            if budget == 0 or is_over:
                self._defer(plan, sequence)
                continue
            computed, num_tokens = self._wanted(sequence, cap, budget)
            need = self._cache.blocks_between(computed, computed + num_tokens)
            while need > self.pool.free_blocks and sequence.state != WAITING:
                victim = self._choose_victim()
                restored = served.pop(victim, 0)
                budget += restored
                self._preempt(plan, victim, restored)
            if sequence.state == WAITING:
                is_over = True
                continue
            self.pool.allocate(need)
            if sequence.state == DECODING:
                sequence.registration_lag = sequence.in_flight
            self._register(sequence, computed + num_tokens)
            served[sequence] = num_tokens
            new_blocks[sequence] = need
            budget -= num_tokens
        for sequence, num_tokens in served.items():
            self._book(plan, sequence, num_tokens, new_blocks[sequence])
        return budget

    def _wanted(self, sequence: Sequence, cap: int, budget: int) -> tuple[int, int]:
        """Tokens of a running request computed so far, and tokens it takes in this step."""
        if sequence.state == DECODING:
            return sequence.anchor + self.decodes.step, 1
        wanted = sequence.known_tokens - sequence.num_computed
        if 0 < cap < wanted:
            wanted = cap
        return sequence.num_computed, min(wanted, budget)

    def _book(self, plan: StepPlan, sequence: Sequence, num_tokens: int, new_blocks: int) -> None:
        """Enter a request served in order into the plan."""
        if sequence.state == DECODING:
            computed = sequence.anchor + self.decodes.step
            is_decode = True
            plan.num_decodes += 1
            plan.decode_context_tokens += computed + 1
            if self._names_emitting:
                plan.emitting.append(sequence)
        else:
            computed = sequence.num_computed
            is_decode = self._compute_chunk(plan, sequence, num_tokens)
        if self._keep_rows:
            plan.rows.append(
                ScheduledRow(sequence, num_tokens, is_decode, computed, new_blocks, -1)
            )

    def _compute_chunk(self, plan: StepPlan, sequence: Sequence, num_tokens: int) -> bool:
        """Enter a chunk of known tokens, blocks already taken; returns whether it is a decode.

        One last token of a request that has produced some already runs as a decode does.
        """
        before = sequence.num_computed
        known = sequence.prompt_tokens + sequence.generated_tokens
        computed = before + num_tokens
        is_decode = before + 1 == known and sequence.generated_tokens > 0
        if is_decode:
            plan.num_decodes += 1
            plan.num_resumed_decodes += 1
            plan.decode_context_tokens += known
        else:
            plan.num_prefills += 1
            plan.prefill_tokens += num_tokens
            plan.prefix_tokens += before
        sequence.num_computed = computed
        if self._cache.has_prefix_caching:
            self._cache.register(sequence, computed)
        if computed == known:
            plan.prefilled.append(sequence)
        return is_decode

    def _register(self, sequence: Sequence, computed: int) -> None:
        if self._cache.has_prefix_caching:
            self._cache.register(sequence, computed)

    def _defer(self, plan: StepPlan, sequence: Sequence) -> None:
        """Leave a running request out of this step; an unfinished prefill just stays."""
        if sequence.state == DECODING:
            self.decodes.delay(sequence)
            plan.deferred += (sequence,)

    # ---- admission -----------------------------------------------------------------------------

    def _admit(self, plan: StepPlan, budget: int, cap: int) -> None:
        """Give seats to waiting requests while budget, seats and blocks last."""
        while budget > 0 and self.num_waiting > 0:
            if len(self.running) >= self._max_active:
                self._head_is_blocked = True
                return
            sequence = self._waiting.peek()
            hit = self._cache.lookup(sequence)
            hit_tokens = (hit.path_blocks + hit.own_blocks) * self._cache.block_size
            num_tokens = sequence.prompt_tokens + sequence.generated_tokens - hit_tokens
            if 0 < cap < num_tokens:
                num_tokens = cap
            if num_tokens > budget:
                if not self.spec.enable_chunked_prefill:
                    self._head_is_blocked = plan.num_prefills == 0
                    return
                num_tokens = budget
            if not self._has_room(sequence, hit, hit_tokens, num_tokens):
                self._head_is_blocked = True
                return
            self._seat(plan, sequence, hit, hit_tokens, num_tokens)
            budget -= num_tokens

    def _has_room(
        self, sequence: Sequence, hit: PrefixHit, hit_tokens: int, num_tokens: int
    ) -> bool:
        """Whether the blocks for an admission are free (idle hits are, but must stay)."""
        end = hit_tokens + num_tokens
        if self._reserves_prompt:
            end = sequence.prompt_tokens + sequence.generated_tokens
        need = self._cache.blocks_between(hit_tokens, end) + hit.idle_blocks
        if self.running:
            need += self._watermark_blocks
        return need <= self.pool.blank_blocks + self.pool.idle_blocks

    def _seat(
        self, plan: StepPlan, sequence: Sequence, hit: PrefixHit, hit_tokens: int, num_tokens: int
    ) -> None:
        """Admit the head of the queue: reference its hits, then take its first chunk's blocks."""
        self._waiting.pop()
        self.num_waiting -= 1
        self._cache.take_hit(sequence, hit)
        new_blocks = self._cache.blocks_between(hit_tokens, hit_tokens + num_tokens)
        self.pool.allocate(new_blocks)
        sequence.num_computed = hit_tokens
        sequence.state = PREFILLING
        sequence.order = self._num_admissions
        self._num_admissions += 1
        if sequence.cached_tokens < 0:
            sequence.cached_tokens = hit_tokens
        self.running[sequence] = None
        self._prefilling.append(sequence)
        plan.admitted.append(sequence)
        is_decode = self._compute_chunk(plan, sequence, num_tokens)
        if self._keep_rows:
            plan.rows.append(
                ScheduledRow(sequence, num_tokens, is_decode, hit_tokens, new_blocks, hit_tokens)
            )

    # ---- preemption ----------------------------------------------------------------------------

    def _choose_victim(self) -> Sequence:
        """The running request to preempt: the latest admitted, or the least urgent."""
        if self._is_fcfs:
            return next(reversed(self.running))
        return max(self.running, key=_by_urgency)

    def _preempt(self, plan: StepPlan, victim: Sequence, num_tokens: int) -> None:
        """Take a request's seat and blocks, also those for `num_tokens` tokens of this step.

        As in vLLM, full blocks that the dropped tokens would have filled stay hittable.
        """
        self._vacate(victim)
        if victim.state != PREFILLING:
            known = victim.num_computed + 1 - victim.in_flight
            victim.generated_tokens = known - victim.prompt_tokens
        victim.num_computed += num_tokens
        self._cache.release(victim)
        victim.state = WAITING
        victim.finish_step = -1
        victim.num_computed = 0
        victim.preemptions += 1
        self.num_preemptions += 1
        self._waiting.push_preempted(victim)
        self.num_waiting += 1
        plan.preempted += (victim,)

    def _vacate(self, sequence: Sequence) -> None:
        """Take a request's seat; `num_computed` tells its progress from then on."""
        if sequence.state == PREFILLING:
            self._prefilling.remove(sequence)
        elif sequence.state == DECODING:
            self.decodes.leave(sequence)
            sequence.num_computed = sequence.anchor + self.decodes.step
        else:
            self._draining.remove(sequence)
        del self.running[sequence]

    # ---- from prefill to the end ---------------------------------------------------------------

    def _start_decoding(self, plan: StepPlan) -> None:
        """What this step prefills to the end decodes from the next step on."""
        decodes = self.decodes
        for sequence in plan.prefilled:
            self._prefilling.remove(sequence)
            sequence.state = DECODING
            sequence.anchor = sequence.num_computed - decodes.step
            remaining = sequence.output_tokens - sequence.generated_tokens
            decodes.enter(sequence, plan.step + remaining)

    def _finish(self, sequence: Sequence) -> None:
        del self.running[sequence]
        self._cache.release(sequence)
        sequence.state = FINISHED
        self._head_is_blocked = False

    # ---- asynchronous scheduling: the next step is planned before this one's tokens are known ----

    def _retire(self, done_step: int) -> None:
        """Schedule no more of sequences whose last token is on its way; they keep their seats."""
        for sequence in self.decodes.pop_due(done_step):
            sequence.state = DRAINING
            self._draining.append(sequence)

    def _note_emitting(self, plan: StepPlan) -> None:
        """Complete the list of those who will yield a token."""
        plan.emitting += plan.prefilled
        plan.emitting.sort(key=_by_order)
        if self._is_async:
            for sequence in plan.emitting:
                sequence.in_flight += 1

    def _finish_async(self, plan: StepPlan) -> list[Sequence]:
        """Deliver one token to everyone in the plan, also to those preempted meanwhile."""
        done_step = plan.step + 1
        self._retire(done_step)
        finished: list[Sequence] = []
        for sequence in plan.emitting:
            if sequence.state == FINISHED:
                continue  # aborted meanwhile
            sequence.in_flight -= 1
            if sequence.state == WAITING:
                sequence.generated_tokens += 1
                if sequence.generated_tokens == sequence.output_tokens:
                    self._finish_waiting(sequence)
                    finished.append(sequence)
                continue
            if sequence.in_flight < sequence.registration_lag:
                sequence.registration_lag = sequence.in_flight
            if sequence.state == DECODING:
                if self._registers_decodes:
                    self._register(sequence, sequence.anchor + self.decodes.step)
                continue
            self._register(sequence, sequence.num_computed)
            if sequence.finish_step <= done_step:
                self._draining.remove(sequence)
                self._finish(sequence)
                finished.append(sequence)
        return finished

    def _finish_waiting(self, sequence: Sequence) -> None:
        """A preempted request ends with the token that was still in flight."""
        self._waiting.discard(sequence)
        self.num_waiting -= 1
        sequence.state = FINISHED
        self._head_is_blocked = False


def _by_order(sequence: Sequence) -> int:
    return sequence.order


def _by_urgency(sequence: Sequence) -> tuple[int, float]:
    return sequence.priority, sequence.arrival_ms
