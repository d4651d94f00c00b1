"""One simulated engine in virtual time: lets the scheduler's plans take their time.

A worker is always in one of three states: idle, in a single planned step, or in a run of uniform
decode steps that an arrival may cut short at a step's end. The fleet tells it when its step or run
ends; it never looks at a clock.
"""

from collections.abc import Iterator, Sized
from math import isnan
from typing import NamedTuple

from dynosim.cluster.instant import instant_end, instant_start
from dynosim.cluster.journal import STEP_ROW, Journal
from dynosim.engine.plan import StepPlan
from dynosim.engine.sequence import DECODING, Sequence
from dynosim.engine.vllm import VllmScheduler
from dynosim.records import KvEvent, RequestStatus
from dynosim.timing.model import StepTimeModel
from dynosim.timing.step import BatchShape

NEVER = float("inf")
NOBODY: list[Sequence] = []  # never changed
pack_row = STEP_ROW.pack
COMPLETED = int(RequestStatus.COMPLETED)


class Late(NamedTuple):
    """A sequence that has had tokens and then missed a step."""

    sequence: Sequence
    last_token_ms: float
    missed_step: int  # the first one


class Worker:
    """Drives one `VllmScheduler` with synchronous scheduling.

    `end_ms` is the time at which the fleet must call `complete`; infinity while idle. `run_steps`
    is the length of the run under way, 0 outside of runs. If
    `reports_first_tokens`, `first_tokens` collects the requests whose first token was delivered,
    for the fleet to take. `untold` holds the KV events that nobody has taken: with their times if
    `stamps_events`, otherwise as of the last step's end (the pool's own list). It is emptied, never
    replaced.
    """

    __slots__ = (
        "_awaiting_second",
        "_carry_ms",
        "_is_cut",
        "_journal",
        "_last_end_ms",
        "_late",
        "_next_carry_ms",
        "_plan",
        "_queued_ms",
        "_run_context",
        "_scheduler",
        "_settled_ms",
        "_stamped",
        "_start_ms",
        "_steps_singly",
        "_timing",
        "_usable_blocks",
        "end_ms",
        "first_tokens",
        "num_events",
        "run_steps",
        "untold",
        "worker_id",
    )

    def __init__(
        self,
        worker_id: int,
        scheduler: VllmScheduler,
        timing: StepTimeModel,
        journal: Journal,
        *,
        steps_singly: bool,
        reports_first_tokens: bool = False,
        stamps_events: bool = False,
    ) -> None:
        self.worker_id = worker_id
        self._stamped: list[tuple[float, KvEvent]] | None = [] if stamps_events else None
        events = scheduler.pool.events if self._stamped is None else self._stamped
        self.untold: Sized = [] if events is None else events
        self.first_tokens: list[int] | None = [] if reports_first_tokens else None
        self.end_ms = NEVER
        self.num_events = 0
        self._scheduler = scheduler
        self._timing = timing
        self._journal = journal
        self._steps_singly = steps_singly
        self._usable_blocks = scheduler.spec.usable_blocks
        self._start_ms = 0.0
        self._carry_ms = 0.0  # to add to the current duration
        self._last_end_ms = -NEVER  # of the step or run before
        self._next_carry_ms = 0.0
        self._plan: StepPlan | None = None
        self.run_steps = 0
        self._run_context = 0
        self._is_cut = False
        self._settled_ms = -NEVER  # end of the steps that `settle` did last
        self._queued_ms: list[float] = []  # when requests came during the current run
        self._awaiting_second: list[Sequence] = []
        self._late: list[Late] = []

    @property
    def scheduler(self) -> VllmScheduler:
        """The engine core, for checks and reports."""
        return self._scheduler

    def enqueue(self, sequence: Sequence, now_ms: float) -> bool:
        """Take a request; returns whether the end of the current run has moved."""
        if self.run_steps:
            self._queued_ms.append(now_ms)
        instant_ms = instant_start(now_ms)
        if not self._cuts_run(sequence, instant_ms):
            return False
        num_decodes = self._scheduler.decodes.count
        steps = self._timing.decode_steps_until(
            num_decodes, self._run_context, self.run_steps, instant_ms - self._start_ms
        )
        if steps == self.run_steps:
            return False
        self.run_steps = steps
        run_ms = self._timing.decode_run_ms(num_decodes, self._run_context, steps)
        self.end_ms = max(self._end_after(run_ms), now_ms)
        return True

    def start(self, now_ms: float) -> None:
        """Begin the next step or run, if there is work; call only when idle."""
        scheduler = self._scheduler
        decodes = scheduler.decodes
        if decodes.count and not self._steps_singly and not (self._late and self._must_settle()):
            steps = scheduler.uniform_steps()
            if steps > 0:
                self._start_at(now_ms)
                self.run_steps = steps
                self._run_context = decodes.context_tokens
                self._is_cut = False
                run_ms = self._timing.decode_run_ms(decodes.count, self._run_context, steps)
                self.end_ms = self._end_after(run_ms)
                return
        # Plan single steps until one computes something, or nothing more can be done.
        while scheduler.running or scheduler.num_waiting:
            plan = scheduler.plan_step()
            if plan.preempted or plan.deferred:
                self._note_missed(plan, now_ms)
            if plan.num_prefills or plan.num_decodes:
                self._start_at(now_ms)
                self._begin(plan)
                return
            if not plan.preempted:
                return  # the head of the queue waits for something that is not here

    def complete(self, now_ms: float) -> list[Sequence]:
        """End the current step or run; returns the requests that ended with it."""
        self.num_events += 1
        self.end_ms = NEVER
        scheduler = self._scheduler
        plan = self._plan
        if plan is None:
            self._deliver_run(now_ms)
            self._queued_ms.clear()
        else:
            self._plan = None
            self._deliver_step(plan, now_ms)
        if self._stamped is not None:
            self._stamp(now_ms)
        decodes = scheduler.decodes
        if not decodes.finishes or decodes.finishes[0][0] > decodes.step:
            return NOBODY
        finished = scheduler.finish_until(decodes.step)
        self._note_ends(finished, now_ms)
        return finished

    def settle(self, now_ms: float) -> bool:
        """Do the steps of the current run that have ended by `now_ms`, if they evict anything.

        The run goes on and ends when it would have. Returns whether anything was done.
        """
        steps = self.run_steps
        if steps <= 1:
            return False
        if not self._tells_of(steps):
            return False
        ended = self._steps_ended(instant_end(now_ms) - self._start_ms, steps - 1)
        if ended == 0 or not self._tells_of(ended):
            return False
        self._split_run(ended)
        return True

    def take_stamped(self) -> list[tuple[float, KvEvent]]:
        """The KV events since the last call, with the times at which the engine told of them."""
        assert self._stamped is not None
        stamped = self._stamped.copy()
        self._stamped.clear()
        return stamped

    def _tells_of(self, num_steps: int) -> bool:
        """Whether the next uniform decode steps can cause KV events worth knowing."""
        pool = self._scheduler.pool
        decodes = self._scheduler.decodes
        if pool.publishes_all:  # a block is full one step before the next is opened
            return decodes.blocks_opened(num_steps + 1) > 0
        return pool.idle_blocks > 0 and pool.blank_blocks < decodes.blocks_opened(num_steps)

    def _advance(self, num_steps: int, *, done: int = 0) -> None:
        """Let the scheduler do uniform steps of the current run, `done` of which it has done.

        If events are stamped, it stops wherever there may be some.
        """
        scheduler = self._scheduler
        if self._stamped is None:
            scheduler.advance(num_steps)
            return
        end = done + num_steps
        while done < end:
            part = max(scheduler.decodes.steps_within(end - done, 0), 1)
            scheduler.advance(part)
            done += part
            self._stamp(self._told_ms(done))

    def _told_ms(self, num_steps: int) -> float:
        """When the events of the first steps of the current run are told: at their end."""
        num_decodes = self._scheduler.decodes.count
        run_ms = self._timing.decode_run_ms(num_decodes, self._run_context, num_steps)
        return self._start_ms + (run_ms + self._carry_ms)

    def _stamp(self, now_ms: float) -> None:
        """Note that all new KV events are told at `now_ms`."""
        events = self._scheduler.pool.events
        if events and self._stamped is not None:
            self._stamped += [(now_ms, event) for event in events]
            events.clear()

    def progress(self, now_ms: float) -> Iterator[tuple[int, int]]:
        """(request, tokens delivered by `now_ms`) of every request that decodes."""
        ended = 0
        if self.run_steps > 0:
            ended = self._steps_delivered(now_ms)
        step = self._scheduler.decodes.step
        for sequence in self._scheduler.running:
            if sequence.state == DECODING:
                computed = sequence.anchor + step + ended
                tokens = computed + 1 - sequence.prompt_tokens - self._undelivered(sequence)
                yield sequence.index, tokens

    def _steps_delivered(self, now_ms: float) -> int:
        """Steps of the current run that have delivered by `now_ms`."""
        return self._steps_ended(instant_end(now_ms) - self._start_ms, self.run_steps)

    def cut_off(self, now_ms: float) -> None:
        """End the simulation at `now_ms`: note what the unfinished requests have got so far."""
        if self.run_steps > 0:
            self._deliver_until(now_ms)
        elif events := self._scheduler.pool.events:
            events.clear()  # of a step that does not end: nobody is told
        for sequence, num_scheduled in self._scheduler.unfinished():
            num_tokens = num_scheduled - self._undelivered(sequence)
            self._journal.produced_tokens[sequence.index] = num_tokens
            if sequence.preemptions:
                self._journal.preemptions[sequence.index] = sequence.preemptions

    def _split_run(self, num_ended: int) -> None:
        """Do the first steps of the current run and leave the others as a run of their own."""
        remaining = self.run_steps - num_ended
        end_ms, end_carry_ms = self._last_end_ms, self._next_carry_ms
        decodes = self._scheduler.decodes
        run_ms = self._timing.decode_run_ms(decodes.count, self._run_context, num_ended)
        split_ms = self._end_after(run_ms)
        self.run_steps = num_ended
        self._deliver_run(split_ms)
        self._settled_ms = split_ms
        self._start_at(split_ms)
        self.run_steps = remaining
        self._run_context = decodes.context_tokens
        self._last_end_ms, self._next_carry_ms = end_ms, end_carry_ms

    def _cuts_run(self, sequence: Sequence, instant_ms: float) -> bool:
        """Queue a request that comes at an instant; returns whether the run ends earlier for it.

        If what `settle` left of a run would begin at this very instant, the run is given up and the
        worker idle: what arrives at a step's end has part in the next step.
        """
        matters = self._scheduler.add(sequence)
        if not matters or self._is_cut or self.run_steps == 0:
            return False
        if self._settled_ms >= instant_ms:
            self.run_steps = 0
            self.end_ms = NEVER
            self._last_end_ms, self._next_carry_ms = self._start_ms, self._carry_ms
            return False
        self._is_cut = self.run_steps > 1
        return self._is_cut

    def _deliver_until(self, now_ms: float) -> None:
        """Do the steps of the current run that have ended by `now_ms`."""
        steps = self._steps_ended(instant_end(now_ms) - self._start_ms, self.run_steps)
        if steps > 0:
            self.run_steps = steps
            num_decodes = self._scheduler.decodes.count
            run_ms = self._timing.decode_run_ms(num_decodes, self._run_context, steps)
            self._deliver_run(self._start_ms + run_ms)

    def _steps_ended(self, elapsed_ms: float, max_steps: int) -> int:
        """Steps of the current run that take no longer than `elapsed_ms`."""
        num_decodes, context = self._scheduler.decodes.count, self._run_context
        steps = self._timing.decode_steps_until(num_decodes, context, max_steps, elapsed_ms)
        if self._timing.decode_run_ms(num_decodes, context, steps) > elapsed_ms:
            steps -= 1
        return steps

    def _undelivered(self, sequence: Sequence) -> int:
        """Tokens scheduled for a request whose step is still under way."""
        if self._plan is None or sequence.state != DECODING:
            return 0
        return int(sequence not in self._plan.deferred)

    def _start_at(self, start_ms: float) -> None:
        """Set the start of the next step or run; see `_end_after`.

        An instant's time may be a bit later than this worker's end in it: that is carried too.
        """
        late_ms = start_ms - self._last_end_ms
        if late_ms == 0 or start_ms <= instant_end(self._last_end_ms):
            self._carry_ms = self._next_carry_ms - late_ms
        else:
            self._carry_ms = 0.0  # was idle
        self._start_ms = start_ms

    def _end_after(self, duration_ms: float) -> float:
        """When a step or run that starts now ends.

        What rounding takes off one end is carried to the next (Kahan's summation), so that a long
        busy period ends at the same time in a few runs as in thousands of steps.
        """
        exact_ms = duration_ms + self._carry_ms
        end_ms = self._start_ms + exact_ms
        self._last_end_ms = end_ms
        self._next_carry_ms = exact_ms - (end_ms - self._start_ms)
        return end_ms

    def _begin(self, plan: StepPlan) -> None:
        self._plan = plan
        step_ms = self._timing.step_ms(plan)
        self.end_ms = self._end_after(step_ms)
        journal = self._journal
        for sequence in plan.admitted:
            if sequence.preemptions == 0:
                journal.scheduled_ms[sequence.index] = self._start_ms
                journal.cached_tokens[sequence.index] = sequence.cached_tokens

    def _deliver_run(self, now_ms: float) -> None:
        """Do a run's steps and note them."""
        scheduler = self._scheduler
        num_decodes = scheduler.decodes.count
        if self._awaiting_second:
            first = BatchShape.of_decodes(num_decodes, self._run_context)
            first_step_ms = self._timing.step_ms(first)
            for sequence in self._awaiting_second:
                self._journal.second_token_ms[sequence.index] = self._start_ms + first_step_ms
            self._awaiting_second = []
        steps = self.run_steps
        self.run_steps = 0
        self._advance(steps)
        self._log_row(now_ms, steps, 0, 0, 0, num_decodes, self._run_context)

    def _deliver_step(self, plan: StepPlan, now_ms: float) -> None:
        """Note first, second and late tokens of a step, and the step itself."""
        journal = self._journal
        num_late = self._settle_late(plan, now_ms) if self._late else 0
        if self._awaiting_second:
            for sequence in self._awaiting_second:
                if not (self._late and self._missed(sequence, plan.step)):
                    journal.second_token_ms[sequence.index] = now_ms
            self._awaiting_second = []
        for sequence in plan.prefilled:
            if sequence.generated_tokens == 0:
                journal.first_token_ms[sequence.index] = now_ms
                if self.first_tokens is not None:
                    self.first_tokens.append(sequence.index)
                if sequence.output_tokens > 1:
                    self._awaiting_second.append(sequence)
        # Late sequences decode like the others, but their gaps are not this step's duration.
        resumed = plan.num_resumed_decodes
        self._log_row(
            now_ms,
            1,
            plan.num_prefills + resumed,
            plan.prefill_tokens + resumed,
            plan.prefix_tokens,
            plan.num_decodes - resumed - num_late,
            plan.decode_context_tokens,
        )

    def _note_ends(self, finished: list[Sequence], now_ms: float) -> None:
        journal = self._journal
        for sequence in finished:
            index = sequence.index
            journal.finish_ms[index] = now_ms
            journal.produced_tokens[index] = sequence.output_tokens
            journal.status[index] = COMPLETED
            if sequence.preemptions:
                journal.preemptions[index] = sequence.preemptions
                self._late = [late for late in self._late if late.sequence is not sequence]

    def _must_settle(self) -> bool:
        """Whether a sequence that missed a step decodes in the next one."""
        return any(late.sequence.state == DECODING for late in self._late)

    def _decoded(self, sequence: Sequence, plan: StepPlan) -> bool:
        """Whether the step that ends decoded a sequence."""
        return sequence.state == DECODING and sequence not in plan.deferred

    def _missed(self, sequence: Sequence, step: int) -> bool:
        """Whether a sequence had no part in a step."""
        return any(late.sequence is sequence and late.missed_step <= step for late in self._late)

    def _note_missed(self, plan: StepPlan, last_token_ms: float) -> None:
        """Remember since when the sequences left out of a step are without a token.

        A gap that is open already stays as it is, unless a token still in flight will close it.
        A plan that computes nothing is no step: who was left out of it has missed none.
        """
        deferred = () if plan.is_empty else plan.deferred
        for sequence in (*plan.preempted, *deferred):
            has_tokens = sequence.state == DECODING or sequence.generated_tokens > 0
            is_open = self._missed(sequence, plan.step)
            if sequence.in_flight > 0 or (has_tokens and not is_open):
                self._late.append(Late(sequence, last_token_ms, plan.step))

    def _settle_late(self, plan: StepPlan, now_ms: float) -> int:
        """Record the stretched gaps that end with this step; returns how many of them decoded."""
        resumed = set(plan.prefilled)
        second_token_ms = self._journal.second_token_ms
        num_decoding = 0
        for late in list(self._late):
            sequence = late.sequence
            is_resumed = sequence in resumed
            has_token = is_resumed or self._decoded(sequence, plan)
            if plan.step <= late.missed_step or not has_token:
                continue
            self._late.remove(late)
            self._journal.stalled_gaps_ms.append(now_ms - late.last_token_ms)
            num_decoding += not is_resumed
            if isnan(second_token_ms[sequence.index]):
                second_token_ms[sequence.index] = now_ms
        return num_decoding

    def _log_row(
        self,
        now_ms: float,
        num_steps: int,
        num_prefills: int,
        prefill_tokens: int,
        prefix_tokens: int,
        num_decodes: int,
        context_tokens: int,
    ) -> None:
        scheduler = self._scheduler
        pool = scheduler.pool
        num_waiting = scheduler.num_waiting
        if self._queued_ms:  # the row may have ended before they came
            end_ms = instant_start(now_ms)
            num_waiting -= sum([queued_ms >= end_ms for queued_ms in self._queued_ms])
        self._journal.steps.extend(
            pack_row(
                self._start_ms,
                now_ms - self._start_ms,
                self.worker_id,
                num_steps,
                num_prefills,
                prefill_tokens,
                prefix_tokens,
                num_decodes,
                context_tokens,
                len(scheduler.running),
                num_waiting,
                self._usable_blocks - pool.blank_blocks - pool.idle_blocks,
            )
        )
