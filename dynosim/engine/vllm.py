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

import heapq

from dynosim.engine.block_pool import BlockPool, Extent
from dynosim.engine.plan import ScheduledRow, StepPlan
from dynosim.engine.sequence import DECODING, DRAINING, FINISHED, PREFILLING, WAITING, Sequence
from dynosim.engine.spec import EngineSpec
from dynosim.engine.waiting import make_queue


class VllmScheduler:
    """Scheduler and block manager of one vLLM engine.

    `extent_blocks` are the sizes of the extents that request paths name. `keep_rows` asks for
    step-by-step plans that list every request; `publish_events` for KV events in `pool.events`.
    """

    def __init__(
        self,
        spec: EngineSpec,
        extent_blocks: list[int],
        *,
        keep_rows: bool = False,
        publish_events: bool = False,
    ) -> None:
        self.spec = spec
        self.pool = BlockPool(spec.usable_blocks, extent_blocks, publish_events=publish_events)
        self.waiting = make_queue(spec.policy)
        self.running: dict[Sequence, None] = {}  # an ordered set, in admission order
        self.step = 0
        self.num_decodes = 0
        self.decode_context_tokens = 0  # of the next step, tokens to be computed included
        self.num_preemptions = 0
        self._block_size = spec.block_size
        self._max_active = spec.max_active
        self._caching = spec.enable_prefix_caching
        self._prefilling: list[Sequence] = []
        # Decoding sequences by the steps (modulo block size) in which they take a new block.
        self._crossings = [0] * spec.block_size
        self._finishes: list[tuple[int, int, Sequence]] = []  # heap of (finish_step, order, ...)
        self._draining: list[Sequence] = []
        self._head_is_blocked = False
        self._num_admissions = 0
        self._is_async = spec.async_scheduling
        self._keep_rows = keep_rows
        # Generated blocks are registered as they fill only if somebody can hit or hear of them.
        self._register_decodes = publish_events

    # ---- the driver's side ---------------------------------------------------------------------

    @property
    def has_work(self) -> bool:
        """Whether a step is worth planning."""
        return bool(self.running) or len(self.waiting) > 0

    def add(self, sequence: Sequence) -> None:
        """Queue a request. One that can never fit blocks the queue for ever, as in vLLM."""
        self.waiting.push(sequence)
        if sequence.path.num_blocks > sequence.prompt_tokens // self._block_size:
            self._register_decodes = True
        if self.spec.policy != "fcfs":
            self._head_is_blocked = False

    def arrival_matters(self) -> bool:
        """Whether a request that arrives now could be admitted by the very next step."""
        if len(self.running) >= self._max_active:
            return False
        return not (self._head_is_blocked and len(self.waiting) > 0)

    def plan_step(self) -> StepPlan:
        """Decide the next step; its tokens count as computed and its blocks as taken at once."""
        plan = StepPlan(self.step)
        if self._is_async:
            self._retire(self.step)
        cap = self._long_prefill_cap() if self.spec.long_prefill_token_threshold else 0
        budget = self._serve_running(plan, cap)
        self._head_is_blocked = False
        if not plan.preempted and len(self.waiting) > 0:
            self._admit(plan, budget, cap)
        self._close(plan)
        return plan

    def finish_step(self, plan: StepPlan) -> list[Sequence]:
        """Deliver the step's tokens; returns the requests that ended, in order, blocks freed."""
        done_step = plan.step + 1
        if self._is_async:
            return self._finish_async(plan, done_step)
        return self.finish_until(done_step)

    def uniform_steps(self) -> int:
        """Steps from here in which the same sequences decode and nothing else can happen."""
        if self._prefilling or not self.num_decodes:
            return 0
        if len(self.waiting) > 0 and not self._head_is_blocked:
            return 0
        steps = self._finishes[0][0] - self.step
        free = self.pool.free_blocks
        if self.num_decodes * (steps // self._block_size + 1) > free:
            return self._steps_that_fit(steps, free)
        return steps

    def advance(self, num_steps: int) -> None:
        """Do uniform decode steps, at most as many as `uniform_steps` allows."""
        self.pool.allocate(self._blocks_opened(num_steps))
        self.decode_context_tokens += self.num_decodes * num_steps
        self.step += num_steps
        if self._register_decodes:
            for sequence in self.running:
                if sequence.state == DECODING:
                    self._register(sequence, sequence.anchor + self.step)

    def finish_until(self, done_step: int) -> list[Sequence]:
        """Free the requests whose last token came from a step before `done_step`, in order."""
        heap = self._finishes
        if not heap or heap[0][0] > done_step:
            return []
        self._retire(done_step)
        finished = self._draining
        self._draining = []
        for sequence in finished:
            self._finish(sequence)
        return finished

    # ---- running requests ----------------------------------------------------------------------

    def _long_prefill_cap(self) -> int:
        """Tokens a prompt may take per step; 0: no cap (a lone request is never capped)."""
        num_requests = len(self.running) + len(self.waiting)
        if num_requests <= 1:
            return 0
        threshold = self.spec.long_prefill_token_threshold
        if self.spec.long_prefill_token_threshold_adaptive:
            return max(threshold, self.spec.max_num_batched_tokens // num_requests)
        return threshold

    def _serve_running(self, plan: StepPlan, cap: int) -> int:
        """Give running requests their tokens; returns what is left of the budget."""
        budget = self.spec.max_num_batched_tokens - self.num_decodes
        prefilling = self._prefilling
        need = self._crossings[self.step % self._block_size]
        num_tokens = 0
        if prefilling:
            sequence = prefilling[0]
            num_tokens = min(sequence.known_tokens - sequence.num_computed, budget)
            need += self._new_blocks(sequence.num_computed, num_tokens)
        is_tight = need > self.pool.free_blocks or len(prefilling) > 1 or (prefilling and cap > 0)
        if is_tight or self._keep_rows or self._is_async:
            return self._serve_in_order(plan, cap)
        plan.num_decodes = self.num_decodes
        plan.decode_context_tokens = self.decode_context_tokens
        self.pool.allocate(need)
        if num_tokens > 0:
            self._compute_chunk(plan, prefilling[0], num_tokens)
        return budget - num_tokens

    def _serve_in_order(self, plan: StepPlan, cap: int) -> int:
        """Serve the running list one by one, preempting where blocks run out.

        This is vLLM's own loop; `_serve_running` avoids it when its outcome is foreseeable.
        """
        budget = self.spec.max_num_batched_tokens
        served: dict[Sequence, int] = {}  # -> blocks taken
        tokens: dict[Sequence, int] = {}
        is_over = False
        for sequence in list(self.running):
            if sequence.state == WAITING or sequence.state == DRAINING:
                continue  # preempted in this very loop, or nothing left to schedule
            if budget == 0 or is_over:
                self._defer(plan, sequence)
                continue
            computed, num_tokens = self._wanted(sequence, cap, budget)
            need = self._new_blocks(computed, num_tokens)
            while need > self.pool.free_blocks:
                victim = self._choose_victim()
                restored = tokens.pop(victim, 0)
                budget += restored
                self._preempt(plan, victim, restored)
                if victim is sequence:
                    break
            if sequence.state == WAITING:
                is_over = True
                continue
            self.pool.allocate(need)
            if sequence.state == DECODING:
                sequence.registration_lag = sequence.in_flight
            self._register(sequence, computed + num_tokens)
            served[sequence] = need
            tokens[sequence] = num_tokens
            budget -= num_tokens
        for sequence, num_tokens in tokens.items():
            self._book(plan, sequence, num_tokens, served[sequence])
        return budget

    def _wanted(self, sequence: Sequence, cap: int, budget: int) -> tuple[int, int]:
        """Tokens of a running request computed so far, and tokens it takes in this step."""
        if sequence.state == DECODING:
            return sequence.anchor + self.step, 1
        wanted = sequence.known_tokens - sequence.num_computed
        if 0 < cap < wanted:
            wanted = cap
        return sequence.num_computed, min(wanted, budget)

    def _book(self, plan: StepPlan, sequence: Sequence, num_tokens: int, new_blocks: int) -> None:
        """Enter a served request into the plan."""
        if sequence.state == DECODING:
            computed = sequence.anchor + self.step
            plan.num_decodes += 1
            plan.decode_context_tokens += computed + 1
            if self._keep_rows:
                plan.rows.append(ScheduledRow(sequence, 1, True, computed, new_blocks, -1))
            if self._is_async:
                plan.emitting.append(sequence)
        else:
            is_decode = self._compute_chunk(plan, sequence, num_tokens)
            if self._keep_rows:
                before = sequence.num_computed - num_tokens
                plan.rows.append(
                    ScheduledRow(sequence, num_tokens, is_decode, before, new_blocks, -1)
                )

    def _compute_chunk(self, plan: StepPlan, sequence: Sequence, num_tokens: int) -> bool:
        """Enter a chunk of known tokens, blocks already taken; returns whether it is a decode.

        One last token of a request that has produced some already runs as a decode does.
        """
        computed = sequence.num_computed
        known = sequence.known_tokens
        is_decode = known - computed == 1 and sequence.generated_tokens > 0
        if is_decode:
            plan.num_decodes += 1
            plan.num_resumed_decodes += 1
            plan.decode_context_tokens += known
        else:
            plan.num_prefills += 1
            plan.prefill_tokens += num_tokens
            plan.prefix_tokens += computed
        sequence.num_computed = computed + num_tokens
        self._register(sequence, computed + num_tokens)
        if computed + num_tokens == known:
            plan.prefilled.append(sequence)
        return is_decode

    def _defer(self, plan: StepPlan, sequence: Sequence) -> None:
        """Leave a running request out of this step: a decoding one falls back by one token."""
        if sequence.state != DECODING:
            return
        self._leave_decoding(sequence)
        sequence.anchor -= 1
        self._enter_decoding(sequence, sequence.finish_step + 1)
        plan.deferred.append(sequence)

    # ---- admission -----------------------------------------------------------------------------

    def _admit(self, plan: StepPlan, budget: int, cap: int) -> None:
        """Give seats to waiting requests while budget, seats and blocks last."""
        while budget > 0:
            sequence = self.waiting.peek()
            if sequence is None:
                return
            if len(self.running) >= self._max_active:
                self._head_is_blocked = True
                return
            hits, hit_blocks, own_blocks = self._lookup(sequence)
            hit_tokens = (hit_blocks + own_blocks) * self._block_size
            num_tokens = sequence.known_tokens - hit_tokens
            if 0 < cap < num_tokens:
                num_tokens = cap
            if num_tokens > budget:
                if not self.spec.enable_chunked_prefill:
                    self._head_is_blocked = plan.num_prefills == 0
                    return
                num_tokens = budget
            if not self._has_room(sequence, hits, own_blocks, hit_tokens, num_tokens):
                self._head_is_blocked = True
                return
            self.waiting.pop()
            self._seat(plan, sequence, hits, hit_blocks, own_blocks, num_tokens)
            budget -= num_tokens

    def _lookup(self, sequence: Sequence) -> tuple[list[Extent], int, int]:
        """Cached extents along the path, their blocks, and cached private blocks behind them.

        At least one token is left to compute.
        """
        if not self._caching:
            return [], 0, 0
        limit = (sequence.known_tokens - 1) // self._block_size
        path = sequence.path
        hits, hit_blocks = self.pool.lookup(path.extents, limit)
        own = sequence.own
        if own is None or hit_blocks < path.num_blocks:
            return hits, hit_blocks, 0
        return hits, hit_blocks, own.num_cached

    def _has_room(
        self,
        sequence: Sequence,
        hits: list[Extent],
        own_blocks: int,
        hit_tokens: int,
        num_tokens: int,
    ) -> bool:
        """Whether the blocks for an admission are free (idle hits are, but must stay)."""
        block_size = self._block_size
        end = sequence.known_tokens
        if not self.spec.scheduler_reserve_full_isl:
            end = hit_tokens + num_tokens
        need = -(-end // block_size) - hit_tokens // block_size + own_blocks
        for extent in hits:
            if extent.refs == 0:
                need += extent.num_cached
        if self.running:
            need += self.spec.watermark_blocks
        return need <= self.pool.free_blocks

    def _seat(
        self,
        plan: StepPlan,
        sequence: Sequence,
        hits: list[Extent],
        hit_blocks: int,
        own_blocks: int,
        num_tokens: int,
    ) -> None:
        """Admit a request: reference its hits, then take the blocks of its first chunk."""
        hit_tokens = (hit_blocks + own_blocks) * self._block_size
        self.pool.reference(hits)
        if own_blocks > 0:
            assert sequence.own is not None
            self.pool.reference([sequence.own])
        else:
            sequence.own = None
        new_blocks = self._new_blocks(hit_tokens, num_tokens)
        self.pool.allocate(new_blocks)
        sequence.held = hits
        sequence.covered_blocks = hit_blocks
        sequence.own_published = own_blocks
        sequence.num_computed = hit_tokens
        sequence.registration_lag = 0
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
        if self.spec.policy == "fcfs":
            return next(reversed(self.running))
        return max(self.running, key=_by_urgency)

    def _preempt(self, plan: StepPlan, victim: Sequence, num_tokens: int) -> None:
        """Take a request's seat and blocks, also those for `num_tokens` tokens of this step.

        As in vLLM, full blocks that the dropped tokens would have filled stay hittable.
        """
        if victim.state == PREFILLING:
            self._prefilling.remove(victim)
        else:
            if victim.state == DECODING:
                self._leave_decoding(victim)
                victim.num_computed = victim.anchor + self.step
            else:
                self._draining.remove(victim)
            known = victim.num_computed + 1 - victim.in_flight
            victim.generated_tokens = known - victim.prompt_tokens
        victim.num_computed += num_tokens
        del self.running[victim]
        self._release(victim)
        victim.state = WAITING
        victim.finish_step = -1
        victim.num_computed = 0
        victim.preemptions += 1
        self.num_preemptions += 1
        self.waiting.push_preempted(victim)
        plan.preempted.append(victim)

    # ---- the course of a sequence --------------------------------------------------------------

    def _close(self, plan: StepPlan) -> None:
        """Move to the next step; what is fully prefilled decodes from there on."""
        self.decode_context_tokens += self.num_decodes
        self.step += 1
        for sequence in plan.prefilled:
            self._prefilling.remove(sequence)
            sequence.state = DECODING
            sequence.anchor = sequence.num_computed - self.step
            remaining = sequence.output_tokens - sequence.generated_tokens
            self._enter_decoding(sequence, plan.step + remaining)
        if self._is_async:
            plan.emitting += plan.prefilled
            plan.emitting.sort(key=_by_order)
            for sequence in plan.emitting:
                sequence.in_flight += 1

    def _enter_decoding(self, sequence: Sequence, finish_step: int) -> None:
        sequence.finish_step = finish_step
        heapq.heappush(self._finishes, (finish_step, sequence.order, sequence))
        self._crossings[-sequence.anchor % self._block_size] += 1
        self.num_decodes += 1
        self.decode_context_tokens += sequence.anchor + self.step + 1

    def _leave_decoding(self, sequence: Sequence) -> None:
        self._crossings[-sequence.anchor % self._block_size] -= 1
        self.num_decodes -= 1
        self.decode_context_tokens -= sequence.anchor + self.step + 1

    def _retire(self, done_step: int) -> None:
        """Take sequences whose last token lies before `done_step` out of the decoding set."""
        heap = self._finishes
        while heap and heap[0][0] <= done_step:
            finish_step, order, sequence = heapq.heappop(heap)
            is_current = sequence.finish_step == finish_step and sequence.order == order
            if is_current and sequence.state == DECODING:
                self._leave_decoding(sequence)
                sequence.num_computed = sequence.anchor + finish_step
                sequence.state = DRAINING
                self._draining.append(sequence)

    def _finish(self, sequence: Sequence) -> None:
        del self.running[sequence]
        self._release(sequence)
        sequence.state = FINISHED
        sequence.generated_tokens = sequence.output_tokens
        self._head_is_blocked = False

    def _finish_async(self, plan: StepPlan, done_step: int) -> list[Sequence]:
        """Deliver one token to everyone in the plan, also to those preempted meanwhile."""
        self._retire(done_step)
        finished: list[Sequence] = []
        for sequence in plan.emitting:
            sequence.in_flight -= 1
            if sequence.state == WAITING:
                sequence.generated_tokens += 1
                if sequence.generated_tokens == sequence.output_tokens:
                    self.waiting.discard(sequence)
                    sequence.state = FINISHED
                    self._head_is_blocked = False
                    finished.append(sequence)
                continue
            if sequence.in_flight < sequence.registration_lag:
                sequence.registration_lag = sequence.in_flight
            if sequence.state == DECODING:
                self._register(sequence, sequence.anchor + self.step)
                continue
            self._register(sequence, sequence.num_computed)
            if sequence.finish_step <= done_step:
                self._draining.remove(sequence)
                self._finish(sequence)
                finished.append(sequence)
        return finished

    # ---- blocks --------------------------------------------------------------------------------

    def _new_blocks(self, computed: int, num_tokens: int) -> int:
        """Blocks to take when `num_tokens` tokens follow `computed` ones."""
        block_size = self._block_size
        return -(-(computed + num_tokens) // block_size) + (-computed // block_size)

    def _blocks_opened(self, num_steps: int) -> int:
        """Blocks that the decoding sequences take in the next `num_steps` steps."""
        block_size = self._block_size
        opened = self.num_decodes * (num_steps // block_size)
        rest = num_steps % block_size
        if rest:
            crossings = self._crossings
            first = self.step % block_size
            last = first + rest
            opened += sum(crossings[first:last])
            if last > block_size:
                opened += sum(crossings[: last - block_size])
        return opened

    def _steps_that_fit(self, num_steps: int, free_blocks: int) -> int:
        """The most steps, up to `num_steps`, whose new blocks are free now."""
        low, high = 0, num_steps
        while low < high:
            middle = (low + high + 1) // 2
            if self._blocks_opened(middle) <= free_blocks:
                low = middle
            else:
                high = middle - 1
        return low

    def _register(self, sequence: Sequence, computed: int) -> None:
        """Make the full blocks among `computed` tokens hittable."""
        if not self._caching:
            return
        full = (computed - sequence.registration_lag) // self._block_size
        path_blocks = sequence.path.num_blocks
        if sequence.covered_blocks < full and sequence.covered_blocks < path_blocks:
            self._cover(sequence, full if full < path_blocks else path_blocks)
        own_blocks = full - path_blocks
        if own_blocks > sequence.own_published and self.pool.events is not None:
            parent = sequence.path.extents[-1] if sequence.path.extents else None
            first = sequence.own_published
            sequence.own_published = own_blocks
            self.pool.publish_stored(-1 - sequence.index, first, own_blocks - first, parent)

    def _cover(self, sequence: Sequence, target_blocks: int) -> None:
        """Extend a sequence's hold along its path up to `target_blocks` blocks."""
        pool = self.pool
        held = sequence.held
        contents = sequence.path.extents
        covered = sequence.covered_blocks
        while covered < target_blocks:
            extent = held[-1] if held else None
            if extent is None or extent.num_cached == pool.extent_blocks[extent.content]:
                extent = pool.open_extent(contents[len(held)])
                held.append(extent)
            room = pool.extent_blocks[extent.content] - extent.num_cached
            added = min(room, target_blocks - covered)
            if pool.events is not None:
                parent = contents[len(held) - 2] if len(held) > 1 else None
                pool.publish_stored(extent.content, extent.num_cached, added, parent)
            extent.num_cached += added
            covered += added
        sequence.covered_blocks = covered

    def _release(self, sequence: Sequence) -> None:
        """Free all blocks, the last one first; full ones stay cached."""
        block_size = self._block_size
        total = -(-sequence.num_computed // block_size)
        if not self._caching:
            self.pool.blank(total)
            return
        full = (sequence.num_computed - sequence.registration_lag) // block_size
        own_blocks = max(0, full - sequence.path.num_blocks)
        self.pool.blank(total - sequence.covered_blocks - own_blocks)
        if own_blocks > 0:
            if sequence.own is None:
                sequence.own = Extent(-1 - sequence.index)
            sequence.own.num_cached = own_blocks
            self.pool.release_own(sequence.own)
        self.pool.release(sequence.held)
        sequence.held = []
        sequence.covered_blocks = 0


def _by_order(sequence: Sequence) -> int:
    return sequence.order


def _by_urgency(sequence: Sequence) -> tuple[int, float]:
    return sequence.priority, sequence.arrival_ms
