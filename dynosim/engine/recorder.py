"""Who writes down what an engine does: the twin's journal, live streams, a step log."""

from collections.abc import Sequence as List

from mypy_extensions import mypyc_attr

from dynosim.engine.plan import StepPlan
from dynosim.engine.sequence import Sequence


@mypyc_attr(allow_interpreted_subclasses=True)
class Recorder:
    """Hears of everything an engine does, in the order in which it becomes known.

    A step is planned before it is delivered; a pipeline of depth two plans the next one meanwhile.
    A base class and no protocol, so that a compiled engine calls compiled ones directly. Plans and
    sequences belong to the engine: read them at once, change nothing.
    """

    __slots__ = ()

    def admitted(self, sequences: List[Sequence], start_ms: float) -> None:
        """Requests got a seat, for the first time or again, in a step that starts then."""
        raise NotImplementedError

    def missed(self, plan: StepPlan, last_token_ms: float) -> None:
        """A step was planned that somebody lost the seat in, or has to sit out.

        What those have got, they had by `last_token_ms`.
        """
        raise NotImplementedError

    def delivered(self, plan: StepPlan, num_waiting: int) -> None:
        """A step has ended; `num_waiting` requests were queued then."""
        raise NotImplementedError

    def delivered_run(
        self, start_ms: float, end_ms: float, num_steps: int, first_context: int, num_waiting: int
    ) -> None:
        """A run of uniform steps has ended: the sequences that decode all got `num_steps` tokens.

        `first_context` is their context, summed, in the first of them.
        """
        raise NotImplementedError

    def ended(self, sequences: List[Sequence], end_ms: float) -> None:
        """Requests got their last token."""
        raise NotImplementedError

    def dropped(self, sequence: Sequence, num_tokens: int, under_way: StepPlan | None) -> None:
        """A request that was given up (`Engine.give_up`) is gone; so many tokens were scheduled.

        `under_way` is the step that still computes one of them, for nobody.
        """
        raise NotImplementedError

    def wants_single_steps(self) -> bool:
        """Whether the next step must be delivered on its own, for somebody who missed one."""
        raise NotImplementedError
