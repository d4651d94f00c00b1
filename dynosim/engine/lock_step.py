"""Ranks in lock step: engines that begin and end every step together.

vLLM's data-parallel ranks of a model with experts exchange tokens in every layer, so a step lasts
until the slowest rank has done its own. Each rank has its own scheduler, queue and KV cache. As
long as one of them has work all of them step: a rank without any runs a dummy step (vLLM's
`execute_dummy_batch`), and what it gets meanwhile begins with the next step. All ranks are idle
together.

At depth two a rank plans its next step while the current one runs. A rank that had nothing to plan
by then still may when the step begins: a dummy step is not queued ahead.
"""

from collections.abc import Sequence as List
from dataclasses import dataclass

from dynosim.engine.cores import Core
from dynosim.engine.engine import Engine
from dynosim.engine.pace import NEVER, Pace
from dynosim.engine.plan import StepPlan
from dynosim.engine.recorder import Recorder
from dynosim.engine.sequence import Sequence
from dynosim.errors import InvariantError
from dynosim.timing.lock_step import LockStepTimes
from dynosim.timing.model import StepTimeModel
from dynosim.timing.step import StepShape


@dataclass(slots=True)
class LockStepCounts:
    """How the time of all ranks, added up, was spent. A rank's step is one step of one rank."""

    rank_steps: int = 0
    dummy_rank_steps: int = 0
    rank_ms: float = 0.0
    waiting_ms: float = 0.0  # of ranks with work, beyond what theirs alone would have taken


class RankEngine(Engine):
    """An engine that steps when its group says so; steps of it are never done in bulk.

    `next_ms` is infinity also in a dummy step: the engine itself has nothing under way then.
    """

    __slots__ = ()

    def __init__(
        self,
        core: Core,
        times: StepTimeModel,
        recorder: Recorder,
        *,
        depth: int = 1,
        stamps_events: bool = False,
    ) -> None:
        super().__init__(
            core, times, recorder, depth=depth, steps_singly=True, stamps_events=stamps_events
        )

    def plan_rank(self, start_ms: float) -> StepPlan | None:
        """Plan the rank's part of a step that begins then; None if it has nothing to compute.

        When it ends is for the group to set.
        """
        core, in_flight = self.core, self._in_flight
        while core.has_work:
            plan = core.plan_step()
            if plan.preempted or plan.deferred:
                self._recorder.missed(plan, in_flight[-1].end_ms if in_flight else start_ms)
            if plan.loads:
                self._note_loads(plan.loads, start_ms)
            if not plan.is_empty:
                plan.start_ms = start_ms
                if plan.admitted:
                    self._recorder.admitted(plan.admitted, start_ms)
                in_flight.append(plan)
                return plan
            if in_flight or not plan.preempted:
                break  # the head of the queue waits for something that is not here
        if self._news and not in_flight:
            self._pass_on_all()
            return self.plan_rank(start_ms)
        return None


class GlobalStep:
    """One step of all ranks: what each computes in it, None where that is nothing."""

    __slots__ = ("end_ms", "plans", "start_ms")

    def __init__(self, plans: list[StepPlan | None], start_ms: float) -> None:
        self.plans = plans
        self.start_ms = start_ms
        self.end_ms = NEVER  # known once it has begun


class LockStep:
    """The station of all ranks of a worker: one event for each of their common steps."""

    __slots__ = ("_depth", "_idle", "_in_flight", "_pace", "_ranks", "_times", "counts", "next_ms")

    def __init__(self, ranks: List[RankEngine], times: LockStepTimes, *, depth: int = 1) -> None:
        self.next_ms = NEVER
        self.counts = LockStepCounts()
        self._ranks = list(ranks)
        self._times = times
        self._depth = depth
        self._idle = StepShape()
        self._pace = Pace()
        self._in_flight: list[GlobalStep] = []  # at most `depth`; the first has begun

    def add(self, sequence: Sequence, now_ms: float) -> bool:
        """Requests are handed to one of the ranks; see `RankEngine`."""
        raise InvariantError(f"request {sequence.index} goes to no rank in particular")

    def start(self, now_ms: float) -> None:
        """Begin the next step, and plan as many as may be in flight."""
        in_flight = self._in_flight
        for rank in self._ranks:
            rank.note_time(now_ms)
        if in_flight:
            self._join_late(in_flight[0])
            self._begin(in_flight[0])
        while len(in_flight) < self._depth:
            start_ms = in_flight[-1].end_ms if in_flight else now_ms
            plans = [rank.plan_rank(start_ms) for rank in self._ranks]
            if all([plan is None for plan in plans]):
                break
            step = GlobalStep(plans, start_ms)
            in_flight.append(step)
            if len(in_flight) == 1:
                self._begin(step)
        self.next_ms = in_flight[0].end_ms if in_flight else NEVER

    def complete(self, now_ms: float) -> list[Sequence]:
        """End the step of all ranks; returns the requests that ended with it, rank by rank."""
        self.next_ms = NEVER
        finished: list[Sequence] = []
        step = self._in_flight.pop(0)
        for rank, plan in zip(self._ranks, step.plans, strict=True):
            if plan is not None:
                finished += rank.complete(now_ms)
        return finished

    def halt(self) -> None:
        """All ranks have been stopped: nothing is under way any more."""
        self.next_ms = NEVER
        self._in_flight.clear()

    def repace(self, times: LockStepTimes) -> None:
        """Let steps take other times, from the next that begins."""
        self._times = times

    def _join_late(self, step: GlobalStep) -> None:
        """Let ranks plan that had nothing for a step which now begins."""
        for i, rank in enumerate(self._ranks):
            if step.plans[i] is None:
                step.plans[i] = rank.plan_rank(step.start_ms)

    def _begin(self, step: GlobalStep) -> None:
        """Set when a step ends, now that all who have part in it are known."""
        shapes: list[StepShape] = [self._idle if plan is None else plan for plan in step.plans]
        slowest_ms, times_ms = self._times.step_and_work_ms(shapes)
        self._pace.start_at(step.start_ms)
        step.end_ms = self._pace.end_after(slowest_ms)
        counts = self.counts
        counts.rank_steps += len(times_ms)
        counts.rank_ms += slowest_ms * len(times_ms)
        for rank, plan, time_ms in zip(self._ranks, step.plans, times_ms, strict=True):
            if plan is None:
                counts.dummy_rank_steps += 1
            else:
                plan.end_ms = rank.next_ms = step.end_ms
                counts.waiting_ms += max(slowest_ms - time_ms, 0.0)
