"""/v1/chat/completions: the answer, whole or as chunks."""

from collections.abc import Sequence
from typing import Any

import orjson

from dynosim_runtime.protocol.call import AnswerHead
from dynosim_runtime.protocol.openai_answer import OpenAiAnswer
from dynosim_runtime.protocol.output import ChoiceOutput


class ChatAnswer(OpenAiAnswer):
    """See `Answer`."""

    def __init__(self, head: AnswerHead, *, include_usage: bool, return_token_ids: bool) -> None:
        super().__init__(
            head,
            {"id": f"chatcmpl-{head.request_id}", "object": "chat.completion.chunk"},
            text_key=b'"delta":{"content":',
            text_end=b"}",
            include_usage=include_usage,
            return_token_ids=return_token_ids,
        )

    def whole(self, outputs: Sequence[ChoiceOutput]) -> bytes:
        """See `Answer`."""
        answer = {
            **self._fields,
            "object": "chat.completion",
            "choices": [self._choice(index, output) for index, output in enumerate(outputs)],
            **self._usage(outputs),
            **self._nvext(outputs[0]),
        }
        if self._with_ids:
            answer["prompt_token_ids"] = outputs[0].prompt_ids
        return orjson.dumps(answer)

    def begin(self, outputs: Sequence[ChoiceOutput]) -> bytes:
        """See `Answer`: the role, and the prompt's tokens if they were asked for."""
        extra = {"prompt_token_ids": outputs[0].prompt_ids} if self._with_ids else {}
        role = {"role": "assistant", "content": ""}
        return b"".join(
            self._chunk({"index": index, "delta": role, "finish_reason": None}, extra)
            for index in range(len(outputs))
        )

    def choice_end(self, index: int, output: ChoiceOutput) -> bytes:
        """See `Answer`."""
        return self._last_chunk({"index": index, "delta": {}, **_ending(output)}, output)

    def _choice(self, index: int, output: ChoiceOutput) -> dict[str, Any]:
        message = {"role": "assistant", "content": output.text, "refusal": None}
        choice = {"index": index, "message": message, **_ending(output)}
        if self._with_ids:
            choice["token_ids"] = output.token_ids
        return choice


def _ending(output: ChoiceOutput) -> dict[str, Any]:
    return {
        "logprobs": None,
        "finish_reason": output.finish_reason,
        "stop_reason": output.stop_text,
    }
