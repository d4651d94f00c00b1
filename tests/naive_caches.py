"""What a router may know of caches, kept the plain way: one entry for each prompt so far.

A block is the prompt up to and including it (a `Chain`); who holds it is looked up one by one.
"""

from collections.abc import Hashable

from dynosim.indexer.base import BlockEvent, Removed, Stored, Tier

Chain = tuple[int, ...]


def leading(prompt: Chain, held: set[Chain], start: int = 0) -> int:
    """How many blocks of a prompt, from `start` on, are held without a hole."""
    depth = start
    while depth < len(prompt) and prompt[: depth + 1] in held:
        depth += 1
    return depth - start


class ToldCaches:
    """What workers' events say that they hold, by tier.

    A block on the device needs the block before it there too; one in a slower tier needs it in any
    tier. Names of blocks must be told apart by the prompt before them.
    """

    def __init__(self) -> None:
        self.device: dict[int, dict[int, Chain]] = {}  # worker -> name -> block
        self.told: dict[int, dict[int, tuple[Chain, frozenset[Tier]]]] = {}

    def apply(self, worker: int, event: BlockEvent) -> None:
        told = self.told.setdefault(worker, {})
        device = self.device.setdefault(worker, {})
        if isinstance(event, Stored):
            self._store(device, told, event)
        elif isinstance(event, Removed):
            for name in event.block_hashes:
                self._drop(told, name, event.tier)
                if event.tier is Tier.DEVICE:
                    device.pop(name, None)
        else:
            for tier in Tier if event.tier is None else (event.tier,):
                for name in list(told):
                    self._drop(told, name, tier)
                if tier is Tier.DEVICE:
                    device.clear()

    def depths(self, worker: int, prompt: Chain) -> tuple[int, int, int]:
        """Leading blocks on the device, then on the host, then on disk."""
        told = self.told.get(worker, {}).values()
        tiers = {tier: {chain for chain, held in told if tier in held} for tier in Tier}
        on_device = leading(prompt, set(self.device.get(worker, {}).values()))
        on_host = leading(prompt, tiers[Tier.HOST], on_device)
        return on_device, on_host, leading(prompt, tiers[Tier.DISK], on_device + on_host)

    def leave(self, worker: int) -> None:
        self.device.pop(worker, None)
        self.told.pop(worker, None)

    @staticmethod
    def _store(
        device: dict[int, Chain], told: dict[int, tuple[Chain, frozenset[Tier]]], event: Stored
    ) -> None:
        on_device = event.tier is Tier.DEVICE
        names = list(zip(event.block_hashes, event.local_hashes, strict=True))
        if event.parent is None or event.parent in told:
            chain = () if event.parent is None else told[event.parent][0]
            for name, local in names:
                chain = (*chain, local)
                tiers = told[name][1] if name in told else frozenset()
                told[name] = chain, tiers | {event.tier}
        if on_device and (event.parent is None or event.parent in device):
            chain = () if event.parent is None else device[event.parent]
            for name, local in names:
                chain = (*chain, local)
                device[name] = chain

    @staticmethod
    def _drop(told: dict[int, tuple[Chain, frozenset[Tier]]], name: int, tier: Tier) -> None:
        if name not in told:
            return
        chain, tiers = told[name]
        if tiers - {tier}:
            told[name] = chain, tiers - {tier}
        else:
            del told[name]


class TimedGuesses:
    """(worker, block) -> when it expires; placements alone tell, every one anew."""

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
    """Requests in hand, and idle blocks by (epoch of release, deepest first)."""

    def __init__(self, capacity_blocks: int) -> None:
        self.capacity_blocks = capacity_blocks
        self.in_hand: dict[Hashable, tuple[int, Chain]] = {}
        self.idle: dict[int, dict[Chain, tuple[int, int]]] = {}
        self.epoch = 0

    def route(self, worker: int, request: Hashable, prompt: Chain, now_ms: float) -> None:
        self.end(request)
        self.in_hand[request] = (worker, prompt)
        self._trim(worker)

    def end(self, request: Hashable) -> None:
        if request not in self.in_hand:
            return
        worker, prompt = self.in_hand.pop(request)
        self.epoch += 1
        idle = self.idle.setdefault(worker, {})
        for end in range(1, len(prompt) + 1):
            idle[prompt[:end]] = (self.epoch, -end)
        self._trim(worker)

    def leave(self, worker: int) -> None:
        self.idle.pop(worker, None)
        self.in_hand = {key: value for key, value in self.in_hand.items() if value[0] != worker}

    def held(self, now_ms: float = 0.0) -> set[tuple[int, Chain]]:
        workers = {worker for worker, _ in self.in_hand.values()} | self.idle.keys()
        return {
            (worker, block)
            for worker in workers
            for block in self._used(worker) | self.idle.get(worker, {}).keys()
        }

    def _used(self, worker: int) -> set[Chain]:
        prompts = [prompt for where, prompt in self.in_hand.values() if where == worker]
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
        self.told = ToldCaches()
        self.guesses = guesses

    def depths(self, worker: int, prompt: Chain, now_ms: float) -> tuple[int, int, int]:
        """Leading blocks on the device, then on the host, then on disk."""
        on_device, on_host, on_disk = self.told.depths(worker, prompt)
        if self.guesses is None:
            return on_device, on_host, on_disk
        guessed = {block for where, block in self.guesses.held(now_ms) if where == worker}
        return max(on_device, leading(prompt, guessed)), 0, 0

    def apply(self, worker: int, event: BlockEvent) -> None:
        self.told.apply(worker, event)

    def route(self, worker: int, request: Hashable, prompt: Chain, now_ms: float) -> None:
        if self.guesses is not None:
            self.guesses.route(worker, request, prompt, now_ms)

    def end(self, request: Hashable) -> None:
        if self.guesses is not None:
            self.guesses.end(request)

    def leave(self, worker: int) -> None:
        self.told.leave(worker)
        if self.guesses is not None:
            self.guesses.leave(worker)
