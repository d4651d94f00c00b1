"""/v1/messages: the answer, whole or as typed events."""

from collections.abc import Sequence
from typing import Any

import orjson

from dynosim_runtime.dialects.call import AnswerHead
from dynosim_runtime.dialects.errors import anthropic_error
from dynosim_runtime.dialects.events import named_event
from dynosim_runtime.dialects.nvext import answer_nvext
from dynosim_runtime.dialects.output import ChoiceDelta, ChoiceOutput
from dynosim_runtime.dialects.usage import cached_tokens
from dynosim_runtime.errors import ApiError

PING = named_event("ping", {"type": "ping"})
_DELTA_PREFIX = (
    b"event: content_block_delta\ndata: "
    b'{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":'
)


class MessagesAnswer:
    """See `AnswerWriter`. One content block: a text."""

    keep_alive = PING

    def __init__(self, head: AnswerHead) -> None:
        self._head = head

    def whole(self, outputs: Sequence[ChoiceOutput]) -> bytes:
        """See `AnswerWriter`."""
        output = outputs[0]
        content = [{"type": "text", "text": output.text}]
        message = self._message(content, self._usage(output))
        return orjson.dumps({**message, **_ending(output), **self._nvext(output)})

    def message(self, output: ChoiceOutput) -> dict[str, Any]:
        """See `AnswerWriter`."""
        return {"role": "assistant", "content": output.text}

    def begin(self, outputs: Sequence[ChoiceOutput]) -> bytes:
        """See `AnswerWriter`. The prompt's size is told already here: harnesses go by it."""
        usage = {
            "input_tokens": self._head.num_prompt_tokens,
            "output_tokens": 0,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
        }
        start = {"type": "message_start", "message": self._message([], usage)}
        block = {"type": "text", "text": ""}
        return b"".join(
            (
                named_event("message_start", start),
                named_event(
                    "content_block_start",
                    {"type": "content_block_start", "index": 0, "content_block": block},
                ),
                PING,
            )
        )

    def delta(self, delta: ChoiceDelta) -> bytes:
        """See `AnswerWriter`."""
        return b"%b%b}}\n\n" % (_DELTA_PREFIX, orjson.dumps(delta.text)) if delta.text else b""

    def choice_end(self, index: int, output: ChoiceOutput) -> bytes:
        """See `AnswerWriter`."""
        return named_event("content_block_stop", {"type": "content_block_stop", "index": 0})

    def end(self, outputs: Sequence[ChoiceOutput]) -> bytes:
        """See `AnswerWriter`."""
        output = outputs[0]
        delta = {
            "type": "message_delta",
            "delta": _ending(output),
            "usage": self._usage(output),
            **self._nvext(output),
        }
        return named_event("message_delta", delta) + named_event(
            "message_stop", {"type": "message_stop"}
        )

    def failure(self, error: ApiError) -> bytes:
        """See `AnswerWriter`."""
        return named_event("error", anthropic_error(error))

    def _message(self, content: list[dict[str, Any]], usage: dict[str, int]) -> dict[str, Any]:
        return {
            "id": f"msg_{self._head.request_id}",
            "type": "message",
            "role": "assistant",
            "model": self._head.model,
            "content": content,
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage,
        }

    def _usage(self, output: ChoiceOutput) -> dict[str, int]:
        """Anthropic counts tokens read from the cache apart: the prompt is the sum of both."""
        cached = cached_tokens([output]) or 0
        return {
            "input_tokens": self._head.num_prompt_tokens - cached,
            "output_tokens": output.num_tokens,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached,
        }

    def _nvext(self, output: ChoiceOutput) -> dict[str, Any]:
        if output.record is None:
            return {}
        return {"nvext": answer_nvext(output.record, self._head.received_ms)}


def _ending(output: ChoiceOutput) -> dict[str, str | None]:
    if output.stop_text is not None:
        return {"stop_reason": "stop_sequence", "stop_sequence": output.stop_text}
    reason = "max_tokens" if output.finish_reason == "length" else "end_turn"
    return {"stop_reason": reason, "stop_sequence": None}
