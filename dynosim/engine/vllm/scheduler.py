"""vLLM's scheduler as an `EngineCore`: its parts put together, its requests counted.

Two ways lead through the same state: step by step (`plan_step`, `finish_step`) and, while nothing
but decoding can happen, in bulk (`uniform_steps`, `advance`, `finish_due`).
"""

from collections.abc import Iterator, Sized

from mypy_extensions import mypyc_attr

from dynosim.blocks.kv_event import KvEvent
from dynosim.engine.block_pool import BlockPool
from dynosim.engine.kv_cache import KvCache
from dynosim.engine.plan import StepPlan
from dynosim.engine.sequence import FINISHED, WAITING, Sequence
from dynosim.engine.spec import EngineSpec
from dynosim.engine.vllm import asynchronous
from dynosim.engine.vllm.bulk import UniformSteps
from dynosim.engine.vllm.foreseen import ForeseenService
from dynosim.engine.vllm.loop import SchedulingLoop
from dynosim.engine.vllm.seats import Seats
from dynosim.engine.waiting import make_queue

NOBODY: list[Sequence] = []  # never changed


@mypyc_attr(allow_interpreted_subclasses=True)
class VllmScheduler:
    """Scheduler and block manager of one vLLM engine.

    `extent_blocks` are the sizes of the extents that request paths name (None: they are single
    blocks). `keep_rows` asks for step-by-step plans that list every request; `names_emitting` for
    plans that name who yields a token; `publish_events` for KV events, with `announced` only about
    the extents flagged in it.
    """

    __slots__ = (
        "_arrival_unblocks",
        "_bulk",
        "_cache",
        "_foreseen",
        "_has_cap",
        "_head_is_blocked",
        "_is_async",
        "_keep_rows",
        "_loop",
        "_max_active",
        "_names_emitting",
        "_seats",
        "_shares_answers",
        "_waiting",
        "decodes",
        "events",
        "has_work",
        "num_preemptions",
        "num_running",
        "num_waiting",
        "pool",
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
    ) -> None:
        names_emitting = names_emitting or spec.async_scheduling
        pool = BlockPool(
            spec.usable_blocks, extent_blocks, publish_events=publish_events, announced=announced
        )
        cache = KvCache(pool, spec.block_size, has_prefix_caching=spec.enable_prefix_caching)
        seats, waiting = Seats(spec.block_size), make_queue(spec.policy)
        self.pool = pool
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
        self._loop = SchedulingLoop(
            spec, cache, seats, waiting, keep_rows=keep_rows, names_emitting=names_emitting
        )
        self._foreseen = ForeseenService(spec, cache, seats, names_emitting=names_emitting)
        self._bulk = UniformSteps(cache, seats)
        self._head_is_blocked = False
        self._max_active = spec.max_active
        self._has_cap = spec.long_prefill_token_threshold > 0
        # The more requests, the smaller the first chunk, and a smaller one may find room.
        is_adaptive = self._has_cap and spec.long_prefill_token_threshold_adaptive
        head_may_shrink = is_adaptive and not spec.scheduler_reserve_full_isl
        self._arrival_unblocks = spec.policy != "fcfs" or head_may_shrink
        self._is_async = spec.async_scheduling
        self._keep_rows = keep_rows
        self._shares_answers = False  # whether a request may begin with another's answer
        self._names_emitting = names_emitting

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
        waiting = self._waiting.sequences()
        return self._seats.unfinished() + [(s, s.generated_tokens + s.in_flight) for s in waiting]

    # ---- requests ------------------------------------------------------------------------------

    def add(self, sequence: Sequence) -> bool:
        """Queue a request; returns whether the very next step could admit it.

        One that can never fit blocks the queue for ever, as in vLLM.
        """
        if sequence.path_blocks * self._cache.block_size > sequence.prompt_tokens:
            self._cache.registers_decodes = True
            self._shares_answers = True
        if self._arrival_unblocks:
            self._head_is_blocked = False
        matters = self.num_waiting == 0 or not self._head_is_blocked
        self._waiting.push(sequence)
        self.num_waiting += 1
        self.has_work = True
        return matters and self.num_running < self._max_active

    def abort(self, sequence: Sequence) -> int:
        """Drop a request, if it has not ended: its blocks are free, the full ones stay cached.

        Returns the tokens that were scheduled for it.
        """
        if sequence.state == FINISHED:
            return sequence.output_tokens
        num_tokens = self._seats.scheduled_tokens(sequence)
        self._end(sequence)
        self.decodes.drop_outdated()
        return num_tokens

    def _end(self, sequence: Sequence) -> None:
        """Let a request go from where it is: the queue, or its seat."""
        if sequence.state == WAITING:
            self._waiting.discard(sequence)
            self.num_waiting -= 1
        else:
            self._seats.vacate(sequence)
            self._cache.release(sequence)
            self.num_running -= 1
        sequence.state = FINISHED
        self._head_is_blocked = False
        self.has_work = self.num_running > 0 or self.num_waiting > 0

    # ---- step by step --------------------------------------------------------------------------

    def plan_step(self) -> StepPlan:
        """Decide the next step; its tokens count as computed and its blocks as taken at once."""
        decodes, loop = self.decodes, self._loop
        plan = StepPlan(decodes.step)
        if self._is_async:
            asynchronous.retire(decodes, decodes.step)
        cap = loop.long_prefill_cap(self.num_running + self.num_waiting) if self._has_cap else 0
        budget = None if self._keep_rows else self._foreseen.serve(plan, cap)
        if budget is None:
            budget = loop.serve(plan, cap)
        self._head_is_blocked = False
        if plan.preempted:
            self._note_preempted(len(plan.preempted))
        elif self.num_waiting > 0:
            self._head_is_blocked = loop.admit(plan, budget, cap, self.num_waiting)
            self.num_waiting -= len(plan.admitted)
            self.num_running += len(plan.admitted)
        decodes.context_tokens += decodes.count
        decodes.step += 1
        if plan.prefilled:
            self._seats.start_decoding(plan)
        if self._names_emitting:
            plan.emitting += plan.prefilled
            plan.emitting.sort(key=_by_order)
            if self._is_async:
                asynchronous.launch(plan)
        return plan

    def finish_step(self, plan: StepPlan) -> list[Sequence]:
        """Deliver the step's tokens; returns the requests that ended, in order, blocks freed."""
        if self._is_async:
            complete = asynchronous.deliver(plan, self.decodes, self._cache)
            for sequence in complete:
                self._end(sequence)
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
            self._cache.release(sequence)
            sequence.state = FINISHED
            self.num_running -= 1
            self._head_is_blocked = False
        self.has_work = self.num_running > 0 or self.num_waiting > 0
        return finished

    # ---- in bulk -------------------------------------------------------------------------------

    def uniform_steps(self) -> int:
        """Steps from here in which the same sequences decode and nothing else can happen."""
        if self._seats.prefilling:
            return 0
        if self.num_waiting > 0:
            # What the head begins with may come to be cached with anybody's next tokens.
            may_shrink = self._shares_answers and self.num_running < self._max_active
            if may_shrink or not self._head_is_blocked:
                return 0
        return self._bulk.count()

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
        return self._bulk.last(plan)

    def may_publish(self, num_steps: int) -> bool:
        """Whether uniform steps could cause KV events that somebody wants."""
        return self._bulk.may_publish(num_steps)

    def quiet_steps(self, max_steps: int) -> int:
        """Uniform steps, at least 1, of which only the last may open blocks."""
        return self._bulk.quiet(max_steps)


def _by_order(sequence: Sequence) -> int:
    return sequence.order
