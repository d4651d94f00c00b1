"""One answer as it grows: tokens become text, and stop strings end it."""

from collections.abc import Mapping, Sequence

from dynosim_runtime.dialects.stop import StopFinder
from dynosim_runtime.requests import (
    FinishReason,
    RequestRecord,
    Sampling,
    TokenDelta,
    TokenLogprob,
)
from dynosim_runtime.tokenize.tokenizer import Detokenizer


class ChoiceDelta:
    """What a choice has gained since the last look."""

    __slots__ = ("has_ended", "index", "logprobs", "text", "token_ids")

    def __init__(self, index: int) -> None:
        self.index = index
        self.text = ""
        self.token_ids: list[int] = []
        self.logprobs: list[TokenLogprob] = []
        self.has_ended = False

    def has_gained(self) -> bool:
        """There is something to tell."""
        return bool(self.text or self.token_ids or self.has_ended)


class ChoiceOutput:
    """Text, tokens and end of one choice.

    `token_ids` and `logprobs` reach up to and with the token that completed a stop string. `record`
    is what the dispatcher tells of the request, None until it is asked. `shown` are special tokens
    whose texts are part of the answer's.
    """

    __slots__ = (
        "_detokenizer",
        "_min_tokens",
        "_pieces",
        "_stop_finder",
        "_texts",
        "finish_reason",
        "logprobs",
        "prompt_ids",
        "record",
        "stop_text",
        "token_ids",
    )

    def __init__(
        self,
        detokenizer: Detokenizer,
        sampling: Sampling,
        prompt_ids: Sequence[int],
        shown: Mapping[int, str] | None = None,
    ) -> None:
        self._detokenizer = detokenizer
        self._stop_finder = StopFinder(sampling.stop) if sampling.stop else None
        self._min_tokens = sampling.min_tokens
        # of tokens that are no ordinary parts of the text
        self._texts = {**(shown or {}), **dict.fromkeys(sampling.stop_token_ids, "")}
        self._pieces: list[str] = []
        self.prompt_ids = prompt_ids
        self.token_ids: list[int] = []
        self.logprobs: list[TokenLogprob] = []
        self.finish_reason: FinishReason | None = None
        self.stop_text: str | None = None
        self.record: RequestRecord | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens that the answer is made of."""
        return len(self.token_ids)

    @property
    def text(self) -> str:
        """All that was shown so far."""
        return "".join(self._pieces)

    def feed(self, delta: TokenDelta) -> str:
        """The text to show now; `stop_text` is set when a stop string is complete."""
        num_before = self.num_tokens
        if self._stop_finder is None:
            self.token_ids += delta.token_ids
            shown = "".join(map(self._text_of, delta.token_ids))
        else:
            shown = self._feed_searching(delta.token_ids, self._stop_finder)
        if delta.logprobs is not None:
            self.logprobs += delta.logprobs[: self.num_tokens - num_before]
        if self.stop_text is not None:
            self.finish_reason = "stop"
        elif delta.finish_reason is not None:
            self.finish_reason = delta.finish_reason
        if shown:
            self._pieces.append(shown)
        return shown

    def finish(self) -> str:
        """The text that was held back, now that the engine has ended the answer."""
        held = "" if self._stop_finder is None else self._stop_finder.flush()
        if held:
            self._pieces.append(held)
        return held

    def _text_of(self, token_id: int) -> str:
        text = self._texts.get(token_id)
        return self._detokenizer.step(token_id) if text is None else text

    def _feed_searching(self, token_ids: Sequence[int], finder: StopFinder) -> str:
        shown = []
        for token_id in token_ids:
            self.token_ids.append(token_id)
            piece = self._text_of(token_id)
            if len(self.token_ids) > self._min_tokens:
                piece, self.stop_text = finder.feed(piece)
            shown.append(piece)
            if self.stop_text is not None:
                break
        return "".join(shown)
