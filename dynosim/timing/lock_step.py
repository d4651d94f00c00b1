"""How long a step of ranks in lock step takes: as long as the slowest of them.

A `StepTimeModel` of such an engine answers for ranks that all do the same. Where they differ, each
rank's own part (attention, dense layers) is taken from its own step and the common part
(`StepTimeModel.experts`) from the tokens of all:

    step = max over ranks of (step_ms(rank) - experts(rank's tokens)) + experts(mean tokens).

vLLM runs every rank with as many tokens as the largest has, as long as that many fit a CUDA graph
(`coordinate_batch_across_dp`: graphs of all ranks must be of one size); the rows that fill up go
through dense layers and experts like others. A rank without work runs a dummy step of one token.
"""

from collections.abc import Sequence

from dynosim.timing.experts import ExpertTimes
from dynosim.timing.model import StepTimeModel
from dynosim.timing.step import StepShape


class LockStepTimes:
    """Step times of ranks that wait for each other.

    Up to `padded_up_to` tokens in the largest rank, all ranks have as many. A model that does not
    know its common part answers with the slowest rank's own step.
    """

    def __init__(self, own: StepTimeModel, padded_up_to: int = 0) -> None:
        self._own = own
        self._experts: ExpertTimes | None = own.experts
        self._padded_up_to = padded_up_to

    def global_step_ms(self, shapes: Sequence[StepShape]) -> float:
        """Duration of a step in which rank i computes `shapes[i]`, be that nothing."""
        return max(self.rank_ms(shapes))

    def rank_ms(self, shapes: Sequence[StepShape]) -> list[float]:
        """How long the step would take if each rank's own part alone counted, by rank."""
        filled = self._filled_ms(shapes)
        return self.unfilled_ms(shapes) if filled is None else filled

    def step_and_work_ms(self, shapes: Sequence[StepShape]) -> tuple[float, list[float]]:
        """`global_step_ms`, and what the work of each rank alone would take (`unfilled_ms`)."""
        work = self.unfilled_ms(shapes)
        filled = self._filled_ms(shapes)
        return max(work if filled is None else filled), work

    def _filled_ms(self, shapes: Sequence[StepShape]) -> list[float] | None:
        """By rank, where all are filled up to the largest; None where they are not."""
        if len(shapes) == 1 or self._experts is None:
            return None
        widest = max([_tokens(shape) for shape in shapes])
        if widest > self._padded_up_to:
            return None
        # the common part is that of ranks which are alike, hence in `step_ms` as it is
        return [self._own.step_ms(_filled(shape, widest)) for shape in shapes]

    def unfilled_ms(self, shapes: Sequence[StepShape]) -> list[float]:
        """The same if no rank were filled up with tokens: what its work alone would take."""
        own, experts = self._own, self._experts
        if len(shapes) == 1 or experts is None:
            return [own.step_ms(shape) for shape in shapes]
        tokens = [_tokens(shape) for shape in shapes]
        common_ms = experts.ms(sum(tokens) / len(tokens))
        return [
            own.step_ms(_filled(shape, count)) + (common_ms - experts.ms(count))
            for shape, count in zip(shapes, tokens, strict=True)
        ]


def _tokens(shape: StepShape) -> int:
    """Tokens that a rank computes: one in a dummy step."""
    return max(shape.prefill_tokens + shape.num_decodes, 1)


def _filled(shape: StepShape, tokens: int) -> StepShape:
    """The step with so many tokens; those that fill it up decode and have hardly any context."""
    missing = tokens - shape.prefill_tokens - shape.num_decodes
    if missing <= 0:
        return shape
    return StepShape(
        shape.num_prefills,
        shape.prefill_tokens,
        shape.prefix_tokens,
        shape.num_decodes + missing,
        shape.decode_context_tokens + missing,
    )
