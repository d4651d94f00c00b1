"""What a set-up leaves open and a log can tell: the scheduling loop, the KV capacity."""

from collections.abc import Sequence
from dataclasses import replace
from math import inf

from dynosim.fit.fitting import Fitted, cost_with, fit_log
from dynosim.fit.measurements import Measurements
from dynosim.fit.prior import Prior
from dynosim.fit.replay import Engines

_CAPACITY_FACTORS = (
    (0.25, 0.35, 0.5, 0.7, 0.85, 1.2, 1.4, 2.0, 2.8, 4.0),
    (0.88, 0.94, 1.06, 1.12),
    (0.96, 0.98, 1.02, 1.04),
)
_CAPACITY_GAIN = 5.0
"""Of the cost: a guess that explains the log so much better is not luck."""


def fit_loops(
    measured: Measurements,
    prior: Prior,
    engines: Engines,
    loops: Sequence[bool],
    *,
    count: int,
    seed: int = 0,
) -> dict[bool, Fitted]:
    """`fit_log` with each scheduling loop (asynchronous or not), the best first."""
    fits = {
        is_async: fit_log(
            measured, prior, engines.scheduling(is_async=is_async), count=count, seed=seed
        )
        for is_async in loops
    }
    return dict(sorted(fits.items(), key=lambda pair: pair[1].cost))


def fit_capacity(
    measured: Measurements,
    prior: Prior,
    engines: Engines,
    fitted: Fitted,
    *,
    count: int,
    seed: int = 0,
) -> tuple[Engines, Fitted]:
    """The KV capacity that a log tells of, and the fit with it; what was given if it tells none.

    A guessed capacity is held against others with the fitted constants; one that explains the times
    clearly better is fitted anew, and looked for once more around it.
    """
    first = measured.first(count)
    longest = int((first.input_tokens + first.output_tokens).max()) + engines.engine.block_size
    for factors in _CAPACITY_FACTORS:
        specs = {factor: _with_blocks(engines, factor) for factor in (1.0, *factors)}
        costs = {
            factor: cost_with(measured, fitted.fit, other, count)
            for factor, other in specs.items()
            if other.engine.usable_blocks * other.engine.block_size >= longest
        }
        best = min(costs, key=costs.__getitem__, default=1.0)
        if costs.get(1.0, inf) - costs.get(best, inf) < _CAPACITY_GAIN:
            break
        again = fit_log(measured, prior, specs[best], count=count, seed=seed)
        if fitted.cost - again.cost < _CAPACITY_GAIN:
            break
        engines, fitted = specs[best], again
    return engines, fitted


def _with_blocks(engines: Engines, factor: float) -> Engines:
    spec = engines.engine
    blocks = max(round(spec.num_gpu_blocks * factor), 2)
    length = min(spec.max_model_len, (blocks - 1) * spec.block_size)
    return replace(engines, engine=replace(spec, num_gpu_blocks=blocks, max_model_len=length))
