"""What the data-parallel ranks of a worker do together in a step: gather, experts, scatter.

Experts are spread over the GPUs of all ranks, so every GPU serves the tokens of all of them, and
none gets on before the others have given theirs. The rest of a step is each rank's own.
"""

from bisect import bisect_right

from mypy_extensions import mypyc_attr


@mypyc_attr(allow_interpreted_subclasses=True)
class ExpertTimes:
    """Milliseconds of the common part of a step."""

    def ms(self, tokens_per_rank: float) -> float:
        """Its time if every rank has so many tokens; ranks that differ count as their mean."""
        raise NotImplementedError


class ExpertCurve(ExpertTimes):
    """Times at some numbers of tokens, straight in between and beyond."""

    def __init__(self, tokens: list[float], times_ms: list[float]) -> None:
        """`tokens` rise; two at least."""
        self._tokens = tokens
        self._times_ms = times_ms

    def ms(self, tokens_per_rank: float) -> float:
        tokens, times_ms = self._tokens, self._times_ms
        i = bisect_right(tokens, tokens_per_rank, 1, len(tokens) - 1) - 1
        slope = (times_ms[i + 1] - times_ms[i]) / (tokens[i + 1] - tokens[i])
        return times_ms[i] + slope * (tokens_per_rank - tokens[i])


class ScaledExperts(ExpertTimes):
    """Those of another model, longer or shorter by a factor."""

    def __init__(self, experts: ExpertTimes, scale: float) -> None:
        self._experts = experts
        self._scale = scale

    def ms(self, tokens_per_rank: float) -> float:
        return self._scale * self._experts.ms(tokens_per_rank)
