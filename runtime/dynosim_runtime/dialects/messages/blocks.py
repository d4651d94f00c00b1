"""The typed blocks of /v1/messages, as the messages of a conversation."""

from typing import Any

from dynosim_runtime.dialects.content import joined_text, object_type, text_of_part
from dynosim_runtime.dialects.decoding import refuse

ROLES = ("user", "assistant", "system")


def messages_of_blocks(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages as templates know them. Raises: ApiError 400 that names the block.

    A tool's result is a message of its own. Thinking stays with the calls that follow it: where a
    turn thinks again after a call, a new message begins.
    """
    rendered: list[dict[str, Any]] = []
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        role = message.get("role")
        if role not in ROLES:
            raise refuse(f"{where}.role", f"expected one of {', '.join(ROLES)}", "invalid_value")
        content = message.get("content")
        if isinstance(content, str):
            rendered.append({"role": role, "content": content})
        elif isinstance(content, list):
            rendered += _Turn(role, f"{where}.content").messages(content)
        else:
            raise refuse(f"{where}.content", "expected a text or a list of blocks", "invalid_type")
    return rendered


class _Turn:
    """One message's blocks, sorted into messages."""

    def __init__(self, role: str, where: str) -> None:
        self._role = role
        self._where = where
        self._done: list[dict[str, Any]] = []
        self._texts: list[str] = []
        self._thinking: list[str] = []
        self._calls: list[dict[str, Any]] = []

    def messages(self, blocks: list[Any]) -> list[dict[str, Any]]:
        """The messages of these blocks, in order."""
        for index, block in enumerate(blocks):
            self._add(block, f"{self._where}[{index}]")
        self._close()
        return self._done or [{"role": self._role, "content": ""}]

    def _add(self, block: Any, where: str) -> None:
        kind = object_type(block, where)
        if kind == "text":
            self._texts.append(text_of_part(block, where, ("text",)))
        elif kind == "thinking":
            if self._calls:
                self._close()
            self._thinking.append(str(block.get("thinking", "")))
        elif kind == "redacted_thinking":
            return  # nobody but its maker can read it
        elif kind == "tool_use":
            if not isinstance(block.get("name"), str):
                raise refuse(f"{where}.name", "required", "missing_required_parameter")
            function = {"name": block["name"], "arguments": block.get("input") or {}}
            self._calls.append({"id": block.get("id"), "type": "function", "function": function})
        elif kind == "tool_result":
            self._close()
            self._done.append(
                {
                    "role": "tool",
                    "content": joined_text(block.get("content"), f"{where}.content", ("text",)),
                    "tool_call_id": block.get("tool_use_id"),
                }
            )
        else:
            raise refuse(where, f"blocks of type {kind!r} are not supported by this server")

    def _close(self) -> None:
        if not (self._texts or self._thinking or self._calls):
            return
        message: dict[str, Any] = {"role": self._role, "content": "\n".join(self._texts)}
        if self._thinking:
            message["reasoning_content"] = "\n".join(self._thinking)
        if self._calls:
            message["tool_calls"] = self._calls
        self._done.append(message)
        self._texts, self._thinking, self._calls = [], [], []
