"""What the next turn of a conversation will begin with, as far as that is known when one has ended.

It is rendered as that turn will be if the client sends the answer back as it has got it. Where the
template shows older answers otherwise (without their thinking, say), the two part there.
"""

import msgspec

from dynosim_runtime.dialects.call import AnswerWriter, Call, Prompt, TokenPrompt
from dynosim_runtime.dialects.chat.request import template_message
from dynosim_runtime.dialects.decoding import refuse
from dynosim_runtime.dialects.output import ChoiceOutput
from dynosim_runtime.requests import GenerateRequest, Sampling
from dynosim_runtime.tokenize.tokenizer import Conversation

HINT = "nvext.agent_hints.speculative_prefill"


def wants_speculative_prefill(call: Call) -> bool:
    """Whether the next turn is to be prepared for. Raises: ApiError 400 if there may be several."""
    if not call.nvext.agent_hints.speculative_prefill:
        return False
    if call.num_choices * len(call.prompts) > 1:
        what = "needs a request of one choice: which of several goes on is not known"
        raise refuse(HINT, what, "invalid_value")
    return True


def next_prompt(call: Call, answer: AnswerWriter, output: ChoiceOutput) -> Prompt:
    """The conversation with its answer; of a prompt that is none, its tokens and the answer's."""
    (prompt,) = call.prompts
    if not isinstance(prompt, Conversation):
        return TokenPrompt([*output.prompt_ids, *output.token_ids])
    message = template_message(answer.message(output), "answer")
    messages = [*prompt.messages, message]
    if prompt.continue_final_message:  # it is the beginning of the answer
        begun = prompt.messages[-1]
        content = f"{begun.get('content') or ''}{message['content']}"
        messages = [*prompt.messages[:-1], {**begun, **message, "content": content}]
    return msgspec.structs.replace(
        prompt, messages=messages, add_generation_prompt=False, continue_final_message=False
    )


def speculative_request(request: GenerateRequest, token_ids: list[int]) -> GenerateRequest:
    """What is sent for the sake of the turn behind `request`: for one token, kept by nobody."""
    return msgspec.structs.replace(
        request,
        request_id=f"{request.request_id}-ahead",
        token_ids=token_ids,
        sampling=Sampling(max_tokens=1, temperature=0.0),
        expected_output_tokens=1,
        pin_ttl_s=None,
        must_pin=False,
        received_s=None,
        is_speculative=True,
    )
