"""Writes what one engine does into the journal: token times by request, a row per step or run."""

from collections.abc import Sequence as List
from math import isnan
from typing import Final, NamedTuple

from dynosim.cluster.journal import NAN, Journal
from dynosim.engine.cores import Core
from dynosim.engine.engine import Unfinished
from dynosim.engine.plan import StepPlan
from dynosim.engine.recorder import Recorder
from dynosim.engine.sequence import DECODING, FINISHED, Sequence
from dynosim.records import RequestStatus
from dynosim.timing.model import StepTimeModel
from dynosim.timing.step import StepShape

COMPLETED: Final = int(RequestStatus.COMPLETED)
BEFORE_ANY_STEP: Final = -1


class Late(NamedTuple):
    """A sequence that has had tokens and then missed a step."""

    sequence: Sequence
    last_token_ms: float
    missed_step: int  # the first one


class TokenLog(Recorder):
    """The `Recorder` of an engine in the twin.

    Of the tokens of a request only the first, the second and the last have a time of their own;
    those between follow from the rows of steps, but for gaps that a preemption or a lack of blocks
    stretched over more than a step. If `reports_first_tokens`, `first_tokens` collects the requests
    whose first token was delivered, for a router to receive. `seated` are those that got a seat
    since somebody looked last, in a log that collects them.
    """

    __slots__ = (
        "_awaiting_second",
        "_core",
        "_first_step",
        "_is_pipelined",
        "_journal",
        "_late",
        "_times",
        "_worker_id",
        "first_tokens",
        "seated",
    )

    def __init__(
        self,
        journal: Journal,
        worker_id: int,
        core: Core,
        times: StepTimeModel,
        *,
        is_pipelined: bool,
        reports_first_tokens: bool = False,
    ) -> None:
        self.first_tokens: list[int] | None = [] if reports_first_tokens else None
        self.seated: list[Sequence] = []
        self._journal = journal
        self._worker_id = worker_id
        self._core = core
        self._times = times
        self._is_pipelined = is_pipelined
        self._first_step = StepShape()  # of the run that is noted
        self._awaiting_second: list[Sequence] = []
        self._late: list[Late] = []

    def moved_in(self, sequence: Sequence, last_token_ms: float) -> None:
        """A request goes on here that has had tokens elsewhere, the last one then."""
        self._late.append(Late(sequence, last_token_ms, BEFORE_ANY_STEP))

    def last_token_ms(self, sequence: Sequence, delivered_ms: float) -> float:
        """When a request got its last token, if the engine's last step was delivered then."""
        for late in self._late:
            if late.sequence is sequence:
                return late.last_token_ms
        return delivered_ms

    def admitted(self, sequences: List[Sequence], start_ms: float) -> None:
        """Only the first time that a request gets a seat counts."""
        journal = self._journal
        for sequence in sequences:
            index = sequence.index
            if isnan(journal.scheduled_ms[index]):
                journal.scheduled_ms[index] = start_ms
                journal.cached_tokens[index] = sequence.cached_tokens

    def missed(self, plan: StepPlan, last_token_ms: float) -> None:
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

    def delivered(self, plan: StepPlan, num_waiting: int) -> None:
        """Note first, second and late tokens of a step, and the step itself."""
        journal = self._journal
        end_ms = plan.end_ms
        num_late = self._settle_late(plan, end_ms) if self._late else 0
        if self._awaiting_second:
            for sequence in self._awaiting_second:
                if not (self._late and self._missed(sequence, plan.step)):
                    journal.second_token_ms[sequence.index] = end_ms
            self._awaiting_second = []
        for sequence in plan.prefilled:
            if sequence.generated_tokens == 0 and sequence.state != FINISHED:  # if so: dropped
                journal.first_token_ms[sequence.index] = end_ms
                if self.first_tokens is not None:
                    self.first_tokens.append(sequence.index)
                if sequence.output_tokens > 1:
                    self._awaiting_second.append(sequence)
        self._log_step(plan, num_waiting, num_late)

    def _log_step(self, plan: StepPlan, num_waiting: int, num_late: int) -> None:
        """Late sequences decode like the others, but their gaps are not this step's duration."""
        resumed = plan.num_resumed_decodes
        core = self._core
        self._journal.steps.append(
            plan.start_ms,
            plan.end_ms - plan.start_ms,
            self._worker_id,
            1,
            plan.num_prefills + resumed,
            plan.prefill_tokens + resumed,
            plan.prefix_tokens,
            plan.num_decodes - resumed - num_late,
            plan.decode_context_tokens,
            core.num_running,
            num_waiting,
            core.used_blocks,
        )

    def delivered_run(
        self, start_ms: float, end_ms: float, num_steps: int, first_context: int, num_waiting: int
    ) -> None:
        """Note the second tokens that the first of a run's steps made, and the run itself."""
        core = self._core
        count = core.decodes.count
        if self._awaiting_second:
            self._first_step.num_decodes = count
            self._first_step.decode_context_tokens = first_context
            second_ms = start_ms + self._times.step_ms(self._first_step)
            for sequence in self._awaiting_second:
                self._journal.second_token_ms[sequence.index] = second_ms
            self._awaiting_second = []
        self._journal.steps.append(
            start_ms,
            end_ms - start_ms,
            self._worker_id,
            num_steps,
            0,
            0,
            0,
            count,
            first_context,
            core.num_running,
            num_waiting,
            core.used_blocks,
        )

    def ended(self, sequences: List[Sequence], end_ms: float) -> None:
        """Note the last tokens."""
        journal = self._journal
        for sequence in sequences:
            index = sequence.index
            journal.finish_ms[index] = end_ms
            journal.produced_tokens[index] = sequence.output_tokens
            journal.status[index] = COMPLETED
            if sequence.preemptions:
                journal.preemptions[index] = sequence.preemptions
            if self._late:
                self._late = [late for late in self._late if late.sequence is not sequence]

    def dropped(self, sequence: Sequence, num_tokens: int, under_way: StepPlan | None) -> None:
        """Note what was computed for a request; of its gaps, those that have not ended yet."""
        journal, index = self._journal, sequence.index
        journal.produced_tokens[index] = num_tokens
        journal.leaving.discard(index)
        if sequence.preemptions:
            journal.preemptions[index] = sequence.preemptions
        if under_way is None:
            self._awaiting_second = [one for one in self._awaiting_second if one is not sequence]
            self._late = [late for late in self._late if late.sequence is not sequence]

    def stopped(self, left: Unfinished) -> None:
        """Note what requests have got until the engine stops; a seat yet to come never was."""
        journal = self._journal
        for sequence, num_tokens in left.requests:
            journal.produced_tokens[sequence.index] = num_tokens
            journal.leaving.discard(sequence.index)
            if sequence.preemptions:
                journal.preemptions[sequence.index] = sequence.preemptions
        for plan in left.steps:
            for sequence in plan.admitted:
                if journal.scheduled_ms[sequence.index] == plan.start_ms:  # its first one
                    journal.scheduled_ms[sequence.index] = NAN
                    journal.cached_tokens[sequence.index] = 0
        self._uncount(left.dropped)

    def _uncount(self, dropped: List[Sequence]) -> None:
        """Tokens that were counted when their request was dropped, and were never made."""
        for sequence in dropped:
            self._journal.produced_tokens[sequence.index] -= 1

    def wants_single_steps(self) -> bool:
        """Whether a sequence that missed a step decodes in the next one."""
        return bool(self._late) and any(late.sequence.state == DECODING for late in self._late)

    def _decoded(self, sequence: Sequence, plan: StepPlan) -> bool:
        """Whether a step decoded a sequence.

        In a pipeline the sequence's state is by now that of a later step.
        """
        if self._is_pipelined:
            return sequence in plan.emitting
        return sequence.state == DECODING and sequence not in plan.deferred

    def _missed(self, sequence: Sequence, step: int) -> bool:
        """Whether a sequence had no part in a step."""
        return any(late.sequence is sequence and late.missed_step <= step for late in self._late)

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


