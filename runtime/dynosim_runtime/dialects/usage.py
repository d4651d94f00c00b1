"""Token counts as OpenAI's clients read them."""

from collections.abc import Sequence
from typing import Any

from dynosim_runtime.dialects.output import ChoiceOutput


def openai_usage(num_prompt_tokens: int, outputs: Sequence[ChoiceOutput]) -> dict[str, Any]:
    """`usage` of completions and chat completions. A prompt counts once for all its choices."""
    num_output_tokens = sum(output.num_tokens for output in outputs)
    usage: dict[str, Any] = {
        "prompt_tokens": num_prompt_tokens,
        "completion_tokens": num_output_tokens,
        "total_tokens": num_prompt_tokens + num_output_tokens,
    }
    cached = cached_tokens(outputs)
    usage["prompt_tokens_details"] = None if cached is None else {"cached_tokens": cached}
    return usage


def cached_tokens(outputs: Sequence[ChoiceOutput]) -> int | None:
    """Prompt tokens that were cached, over the first choice of each prompt; None if not known."""
    counts: dict[int, int | None] = {}
    for output in outputs:
        cached = None if output.record is None else output.record.cached_tokens
        counts.setdefault(id(output.prompt_ids), cached)
    known = [count for count in counts.values() if count is not None]
    return sum(known) if known else None
