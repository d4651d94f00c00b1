"""What a router may know of caches, kept the plain way: one entry for each prompt so far.

A block is the prompt up to and including it; who holds it is looked up one by one.
"""

from collections.abc import Hashable

from dynosim.indexer.base import BlockEvent
from dynosim.testing.index_model import Chain, PlainIndex, leading


class TimedGuesses:
    """(worker, block) -> when it expires; placements alone count, every one anew."""

    def __init__(self, ttl_ms: float) -> None:
        self.ttl_ms = ttl_ms
        self.expiry_ms: dict[tuple[int, Chain], float] = {}

    def route(self, worker: int, request: Hashable, prompt: Chain, now_ms: float) -> None:
        for end in range(1, len(prompt) + 1):
            self.expiry_ms[worker, prompt[:end]] = now_ms + self.ttl_ms

    def end(self, request: Hashable) -> None:
        """Time alone counts."""

    def leave(self, worker: int) -> None:
        self.expiry_ms = {key: at for key, at in self.expiry_ms.items() if key[0] != worker}

    def held(self, now_ms: float) -> set[tuple[int, Chain]]:
        return {key for key, expiry_ms in self.expiry_ms.items() if expiry_ms > now_ms}


class BoundedGuesses:
    """Requests in flight, and idle blocks by (epoch of release, deepest first)."""

    def __init__(self, capacity_blocks: int) -> None:
        self.capacity_blocks = capacity_blocks
        self.in_flight: dict[Hashable, tuple[int, Chain]] = {}
        self.idle: dict[int, dict[Chain, tuple[int, int]]] = {}
        self.epoch = 0

    def route(self, worker: int, request: Hashable, prompt: Chain, now_ms: float) -> None:
        self.end(request)
        self.in_flight[request] = (worker, prompt)
        self._trim(worker)

    def end(self, request: Hashable) -> None:
        if request not in self.in_flight:
            return
        worker, prompt = self.in_flight.pop(request)
        self.epoch += 1
        idle = self.idle.setdefault(worker, {})
        for end in range(1, len(prompt) + 1):
            idle[prompt[:end]] = (self.epoch, -end)
        self._trim(worker)

    def leave(self, worker: int) -> None:
        self.idle.pop(worker, None)
        self.in_flight = {key: value for key, value in self.in_flight.items() if value[0] != worker}

    def held(self, now_ms: float = 0.0) -> set[tuple[int, Chain]]:
        workers = {worker for worker, _ in self.in_flight.values()} | self.idle.keys()
        return {
            (worker, block)
            for worker in workers
            for block in self._used(worker) | self.idle.get(worker, {}).keys()
        }

    def _used(self, worker: int) -> set[Chain]:
        prompts = [prompt for where, prompt in self.in_flight.values() if where == worker]
        return {prompt[:end] for prompt in prompts for end in range(1, len(prompt) + 1)}

    def _trim(self, worker: int) -> None:
        used, idle = self._used(worker), self.idle.setdefault(worker, {})
        for block in used & idle.keys():
            del idle[block]
        while idle and len(used) + len(idle) > self.capacity_blocks:
            del idle[min(idle, key=idle.__getitem__)]


class NaiveCaches:
    """All that a router knows of caches: events, guesses, or both (the larger depth counts)."""

    def __init__(self, guesses: TimedGuesses | BoundedGuesses | None = None) -> None:
        self.published = PlainIndex()
        self.guesses = guesses

    def depths(self, worker: int, prompt: Chain, now_ms: float) -> tuple[int, ...]:
        """Leading blocks on the device, then further ones in each slower tier."""
        if self.guesses is None:
            return self.published.depths(worker, prompt)
        guessed = {block for where, block in self.guesses.held(now_ms) if where == worker}
        return self.published.depths(worker, prompt, leading(prompt, guessed))

    def apply(self, worker: int, event: BlockEvent) -> None:
        self.published.apply(worker, event)

    def route(self, worker: int, request: Hashable, prompt: Chain, now_ms: float) -> None:
        if self.guesses is not None:
            self.guesses.route(worker, request, prompt, now_ms)

    def end(self, request: Hashable) -> None:
        if self.guesses is not None:
            self.guesses.end(request)

    def leave(self, worker: int) -> None:
        self.published.remove_worker(worker)
        if self.guesses is not None:
            self.guesses.leave(worker)
