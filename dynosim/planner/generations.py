"""Which generation of workers serves a request while two of them are there and must not mix.

Each generation is a deployment of its own, complete or not; a request belongs to one of them from
its arrival on. Unless shares are stated they get requests by their ready workers, in turn.
"""

from collections.abc import Iterable, Mapping


class GenerationChoice:
    """Chooses by smooth weighted turns, so that shares hold over any few requests.

    `pools` are the pools that a request goes through.
    """

    def __init__(self, pools: Iterable[str]) -> None:
        self._pools = tuple(pools)
        self._ready: dict[int, dict[str, int]] = {}  # workers by generation and pool
        self._shares: dict[int, float] = {}
        self._closed: set[int] = set()
        self._credits: dict[int, float] = {}

    def joined(self, generation: int, pool: str) -> None:
        """One more worker of a generation is ready."""
        ready = self._ready.setdefault(generation, dict.fromkeys(self._pools, 0))
        ready[pool] += 1

    def left(self, generation: int, pool: str) -> None:
        """One worker of a generation takes no more requests."""
        self._ready[generation][pool] -= 1

    def has_ready(self, generation: int, pool: str) -> bool:
        """Whether a worker of that pool and generation takes requests."""
        return self._ready.get(generation, {}).get(pool, 0) > 0

    def set_shares(self, shares: Mapping[int, float]) -> None:
        """Let generations get these shares of the requests; empty: by their ready workers."""
        self._shares = dict(shares)
        self._credits.clear()

    def close(self, generation: int) -> None:
        """Let a generation get no new requests, as long as another is complete."""
        self._closed.add(generation)

    def choose(self) -> int | None:
        """The generation of the next request; None if none is complete.

        A generation without a ready worker in every pool gets nothing, whatever its share.
        """
        complete = [one for one, ready in sorted(self._ready.items()) if all(ready.values())]
        candidates = [one for one in complete if one not in self._closed] or complete
        weights = {one: self._weight(one) for one in candidates}
        total = sum(weights.values())
        if not total:
            return candidates[-1] if candidates else None
        credits = self._credits
        for one, weight in weights.items():
            credits[one] = credits.get(one, 0.0) + weight
        chosen = max(weights, key=lambda one: (credits[one], -one))
        credits[chosen] -= total
        return chosen

    def _weight(self, generation: int) -> float:
        """By workers of the pool that is scarcest, or as stated."""
        if self._shares:
            return self._shares.get(generation, 0.0)
        return float(min(self._ready[generation].values()))
