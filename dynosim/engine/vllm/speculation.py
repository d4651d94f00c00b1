"""vLLM's speculative decoding: drafts are scheduled like tokens, and those rejected go back.

A decoding request asks for its next token and for the drafts offered to it. All of them count as
computed when they are scheduled; when the output comes, those that were rejected do not count any
more, but the blocks taken for them stay. Only blocks full of known tokens become hittable. With
asynchronous scheduling there are always drafts: the next step is planned before it is known how
many of this one were accepted, as if all were.

What a drafter makes of a text is not known here: how many drafts are offered and accepted is told
with each step (`DraftWork`).
"""

from dynosim.engine.kv_cache import KvCache, PrefixHit
from dynosim.engine.plan import DraftWork, StepPlan
from dynosim.engine.sequence import FINISHED, PREFILLING, SPECULATING, WAITING, Sequence
from dynosim.engine.spec import EngineSpec, SpeculativeSpec
from dynosim.engine.vllm.seats import Seats


class Speculation:
    """Drafts of one engine: what they cost a step, and what becomes of them.

    `slot_tokens` of a step's budget go to the drafter for each request in it. `step_tokens` is what
    a request needs beside its known tokens to be sure of a step.
    """

    __slots__ = (
        "_drops_last_hit",
        "_is_async",
        "_lookahead",
        "_max_model_len",
        "_num_drafts",
        "_seats",
        "slot_tokens",
        "step_tokens",
    )

    def __init__(self, drafts: SpeculativeSpec, spec: EngineSpec, seats: Seats) -> None:
        self.slot_tokens = drafts.slot_tokens
        self.step_tokens = 1 + drafts.num_drafts + drafts.lookahead_tokens
        self._num_drafts = drafts.num_drafts
        self._lookahead = drafts.lookahead_tokens
        self._drops_last_hit = drafts.drops_last_hit
        self._is_async = spec.async_scheduling
        self._max_model_len = spec.max_model_len
        self._seats = seats

    # ---- what the loop asks --------------------------------------------------------------------

    def wanted(self, sequence: Sequence, cap: int, budget: int) -> int:
        """Tokens of a decoding request in this step; 0 if it ends even if all drafts are rejected.

        Drafts that a limit cuts off are lost. What the request may still produce is no limit.
        """
        computed, in_flight = sequence.num_computed, sequence.in_flight
        last = sequence.prompt_tokens + sequence.output_tokens
        if in_flight > 0 and computed + 2 - in_flight >= last:
            return 0
        wanted = sequence.known_tokens + in_flight + sequence.drafts - computed
        if 0 < cap < wanted:
            wanted = cap
        return min(wanted, budget, self._max_model_len - computed - 1)

    def padding(self, plan: StepPlan, computed: int, num_tokens: int) -> int:
        """Placeholder drafts of an admission that needs so many tokens: all requests of a step that
        only decodes shall have the same number of tokens."""
        if num_tokens != 1 or computed + 2 + self._num_drafts > self._max_model_len:
            return 0
        served = [row.sequence for row in plan.rows if row.hit_tokens < 0]
        if any([sequence.state == PREFILLING for sequence in served]):
            return 0
        return self._num_drafts if served or computed > 0 else 0

    def reach(self, end: int) -> int:
        """Up to where a request needs blocks that computes up to `end`: the drafter goes ahead."""
        return min(end + self._lookahead, self._max_model_len)

    def shorten(self, hit: PrefixHit) -> None:
        """Leave out the last block of a hit where the drafter needs what the model makes of it."""
        if self._drops_last_hit and hit.extents:
            last = hit.extents.pop()
            hit.path_blocks -= last.num_cached
            if last.refs == 0:
                hit.idle_blocks -= last.num_cached

    def is_through(self, plan: StepPlan, sequence: Sequence) -> bool:
        """Whether a request with a seat reserves nothing: its prefill began and ends in this step.

        One that has loaded reserves until then.
        """
        work = work_of(plan)
        is_new = sequence in plan.admitted and sequence not in work.loaded
        return is_new and sequence in plan.prefilled

    # ---- what the loop tells -------------------------------------------------------------------

    def reserve(self, sequence: Sequence, end: int) -> None:
        """A request has got blocks to compute up to `end`; drafts cannot become hittable."""
        sequence.reserved_tokens = max(sequence.reserved_tokens, self.reach(end))
        sequence.registration_lag = max(end - sequence.known_tokens, 0)

    def book(self, plan: StepPlan, sequence: Sequence, num_tokens: int) -> None:
        """A decoding request has part in a step, with its next token and with drafts."""
        plan.num_decodes += 1
        plan.decode_context_tokens += sequence.num_computed + num_tokens
        plan.emitting.append(sequence)
        sequence.num_computed += num_tokens
        sequence.drafts = 0
        if num_tokens > 1:
            work_of(plan).scheduled[sequence] = num_tokens - 1

    def admit(
        self, plan: StepPlan, sequence: Sequence, padding: int, *, is_decode: bool, is_back: bool
    ) -> None:
        """A request has got a seat, and, beside the tokens it needs, so many placeholders.

        `is_back`: it has loaded.
        """
        work = work_of(plan)
        if is_back:
            work.loaded.append(sequence)
        if padding > 0:
            work.padded.append(sequence)
            work.scheduled[sequence] = padding
            sequence.num_computed += padding
            if is_decode:
                plan.decode_context_tokens += padding
            else:
                plan.prefill_tokens += padding
        self.reserve(sequence, sequence.num_computed)

    # ---- what becomes of a step ----------------------------------------------------------------

    def launch(self, plan: StepPlan) -> None:
        """A step goes off: who is through with its known tokens decodes from the next one on."""
        work = work_of(plan)
        for sequence in plan.prefilled:
            self._seats.prefilling.remove(sequence)
            sequence.state = SPECULATING
        for sequence in plan.emitting + plan.prefilled:
            sequence.in_flight += 1 + work.scheduled.get(sequence, 0)
            if self._is_async:
                sequence.drafts = self._num_drafts

    def deliver(self, plan: StepPlan, cache: KvCache) -> list[Sequence]:
        """Deliver what the drafts of a step came to; returns those who now have all their tokens.

        One that was preempted meanwhile gets its tokens as well. Its progress starts anew.
        """
        work = work_of(plan)
        complete: list[Sequence] = []
        for sequence in plan.emitting:
            if sequence.state == FINISHED:
                continue  # it was aborted, or had all its tokens before
            num_drafts = work.scheduled.get(sequence, 0)
            num_accepted = work.accepted.get(sequence, 0)
            assert num_accepted <= num_drafts
            missing = sequence.output_tokens - sequence.generated_tokens
            num_tokens = min(1 + num_accepted, missing)
            work.delivered[sequence] = num_tokens
            sequence.generated_tokens += num_tokens
            if num_tokens == missing:
                complete.append(sequence)
            if sequence.state == WAITING:
                sequence.in_flight -= 1 + num_drafts
            else:
                self._settle(sequence, num_tokens, num_drafts - num_accepted)
                if self._is_async:
                    cache.register(sequence, sequence.num_computed)
                else:
                    sequence.drafts = min(work.offered.get(sequence, 0), self._num_drafts)
        return complete

    def _settle(self, sequence: Sequence, num_tokens: int, num_rejected: int) -> None:
        """So many tokens have come, and so many were computed in vain."""
        sequence.num_computed -= num_rejected
        sequence.in_flight -= num_tokens + num_rejected
        lag = max(sequence.registration_lag - num_rejected, 0)
        # Asynchronously, what has become known becomes hittable at once.
        sequence.registration_lag = min(lag, sequence.in_flight) if self._is_async else lag


def work_of(plan: StepPlan) -> DraftWork:
    """What a step has to do with drafts."""
    assert plan.drafts is not None
    return plan.drafts
