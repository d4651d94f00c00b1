"""What the answers of chat completions and completions have in common."""

from collections.abc import Sequence
from typing import Any

import orjson

from dynosim_runtime.dialects.call import AnswerHead
from dynosim_runtime.dialects.errors import openai_error
from dynosim_runtime.dialects.events import DONE, KEEP_ALIVE_COMMENT, data_event, named_event
from dynosim_runtime.dialects.nvext import answer_nvext
from dynosim_runtime.dialects.output import ChoiceDelta, ChoiceOutput
from dynosim_runtime.dialects.usage import openai_usage
from dynosim_runtime.errors import ApiError


class OpenAiAnswer:
    """Chunks around a text. `text_key` opens a choice's text, `text_end` closes it, as JSON.

    The last chunk has `nvext`: the one with `usage` where it was asked for, else a choice's last.
    """

    keep_alive = KEEP_ALIVE_COMMENT

    def __init__(
        self,
        head: AnswerHead,
        fields: dict[str, Any],
        *,
        text_key: bytes,
        text_end: bytes,
        include_usage: bool,
        return_token_ids: bool,
    ) -> None:
        self._head = head
        self._fields = {**fields, "created": head.created_s, "model": head.model}
        self._include_usage = include_usage
        self._with_ids = return_token_ids
        common = orjson.dumps(self._fields)[:-1]
        self._prefixes = [
            b'data: %b,"choices":[{"index":%d,%b' % (common, index, text_key)
            for index in range(head.num_choices)
        ]
        self._suffix = text_end + b',"logprobs":null,"finish_reason":null'

    def message(self, output: ChoiceOutput) -> dict[str, Any]:
        """See `AnswerWriter`."""
        return {"role": "assistant", "content": output.text}

    def delta(self, delta: ChoiceDelta) -> bytes:
        """See `AnswerWriter`. Once for every token of a stream: most of it is made beforehand."""
        if self._with_ids:
            return b'%b%b%b,"token_ids":%b}]}\n\n' % (
                self._prefixes[delta.index],
                orjson.dumps(delta.text),
                self._suffix,
                orjson.dumps(delta.token_ids),
            )
        if not delta.text:
            return b""
        return b"%b%b%b}]}\n\n" % (
            self._prefixes[delta.index],
            orjson.dumps(delta.text),
            self._suffix,
        )

    def end(self, outputs: Sequence[ChoiceOutput]) -> bytes:
        """See `AnswerWriter`."""
        if not self._include_usage:
            return DONE
        facts = {"choices": [], **self._usage(outputs), **self._nvext(outputs[0])}
        return data_event({**self._fields, **facts}) + DONE

    def failure(self, error: ApiError) -> bytes:
        """See `AnswerWriter`."""
        return named_event("error", openai_error(error))

    def _last_chunk(self, choice: dict[str, Any], output: ChoiceOutput) -> bytes:
        return self._chunk(choice, {} if self._include_usage else self._nvext(output))

    def _chunk(self, choice: dict[str, Any], extra: dict[str, Any]) -> bytes:
        return data_event({**self._fields, "choices": [choice], **extra})

    def _usage(self, outputs: Sequence[ChoiceOutput]) -> dict[str, Any]:
        return {"usage": openai_usage(self._head.num_prompt_tokens, outputs)}

    def _nvext(self, output: ChoiceOutput) -> dict[str, Any]:
        if output.record is None:
            return {}
        return {"nvext": answer_nvext(output.record, self._head.received_ms)}
