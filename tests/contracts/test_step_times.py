"""Every kind of step-time model keeps the contract; broken ones do not."""

import pytest
from timing_models import IDS, MODELS, SquareRootModel

from dynosim.records import IntArray
from dynosim.testing.step_times import StepTimesContract
from dynosim.timing.formulas import LinearModel
from dynosim.timing.model import StepTimeModel
from dynosim.timing.step import StepShape


class TestModels(StepTimesContract):
    @pytest.fixture(scope="class", params=MODELS, ids=IDS)
    @classmethod
    def model(cls, request: pytest.FixtureRequest) -> StepTimeModel:
        model: StepTimeModel = request.param
        return model


class CountsFromOne(SquareRootModel):
    """Its closed form is off by one token."""

    def decode_run_ms(self, num_decodes: int, decode_context_tokens: int, num_steps: int) -> float:
        return super().decode_run_ms(num_decodes, decode_context_tokens + 1, num_steps)


class StopsOneLate(SquareRootModel):
    def decode_steps_until(
        self, num_decodes: int, decode_context_tokens: int, max_steps: int, elapsed_ms: float
    ) -> int:
        found = super().decode_steps_until(
            num_decodes, decode_context_tokens, max_steps, elapsed_ms
        )
        return min(found + 1, max_steps)


class Learns(LinearModel):
    """Answers by what it was asked before, and makes the plan its own."""

    def step_ms(self, step: StepShape) -> float:
        assert isinstance(step, StepShape)
        step.prefill_tokens += 1
        return super().step_ms(step)


class NeverIdle(SquareRootModel):
    def step_ms(self, step: StepShape) -> float:
        return super().step_ms(step) + 1


class FallsThoughItPromised(SquareRootModel):
    def step_ms(self, step: StepShape) -> float:
        return 1e6 - super().step_ms(step)


class CallsARootAParabola(SquareRootModel):
    def smooth_decode_steps(
        self, num_decodes: IntArray, decode_context_tokens: IntArray, num_steps: IntArray
    ) -> IntArray:
        return num_steps


@pytest.mark.parametrize(
    ("broken", "noticed_by"),
    [
        (CountsFromOne(), "test_a_run_takes_the_sum_of_its_steps"),
        (StopsOneLate(), "test_the_first_step_that_reaches_a_time_is_found"),
        (StopsOneLate(), "test_it_is_found_exactly_at_step_ends"),
        (
            Learns(
                base_ms=5, per_prefill_token_ms=0.1, per_decode_ms=0.05, per_context_token_ms=1e-4
            ),
            "test_an_answer_does_not_depend_on_what_was_asked_before",
        ),
        (NeverIdle(), "test_nothing_to_compute_takes_no_time"),
        (
            CallsARootAParabola(),
            "test_what_is_said_to_be_smooth_rises_or_falls_along_a_parabola",
        ),
        (
            FallsThoughItPromised(),
            "test_steps_never_take_negative_time_and_grow_where_promised",
        ),
    ],
)
def test_a_broken_model_fails(broken: StepTimeModel, noticed_by: str) -> None:
    with pytest.raises(AssertionError):
        getattr(StepTimesContract(), noticed_by)(model=broken)
