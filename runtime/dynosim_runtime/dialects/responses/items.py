"""The input items of /v1/responses, as the messages of a conversation."""

from typing import Any

from dynosim_runtime.dialects.content import joined_text, object_type
from dynosim_runtime.dialects.decoding import refuse

TEXT_PARTS = ("input_text", "output_text", "text", "refusal")
REASONING_PARTS = ("summary_text", "reasoning_text")


def messages_of_input(items: str | list[Any]) -> list[dict[str, Any]]:
    """Messages in the order of the items.

    Reasoning and calls join the assistant's message that they belong to, so that each span of
    reasoning stays with the calls it explains. Raises: ApiError 400 that names the item.
    """
    if isinstance(items, str):
        return [{"role": "user", "content": items}]
    messages: list[dict[str, Any]] = []
    for index, item in enumerate(items):
        _add_item(messages, item, f"input[{index}]")
    return messages


def _add_item(messages: list[dict[str, Any]], item: Any, where: str) -> None:
    is_message = isinstance(item, dict) and "type" not in item and "role" in item
    kind = "message" if is_message else object_type(item, where)
    if kind == "message":
        _add_message(messages, item, where)
    elif kind == "reasoning":
        text = joined_text(
            item.get("content") or item.get("summary"), f"{where}.content", REASONING_PARTS
        )
        if text:
            messages.append({"role": "assistant", "content": None, "reasoning_content": text})
    elif kind == "function_call":
        _add_call(messages, item, where)
    elif kind == "function_call_output":
        output = joined_text(item.get("output"), f"{where}.output", TEXT_PARTS)
        messages.append({"role": "tool", "content": output, "tool_call_id": item.get("call_id")})
    else:
        raise refuse(where, f"items of type {kind!r} are not supported by this server")


def _add_message(messages: list[dict[str, Any]], item: dict[str, Any], where: str) -> None:
    content = joined_text(item.get("content"), f"{where}.content", TEXT_PARTS)
    if item.get("role") == "assistant" and _is_open_turn(messages):
        messages[-1]["content"] = content
    else:
        messages.append({"role": item.get("role"), "content": content})


def _add_call(messages: list[dict[str, Any]], item: dict[str, Any], where: str) -> None:
    if not isinstance(item.get("name"), str):
        raise refuse(f"{where}.name", "required", "missing_required_parameter")
    function = {"name": item.get("name"), "arguments": item.get("arguments")}
    call = {"id": item.get("call_id"), "type": "function", "function": function}
    if messages and messages[-1]["role"] == "assistant":
        messages[-1].setdefault("tool_calls", []).append(call)
    else:
        messages.append({"role": "assistant", "content": None, "tool_calls": [call]})


def _is_open_turn(messages: list[dict[str, Any]]) -> bool:
    """The last message is reasoning that waits for its text."""
    return (
        bool(messages)
        and messages[-1].keys() == {"role", "content", "reasoning_content"}
        and (messages[-1]["content"] is None)
    )
