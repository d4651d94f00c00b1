"""From a client's call to what is asked of the dispatcher: limits, identities, one per choice."""

from collections.abc import Sequence

import msgspec

from dynosim_runtime.dialects.call import Call, Prompt, TextPrompt, TokenPrompt
from dynosim_runtime.dialects.decoding import refuse
from dynosim_runtime.errors import ApiError
from dynosim_runtime.requests import GenerateRequest
from dynosim_runtime.tokenize.tokenizer import ChatTemplateError, Tokenizer


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """Who asks, as far as headers tell."""

    request_id: str
    session_id: str | None = None
    policy_family: str | None = None


def encode_prompt(prompt: Prompt, tokenizer: Tokenizer, prompt_field: str) -> list[int]:
    """The prompt's tokens. Raises: ApiError 400 for one that cannot be a prompt."""
    if isinstance(prompt, TokenPrompt):
        token_ids = prompt.token_ids
        _check_range(token_ids, tokenizer.token_id_limit, prompt_field)
    elif isinstance(prompt, TextPrompt):
        token_ids = tokenizer.encode(prompt.text, add_special_tokens=prompt.add_special_tokens)
    else:
        try:
            token_ids = tokenizer.encode_chat(prompt)
        except ChatTemplateError as error:
            raise ApiError(400, str(error), param=prompt_field, code="invalid_messages") from None
    if not token_ids:
        raise refuse(prompt_field, "must hold at least one token", "invalid_value")
    return token_ids


def prompt_size(prompt: Prompt) -> int:
    """Characters or tokens, roughly: how long `encode_prompt` will take."""
    if isinstance(prompt, TokenPrompt):
        return 0
    if isinstance(prompt, TextPrompt):
        return len(prompt.text)
    return sum(len(str(message.get("content") or "")) for message in prompt.messages) + sum(
        map(len, map(str, prompt.tools or ()))
    )


def check_size(call: Call, tokenizer: Tokenizer, max_model_len: int) -> None:
    """Refuse a text that cannot fit, however it is tokenized: that would take long to find out.

    Raises: ApiError 400.
    """
    limit = max_model_len * tokenizer.max_chars_per_token
    if any(prompt_size(prompt) > limit for prompt in call.prompts):
        raise ApiError(
            400,
            f"This model's maximum context length is {max_model_len} tokens. However, your "
            f"{call.prompt_field} has more than {limit} characters: that is more tokens.",
            param=call.prompt_field,
            code="context_length_exceeded",
        )


def generate_requests(
    call: Call,
    prompts: Sequence[list[int]],
    max_model_len: int,
    caller: Caller,
    *,
    received_s: float | None = None,
) -> list[GenerateRequest]:
    """One request per choice: the choices of the first prompt, then those of the next.

    Choices of one prompt differ by their seed. Raises: ApiError 400 if a prompt and its answer do
    not fit `max_model_len`.
    """
    template = _template(call, caller, received_s)
    seed, base_id = call.sampling.seed, caller.request_id
    is_alone = len(prompts) * call.num_choices == 1
    requests: list[GenerateRequest] = []
    for token_ids in prompts:
        max_tokens = _max_tokens(call, len(token_ids), max_model_len)
        for choice in range(call.num_choices):
            sampling = msgspec.structs.replace(
                call.sampling,
                max_tokens=max_tokens,
                seed=None if seed is None else seed + choice,
            )
            request_id = base_id if is_alone else f"{base_id}-{len(requests)}"
            requests.append(
                msgspec.structs.replace(
                    template, request_id=request_id, token_ids=token_ids, sampling=sampling
                )
            )
    return requests


def _template(call: Call, caller: Caller, received_s: float | None) -> GenerateRequest:
    """What all choices of a call have in common."""
    call.nvext.check_hints()
    asked_ttl_s = call.nvext.pin_ttl_s()
    hints, constraints = call.nvext.agent_hints, call.nvext.routing_constraints
    return GenerateRequest(
        request_id=caller.request_id,
        model=call.model,
        token_ids=[],
        sampling=call.sampling,
        priority=hints.priority or 0,
        expected_output_tokens=hints.osl,
        session_id=caller.session_id,
        worker_id=call.nvext.pinned_worker_id(),
        dp_rank=call.nvext.dp_rank,
        policy_family=caller.policy_family,
        cache_salt=call.cache_salt,
        pin_ttl_s=call.block_ttl_s if asked_ttl_s is None else asked_ttl_s,
        must_pin=asked_ttl_s is not None,
        required_taints=constraints.required_taints,
        preferred_taints=constraints.preferred_taints,
        overrides=call.nvext.cost_overrides(),
        received_s=received_s,
    )


def _max_tokens(call: Call, num_prompt_tokens: int, max_model_len: int) -> int:
    room = max_model_len - num_prompt_tokens
    asked = call.max_tokens
    if room < 1 or (asked is not None and asked > room):
        raise ApiError(
            400,
            f"This model's maximum context length is {max_model_len} tokens. However, you "
            f"requested {num_prompt_tokens + (asked or 1)} tokens ({num_prompt_tokens} in the "
            f"{call.prompt_field}, {asked or 1} in the completion). Please shorten the "
            f"{call.prompt_field} or ask for fewer tokens.",
            param=call.prompt_field if room < 1 else call.max_tokens_field,
            code="context_length_exceeded",
        )
    if asked is None:
        asked = room if call.default_max_tokens is None else min(call.default_max_tokens, room)
    if call.sampling.min_tokens > asked:
        raise refuse(
            "min_tokens",
            f"{call.sampling.min_tokens} is more than {call.max_tokens_field} ({asked})",
            "invalid_value",
        )
    return asked


def _check_range(token_ids: Sequence[int], limit: int, prompt_field: str) -> None:
    if token_ids and not 0 <= min(token_ids) <= max(token_ids) < limit:
        raise refuse(prompt_field, f"token ids must be from 0 to {limit - 1}", "invalid_value")
