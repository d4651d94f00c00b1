"""/v1/chat/completions: the answer, whole or as chunks."""

import uuid
from collections.abc import Sequence
from typing import Any

import orjson

from dynosim_runtime.dialects.call import AnswerHead
from dynosim_runtime.dialects.chat.parts import ChatParts
from dynosim_runtime.dialects.logprobs import chat_logprobs
from dynosim_runtime.dialects.openai_answer import OpenAiAnswer
from dynosim_runtime.dialects.output import ChoiceDelta, ChoiceOutput
from dynosim_runtime.dialects.parsing.output_parser import OutputParser, Parsing
from dynosim_runtime.requests import TokenLogprob

PROMPT_END_TOKENS = 8  # enough to see what a template has opened for the answer


class ChatAnswer(OpenAiAnswer):
    """See `AnswerWriter`. `num_top_logprobs`: None: no logprobs."""

    def __init__(
        self,
        head: AnswerHead,
        *,
        include_usage: bool,
        return_token_ids: bool,
        num_top_logprobs: int | None = None,
        parsing: Parsing | None = None,
    ) -> None:
        super().__init__(
            head,
            {"id": f"chatcmpl-{head.request_id}", "object": "chat.completion.chunk"},
            text_key=b'"delta":{"content":',
            text_end=b"}",
            include_usage=include_usage,
            return_token_ids=return_token_ids,
        )
        self._num_top_logprobs = num_top_logprobs
        self._parsing = parsing if parsing is not None and parsing.is_needed else None
        self._parts: list[ChatParts] = []  # of a stream's choices
        self._texts = [head.token_texts() for _ in range(head.num_choices)]
        self._is_plain = self._parsing is None and num_top_logprobs is None

    def whole(self, outputs: Sequence[ChoiceOutput]) -> bytes:
        """See `AnswerWriter`."""
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
        """See `AnswerWriter`: the role, and the prompt's tokens if they were asked for."""
        if self._parsing is not None:
            self._parts = [self._new_parts(self._parsing, output) for output in outputs]
        extra = {"prompt_token_ids": outputs[0].prompt_ids} if self._with_ids else {}
        role = {"role": "assistant", "content": ""}
        return b"".join(
            self._chunk({"index": index, "delta": role, "finish_reason": None}, extra)
            for index in range(len(outputs))
        )

    def delta(self, delta: ChoiceDelta) -> bytes:
        """See `AnswerWriter`."""
        if self._is_plain:
            return super().delta(delta)
        deltas: list[dict[str, Any]] = [{"content": delta.text}]
        if self._parts:
            deltas = self._parts[delta.index].deltas(delta.text)
        if not deltas and (self._with_ids or delta.logprobs):
            deltas = [{}]  # nothing to show yet, but something to tell
        return b"".join(
            self._chunk(
                {
                    "index": delta.index,
                    "delta": words,
                    "logprobs": self._logprobs(delta.index, delta.logprobs if number == 0 else ()),
                    "finish_reason": None,
                    **(
                        {"token_ids": delta.token_ids if number == 0 else []}
                        if self._with_ids
                        else {}
                    ),
                },
                {},
            )
            for number, words in enumerate(deltas)
        )

    def message(self, output: ChoiceOutput) -> dict[str, Any]:
        """See `AnswerWriter`."""
        plain = super().message(output)
        if self._parsing is None:
            return plain
        return plain | self._new_parts(self._parsing, output).message(output.text)

    def choice_end(self, index: int, output: ChoiceOutput) -> bytes:
        """See `AnswerWriter`."""
        ending = _ending(output)
        events = b""
        if self._parts:
            parts = self._parts[index]
            events = b"".join(
                self._chunk({"index": index, "delta": delta, "finish_reason": None}, {})
                for delta in parts.last_deltas()
            )
            ending["finish_reason"] = parts.finish_reason(output.finish_reason)
        choice = {"index": index, "delta": {}, "logprobs": None, **ending}
        return events + self._last_chunk(choice, output)

    def _choice(self, index: int, output: ChoiceOutput) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": output.text, "refusal": None}
        ending = _ending(output)
        if self._parsing is not None:
            parts = self._new_parts(self._parsing, output)
            message |= parts.message(output.text)
            ending["finish_reason"] = parts.finish_reason(output.finish_reason)
        choice = {
            "index": index,
            "message": message,
            "logprobs": self._logprobs(index, output.logprobs),
            **ending,
        }
        if self._with_ids:
            choice["token_ids"] = output.token_ids
        return choice

    def _logprobs(self, index: int, logprobs: Sequence[TokenLogprob]) -> dict[str, Any] | None:
        if self._num_top_logprobs is None or not logprobs:
            return None
        return chat_logprobs(logprobs, self._num_top_logprobs, self._texts[index])

    def _new_parts(self, parsing: Parsing, output: ChoiceOutput) -> ChatParts:
        prompt_end = self._head.text_of(output.prompt_ids[-PROMPT_END_TOKENS:])
        return ChatParts(OutputParser(parsing, prompt_end), lambda: uuid.uuid4().hex)


def _ending(output: ChoiceOutput) -> dict[str, Any]:
    return {"finish_reason": output.finish_reason, "stop_reason": output.stop_text}
