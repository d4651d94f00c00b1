"""One chat answer taken apart: reasoning, words for the user, tool calls."""

from typing import NamedTuple

from dynosim_runtime.dialects.parsing.parts import CallBegin, Part, Reasoning, Text
from dynosim_runtime.dialects.parsing.reasoning import REASONING_MARKERS, ReasoningSplitter
from dynosim_runtime.dialects.parsing.tool_calls import TOOL_MARKERS, TOOL_PARSERS, ToolParser


class Parsing(NamedTuple):
    """What the model's family writes: names of parsers; None: nothing is to be found."""

    tools: str | None = None
    reasoning: str | None = None

    def for_request(self, *, has_tools: bool) -> "Parsing":
        """What is to be found in the answers of one request."""
        return self if has_tools else self._replace(tools=None)

    @property
    def markers(self) -> tuple[str, ...]:
        """Tokens that must be seen, special ones too."""
        tools = () if self.tools is None else TOOL_MARKERS[self.tools]
        return tools if self.reasoning is None else (*tools, *REASONING_MARKERS)

    @property
    def is_needed(self) -> bool:
        """Whether there is anything to find."""
        return self.tools is not None or self.reasoning is not None


class OutputParser:
    """Parts of an answer as it comes. Blanks alone before a call, or behind one, are left out."""

    def __init__(self, parsing: Parsing, prompt_end: str) -> None:
        self.has_calls = False
        self._reasoning: ReasoningSplitter | None = None
        if parsing.reasoning is not None:
            self._reasoning = ReasoningSplitter(parsing.reasoning, prompt_end)
        self._tools: ToolParser | None = None
        if parsing.tools is not None:
            self._tools = TOOL_PARSERS[parsing.tools]()
        self._blanks = ""
        self._has_text = False

    def feed(self, text: str) -> list[Part]:
        """The parts that are certain now."""
        reasoning, answer = ("", text) if self._reasoning is None else self._reasoning.feed(text)
        return self._parts(reasoning, answer)

    def finish(self) -> list[Part]:
        """What was held back, at the end of the answer."""
        reasoning, answer = ("", "") if self._reasoning is None else self._reasoning.finish()
        parts = self._parts(reasoning, answer)
        if self._tools is not None:
            parts += self._cleaned(self._tools.finish())
        if self._blanks and not self.has_calls:
            parts.append(Text(self._blanks))
        return parts

    def _parts(self, reasoning: str, answer: str) -> list[Part]:
        parts: list[Part] = [Reasoning(reasoning)] if reasoning else []
        if answer:
            found: list[Part] = [Text(answer)] if self._tools is None else self._tools.feed(answer)
            parts += self._cleaned(found)
        return parts

    def _cleaned(self, parts: list[Part]) -> list[Part]:
        kept: list[Part] = []
        for part in parts:
            if isinstance(part, Text):
                text = self._blanks + part.text
                self._blanks = ""
                if not text.strip() and (self.has_calls or not self._has_text):
                    self._blanks = text
                    continue
                self._has_text = True
                kept.append(Text(text))
                continue
            if isinstance(part, CallBegin):
                self.has_calls = True
                self._blanks = ""
            kept.append(part)
        return kept
