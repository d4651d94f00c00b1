"""What an answer's text is made of, once it is parsed, and how markers in it are found."""

from typing import NamedTuple


class Text(NamedTuple):
    """Words for the user."""

    text: str


class Reasoning(NamedTuple):
    """Words that the model thought."""

    text: str


class CallBegin(NamedTuple):
    """A tool is called; what follows of `CallArguments` is given to it."""

    name: str


class CallArguments(NamedTuple):
    """A piece of a call's arguments, which are JSON."""

    text: str


Part = Text | Reasoning | CallBegin | CallArguments


class MarkerFinder:
    """Finds a marker in a text that comes in pieces; holds back what may be its beginning."""

    def __init__(self, marker: str) -> None:
        self._marker = marker
        self._held = ""

    def feed(self, piece: str) -> tuple[str, str | None]:
        """(text before the marker, text behind it); the latter None until it is found."""
        text = self._held + piece
        before, marker, behind = text.partition(self._marker)
        if marker:
            self._held = ""
            return before, behind
        for count in range(min(len(self._marker) - 1, len(text)), 0, -1):
            if self._marker.startswith(text[-count:]):
                self._held = text[-count:]
                return text[:-count], None
        self._held = ""
        return text, None

    def flush(self) -> str:
        """What was held back, at the end of the text."""
        held, self._held = self._held, ""
        return held


class StartFinder:
    """Tells whether a text that comes in pieces begins with a marker, blanks aside."""

    def __init__(self, marker: str) -> None:
        self._marker = marker
        self._head = ""

    def feed(self, piece: str) -> tuple[bool, str] | None:
        """(whether it does, the text behind the marker or all of it); None: not known yet."""
        self._head += piece
        begun = self._head.lstrip()
        if begun.startswith(self._marker):
            return True, begun.removeprefix(self._marker)
        if self._marker.startswith(begun):
            return None
        return False, self.flush()

    def flush(self) -> str:
        """All that has come so far."""
        head, self._head = self._head, ""
        return head
