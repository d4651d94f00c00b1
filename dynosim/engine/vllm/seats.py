"""Who holds a seat, from admission to the last token or a preemption."""

from collections.abc import Iterator

from dynosim.engine.decode_set import DecodeSet
from dynosim.engine.plan import StepPlan
from dynosim.engine.sequence import DECODING, DRAINING, PREFILLING, Sequence


class Seats:
    """The running list, and of it those that prefill and those that decode.

    Invariants: `running` is in admission order; without a long-prefill cap at most one request
    prefills, and it is the last one, but where a step under way may keep blocks from being freed.
    """

    __slots__ = ("decodes", "prefilling", "running")

    def __init__(self, block_size: int) -> None:
        self.decodes = DecodeSet(block_size)
        self.prefilling: list[Sequence] = []
        self.running: dict[Sequence, None] = {}  # an ordered set

    def start_decoding(self, plan: StepPlan) -> None:
        """What this step prefills to the end decodes from the next step on."""
        decodes = self.decodes
        for sequence in plan.prefilled:
            self.prefilling.remove(sequence)
            sequence.state = DECODING
            sequence.anchor = sequence.num_computed - decodes.step
            remaining = sequence.output_tokens - sequence.generated_tokens
            decodes.enter(sequence, plan.step + remaining)

    def vacate(self, sequence: Sequence) -> None:
        """Take a request's seat; `num_computed` tells its progress from then on."""
        if sequence.state == PREFILLING:
            self.prefilling.remove(sequence)
        elif sequence.state == DECODING:
            self.decodes.leave(sequence)
            sequence.num_computed = sequence.anchor + self.decodes.step
        del self.running[sequence]

    def decoding(self) -> Iterator[tuple[Sequence, int]]:
        """Every decoding request, with the tokens scheduled for it so far."""
        step = self.decodes.step
        for sequence in self.running:
            if sequence.state == DECODING:
                yield sequence, sequence.anchor + step + 1 - sequence.prompt_tokens

    def unfinished(self) -> list[tuple[Sequence, int]]:
        """Every request with a seat, with the tokens scheduled for it so far."""
        return [(sequence, self.scheduled_tokens(sequence)) for sequence in self.running]

    def scheduled_tokens(self, sequence: Sequence) -> int:
        """The tokens scheduled so far for a request, be it with a seat or without."""
        if sequence.state == DECODING:
            return sequence.anchor + self.decodes.step + 1 - sequence.prompt_tokens
        if sequence.state == DRAINING:
            return sequence.num_computed + 1 - sequence.prompt_tokens
        if sequence.state == PREFILLING:
            return sequence.generated_tokens
        return sequence.generated_tokens + sequence.in_flight
