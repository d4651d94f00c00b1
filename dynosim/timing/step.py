"""What one engine step computes: all that its time depends on, as one value."""

from dataclasses import dataclass
from typing import Protocol


class StepShape(Protocol):
    """The composition of one step, as step times read it. An engine's plan of a step is one.

    The step computes `prefill_tokens` new prompt tokens over `num_prefills` prompts, of which
    `prefix_tokens` were in the cache before, and one token for each of `num_decodes` sequences
    whose contexts (the token being computed included) sum to `decode_context_tokens`.
    """

    @property
    def num_prefills(self) -> int: ...
    @property
    def prefill_tokens(self) -> int: ...
    @property
    def prefix_tokens(self) -> int: ...
    @property
    def num_decodes(self) -> int: ...
    @property
    def decode_context_tokens(self) -> int: ...


@dataclass(slots=True)
class BatchShape:
    """A `StepShape` by its numbers, for those who have no plan. May be changed to ask again."""

    num_prefills: int = 0
    prefill_tokens: int = 0
    prefix_tokens: int = 0
    num_decodes: int = 0
    decode_context_tokens: int = 0

    @staticmethod
    def of_prompts(num_prefills: int, prefill_tokens: int, prefix_tokens: int = 0) -> "BatchShape":
        """A step that only computes prompts."""
        return BatchShape(num_prefills, prefill_tokens, prefix_tokens)

    @staticmethod
    def of_decodes(num_decodes: int, context_tokens: int) -> "BatchShape":
        """A step in which every sequence decodes; `context_tokens` of all of them together."""
        return BatchShape(0, 0, 0, num_decodes, context_tokens)
