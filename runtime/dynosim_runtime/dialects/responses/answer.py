"""/v1/responses: the answer, whole or as typed events."""

from collections.abc import Sequence
from typing import Any

import orjson

from dynosim_runtime.dialects.call import AnswerHead
from dynosim_runtime.dialects.events import KEEP_ALIVE_COMMENT, named_event
from dynosim_runtime.dialects.nvext import answer_nvext
from dynosim_runtime.dialects.output import ChoiceDelta, ChoiceOutput
from dynosim_runtime.dialects.usage import cached_tokens
from dynosim_runtime.errors import ApiError


class ResponsesAnswer:
    """See `AnswerWriter`. One output item: a message with one text."""

    keep_alive = KEEP_ALIVE_COMMENT

    def __init__(self, head: AnswerHead, echoed: dict[str, Any]) -> None:
        self._head = head
        self._echoed = echoed
        self._item_id = f"msg_{head.request_id}"
        self._sequence_number = 0
        place = {"item_id": self._item_id, "output_index": 0, "content_index": 0}
        self._place = place
        common = orjson.dumps({"type": "response.output_text.delta", **place, "logprobs": []})
        self._prefix = b'event: response.output_text.delta\ndata: %b,"delta":' % common[:-1]

    def whole(self, outputs: Sequence[ChoiceOutput]) -> bytes:
        """See `AnswerWriter`."""
        return orjson.dumps(self._ended(outputs[0]))

    def message(self, output: ChoiceOutput) -> dict[str, Any]:
        """See `AnswerWriter`."""
        return {"role": "assistant", "content": output.text}

    def begin(self, outputs: Sequence[ChoiceOutput]) -> bytes:
        """See `AnswerWriter`."""
        response = self._response("in_progress", [])
        item = self._item("in_progress", [])
        return b"".join(
            (
                self._event("response.created", {"response": response}),
                self._event("response.in_progress", {"response": response}),
                self._event("response.output_item.added", {"output_index": 0, "item": item}),
                self._event("response.content_part.added", {**self._place, "part": _text_part("")}),
            )
        )

    def delta(self, delta: ChoiceDelta) -> bytes:
        """See `AnswerWriter`."""
        if not delta.text:
            return b""
        number = self._sequence_number
        self._sequence_number += 1
        return b'%b%b,"sequence_number":%d}\n\n' % (self._prefix, orjson.dumps(delta.text), number)

    def choice_end(self, index: int, output: ChoiceOutput) -> bytes:
        """See `AnswerWriter`."""
        part = _text_part(output.text)
        return b"".join(
            (
                self._event(
                    "response.output_text.done",
                    {**self._place, "text": output.text, "logprobs": []},
                ),
                self._event("response.content_part.done", {**self._place, "part": part}),
                self._event(
                    "response.output_item.done",
                    {"output_index": 0, "item": self._item(_status(output), [part])},
                ),
            )
        )

    def end(self, outputs: Sequence[ChoiceOutput]) -> bytes:
        """See `AnswerWriter`."""
        status = _status(outputs[0])
        return self._event(f"response.{status}", {"response": self._ended(outputs[0])})

    def failure(self, error: ApiError) -> bytes:
        """See `AnswerWriter`."""
        response = self._response("failed", [])
        response["error"] = {"code": "server_error", "message": error.message}
        facts = {"code": error.code, "message": error.message, "param": error.param}
        return self._event("error", facts) + self._event("response.failed", {"response": response})

    def _ended(self, output: ChoiceOutput) -> dict[str, Any]:
        status = _status(output)
        response = self._response(status, [self._item(status, [_text_part(output.text)])])
        if status == "incomplete":
            response["incomplete_details"] = {"reason": "max_output_tokens"}
        num_input_tokens = self._head.num_prompt_tokens
        response["usage"] = {
            "input_tokens": num_input_tokens,
            "input_tokens_details": {"cached_tokens": cached_tokens([output]) or 0},
            "output_tokens": output.num_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": num_input_tokens + output.num_tokens,
        }
        if output.record is not None:
            response["nvext"] = answer_nvext(output.record, self._head.received_ms)
        return response

    def _response(self, status: str, items: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": f"resp_{self._head.request_id}",
            "object": "response",
            "created_at": self._head.created_s,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "model": self._head.model,
            "output": items,
            "usage": None,
            **self._echoed,
        }

    def _item(self, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self._item_id,
            "type": "message",
            "role": "assistant",
            "status": status,
            "content": content,
        }

    def _event(self, name: str, facts: dict[str, Any]) -> bytes:
        number = self._sequence_number
        self._sequence_number += 1
        return named_event(name, {"type": name, "sequence_number": number, **facts})


def _status(output: ChoiceOutput) -> str:
    return "incomplete" if output.finish_reason == "length" else "completed"


def _text_part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
