"""What one engine step computes: all that its time depends on, as one value."""

from dataclasses import astuple, dataclass


@dataclass(slots=True, init=False)
class StepShape:
    """The composition of one step, as step times read it. An engine's plan of a step is one.

    The step computes `prefill_tokens` new prompt tokens over `num_prefills` prompts, of which
    `prefix_tokens` were in the cache before, and one token for each of `num_decodes` sequences
    whose contexts (the token being computed included) sum to `decode_context_tokens`. Whoever made
    it may change it to ask again.
    """

    num_prefills: int
    prefill_tokens: int
    prefix_tokens: int
    num_decodes: int
    decode_context_tokens: int

    def __init__(
        self,
        num_prefills: int = 0,
        prefill_tokens: int = 0,
        prefix_tokens: int = 0,
        num_decodes: int = 0,
        decode_context_tokens: int = 0,
    ) -> None:
        self.num_prefills = num_prefills
        self.prefill_tokens = prefill_tokens
        self.prefix_tokens = prefix_tokens
        self.num_decodes = num_decodes
        self.decode_context_tokens = decode_context_tokens

    def __reduce__(self) -> tuple[type["StepShape"], tuple[int, ...]]:
        """How to copy it, in either build."""
        return StepShape, astuple(self)

    @staticmethod
    def of_prompts(num_prefills: int, prefill_tokens: int, prefix_tokens: int = 0) -> "StepShape":
        """A step that only computes prompts."""
        return StepShape(num_prefills, prefill_tokens, prefix_tokens)

    @staticmethod
    def of_decodes(num_decodes: int, context_tokens: int) -> "StepShape":
        """A step in which every sequence decodes; `context_tokens` of all of them together."""
        return StepShape(0, 0, 0, num_decodes, context_tokens)
