"""Tool calls in what models write, by the families' habits; see `TOOL_PARSERS`.

Text that looks like a call and is none stays text.
"""

from collections.abc import Callable
from typing import Protocol

from dynosim_runtime.dialects.parsing.json_calls import ObjectReader, ToolCallReader
from dynosim_runtime.dialects.parsing.parts import (
    CallArguments,
    CallBegin,
    MarkerFinder,
    Part,
    StartFinder,
    Text,
)


class ToolParser(Protocol):
    """Takes one answer apart as it comes."""

    def feed(self, text: str) -> list[Part]:
        """The parts that are certain now."""
        ...

    def finish(self) -> list[Part]:
        """What was held back, at the end of the answer."""
        ...


class HermesParser:
    """`<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, any number: Hermes, Qwen."""

    OPEN, CLOSE = "<tool_call>", "</tool_call>"

    def __init__(self) -> None:
        self._opening = MarkerFinder(self.OPEN)
        self._closing: StartFinder | None = None  # behind a call
        self._reader: ToolCallReader | None = None

    def feed(self, text: str) -> list[Part]:
        """See `ToolParser`."""
        parts: list[Part] = []
        rest: str | None = text
        while rest:
            if self._reader is not None:
                rest = self._read(self._reader, rest, parts)
            elif self._closing is not None:
                found = self._closing.feed(rest)
                rest = None if found is None else found[1]
                self._closing = self._closing if found is None else None
            else:
                before, rest = self._opening.feed(rest)
                _add_text(parts, before)
                if rest is not None:
                    self._reader = ToolCallReader(may_lack_arguments=True)
        return parts

    def finish(self) -> list[Part]:
        """See `ToolParser`."""
        parts: list[Part] = []
        if self._reader is not None and not self._reader.is_call:
            _add_text(parts, self.OPEN + self._reader.raw)
        if self._closing is not None:
            _add_text(parts, self._closing.flush())
        _add_text(parts, self._opening.flush())
        return parts

    def _read(self, reader: ToolCallReader, text: str, parts: list[Part]) -> str:
        """Go on inside a call; returns the text behind it."""
        if not reader.raw:
            text = text.lstrip()
            if text and not text.startswith("{"):
                self._reader = None
                _add_text(parts, self.OPEN)
                return text
        news, rest = reader.feed(text)
        parts += news
        if reader.is_complete:
            self._reader = None
            if reader.is_call:
                self._closing = StartFinder(self.CLOSE)
            else:
                _add_text(parts, self.OPEN + reader.raw)
        return rest


class LlamaParser:
    """An answer that is `{"name": ..., "parameters": {...}}`, several with `;` between: Llama 3."""

    TAG = "<|python_tag|>"

    def __init__(self) -> None:
        self._start: StartFinder | None = StartFinder(self.TAG)
        self._reader: ToolCallReader | None = None
        self._is_text = False

    def feed(self, text: str) -> list[Part]:
        """See `ToolParser`."""
        if self._start is not None:
            found = self._start.feed(text)
            if found is None:
                return []
            self._start = None
            text = found[1]
        parts: list[Part] = []
        while text and not self._is_text:
            text = self._read(text, parts)
        _add_text(parts, text)
        return parts

    def finish(self) -> list[Part]:
        """See `ToolParser`."""
        parts: list[Part] = []
        if self._start is not None:
            _add_text(parts, self._start.flush())
        if self._reader is not None and not self._reader.is_call:
            _add_text(parts, self._reader.raw)
        return parts

    def _read(self, text: str, parts: list[Part]) -> str:
        """Go on inside or between calls; returns the text behind them."""
        if self._reader is None:
            begun = text.lstrip(" \t\r\n;")
            if not begun.startswith("{"):
                self._is_text = bool(begun)
                return text if begun else ""
            self._reader = ToolCallReader(may_lack_arguments=False)
            text = begun
        reader = self._reader
        news, rest = reader.feed(text)
        parts += news
        if reader.is_complete:
            self._reader = None
            if not reader.is_call:
                self._is_text = True
                _add_text(parts, reader.raw)
        return rest


class MistralParser:
    """`[TOOL_CALLS]` and a list of objects, or name and arguments of each call: Mistral.

    Newer models write `[TOOL_CALLS]name{...}` or `[TOOL_CALLS]name[ARGS]{...}`, for each call.
    """

    TAG = "[TOOL_CALLS]"

    def __init__(self) -> None:
        self._opening = MarkerFinder(self.TAG)
        self._name: str | None = None  # as far as it has come; None: outside of a call
        self._is_list = False
        self._call: ToolCallReader | None = None
        self._arguments: ObjectReader | None = None

    def feed(self, text: str) -> list[Part]:
        """See `ToolParser`."""
        parts: list[Part] = []
        rest: str | None = text
        while rest:
            if self._arguments is not None:
                rest = self._read_arguments(self._arguments, rest, parts)
            elif self._is_list:
                rest = self._read_list(rest, parts)
            elif self._name is not None:
                rest = self._read_name(self._name + rest, parts)
            else:
                before, rest = self._opening.feed(rest)
                _add_text(parts, before)
                if rest is not None:
                    self._name = ""
        return parts

    def finish(self) -> list[Part]:
        """See `ToolParser`."""
        parts: list[Part] = []
        if self._name:
            _add_text(parts, self.TAG + self._name)
        if self._call is not None and not self._call.is_call:
            _add_text(parts, self._call.raw)
        _add_text(parts, self._opening.flush())
        return parts

    def _read_name(self, text: str, parts: list[Part]) -> str:
        text = text.lstrip()
        if text.startswith("["):
            self._is_list, self._name = True, None
            return text[1:]
        name, brace, arguments = text.partition("{")
        if not brace:
            self._name = name
            return ""
        self._name = None
        parts.append(CallBegin(name.partition("[")[0].strip()))
        self._arguments = ObjectReader()
        return brace + arguments

    def _read_arguments(self, reader: ObjectReader, text: str, parts: list[Part]) -> str:
        inside, rest = reader.feed(text)
        parts.append(CallArguments(inside))
        if reader.is_complete:
            self._arguments = None
        return rest

    def _read_list(self, text: str, parts: list[Part]) -> str:
        if self._call is None:
            text = text.lstrip(" \t\r\n,")
            if not text.startswith("{"):
                self._is_list = not text
                return text.removeprefix("]")
            self._call = ToolCallReader(may_lack_arguments=True)
        news, rest = self._call.feed(text)
        parts += news
        if self._call.is_complete:
            if not self._call.is_call:
                _add_text(parts, self._call.raw)
            self._call = None
        return rest


TOOL_PARSERS: dict[str, Callable[[], ToolParser]] = {
    "hermes": HermesParser,
    "llama3_json": LlamaParser,
    "mistral": MistralParser,
}

TOOL_MARKERS: dict[str, tuple[str, ...]] = {
    "hermes": (HermesParser.OPEN, HermesParser.CLOSE),
    "llama3_json": (LlamaParser.TAG,),
    "mistral": (MistralParser.TAG, "[ARGS]", "[CALL_ID]"),
}
"""Tokens that must be seen, special ones too."""


def _add_text(parts: list[Part], text: str) -> None:
    if text:
        parts.append(Text(text))
