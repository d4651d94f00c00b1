"""Stop strings in a text that comes in pieces."""

from collections.abc import Sequence


class StopFinder:
    """Cuts a text at the stop string that is complete first (of those, the longest).

    The result does not depend on how the text is cut into pieces: a piece's end is held back while
    it may be the beginning of a stop string.
    """

    __slots__ = ("_held", "_longest", "_stops")

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._longest = max(map(len, self._stops))
        self._held = ""

    def feed(self, piece: str) -> tuple[str, str | None]:
        """(text to show now, the stop string found); after a find there is nothing more to feed."""
        text = self._held + piece
        found = self._first_complete(text)
        if found is not None:
            start, stop = found
            self._held = ""
            return text[:start], stop
        num_held = self._undecided(text)
        self._held = text[len(text) - num_held :]
        return text[: len(text) - num_held], None

    def flush(self) -> str:
        """What was held back, at the end of the text."""
        held, self._held = self._held, ""
        return held

    def _first_complete(self, text: str) -> tuple[int, str] | None:
        places = [
            (start + len(stop), start, stop)
            for stop in self._stops
            if (start := text.find(stop)) >= 0
        ]
        return min(places)[1:] if places else None

    def _undecided(self, text: str) -> int:
        """Characters at the end that may begin a stop string: the most that do."""
        for count in range(min(self._longest - 1, len(text)), 0, -1):
            tail = text[-count:]
            if any(stop.startswith(tail) for stop in self._stops):
                return count
        return 0
