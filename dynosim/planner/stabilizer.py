"""Fewer replicas only once fewer were wanted for a while."""


class Stabilizer:
    """One pool's memory of what was wanted. A window of 0 holds nothing back."""

    def __init__(self, window_ms: float) -> None:
        self._window_ms = window_ms
        self._wanted: list[tuple[float, int]] = []

    def settle(self, now_ms: float, current: int, target: int) -> int:
        """`target`, or if it is fewer than `current` the most that was wanted in the window.

        Before a whole window was looked at, `current` counts as wanted.
        """
        if self._window_ms <= 0:
            return target
        if not self._wanted:
            self._wanted.append((now_ms, max(current, target)))
        self._wanted.append((now_ms, target))
        since_ms = now_ms - self._window_ms
        self._wanted = [entry for entry in self._wanted if entry[0] > since_ms]
        if target >= current:
            return target
        return min(current, max(wanted for _, wanted in self._wanted))
