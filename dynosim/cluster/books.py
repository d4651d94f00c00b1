"""What lies open of a run while it goes on, for those who watch it: see `ControlPlane.books`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dynosim.cluster.frontend_stages import StagedLoad
from dynosim.cluster.journal import Journal
from dynosim.cluster.placement import AnyPlacer
from dynosim.cluster.pool_placers import PoolPlacers
from dynosim.cluster.spec import ClusterSpec
from dynosim.records import IntArray, ScalingLog

if TYPE_CHECKING:
    from array import array


class PoolChange(NamedTuple):
    """A pool's number of workers was changed."""

    at_ms: float
    pool: str
    before: int
    after: int


class Books:
    """A run's journal, its placer and what it was built from; `changes` are for who makes them.

    `is_controlled`: somebody decides how many workers there are, and writes `changes`.
    """

    def __init__(
        self,
        journal: Journal,
        placer: AnyPlacer,
        cluster: ClusterSpec,
        *,
        ingress_ms: float,
        egress_ms: float,
        frontend: StagedLoad | None = None,
    ) -> None:
        self.journal = journal
        self.cluster = cluster
        self.ingress_ms = ingress_ms
        self.egress_ms = egress_ms
        self.frontend = frontend  # with its stages, if they take time
        self.is_controlled = False
        self.changes: list[PoolChange] = []
        self._placer = placer

    @property
    def overlap_blocks(self) -> "array[float] | None":
        """By request, the blocks that a router took to be cached; None: nobody looked."""
        # Here, or every run would load the routers.
        from dynosim.cluster.router_placer import RouterPlacer

        placer = self._placer
        if isinstance(placer, PoolPlacers):
            placer = placer.prefill
        return placer.log.overlap_blocks if isinstance(placer, RouterPlacer) else None

    def scaling_log(self) -> ScalingLog | None:
        """The changes as columns; None if nobody controls the number of workers."""
        if not self.is_controlled:
            return None
        changes = self.changes
        return ScalingLog(
            at_ms=np.array([one.at_ms for one in changes], np.float64),
            pool=tuple(one.pool for one in changes),
            before=_column([one.before for one in changes]),
            after=_column([one.after for one in changes]),
        )


def _column(values: Sequence[int]) -> IntArray:
    return np.array(values, np.int64)
