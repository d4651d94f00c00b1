"""Holds measured times against the roofline: what cannot be is reported and replaced.

A time is refused where it is more than twice what a good kernel takes (`KernelBounds.usual_ms`) or
less than half of what physics allows (`KernelBounds.floor_ms`). In its place comes the usual time,
multiplied by what the credible times nearby are of theirs: those of the same operation where most
of them are credible, else those of its family, else the usual time itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynosim.records import FloatArray
from dynosim.timing.operation_bounds import KernelBounds

FACTOR = 2.0
"""So many times over or under the roofline is not credible."""


@dataclass(frozen=True, slots=True)
class HeldTimes:
    """Times of one operation, at all sizes asked for, and what they are held against."""

    name: str
    family: str
    times_ms: FloatArray
    bounds: KernelBounds
    sizes: FloatArray  # tokens, or tokens of context, of each
    nodes: NDArray[np.bool_]  # the sizes that are counted: evenly spread over magnitudes

    @property
    def refused(self) -> NDArray[np.bool_]:
        """Which of the times are not credible."""
        too_long = self.times_ms > FACTOR * self.bounds.usual_ms
        too_short = self.times_ms * FACTOR < self.bounds.floor_ms
        return np.asarray(too_long | too_short)

    @property
    def is_credible(self) -> bool:
        """Whether most of the times are."""
        return float(np.mean(self.refused[self.nodes])) < 0.5

    @property
    def ratio(self) -> FloatArray:
        """The times as multiples of what good kernels take."""
        return self.times_ms / self.bounds.usual_ms


@dataclass(frozen=True, slots=True)
class Judged:
    """Times of one operation after the guard."""

    times_ms: FloatArray
    refused: NDArray[np.bool_]
    finding: dict[str, Any] | None  # what was refused, for reports (plain JSON)


def hold(all_held: Sequence[HeldTimes]) -> list[Judged]:
    """The times with the refused ones replaced, of each operation."""
    families = _family_ratios(all_held)
    return [_judged(held, families.get(held.family, 1.0)) for held in all_held]


def _judged(held: HeldTimes, family_ratio: float) -> Judged:
    refused = held.refused if held.is_credible else np.ones_like(held.refused)
    if not refused.any():
        return Judged(held.times_ms, refused, None)
    ratio = _nearby(held) if held.is_credible else family_ratio
    replaced = np.where(refused, held.bounds.usual_ms * ratio, held.times_ms)
    counted = refused & held.nodes
    return Judged(replaced, refused, _finding(held, counted, replaced) if counted.any() else None)


def _family_ratios(all_held: Sequence[HeldTimes]) -> dict[str, float]:
    """By family, the median ratio of the operations that are credible; 1 or more: small ones are
    mostly launches, and these are quicker than what `usual_ms` reckons with."""
    ratios: dict[str, list[float]] = {}
    for held in all_held:
        if held.is_credible:
            known = held.nodes & ~held.refused
            ratios.setdefault(held.family, []).append(float(np.median(held.ratio[known])))
    return {family: max(1.0, float(np.median(of))) for family, of in ratios.items()}


def _nearby(held: HeldTimes) -> FloatArray:
    """At each size the ratio of the nearest credible sizes, so that nothing jumps at the border."""
    known = ~held.refused
    if held.times_ms.ndim > 1:
        return np.full(held.times_ms.shape, float(np.median(held.ratio[known])))
    size = np.log(held.sizes)
    return np.asarray(np.interp(size, size[known], held.ratio[known]), np.float64)


def _finding(held: HeldTimes, refused: NDArray[np.bool_], replaced: FloatArray) -> dict[str, Any]:
    over = held.times_ms[refused] / held.bounds.usual_ms[refused]
    return {
        "operation": held.name,
        "family": held.family,
        "entries": int(held.nodes.sum()),
        "refused": int(refused.sum()),
        "smallest": float(held.sizes[refused].min()),
        "largest": float(held.sizes[refused].max()),
        "over_roofline": float(np.median(over)),
        "kept": float(np.median(replaced[refused] / held.times_ms[refused])),
    }
