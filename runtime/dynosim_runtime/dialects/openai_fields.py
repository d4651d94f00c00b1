"""What chat completions and completions have in common: the sampling fields and their limits.

Fields that are not known are ignored, as OpenAI does; fields that are known, would change the
answer and have no effect here are refused.
"""

from typing import Annotated, Any

import msgspec

from dynosim_runtime.dialects.decoding import refuse, refuse_unsupported
from dynosim_runtime.dialects.nvext import NvExt
from dynosim_runtime.dialects.structured import structured_of
from dynosim_runtime.requests import Sampling

MAX_CHOICES = 8

Count = Annotated[int, msgspec.Meta(ge=0)]
PositiveCount = Annotated[int, msgspec.Meta(ge=1)]
# One more for each choice must fit what engines take: 64 bits.
Seed = Annotated[int, msgspec.Meta(ge=-(1 << 63), lt=(1 << 63) - MAX_CHOICES)]
Temperature = Annotated[float, msgspec.Meta(ge=0, le=2)]
Share = Annotated[float, msgspec.Meta(gt=0, le=1)]
Penalty = Annotated[float, msgspec.Meta(ge=-2, le=2)]
StopText = Annotated[str, msgspec.Meta(min_length=1, max_length=1024)]
StopTexts = Annotated[list[StopText], msgspec.Meta(max_length=16)]
TokenId = Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)]

HARMLESS_VALUES: dict[str, tuple[Any, ...]] = {
    "allowed_token_ids": ([],),
    "bad_words": ([],),
    "best_of": (1,),
    "include_stop_str_in_output": (False,),
    "logit_bias": ({},),
    "min_p": (0,),
    "prompt_logprobs": (),
    "skip_special_tokens": (True,),
    "truncate_prompt_tokens": (),
    "use_beam_search": (False,),
}


class StreamOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What a stream carries besides the answer."""

    include_usage: bool | None = None


class OpenAiFields(msgspec.Struct, frozen=True, kw_only=True):
    """Fields of both APIs, vLLM's extensions among them."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, msgspec.Meta(ge=1, le=MAX_CHOICES)] | None = None
    max_tokens: PositiveCount | None = None
    min_tokens: Count | None = None
    temperature: Temperature | None = None
    top_p: Share | None = None
    top_k: Annotated[int, msgspec.Meta(ge=-1)] | None = None  # -1 and 0: all tokens
    seed: Seed | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, msgspec.Meta(gt=0)] | None = None
    stop: StopText | StopTexts | None = None
    stop_token_ids: list[TokenId] | None = None
    ignore_eos: bool | None = None
    user: str | None = None
    return_token_ids: bool | None = None
    cache_salt: str | None = None
    nvext: NvExt | None = None
    allowed_token_ids: Any = None
    bad_words: Any = None
    best_of: Any = None
    guided_choice: Any = None
    guided_grammar: Any = None
    guided_json: Any = None
    guided_regex: Any = None
    include_stop_str_in_output: Any = None
    logit_bias: Any = None
    min_p: Any = None
    prompt_logprobs: Any = None
    response_format: Any = None
    skip_special_tokens: Any = None
    structured_outputs: Any = None
    truncate_prompt_tokens: Any = None
    use_beam_search: Any = None


def check_fields(request: OpenAiFields) -> None:
    """Raises: ApiError 400 for what is not supported or does not fit together."""
    refuse_unsupported(request, HARMLESS_VALUES)
    if request.stream_options is not None and not request.stream:
        raise refuse("stream_options", "only allowed when stream is true", "invalid_value")


def sampling_of(request: OpenAiFields, logprobs: int | None) -> Sampling:
    """How the engine is to pick tokens, `max_tokens` aside, and what it is to tell of them.

    Raises: ApiError 400.
    """
    return Sampling(
        max_tokens=0,
        min_tokens=request.min_tokens or 0,
        temperature=given(request.temperature, 1.0),
        top_p=given(request.top_p, 1.0),
        top_k=max(request.top_k or 0, 0),
        seed=request.seed,
        presence_penalty=given(request.presence_penalty, 0.0),
        frequency_penalty=given(request.frequency_penalty, 0.0),
        repetition_penalty=given(request.repetition_penalty, 1.0),
        stop=stop_texts(request.stop),
        stop_token_ids=tuple(request.stop_token_ids or ()),
        ignore_eos=bool(request.ignore_eos),
        logprobs=logprobs,
        structured=structured_of(request),
    )


def given(value: float | None, default: float) -> float:
    """The value, or what null stands for."""
    return default if value is None else value


def stop_texts(stop: str | list[str] | None) -> tuple[str, ...]:
    """Stop strings, however they were written."""
    if stop is None:
        return ()
    return (stop,) if isinstance(stop, str) else tuple(stop)
