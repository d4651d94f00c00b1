"""Tool calls written as JSON objects, read while they are being written."""

import orjson

from dynosim_runtime.dialects.parsing.parts import CallArguments, CallBegin, Part

ARGUMENTS = ("arguments", "parameters")


class JsonTracker:
    """Follows a JSON text: how deep in objects and lists it is, and whether in a string."""

    def __init__(self) -> None:
        self.depth = 0
        self.in_string = False
        self._is_escaped = False

    def step(self, char: str) -> None:
        """The next character."""
        if self.in_string:
            if self._is_escaped:
                self._is_escaped = False
            elif char == "\\":
                self._is_escaped = True
            elif char == '"':
                self.in_string = False
        elif char == '"':
            self.in_string = True
        elif char in "{[":
            self.depth += 1
        elif char in "}]":
            self.depth -= 1


class ObjectReader:
    """One JSON object, handed on as it comes; to be fed from its brace on."""

    def __init__(self) -> None:
        self.is_complete = False
        self._tracker = JsonTracker()

    def feed(self, text: str) -> tuple[str, str]:
        """(what belongs to the object, what is behind it)."""
        for index, char in enumerate(text):
            self._tracker.step(char)
            if self._tracker.depth <= 0:
                self.is_complete = True
                return text[: index + 1], text[index + 1 :]
        return text, ""


class ToolCallReader:
    """One object `{"name": ..., "arguments": {...}}`; to be fed from its brace on.

    The call begins when its name and the beginning of its arguments are known, in either order.
    An object that never gets so far is no call: `raw` is its text. If it `may_lack_arguments`,
    the name alone is a call, too.
    """

    def __init__(self, *, may_lack_arguments: bool) -> None:
        self.raw = ""
        self.is_complete = False
        self.is_call = False
        self._may_lack_arguments = may_lack_arguments
        self._tracker = JsonTracker()
        self._key: object = None
        self._key_begin = 0  # of text that ends with the next colon
        self._value_begin = 0
        self._is_value = False
        self._name: str | None = None
        self._span: tuple[int, int | None] | None = None  # of the arguments; no end yet
        self._told = 0  # characters of the arguments

    def feed(self, text: str) -> tuple[list[Part], str]:
        """(what is new of the call, the text behind the object)."""
        for index, char in enumerate(text):
            depth_before = self._tracker.depth
            self._tracker.step(char)
            self.raw += char
            if not self._tracker.in_string and 1 in (depth_before, self._tracker.depth):
                self._punctuate(char)
            if self._tracker.depth <= 0:
                self.is_complete = True
                return self._news(), text[index + 1 :]
        return self._news(), ""

    def _punctuate(self, char: str) -> None:
        """A character outside of strings, between the object's own keys and values."""
        here = len(self.raw)
        if char == "{" and here == 1:
            self._key_begin = here
        elif char == ":" and not self._is_value:
            self._key = _json(self.raw[self._key_begin : here - 1])
            self._is_value, self._value_begin = True, here
            if self._key in ARGUMENTS:
                self._span = (here, None)
        elif char in ",}" and self._tracker.depth <= 1 and self._is_value:
            if char == "}" and self._tracker.depth == 1:
                return  # the end of a value that is an object
            if self._key == "name":
                name = _json(self.raw[self._value_begin : here - 1])
                self._name = name if isinstance(name, str) and name else None
            elif self._key in ARGUMENTS:
                self._span = (self._value_begin, here - 1)
            self._is_value, self._key_begin = False, here

    def _news(self) -> list[Part]:
        if self._name is None:
            return []
        if self._span is None and not (self.is_complete and self._may_lack_arguments):
            return []
        news: list[Part] = []
        if not self.is_call:
            self.is_call = True
            news.append(CallBegin(self._name))
        arguments = self._arguments()
        if len(arguments) > self._told:
            news.append(CallArguments(arguments[self._told :]))
            self._told = len(arguments)
        return news

    def _arguments(self) -> str:
        """As far as they are known; those that were written as a text are told when complete."""
        if self._span is None:
            return "{}"
        begin, end = self._span
        text = self.raw[begin:end].strip()
        if not text.startswith('"'):
            return text
        inner = None if end is None else _json(text)
        return inner if isinstance(inner, str) else ""


def _json(text: str) -> object:
    """Its value; None if it has none."""
    try:
        value: object = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    return value
