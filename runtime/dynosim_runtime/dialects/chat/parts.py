"""A parsed answer in the words of chat completions: deltas of a stream, or a whole message."""

from collections.abc import Callable, Iterable
from typing import Any

from dynosim_runtime.dialects.parsing.output_parser import OutputParser
from dynosim_runtime.dialects.parsing.parts import CallArguments, CallBegin, Part, Reasoning, Text

ID_CHARS = 9  # the length that Mistral's templates insist on; others take any


class ChatParts:
    """One choice's. `new_id` gives a fresh id, of letters and digits, of at least nine."""

    def __init__(self, parser: OutputParser, new_id: Callable[[], str]) -> None:
        self._parser = parser
        self._new_id = new_id
        self._num_calls = 0

    def deltas(self, text: str) -> list[dict[str, Any]]:
        """What a piece of the answer's text adds."""
        return self._told(self._parser.feed(text))

    def last_deltas(self) -> list[dict[str, Any]]:
        """What was held back, at the end of the text."""
        return self._told(self._parser.finish())

    def message(self, text: str) -> dict[str, Any]:
        """The message's fields, of a whole text."""
        told = [*self.deltas(text), *self.last_deltas()]
        content = "".join(delta.get("content", "") for delta in told)
        reasoning = "".join(delta.get("reasoning_content", "") for delta in told)
        calls: list[dict[str, Any]] = []
        for delta in told:
            for piece in delta.get("tool_calls", ()):
                if "id" in piece:
                    function = dict(piece["function"])
                    calls.append({"id": piece["id"], "type": "function", "function": function})
                else:
                    calls[-1]["function"]["arguments"] += piece["function"]["arguments"]
        message: dict[str, Any] = {"content": content or (None if calls or reasoning else "")}
        if reasoning:
            message["reasoning_content"] = reasoning
        if calls:
            message["tool_calls"] = calls
        return message

    def finish_reason(self, reason: str | None) -> str | None:
        """Why the choice ended: for a call, if the model was through with it."""
        return "tool_calls" if self._num_calls and reason == "stop" else reason

    def _told(self, parts: Iterable[Part]) -> list[dict[str, Any]]:
        return [self._delta(part) for part in parts]

    def _delta(self, part: Part) -> dict[str, Any]:
        if isinstance(part, Text):
            return {"content": part.text}
        if isinstance(part, Reasoning):
            return {"reasoning_content": part.text}
        if isinstance(part, CallArguments):
            piece = {"index": self._num_calls - 1, "function": {"arguments": part.text}}
            return {"tool_calls": [piece]}
        assert isinstance(part, CallBegin), "there are no other parts"
        begun = {
            "index": self._num_calls,
            "id": self._new_id()[:ID_CHARS],
            "type": "function",
            "function": {"name": part.name, "arguments": ""},
        }
        self._num_calls += 1
        return {"tool_calls": [begun]}
