"""A step-time model made slower or faster by a constant factor."""

from operator import attrgetter

from mypy_extensions import mypyc_attr

from dynosim.records import FloatArray, IntArray, StepLog
from dynosim.timing.experts import ScaledExperts
from dynosim.timing.model import StepTimeModel
from dynosim.timing.step import StepShape

# As in `dynosim.timing.model`: a model may have these from its class.
_about = attrgetter("source", "description", "notes", "decode_is_monotone")
_outside = attrgetter("ingress_ms", "egress_ms")


@mypyc_attr(allow_interpreted_subclasses=True)
class ScaledModel(StepTimeModel):
    """`scale` times the step times of another model."""

    def __init__(self, model: StepTimeModel, scale: float) -> None:
        self._model = model
        self._scale = scale
        self.source, description, self.notes, self.decode_is_monotone = _about(model)
        self.description = f"{scale:g} x ({description})"
        self.ingress_ms, self.egress_ms = _outside(model)
        self.experts = None if model.experts is None else ScaledExperts(model.experts, scale)

    def step_ms(self, step: StepShape) -> float:
        """See `StepTimeModel`."""
        return self._scale * self._model.step_ms(step)

    def decode_run_ms(self, num_decodes: int, decode_context_tokens: int, num_steps: int) -> float:
        """See `StepTimeModel`."""
        return self._scale * self._model.decode_run_ms(
            num_decodes, decode_context_tokens, num_steps
        )

    def decode_step_ms_array(
        self, num_decodes: IntArray, decode_context_tokens: IntArray
    ) -> FloatArray:
        """See `StepTimeModel`."""
        return self._scale * self._model.decode_step_ms_array(num_decodes, decode_context_tokens)

    def smooth_decode_steps(
        self, num_decodes: IntArray, decode_context_tokens: IntArray, num_steps: IntArray
    ) -> IntArray:
        """See `StepTimeModel`."""
        return self._model.smooth_decode_steps(num_decodes, decode_context_tokens, num_steps)

    def steps_in_range(self, steps: StepLog) -> IntArray:
        """See `StepTimeModel`."""
        return self._model.steps_in_range(steps)
