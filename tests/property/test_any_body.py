"""Whatever a client sends, it is told what is wrong, or served: the dialects never fail."""

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynosim_runtime.dialects.call import AnswerHead, ApiDialect
from dynosim_runtime.dialects.chat.request import ChatDialect, ChatRequest
from dynosim_runtime.dialects.completions.request import CompletionsDialect, CompletionsRequest
from dynosim_runtime.dialects.generate_requests import Caller, encode_prompt, generate_requests
from dynosim_runtime.dialects.messages.request import MessagesDialect, MessagesRequest
from dynosim_runtime.dialects.output import ChoiceOutput
from dynosim_runtime.dialects.responses.request import ResponsesDialect, ResponsesRequest
from dynosim_runtime.errors import ApiError
from dynosim_runtime.requests import TokenDelta
from dynosim_runtime.tokenize.byte_tokenizer import ByteTokenizer

NUMBERS = st.integers() | st.floats(allow_nan=False)
SCALARS = st.none() | st.booleans() | NUMBERS | st.text("ab\0\n\xe9", max_size=5)
KINDS = ("text", "input_text", "thinking", "tool_use", "tool_result", "reasoning", "function_call")
WORDS = st.sampled_from((*KINDS, "function_call_output", "message", "user", "assistant", "tool"))
KEYS = st.sampled_from(
    ("type", "role", "content", "text", "thinking", "name", "input", "tool_calls", "function")
)
VALUES = st.recursive(
    SCALARS | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=5),
    max_leaves=12,
)
GOOD: dict[str, Any] = {
    "model": "m",
    "messages": [{"role": "user", "content": "x"}],
    "prompt": "x",
    "input": "x",
    "max_tokens": 5,
}
DIALECTS = [
    (ChatDialect(), ChatRequest),
    (CompletionsDialect(), CompletionsRequest),
    (ResponsesDialect(), ResponsesRequest),
    (MessagesDialect(strip_preamble=True), MessagesRequest),
]


@pytest.mark.parametrize(("dialect", "form"), DIALECTS, ids=lambda value: type(value).__name__)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_body_is_served_or_refused(
    data: st.DataObject, dialect: ApiDialect, form: type[msgspec.Struct]
) -> None:
    fields = st.sampled_from(form.__struct_fields__)
    check_body(dialect, data.draw(st.dictionaries(fields, VALUES, max_size=3)))


def check_body(dialect: ApiDialect, fields: dict[str, Any]) -> None:
    tokenizer = ByteTokenizer()
    try:
        call = dialect.parse(msgspec.json.encode({**GOOD, **fields}))
        prompts = [encode_prompt(prompt, tokenizer, call.prompt_field) for prompt in call.prompts]
        requests = generate_requests(call, prompts, 1000, Caller(request_id="r"))
    except ApiError as error:
        assert error.status == 400
        dialect.error_body(error)
        return
    outputs = [
        ChoiceOutput(tokenizer.detokenizer(), request.sampling, request.token_ids)
        for request in requests
    ]
    head = AnswerHead(
        request_id="r",
        model=call.model,
        created_s=0,
        received_ms=0,
        num_prompt_tokens=1,
        num_choices=len(outputs),
        text_of=tokenizer.decode,
    )
    answer = call.answer(head)
    for output in outputs:
        output.feed(TokenDelta([100], "stop"))
        output.finish()
    assert msgspec.json.decode(answer.whole(outputs))
    assert answer.begin(outputs) + answer.end(outputs)
