"""How probable tokens were, as the answers of both of OpenAI's APIs tell it."""

from collections.abc import Callable, Sequence
from typing import Any

from dynosim_runtime.generation import TokenLogprob

TextOf = Callable[[Sequence[int]], str]
"""The text of token ids."""


def chat_logprobs(
    logprobs: Sequence[TokenLogprob], num_top: int, text_of: TextOf
) -> dict[str, Any]:
    """`logprobs` of a chat completion's choice."""
    content = []
    for token in logprobs:
        likely = sorted(token.top, key=lambda pair: -pair[1])[:num_top]
        entry = _entry(token.token_id, token.logprob, text_of)
        entry["top_logprobs"] = [_entry(*pair, text_of) for pair in likely]
        content.append(entry)
    return {"content": content, "refusal": None}


def _entry(token_id: int, logprob: float, text_of: TextOf) -> dict[str, Any]:
    text = text_of((token_id,))
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}


def completion_logprobs(
    logprobs: Sequence[TokenLogprob], offset: int, text_of: TextOf
) -> tuple[dict[str, Any], int]:
    """(`logprobs` of a completion's choice, the offset behind its tokens)."""
    texts = [text_of((token.token_id,)) for token in logprobs]
    offsets = []
    for text in texts:
        offsets.append(offset)
        offset += len(text)
    told = {
        "text_offset": offsets,
        "token_logprobs": [token.logprob for token in logprobs],
        "tokens": texts,
        "top_logprobs": [_by_text(token.top, text_of) for token in logprobs],
    }
    return told, offset


def _by_text(top: Sequence[tuple[int, float]], text_of: TextOf) -> dict[str, float]:
    """Of tokens that are the same as texts (halves of a character), the most likely one's."""
    by_text: dict[str, float] = {}
    for token_id, logprob in top:
        text = text_of((token_id,))
        by_text[text] = max(logprob, by_text.get(text, logprob))
    return by_text
