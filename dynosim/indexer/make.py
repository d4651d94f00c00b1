"""Indexes by name."""

from collections.abc import Callable

from dynosim.errors import ConfigError
from dynosim.indexer.base import Indexer
from dynosim.indexer.compressed import CompressedRadixIndex
from dynosim.indexer.naive import InvertedIndex, NaiveIndex
from dynosim.indexer.positional import PositionalIndex
from dynosim.indexer.radix import RadixIndex

INDEXES: dict[str, Callable[[], Indexer]] = {
    "naive": NaiveIndex,
    "inverted": InvertedIndex,
    "radix": RadixIndex,
    "compressed": CompressedRadixIndex,
    "positional": PositionalIndex,
    "positional-binary": lambda: PositionalIndex(is_binary=True),
}


def make_indexer(kind: str) -> Indexer:
    """An empty index of a kind. Raises: ConfigError for an unknown kind."""
    if kind not in INDEXES:
        raise ConfigError(f"router.index: unknown kind {kind!r}; known: {', '.join(INDEXES)}")
    return INDEXES[kind]()
