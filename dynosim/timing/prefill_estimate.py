"""The twin's model of prefill times for the router: the engines' own step times."""

from dynosim.timing.model import StepTimeModel
from dynosim.timing.step import StepShape


class StepTimeEstimator:
    """Predicts a prompt's prefill as steps of its own, full ones and a rest."""

    def __init__(self, timing: StepTimeModel, max_num_batched_tokens: int) -> None:
        self._timing = timing
        self._budget = max_num_batched_tokens

    def predict_ms(self, new_tokens: int, cached_tokens: int) -> float:
        """Milliseconds to compute `new_tokens` behind `cached_tokens`."""
        total_ms = 0.0
        done = cached_tokens
        while new_tokens > 0:
            chunk = min(new_tokens, self._budget)
            total_ms += self._timing.step_ms(StepShape.of_prompts(1, chunk, done))
            done += chunk
            new_tokens -= chunk
        return total_ms
