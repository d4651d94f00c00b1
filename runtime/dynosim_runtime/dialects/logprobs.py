"""How probable tokens were, as the answers of both of OpenAI's APIs tell it.

The text of a token alone is not what it added to the answer where characters take several tokens.
vLLM's rule is kept (0.32, `v1/engine/logprobs.py`): a token that leaves a character unfinished has
no text, the one that completes it has all of it. What stands before is the answer's own tokens, for
the alternatives of a token, too.
"""

from collections.abc import Callable, Sequence
from typing import Any

from dynosim_runtime.requests import TokenLogprob

TextOf = Callable[[Sequence[int]], str]
"""The text of token ids."""

REPLACEMENT = "\ufffd"
CONTEXT_TOKENS = 4  # no character of UTF-8 takes more bytes


class TokenTexts:
    """Texts of the tokens of one choice, in their order."""

    def __init__(self, text_of: TextOf, token_text: Callable[[int], str] | None = None) -> None:
        """`token_text` gives that of a single token, where it is not `text_of`'s."""
        self._text_of = text_of
        self._token_text = token_text or (lambda token_id: text_of((token_id,)))
        self._before: list[int] = []  # the last tokens of the answer

    def next(self, token: TokenLogprob) -> tuple[str, list[str]]:
        """(its text, the texts of what else might have stood there)."""
        texts = self.of(token.token_id), [self.of(token_id) for token_id, _ in token.top]
        self._before = [*self._before, token.token_id][-CONTEXT_TOKENS:]
        return texts

    def of(self, token_id: int) -> str:
        """The text of a token if it came next."""
        text = self._token_text(token_id)
        if not text.endswith(REPLACEMENT):
            return text
        for start in range(len(self._before) - 1, -1, -1):
            before = self._before[start:]
            whole = self._text_of((*before, token_id))
            if not whole.endswith(REPLACEMENT):
                return _behind(self._finished(before), whole)
        return ""

    def _finished(self, before: Sequence[int]) -> str:
        """The text of tokens without those at their end that wait for the rest of a character."""
        end = len(before)
        while end and self._text_of((before[end - 1],)).endswith(REPLACEMENT):
            end -= 1
        return self._text_of(before[:end]) if end else ""


def chat_logprobs(
    logprobs: Sequence[TokenLogprob], num_top: int, texts: TokenTexts
) -> dict[str, Any]:
    """`logprobs` of a chat completion's choice; `texts` has those of its tokens before."""
    content = []
    for token in logprobs:
        text, others = texts.next(token)
        told = zip(others, (logprob for _, logprob in token.top), strict=True)
        likely = sorted(told, key=lambda pair: -pair[1])[:num_top]
        entry = _entry(text, token.logprob)
        entry["top_logprobs"] = [_entry(*pair) for pair in likely]
        content.append(entry)
    return {"content": content, "refusal": None}


def _entry(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode(errors="replace"))}


def completion_logprobs(
    logprobs: Sequence[TokenLogprob], offset: int, texts: TokenTexts
) -> tuple[dict[str, Any], int]:
    """(`logprobs` of a completion's choice, the offset behind its tokens)."""
    tokens, offsets, tops = [], [], []
    for token in logprobs:
        text, others = texts.next(token)
        tokens.append(text)
        offsets.append(offset)
        tops.append(_by_text(others, token.top))
        offset += len(text)
    told = {
        "text_offset": offsets,
        "token_logprobs": [token.logprob for token in logprobs],
        "tokens": tokens,
        "top_logprobs": tops,
    }
    return told, offset


def _by_text(texts: Sequence[str], top: Sequence[tuple[int, float]]) -> dict[str, float]:
    """Of tokens that are the same as texts (parts of a character), the most likely one's."""
    by_text: dict[str, float] = {}
    for text, (_, logprob) in zip(texts, top, strict=True):
        by_text[text] = max(logprob, by_text.get(text, logprob))
    return by_text


def _behind(prefix: str, text: str) -> str:
    """What of a text is behind a prefix, as far as both agree."""
    if text.startswith(prefix):
        return text[len(prefix) :]
    common = 0
    for one, other in zip(prefix, text, strict=False):
        if one != other:
            break
        common += 1
    return text[common:]
