"""What a prediction is unsure of before anything was measured, and replays that differ by it.

Every source of uncertainty is one entry of `SOURCES`: in words, where it applies, and how a draw
differs by it. A draw is a configuration and a factor on all its step times, so a source may change
whatever a run file can say.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from scipy.stats import norm

from dynosim.build.engine import Prepared
from dynosim.config.schema import RunConfig
from dynosim.timing.model import ESTIMATED

TABLE_ERROR = 0.083
"""Standard deviation of what tables of kernels get wrong of all step times together. The library's
own estimate of the TPOT of 22 closed loops on H100 and H200 had a median error of 5.6 %, which is
0.674 standard deviations of a normal error."""

ROOFLINE_ERROR = 0.15
"""The same of data sheets: on consumer GPUs the roofline came out 10 to 13 % slow. Rough."""


@dataclass(frozen=True, slots=True)
class Draw:
    """One replay: what is simulated, and how many times as long all steps take."""

    config: RunConfig
    step_time_factor: float = 1.0


class Source(NamedTuple):
    """One thing that is not known. `vary` gets a draw and a standard normal deviate."""

    words: str
    applies: Callable[[RunConfig, Prepared], bool]
    vary: Callable[[Draw, float, Prepared], Draw]


def believed_draws(
    config: RunConfig, prepared: Prepared, *, count: int, seed: int
) -> tuple[tuple[str, ...], Iterator[Draw]]:
    """What is varied, in words, and `count` draws; the same `seed` gives the same ones.

    Every source takes each of `count` equally likely values once, in an order of its own, so that
    few draws are spread as evenly as they can be.
    """
    rng = np.random.default_rng(seed)
    sources = [source for source in SOURCES if source.applies(config, prepared)]
    levels = norm.ppf((np.arange(count) + 0.5) / count) if count else np.zeros(0)
    deviates = [rng.permutation(levels).tolist() for _ in sources]
    seeds = rng.integers(1 << 62, size=count).tolist()

    def draws() -> Iterator[Draw]:
        for index, drawn_seed in enumerate(seeds):
            draw = Draw(config.model_copy(update={"seed": int(drawn_seed)}))
            for source, values in zip(sources, deviates, strict=True):
                draw = source.vary(draw, values[index], prepared)
            yield draw

    return ("arrivals", *(source.words for source in sources)), draws()


def _step_times(draw: Draw, deviate: float, prepared: Prepared) -> Draw:
    is_estimated = prepared.timing.source == ESTIMATED
    error = ROOFLINE_ERROR if is_estimated else TABLE_ERROR
    return replace(draw, step_time_factor=max(1 + error * deviate, 0.1))


SOURCES: tuple[Source, ...] = (
    Source("all step times together", lambda config, prepared: True, _step_times),
)
"""Without the arrivals, which every draw has anew."""
