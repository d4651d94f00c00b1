"""A simulated engine with asynchronous scheduling, vLLM's default on GPUs.

Up to two batches are outstanding: the next step is planned as soon as the one before the last has
delivered, while the last still runs. Batches execute back to back, so an arrival during step k can
enter step k + 2 at the earliest, and a finished request's seat is refilled one step later than with
synchronous scheduling.
"""

from collections import deque

from dynosim.cluster.instant import instant_end, instant_start
from dynosim.cluster.journal import NAN, Journal
from dynosim.cluster.worker import NEVER, Worker
from dynosim.engine.plan import StepPlan
from dynosim.engine.sequence import Sequence
from dynosim.engine.vllm import VllmScheduler
from dynosim.timing.model import StepTimeModel

DEPTH = 2  # batches outstanding at most


class Batch:
    """A planned step with the time it executes."""

    __slots__ = ("end_ms", "plan", "start_ms")

    def __init__(self, plan: StepPlan, start_ms: float, end_ms: float) -> None:
        self.plan = plan
        self.start_ms = start_ms
        self.end_ms = end_ms


class AsyncWorker(Worker):
    """Drives one `VllmScheduler` whose spec says `async_scheduling`.

    In a run of uniform steps the pipeline stays in the same state: one batch outstanding, which all
    decoding sequences are in, and the next about to be planned. Such a run is planned at once, and
    ends when its last step has been planned and its last but one has delivered.
    """

    __slots__ = ("_device_free_ms", "_outstanding", "_run_start_ms")

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
        super().__init__(
            worker_id,
            scheduler,
            timing,
            journal,
            steps_singly=steps_singly,
            reports_first_tokens=reports_first_tokens,
            stamps_events=stamps_events,
        )
        self._outstanding: deque[Batch] = deque()
        self._device_free_ms = 0.0
        self._run_start_ms = 0.0

    def enqueue(self, sequence: Sequence, now_ms: float) -> bool:
        """Take a request; returns whether the end of the current run has moved."""
        if self.run_steps:
            self._queued_ms.append(now_ms)
        instant_ms = instant_start(now_ms)
        if not self._cuts_run(sequence, instant_ms):
            return False
        num_decodes = self._scheduler.decodes.count
        elapsed_ms = instant_ms - self._run_start_ms
        steps = 1
        if elapsed_ms > 0:
            # The step after the j-th is planned when the (j - 1)-th has delivered.
            steps += self._timing.decode_steps_until(
                num_decodes, self._run_context, self.run_steps - 1, elapsed_ms
            )
        if steps == self.run_steps:
            return False
        self.run_steps = steps
        self.end_ms = max(self._delivered_ms(steps - 1), now_ms)
        return True

    def start(self, now_ms: float) -> None:
        """Plan until two batches are outstanding, or a run can be planned at once."""
        scheduler = self._scheduler
        outstanding = self._outstanding
        while len(outstanding) < DEPTH and (scheduler.running or scheduler.num_waiting):
            if self._is_steady():
                steps = scheduler.uniform_steps()
                if steps > 1:
                    self._start_run(steps)
                    return
            plan = scheduler.plan_step()
            if plan.preempted or plan.deferred:
                self._note_missed(plan, outstanding[-1].end_ms if outstanding else now_ms)
            if plan.num_prefills or plan.num_decodes:
                self._launch(plan, now_ms)
            elif outstanding or not plan.preempted:
                break
        self.end_ms = outstanding[0].end_ms if outstanding else NEVER

    def complete(self, now_ms: float) -> list[Sequence]:
        """Deliver the oldest batch, or all of a run but its last step."""
        self.num_events += 1
        self.end_ms = NEVER
        batch = self._outstanding.popleft()
        if self.run_steps == 0:
            self._start_ms = batch.start_ms
            self._deliver_step(batch.plan, now_ms)
            finished = self._scheduler.finish_step(batch.plan)
            self._note_ends(finished, now_ms)
            if self._stamped is not None:
                self._stamp(now_ms)
            return finished
        self._deliver_async_run(batch, now_ms)
        self._queued_ms.clear()
        return []

    def settle(self, now_ms: float) -> bool:
        """Do what the current run has delivered by `now_ms`, if it evicts anything.

        The engine tells of a step's evictions when it delivers the step before. Returns whether
        anything was done; the run ends when it would have.
        """
        steps = self.run_steps
        elapsed_ms = instant_end(now_ms) - self._run_start_ms
        if steps <= 1 or elapsed_ms < 0:
            return False
        if not self._tells_of(steps):
            return False
        ended = self._steps_ended(elapsed_ms, steps - 1)
        if ended + 1 == steps or not self._tells_of(ended + 1):
            return False
        end_ms, is_cut = self.end_ms, self._is_cut
        self.run_steps = ended + 1
        self._settled_ms = self._delivered_ms(ended)
        self._deliver_async_run(self._outstanding.popleft(), self._settled_ms)
        self._start_run(steps - ended - 1)
        self.end_ms, self._is_cut = end_ms, is_cut
        return True

    def cut_off(self, now_ms: float) -> None:
        """See `Worker`; what was planned to start later has not been scheduled."""
        super().cut_off(now_ms)
        for batch in self._outstanding:
            if batch.start_ms > instant_end(now_ms):
                for sequence in batch.plan.admitted:
                    if sequence.preemptions == 0:
                        self._journal.scheduled_ms[sequence.index] = NAN
                        self._journal.cached_tokens[sequence.index] = 0

    def _told_ms(self, num_steps: int) -> float:
        """The events of a step are told when the step before has been delivered."""
        return self._delivered_ms(num_steps - 1)

    def _deliver_until(self, now_ms: float) -> None:
        """Do the steps of the current run that have ended by `now_ms`; one more is under way."""
        elapsed_ms = instant_end(now_ms) - self._run_start_ms
        if elapsed_ms < 0:
            return
        ended = self._steps_ended(elapsed_ms, self.run_steps - 1)
        self.run_steps = ended + 1
        self._deliver_async_run(self._outstanding.popleft(), self._delivered_ms(ended))

    def _steps_delivered(self, now_ms: float) -> int:
        """Batches delivered since the current run was planned: the outstanding one, then its steps.

        The last but one of the run's steps ends it.
        """
        elapsed_ms = instant_end(now_ms) - self._run_start_ms
        return 0 if elapsed_ms < 0 else 1 + self._steps_ended(elapsed_ms, self.run_steps - 1)

    def _undelivered(self, sequence: Sequence) -> int:
        """Tokens scheduled for a request whose step is still under way."""
        return sequence.in_flight

    def _launch(self, plan: StepPlan, now_ms: float) -> None:
        """Execute a plan when the device is free."""
        self._start_at(max(now_ms, self._device_free_ms))
        self._begin(plan)
        self._plan = None
        self._device_free_ms = self.end_ms
        self._outstanding.append(Batch(plan, self._start_ms, self.end_ms))

    def _is_steady(self) -> bool:
        """Whether the only outstanding batch decodes just what the next ones will."""
        if self._steps_singly or self._must_settle() or len(self._outstanding) != 1:
            return False
        plan = self._outstanding[0].plan
        is_pure = plan.num_prefills == 0 and plan.num_resumed_decodes == 0
        return is_pure and plan.num_decodes == self._scheduler.decodes.count

    def _start_run(self, steps: int) -> None:
        self.run_steps = steps
        self._run_context = self._scheduler.decodes.context_tokens
        self._run_start_ms = self._outstanding[0].end_ms
        self._start_at(self._run_start_ms)
        self._is_cut = False
        self.end_ms = self._delivered_ms(steps - 1)

    def _delivered_ms(self, steps: int) -> float:
        """When the run's first `steps` steps have executed."""
        num_decodes = self._scheduler.decodes.count
        run_ms = self._timing.decode_run_ms(num_decodes, self._run_context, steps)
        return self._run_start_ms + (run_ms + self._carry_ms)

    def _decoded(self, sequence: Sequence, plan: StepPlan) -> bool:
        """Whether a step decoded a sequence, whose state is by now that of a later step."""
        return sequence in plan.emitting

    def _deliver_async_run(self, first: Batch, now_ms: float) -> None:
        scheduler = self._scheduler
        steps = self.run_steps
        num_decodes = scheduler.decodes.count
        context = self._run_context
        self.run_steps = 0
        for sequence in first.plan.emitting:
            sequence.registration_lag = 1  # the token before is always still in flight
        self._advance(1)  # what is delivered has another step planned behind it
        self._start_ms = first.start_ms
        self._deliver_step(first.plan, first.end_ms)
        if steps > 1:
            self._advance(steps - 1, done=1)
            self._start_ms = first.end_ms
            self._log_row(now_ms, steps - 1, 0, 0, 0, num_decodes, context)
        last = StepPlan(scheduler.decodes.step - 1)
        last.num_decodes = num_decodes
        last.decode_context_tokens = context + (steps - 1) * num_decodes
        last.emitting = first.plan.emitting
        start_ms = self._delivered_ms(steps - 1)
        self._start_ms = self._run_start_ms
        self._device_free_ms = self._end_after(
            self._timing.decode_run_ms(num_decodes, context, steps)
        )
        self._outstanding.append(Batch(last, start_ms, self._device_free_ms))
