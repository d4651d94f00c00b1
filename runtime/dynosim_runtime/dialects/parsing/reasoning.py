"""Reasoning in what models write, told from their answer: `<think>...</think>`."""

from dynosim_runtime.dialects.parsing.parts import MarkerFinder, StartFinder

OPEN, CLOSE = "<think>", "</think>"
REASONING_MARKERS = (OPEN, CLOSE)
THINKS_UNASKED = {"deepseek_r1": True, "qwen3": False}
"""By parser: whether an answer that does not open with `<think>` begins with reasoning, too."""


class ReasoningSplitter:
    """Takes one answer apart as it comes.

    `prompt_end` is the end of the prompt: templates may have opened or closed the reasoning there.
    """

    def __init__(self, parser: str, prompt_end: str) -> None:
        self._thinks_unasked = THINKS_UNASKED[parser]
        self._closing = MarkerFinder(CLOSE)
        self._start: StartFinder | None = StartFinder(OPEN)
        self._is_inside = False
        end = prompt_end.rstrip()
        if end.endswith((OPEN, CLOSE)):
            self._start = None
            self._is_inside = end.endswith(OPEN)

    def feed(self, text: str) -> tuple[str, str]:
        """(reasoning, answer) that are certain now."""
        if self._start is not None:
            found = self._start.feed(text)
            if found is None:
                return "", ""
            self._start = None
            is_opened, text = found
            self._is_inside = is_opened or self._thinks_unasked
        if not self._is_inside:
            return "", text
        reasoning, behind = self._closing.feed(text)
        self._is_inside = behind is None
        return reasoning, behind or ""

    def finish(self) -> tuple[str, str]:
        """(reasoning, answer) that were held back, at the end of the answer."""
        if self._start is not None:
            head = self._start.flush()
            return (head, "") if self._thinks_unasked else ("", head)
        return self._closing.flush(), ""
