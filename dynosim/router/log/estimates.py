"""Predicted prefill times in a router's log: they come from outside, so a log must hold them."""

from collections import deque
from collections.abc import Iterable

from dynosim.router.prefill_load import PrefillEstimator


class RecordingEstimator:
    """Notes what another estimator says, so that a log can hold it."""

    def __init__(self, estimator: PrefillEstimator) -> None:
        self._estimator = estimator
        self._noted: list[float | None] = []

    def predict_ms(self, new_tokens: int, cached_tokens: int) -> float | None:
        """What the other one says."""
        duration_ms = self._estimator.predict_ms(new_tokens, cached_tokens)
        self._noted.append(duration_ms)
        return duration_ms

    def take(self) -> list[float | None]:
        """The answers since this was called last."""
        noted, self._noted = self._noted, []
        return noted


class ReplayEstimator:
    """Says what was noted, in the same order; what was not noted cannot be told."""

    def __init__(self) -> None:
        self._noted: deque[float | None] = deque()

    def expect(self, noted: Iterable[float | None]) -> None:
        """The answers to the next questions, in place of any left over."""
        self._noted = deque(noted)

    def predict_ms(self, new_tokens: int, cached_tokens: int) -> float | None:
        """The next answer."""
        return self._noted.popleft() if self._noted else None
