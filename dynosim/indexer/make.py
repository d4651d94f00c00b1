"""Indexes by name."""

from collections.abc import Callable
from dataclasses import dataclass

from dynosim.errors import ConfigError
from dynosim.indexer.approximate import ApproximateIndex, PredictedIndex
from dynosim.indexer.base import DEFAULT_TTL_MS, BlockEvent, DeviceIndex, Index
from dynosim.indexer.compressed import CompressedRadixIndex
from dynosim.indexer.extents import ExtentIndex
from dynosim.indexer.naive import InvertedIndex, NaiveIndex
from dynosim.indexer.positional import PositionalIndex
from dynosim.indexer.radix import RadixIndex
from dynosim.indexer.tiered_extents import TieredExtents
from dynosim.indexer.tiers import TieredIndex

AnyExtentIndex = ExtentIndex | TieredExtents

DEVICE_INDEXES: dict[str, Callable[[], DeviceIndex]] = {
    "radix": RadixIndex,
    "compressed": CompressedRadixIndex,
    "positional": PositionalIndex,
    "positional-binary": lambda: PositionalIndex(is_binary=True),
}
BASELINES: dict[str, Callable[[], Index[BlockEvent]]] = {
    "naive": NaiveIndex,
    "inverted": InvertedIndex,
}
INDEXES = (*BASELINES, *DEVICE_INDEXES)
"""The exact ones know tiers, as soon as events name any; the baselines know devices only."""

TIERED = "tiered-"
"""Before the kind of an index: engines are known to have slower tiers."""


def make_indexer(kind: str, *, expects_slower: bool = False) -> Index[BlockEvent]:
    """An empty index of a kind; for `expects_slower` see `TieredIndex`.

    Raises: ConfigError for an unknown kind.
    """
    if kind in BASELINES:
        return BASELINES[kind]()
    if kind not in DEVICE_INDEXES:
        raise ConfigError(f"router.index: unknown kind {kind!r}; known: {', '.join(INDEXES)}")
    return TieredIndex(DEVICE_INDEXES[kind](), expects_slower=expects_slower)


@dataclass(frozen=True, slots=True)
class IndexSpec:
    """How to make an index: a kind of `make_indexer`, `extents` or `approximate`.

    `extents` needs `extent_blocks`. `approximate` forgets by `capacity_blocks` per worker or else
    after `ttl_ms`. `predicted_ttl_ms` puts such a guess beside a hash index. With `tiered-` before
    it, a kind of index that follows events also follows those of slower tiers.
    """

    kind: str
    extent_blocks: list[int] | None = None
    ttl_ms: float = DEFAULT_TTL_MS
    capacity_blocks: int | None = None
    predicted_ttl_ms: float | None = None

    def make(self) -> AnyExtentIndex | Index[BlockEvent]:
        """An empty index. Raises: ConfigError for an unknown kind."""
        if self.kind == "extents":
            return ExtentIndex(self.extent_blocks or [])
        if self.kind == TIERED + "extents":
            return TieredExtents(self.extent_blocks or [])
        if self.kind == "approximate":
            return ApproximateIndex(ttl_ms=self.ttl_ms, capacity_blocks=self.capacity_blocks)
        kind = self.kind.removeprefix(TIERED)
        index = make_indexer(kind, expects_slower=kind != self.kind)
        if self.predicted_ttl_ms is None:
            return index
        return PredictedIndex(index, ApproximateIndex(ttl_ms=self.predicted_ttl_ms))
