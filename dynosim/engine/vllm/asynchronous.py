"""Asynchronous scheduling: the next step is planned before the tokens of this one are known.

A sequence counts its tokens in flight. Once its last one is scheduled it drains: it keeps its seat
until that token is delivered, and takes part in no further step. Blocks become hittable only up to
the tokens whose ids are known, hence `registration_lag`. One that is preempted meanwhile still gets
the tokens that were under way, and may end while it waits.
"""

from dynosim.engine.decode_set import DecodeSet
from dynosim.engine.kv_cache import KvCache
from dynosim.engine.plan import StepPlan
from dynosim.engine.sequence import DECODING, DRAINING, FINISHED, WAITING, Sequence


def retire(decodes: DecodeSet, done_step: int) -> None:
    """Schedule no more of sequences whose last token is on its way; they keep their seats."""
    for sequence in decodes.pop_due(done_step):
        sequence.state = DRAINING


def launch(plan: StepPlan) -> None:
    """A step goes off: one more token in flight for everyone in it."""
    for sequence in plan.emitting:
        sequence.in_flight += 1


def overlap(plan: StepPlan) -> None:
    """The steps of a run begin to be planned: the token before is always still in flight."""
    for sequence in plan.emitting:
        sequence.registration_lag = 1


def deliver(plan: StepPlan, decodes: DecodeSet, cache: KvCache) -> list[Sequence]:
    """Deliver one token to everyone in the plan; returns those who now have all of theirs."""
    done_step = plan.step + 1
    retire(decodes, done_step)
    complete: list[Sequence] = []
    for sequence in plan.emitting:
        if sequence.state == FINISHED:
            continue  # aborted meanwhile
        sequence.in_flight -= 1
        if sequence.state == WAITING:  # preempted meanwhile
            sequence.generated_tokens += 1
            if sequence.generated_tokens == sequence.output_tokens:
                complete.append(sequence)
            continue
        if sequence.in_flight < sequence.registration_lag:
            sequence.registration_lag = sequence.in_flight
        if sequence.state == DECODING:
            if cache.registers_decodes:
                cache.register(sequence, sequence.anchor + decodes.step)
            continue
        cache.register(sequence, sequence.num_computed)
        if sequence.finish_step <= done_step:
            complete.append(sequence)
    return complete