class PrefillLog(TokenLog):
    """The `Recorder` of an engine that computes prompts for decode workers.

    The one token that it makes of a request counts only if the client gets it from here.
    """

    __slots__ = ()

    def missed(self, plan: StepPlan, last_token_ms: float) -> None:
        """Nobody has a token here that a gap could follow."""

    def delivered(self, plan: StepPlan, num_waiting: int) -> None:
        """Note whose prompts are done, and the step itself."""
        journal, end_ms = self._journal, plan.end_ms
        handoffs = journal.handoffs
        assert handoffs is not None
        for sequence in plan.prefilled:
            if sequence.state == FINISHED:
                continue  # dropped
            index = sequence.index
            handoffs.prefill_end_ms[index] = end_ms
            if self.first_tokens is not None:
                self.first_tokens.append(index)
            if handoffs.shows_prefill_tokens and isnan(journal.first_token_ms[index]):
                journal.first_token_ms[index] = end_ms
        self._log_step(plan, num_waiting, 0)

    def ended(self, sequences: List[Sequence], end_ms: float) -> None:
        """They go on elsewhere, or end here with the one token that they wanted."""
        journal = self._journal
        for sequence in sequences:
            if sequence.preemptions:
                journal.preemptions[sequence.index] = sequence.preemptions

    def dropped(self, sequence: Sequence, num_tokens: int, under_way: StepPlan | None) -> None:
        """Note how often it lost its seat; it has got no token here."""
        if sequence.preemptions:
            self._journal.preemptions[sequence.index] = sequence.preemptions

    def stopped(self, left: Unfinished) -> None:
        """As everywhere, but what is scheduled here is nobody's token."""
        produced = self._journal.produced_tokens
        before = [produced[sequence.index] for sequence, _ in left.requests]
        super().stopped(left)
        for (sequence, _), tokens in zip(left.requests, before, strict=True):
            produced[sequence.index] = tokens

    def _uncount(self, dropped: List[Sequence]) -> None:
        """None was counted."""


class DecodeLog(TokenLog):
    """The `Recorder` of an engine that takes over what others have computed."""

    __slots__ = ()

    def admitted(self, sequences: List[Sequence], start_ms: float) -> None:
        """As everywhere; and remember who has not loaded, for it may have needed no KV."""
        super().admitted(sequences, start_ms)
        for sequence in sequences:
            if not sequence.external_tokens:
                self.seated.append(sequence)
