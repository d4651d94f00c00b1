"""/v1/completions: the answer, whole or as chunks."""

from collections.abc import Sequence
from typing import Any

import orjson

from dynosim_runtime.dialects.call import AnswerHead
from dynosim_runtime.dialects.logprobs import completion_logprobs
from dynosim_runtime.dialects.openai_answer import OpenAiAnswer
from dynosim_runtime.dialects.output import ChoiceDelta, ChoiceOutput
from dynosim_runtime.requests import TokenLogprob


class CompletionsAnswer(OpenAiAnswer):
    """See `AnswerWriter`."""

    def __init__(
        self,
        head: AnswerHead,
        *,
        include_usage: bool,
        return_token_ids: bool,
        tells_logprobs: bool = False,
    ) -> None:
        super().__init__(
            head,
            {"id": f"cmpl-{head.request_id}", "object": "text_completion"},
            text_key=b'"text":',
            text_end=b"",
            include_usage=include_usage,
            return_token_ids=return_token_ids,
        )
        self._tells_logprobs = tells_logprobs
        self._offsets = [0] * head.num_choices  # characters told of in logprobs
        self._texts = [head.token_texts() for _ in range(head.num_choices)]

    def whole(self, outputs: Sequence[ChoiceOutput]) -> bytes:
        """See `AnswerWriter`."""
        choices = []
        for index, output in enumerate(outputs):
            choice = self._choice(index, output.text, output)
            if self._tells_logprobs:
                choice["logprobs"] = self._logprobs(index, output.logprobs)
            if self._with_ids:
                choice["prompt_token_ids"] = output.prompt_ids
                choice["token_ids"] = output.token_ids
            choices.append(choice)
        facts = {"choices": choices, **self._usage(outputs), **self._nvext(outputs[0])}
        return orjson.dumps({**self._fields, **facts})

    def begin(self, outputs: Sequence[ChoiceOutput]) -> bytes:
        """See `AnswerWriter`: nothing, or the prompts' tokens if they were asked for."""
        if not self._with_ids:
            return b""
        return b"".join(
            self._chunk(
                {
                    **self._choice(index, "", output),
                    "prompt_token_ids": output.prompt_ids,
                    "token_ids": [],
                },
                {},
            )
            for index, output in enumerate(outputs)
        )

    def delta(self, delta: ChoiceDelta) -> bytes:
        """See `AnswerWriter`."""
        if not self._tells_logprobs:
            return super().delta(delta)
        choice: dict[str, Any] = {"index": delta.index, "text": delta.text, "finish_reason": None}
        choice["logprobs"] = self._logprobs(delta.index, delta.logprobs)
        if self._with_ids:
            choice["token_ids"] = delta.token_ids
        return self._chunk(choice, {})

    def choice_end(self, index: int, output: ChoiceOutput) -> bytes:
        """See `AnswerWriter`."""
        return self._last_chunk(self._choice(index, "", output), output)

    def _logprobs(self, index: int, logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
        told, self._offsets[index] = completion_logprobs(
            logprobs, self._offsets[index], self._texts[index]
        )
        return told

    def _choice(self, index: int, text: str, output: ChoiceOutput) -> dict[str, Any]:
        return {
            "index": index,
            "text": text,
            "logprobs": None,
            "finish_reason": output.finish_reason,
            "stop_reason": output.stop_text,
        }
