"""How frontends learn which workers there are.

A worker registers its card under a lease and keeps it alive; when it stops doing so, the card goes.
A back end only stores and tells; it decides nothing.
"""

from collections.abc import AsyncIterator
from typing import Protocol

from dynosim_runtime.card import LiveCard


class Registration(Protocol):
    """A worker's published card."""

    async def update(self, card: LiveCard) -> None:
        """Publish a changed card (same worker id)."""
        ...

    async def close(self) -> None:
        """Take the card away at once."""
        ...


class Discovery(Protocol):
    """A place where cards are published."""

    async def register(self, card: LiveCard) -> Registration:
        """Publish a card and keep its lease alive until `close`.

        Raises: LiveError if another live worker has this id, or the place cannot be written.
        """
        ...

    def watch(self) -> AsyncIterator[dict[int, LiveCard]]:
        """All live cards by worker id, at once and then after every change."""
        ...

    async def close(self) -> None:
        """Release connections."""
        ...
