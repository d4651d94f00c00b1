"""The fewest workers that keep the SLA, found by running fixed clusters."""

from collections.abc import Sequence

import numpy as np

from dynosim.planning.plan_file import PlanFile
from dynosim.planning.played import (
    OfferedLoad,
    Played,
    Replayer,
    Tell,
    attainment_by_bin,
    good_by_bin,
    meets,
)
from dynosim.records import FloatArray

Sizes = tuple[int, ...]


class FixedRuns:
    """Runs of fixed clusters, each played once; `rungs` are sizes from small to large."""

    def __init__(
        self, replayer: Replayer, file: PlanFile, rungs: Sequence[Sizes], target: float, tell: Tell
    ) -> None:
        self.rungs = rungs
        self._replayer = replayer
        self._file = file
        self._target = target
        self._tell = tell
        self._played: dict[Sizes, list[Played]] = {}

    def of(self, sizes: Sizes) -> list[Played]:
        """The runs of a fixed cluster, one for each seed."""
        if sizes not in self._played:
            config = self._file.fixed(sizes)
            found = [self._replayer.play(config, load) for load in self._replayer.loads]
            self._played[sizes] = found
            share = float(np.mean([one.attainment for one in found]))
            self._tell(f"fixed at {layout(sizes)}: {share:.2%} of requests within the SLA")
        return self._played[sizes]

    def attainment(self, sizes: Sizes) -> float:
        """Share of requests within the SLA, the mean of seeds."""
        return float(np.mean([one.attainment for one in self.of(sizes)]))

    def keeps(self, place: int) -> bool:
        """Whether the cluster at this rung keeps the SLA."""
        return meets([one.attainment for one in self.of(self.rungs[place])], self._target)

    def fewest(self, *, from_above: bool) -> int | None:
        """The lowest rung that keeps the SLA, or None; more workers are taken to keep it, too.

        `from_above`: the largest cluster is tried first, where it is doubtful that any keeps it.
        """
        last = len(self.rungs) - 1
        if from_above and not self.keeps(last):
            return None
        below, place = -1, 0
        while not self.keeps(place):
            if place == last:
                return None
            below, place = place, min(2 * place + 1, last)
        while place - below > 1:
            middle = (below + place) // 2
            if self.keeps(middle):
                place = middle
            else:
                below = middle
        return place

    def fewest_by_bin(
        self, load: OfferedLoad, seed_place: int, peak: int, least: int
    ) -> FloatArray:
        """Workers by pool and bin: the lowest rung at which a bin's requests keep the SLA.

        A fixed cluster that was overloaded before has a queue that a scaled one
        would not have, so this is rather too many after a peak.
        """
        num, _ = good_by_bin(self.of(self.rungs[peak])[seed_place], load)
        fewest = _column(self.rungs[peak]).repeat(load.num_bins, axis=1)
        for place in range(peak - 1, -1, -1):
            kept = attainment_by_bin(self.of(self.rungs[place])[seed_place], load)
            fewest = np.where(kept >= self._target - 1e-12, _column(self.rungs[place]), fewest)
        return np.where(num > 0, np.maximum(fewest, least), least)


def _column(sizes: Sizes) -> FloatArray:
    return np.array(sizes, np.float64)[:, None]


def layout(sizes: Sizes) -> str:
    """Workers in the field's short form: `4 workers`, or `2P1D`."""
    if len(sizes) == 2:
        return f"{sizes[0]}P{sizes[1]}D"
    return f"{sizes[0]} worker" + ("" if sizes[0] == 1 else "s")
