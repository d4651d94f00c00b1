"""Prefill load that shrinks while it is worked on, by a model of prefill times.

Without a model a prompt counts in full until its first token. With one, the oldest prefill of a
worker (the anchor) is taken to progress evenly over its predicted duration.
"""

from collections.abc import Hashable
from math import ceil
from typing import NamedTuple, Protocol


class PrefillEstimator(Protocol):
    """Predicts how long a prompt takes."""

    def predict_ms(self, new_tokens: int, cached_tokens: int) -> float | None:
        """Milliseconds to compute `new_tokens` behind `cached_tokens`; None: cannot tell."""
        ...


class Prefill(NamedTuple):
    """One prompt that has no token yet."""

    tokens: int
    duration_ms: float | None


class ClockSnapshot(NamedTuple):
    """What a `PrefillClock` was."""

    anchor_ms: float
    prefills: list[tuple[Hashable, int, float | None]]  # name, tokens, duration


class PrefillClock:
    """Active prefills of one worker, oldest first."""

    __slots__ = ("_anchor_ms", "_prefills", "_total_tokens")

    def __init__(self) -> None:
        self._prefills: dict[Hashable, Prefill] = {}
        self._total_tokens = 0
        self._anchor_ms = 0.0  # when the oldest became the oldest

    def add(self, name: Hashable, tokens: int, duration_ms: float | None, now_ms: float) -> None:
        """A prompt joins the end of the line."""
        if not self._prefills:
            self._anchor_ms = now_ms
        self._prefills[name] = Prefill(tokens, duration_ms)
        self._total_tokens += tokens

    def remove(self, name: Hashable, now_ms: float) -> None:
        """A prompt is done; if it was the oldest, the next one is taken to start now."""
        if next(iter(self._prefills), None) == name:
            self._anchor_ms = now_ms
        self._total_tokens -= self._prefills.pop(name).tokens

    def tokens(self, now_ms: float) -> int:
        """Prompt tokens still to compute.

        If every prefill has a duration, the anchor's pace goes on into the next ones; otherwise
        only the anchor shrinks.
        """
        if not self._prefills:
            return 0
        anchor = next(iter(self._prefills.values()))
        if anchor.duration_ms is None:
            return self._total_tokens
        elapsed_ms = max(now_ms - self._anchor_ms, 0.0)
        share = elapsed_ms / anchor.duration_ms if anchor.duration_ms > 0 else 1.0
        if all(prefill.duration_ms is not None for prefill in self._prefills.values()):
            return max(0, self._total_tokens - int(anchor.tokens * share))
        left = ceil(anchor.tokens * max(0.0, 1 - share))
        return self._total_tokens - anchor.tokens + left

    def snapshot(self) -> ClockSnapshot:
        """All that future answers depend on; see `restore`."""
        prefills = [
            (name, prefill.tokens, prefill.duration_ms) for name, prefill in self._prefills.items()
        ]
        return ClockSnapshot(self._anchor_ms, prefills)

    def restore(self, snapshot: ClockSnapshot) -> None:
        """Make a clock without prefills what another one was."""
        for name, tokens, duration_ms in snapshot.prefills:
            self._prefills[name] = Prefill(tokens, duration_ms)
            self._total_tokens += tokens
        self._anchor_ms = snapshot.anchor_ms
