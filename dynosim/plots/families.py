"""Families of layouts: those of one mode and one tensor parallelism, and how each is drawn.

Aggregated families have tones of blue, disaggregated ones of orange, darker for more GPUs a worker.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from dynosim.plots import style
from dynosim.plots.trials import TENSOR_PARALLEL, is_disaggregated, pool_tensor_parallel

SYMBOLS = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "x", "star")
_TONES = {1: (2,), 2: (1, 3), 3: (1, 2, 4), 4: (0, 1, 2, 4)}
"""Which of five tones few families have: such as are told apart."""


@dataclass(frozen=True, slots=True, order=True)
class LayoutFamily:
    """A mode and a tensor parallelism, of a disaggregated one that of prefill workers and then that
    of decode workers; 0: the sweep does not vary it."""

    is_disaggregated: bool
    tensor_parallel: int
    decode_tensor_parallel: int = 0

    @property
    def is_told(self) -> bool:
        """Whether anything tells it from other families."""
        return self.is_disaggregated or bool(self.tensor_parallel)

    @property
    def name(self) -> str:
        """For legends."""
        if not self.is_disaggregated:
            return f"TP{self.tensor_parallel}" if self.tensor_parallel else "layout"
        pools = (("P", self.tensor_parallel), ("D", self.decode_tensor_parallel))
        sizes = [(role, f"TP{size}") for role, size in pools if size]
        if len(sizes) == len(pools):
            return f"disagg {sizes[0][1]}+{sizes[1][1]}"
        return " ".join(["disagg", *(f"{role} {size}" for role, size in sizes)])


@dataclass(frozen=True, slots=True)
class FamilyStyle:
    """A family's colour and mark."""

    color: str
    symbol: str


def family_of(row: Mapping[str, Any]) -> LayoutFamily:
    """The family of a trial."""
    if is_disaggregated(row):
        return LayoutFamily(True, *pool_tensor_parallel(row))
    size = row.get(TENSOR_PARALLEL)
    return LayoutFamily(False, int(size) if size is not None else 0)


def family_styles(families: Iterable[LayoutFamily]) -> dict[LayoutFamily, FamilyStyle]:
    """A colour and a mark for each family, whatever their order."""
    ordered = sorted(set(families))
    styles = {}
    for is_split, tones in ((False, style.BLUE_TONES), (True, style.ORANGE_TONES)):
        members = [family for family in ordered if family.is_disaggregated is is_split]
        chosen = _TONES.get(len(members), range(len(tones)))
        for place, family in enumerate(members):
            color = tones[chosen[place % len(chosen)]]
            styles[family] = FamilyStyle(color, SYMBOLS[ordered.index(family) % len(SYMBOLS)])
    return styles
