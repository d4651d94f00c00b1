"""When the steps of an engine start and end, free of the drift of rounding."""

from typing import Final

from dynosim.engine.instant import instant_end

NEVER: Final = float("inf")


class Pace:
    """Start and end of the current step or run.

    What rounding takes off one end is carried to the next (Kahan's summation), so that a long busy
    period ends at the same time in a few runs as in thousands of steps.
    """

    __slots__ = ("_next_carry_ms", "carry_ms", "end_ms", "start_ms")

    def __init__(self) -> None:
        self.start_ms = 0.0
        self.carry_ms = 0.0  # to add to the current duration
        self.end_ms = -NEVER  # of the last step or run whose end has been set
        self._next_carry_ms = 0.0

    def start_at(self, start_ms: float) -> None:
        """Set the start of the next step or run.

        An instant's time may be a bit later than this engine's end in it: that is carried too.
        """
        late_ms = start_ms - self.end_ms
        if late_ms == 0 or start_ms <= instant_end(self.end_ms):
            self.carry_ms = self._next_carry_ms - late_ms
        else:
            self.carry_ms = 0.0  # was idle
        self.start_ms = start_ms

    def end_after(self, duration_ms: float) -> float:
        """Set and return when what starts at `start_ms` ends."""
        exact_ms = duration_ms + self.carry_ms
        end_ms = self.start_ms + exact_ms
        self.end_ms = end_ms
        self._next_carry_ms = exact_ms - (end_ms - self.start_ms)
        return end_ms

    def undo_start(self) -> None:
        """What would have started does not: the one before ended there."""
        self.end_ms, self._next_carry_ms = self.start_ms, self.carry_ms

    def planned_end(self) -> tuple[float, float]:
        """The end that is set, to be restored when a part of it has been done."""
        return self.end_ms, self._next_carry_ms

    def restore_end(self, planned: tuple[float, float]) -> None:
        """Set the end again that `planned_end` told."""
        self.end_ms, self._next_carry_ms = planned
