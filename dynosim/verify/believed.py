"""What a prediction is unsure of before anything was measured, and replays that differ by it.

Every source of uncertainty is one entry of `SOURCES`: in words, where it applies, and how a draw
differs by it. A draw is a configuration and factors on its times, so a source may change whatever a
run file can say.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import exp, log
from typing import NamedTuple

import numpy as np
from scipy.stats import norm

from dynosim.build.engine import Prepared
from dynosim.config.schema import RunConfig
from dynosim.silicon.host_times import host_of
from dynosim.timing.model import ESTIMATED, StepTimeModel, set_client_path
from dynosim.timing.roofline import RooflineModel
from dynosim.timing.scaled import ScaledModel
from dynosim.timing.silicon_model import SiliconModel

TABLE_ERROR = 0.083
"""Standard deviation of what tables of kernels get wrong of all step times together. The library's
own estimate of the TPOT of 22 closed loops on H100 and H200 had a median error of 5.6 %, which is
0.674 standard deviations of a normal error."""

ROOFLINE_ERROR = 0.13
"""The same of data sheets, which lie off the tables by another 10 % (`benchmarks/roofline.py`)."""

_NORMAL_95 = 1.96


@dataclass(frozen=True, slots=True)
class Draw:
    """One replay: what is simulated, and by which factors its times differ from the model's."""

    config: RunConfig
    step_times: float = 1.0
    host: float = 1.0
    client_path: float = 1.0
    tables: int = 0  # of which version: the one in use, or one of its neighbours


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


def drawn_timing(timing: StepTimeModel, draw: Draw) -> StepTimeModel:
    """The step times of a draw."""
    timing = (timing, *_by_other_versions(timing))[draw.tables]
    if isinstance(timing, SiliconModel | RooflineModel):
        timing = timing.with_host(timing.host.scaled(draw.host))
    scaled = ScaledModel(timing, draw.step_times)
    set_client_path(
        scaled,
        ingress_ms=draw.client_path * timing.ingress_ms,
        egress_ms=draw.client_path * timing.egress_ms,
    )
    return scaled


def _by_other_versions(timing: StepTimeModel) -> tuple[StepTimeModel, ...]:
    """Step times by the tables of neighbouring versions, where a model has them."""
    return timing.alternatives if isinstance(timing, SiliconModel) else ()


def _has_neighbours(config: RunConfig, prepared: Prepared) -> bool:
    return bool(_by_other_versions(prepared.timing))


def _tables(draw: Draw, deviate: float, prepared: Prepared) -> Draw:
    """Each version is as likely as another."""
    number = 1 + len(_by_other_versions(prepared.timing))
    return replace(draw, tables=min(int(number * float(norm.cdf(deviate))), number - 1))


def _always(config: RunConfig, prepared: Prepared) -> bool:
    return True


def _step_times(draw: Draw, deviate: float, prepared: Prepared) -> Draw:
    is_estimated = prepared.timing.source == ESTIMATED
    error = ROOFLINE_ERROR if is_estimated else TABLE_ERROR
    return replace(draw, step_times=max(1 + error * deviate, 0.1))


def _has_unsure_host(config: RunConfig, prepared: Prepared) -> bool:
    timing = prepared.timing
    if not isinstance(timing, SiliconModel | RooflineModel):
        return False
    return timing.host.interval != (1.0, 1.0)


def _host(draw: Draw, deviate: float, prepared: Prepared) -> Draw:
    timing = prepared.timing
    assert isinstance(timing, SiliconModel | RooflineModel)
    return replace(draw, host=_between(timing.host.interval, deviate))


def _has_client_path(config: RunConfig, prepared: Prepared) -> bool:
    return bool(prepared.timing.ingress_ms or prepared.timing.egress_ms)


def _client_path(draw: Draw, deviate: float, prepared: Prepared) -> Draw:
    interval = host_of(draw.config.hardware or "").client_interval
    return replace(draw, client_path=_between(interval, deviate))


def _has_unsure_capacity(config: RunConfig, prepared: Prepared) -> bool:
    return prepared.capacity.low < prepared.capacity.high


def _capacity(draw: Draw, deviate: float, prepared: Prepared) -> Draw:
    """Blocks between low and high; a context that only the cache bounds goes with them."""
    known, engine = prepared.capacity, draw.config.engine
    end = known.high if deviate > 0 else known.low
    share = min(abs(deviate) / _NORMAL_95, 1.0)
    blocks = round(known.num_gpu_blocks + share * (end - known.num_gpu_blocks))
    room = (blocks - 1) * engine.block_size
    length = engine.max_model_len
    changes = {
        "num_gpu_blocks": blocks,
        "max_model_len": None if length is None else min(length, room),
    }
    changed = draw.config.model_copy(update={"engine": engine.model_copy(update=changes)})
    return replace(draw, config=changed)


def _between(interval: tuple[float, float], deviate: float) -> float:
    """A factor of which 95 % lie in the interval, as many above its middle as below."""
    low, high = map(log, interval)
    return exp((low + high) / 2 + deviate * (high - low) / (2 * _NORMAL_95))


SOURCES: tuple[Source, ...] = (
    Source("all step times together", _always, _step_times),
    Source("version of the tables", _has_neighbours, _tables),
    Source("host time of steps", _has_unsure_host, _host),
    Source("way to the client and back", _has_client_path, _client_path),
    Source("KV capacity", _has_unsure_capacity, _capacity),
)
"""Without the arrivals, which every draw has anew."""
