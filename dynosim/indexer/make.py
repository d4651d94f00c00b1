"""Indexes by name."""

from collections.abc import Callable
from dataclasses import dataclass

from dynosim.errors import ConfigError
from dynosim.indexer.approximate import ApproximateIndex, PredictedIndex
from dynosim.indexer.base import DEFAULT_TTL_MS, BlockEvent, Index
from dynosim.indexer.compressed import CompressedRadixIndex
from dynosim.indexer.extents import ExtentIndex
from dynosim.indexer.naive import InvertedIndex, NaiveIndex
from dynosim.indexer.positional import PositionalIndex
from dynosim.indexer.radix import RadixIndex
from dynosim.indexer.tiers import TieredIndex

INDEXES: dict[str, Callable[[], Index[BlockEvent]]] = {
    "naive": NaiveIndex,
    "inverted": InvertedIndex,
    "radix": lambda: TieredIndex(RadixIndex()),
    "compressed": lambda: TieredIndex(CompressedRadixIndex()),
    "positional": lambda: TieredIndex(PositionalIndex()),
    "positional-binary": lambda: TieredIndex(PositionalIndex(is_binary=True)),
}
"""The exact ones know tiers, as soon as events name any; the baselines know devices only."""


def make_indexer(kind: str) -> Index[BlockEvent]:
    """An empty index of a kind. Raises: ConfigError for an unknown kind."""
    if kind not in INDEXES:
        raise ConfigError(f"router.index: unknown kind {kind!r}; known: {', '.join(INDEXES)}")
    return INDEXES[kind]()


@dataclass(frozen=True, slots=True)
class IndexSpec:
    """How to make an index: a kind of `make_indexer`, `extents` or `approximate`.

    `extents` needs `extent_blocks`. `approximate` forgets by `capacity_blocks` per worker or else
    after `ttl_ms`. `predicted_ttl_ms` puts such a guess beside a hash index.
    """

    kind: str
    extent_blocks: list[int] | None = None
    ttl_ms: float = DEFAULT_TTL_MS
    capacity_blocks: int | None = None
    predicted_ttl_ms: float | None = None

    def make(self) -> ExtentIndex | Index[BlockEvent]:
        """An empty index. Raises: ConfigError for an unknown kind."""
        if self.kind == "extents":
            return ExtentIndex(self.extent_blocks or [])
        if self.kind == "approximate":
            return ApproximateIndex(ttl_ms=self.ttl_ms, capacity_blocks=self.capacity_blocks)
        index = make_indexer(self.kind)
        if self.predicted_ttl_ms is None:
            return index
        return PredictedIndex(index, ApproximateIndex(ttl_ms=self.predicted_ttl_ms))
