"""A tier of KV in host memory: which chunks of prompts it holds, and whom it throws out.

A chunk is a fixed number of full blocks, named by the content of its last one. It is *pending* from
the moment its place is taken until the copy has been reported, *pinned* while somebody loads it;
both keep it in place. Whoever offers a batch of chunks gets room for all that are new, or for none.

Semantics: vLLM 0.32's CPU offloading manager with its two policies; ARC after Megiddo and Modha,
"ARC: A Self-Tuning, Low Overhead Replacement Cache" (FAST 2003).
"""

from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

from dynosim.engine.spec import EvictionPolicy
from dynosim.errors import InvariantError


class HostChunk:
    """One that has a place in the tier."""

    __slots__ = ("is_pending", "num_loads")

    def __init__(self) -> None:
        self.is_pending = True  # its copy has not been reported
        self.num_loads = 0  # under way

    @property
    def is_free(self) -> bool:
        """Whether it may be thrown out."""
        return not self.is_pending and self.num_loads == 0


class Policy(Protocol):
    """The chunks in the order in which they go."""

    def __len__(self) -> int:
        """Chunks that have a place."""
        ...

    def get(self, key: int) -> HostChunk | None:
        """The chunk of that name."""
        ...

    def insert(self, key: int) -> None:
        """Give a chunk a place; it is pending."""
        ...

    def missed(self, new: Sequence[int]) -> None:
        """A request offers chunks that have no place, for the first time."""
        ...

    def evict(self, number: int, kept: Collection[int]) -> list[int] | None:
        """Throw so many out, none of those kept; None, and nothing done, if that cannot be."""
        ...

    def used(self, key: int, *, is_new: bool, again: bool) -> None:
        """A request that ended had a chunk; `again`: it found it or loaded it; `is_new`: it only
        brought it here."""
        ...


class Lru:
    """The chunk goes first that was used least recently."""

    def __init__(self) -> None:
        self._chunks: OrderedDict[int, HostChunk] = OrderedDict()  # oldest first

    def __len__(self) -> int:
        return len(self._chunks)

    def get(self, key: int) -> HostChunk | None:
        """See `Policy`."""
        return self._chunks.get(key)

    def insert(self, key: int) -> None:
        """See `Policy`."""
        self._chunks[key] = HostChunk()

    def missed(self, new: Sequence[int]) -> None:
        """See `Policy`."""

    def evict(self, number: int, kept: Collection[int]) -> list[int] | None:
        """See `Policy`."""
        found = list(islice(_free(self._chunks, kept), number))
        if len(found) < number:
            return None
        for key in found:
            del self._chunks[key]
        return found

    def used(self, key: int, *, is_new: bool, again: bool) -> None:
        """See `Policy`."""
        if key in self._chunks:
            self._chunks.move_to_end(key)


class Arc:
    """Chunks used once (`_once`) and again (`_again`), with the names of those that each lost.

    `_target` is how many of the former there should be; it learns from which of the lost come back.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._once: OrderedDict[int, HostChunk] = OrderedDict()  # oldest first, as all
        self._again: OrderedDict[int, HostChunk] = OrderedDict()
        self._lost_once: OrderedDict[int, None] = OrderedDict()
        self._lost_again: OrderedDict[int, None] = OrderedDict()
        self._target = 0.0

    def __len__(self) -> int:
        return len(self._once) + len(self._again)

    def get(self, key: int) -> HostChunk | None:
        """See `Policy`."""
        return self._once.get(key) or self._again.get(key)

    def insert(self, key: int) -> None:
        """See `Policy`."""
        self._lost_once.pop(key, None)
        self._lost_again.pop(key, None)
        self._once[key] = HostChunk()

    def missed(self, new: Sequence[int]) -> None:
        """See `Policy`."""
        for key in reversed(new):
            once, again = self._lost_once, self._lost_again
            if key in once:
                self._target += max(1.0, len(again) / len(once))
                self._target = min(self._target, self._capacity)
                once.move_to_end(key)
            elif key in again:
                self._target -= max(1.0, len(once) / len(again))
                self._target = max(self._target, 0.0)
                again.move_to_end(key)

    def evict(self, number: int, kept: Collection[int]) -> list[int] | None:
        """See `Policy`."""
        once, again = _free(self._once, kept), _free(self._again, kept)
        found: dict[int, bool] = {}  # -> whether it was used once
        num_once = len(self._once)
        for _ in range(number):
            victim = next(once, None) if num_once >= int(self._target) else None
            is_once = victim is not None
            if victim is None:
                victim = next(again, None)
            if victim is None:
                victim, is_once = next(once, None), True
            if victim is None:
                return None
            found[victim] = is_once
            num_once -= is_once
        for key, is_once in found.items():
            if is_once:
                del self._once[key]
                self._lost_once[key] = None
            else:
                del self._again[key]
                self._lost_again[key] = None
        for lost in (self._lost_once, self._lost_again):
            while len(lost) > self._capacity:
                lost.popitem(last=False)
        return list(found)

    def used(self, key: int, *, is_new: bool, again: bool) -> None:
        """See `Policy`."""
        if is_new:
            if key in self._once:
                self._once.move_to_end(key)
            elif key in self._again:
                self._again.move_to_end(key)
        elif again:
            if key in self._once:
                self._again[key] = self._once.pop(key)
            elif key in self._again:
                self._again.move_to_end(key)


def _free(chunks: OrderedDict[int, HostChunk], kept: Collection[int]) -> Iterator[int]:
    """Those that may be thrown out, the oldest first."""
    return (key for key, chunk in chunks.items() if chunk.is_free and key not in kept)


class Accesses:
    """What one request has had to do with the tier, for its end."""

    __slots__ = ("again", "inserted", "missed", "seen")

    def __init__(self) -> None:
        self.seen: set[int] = set()  # chunks that it offered and that were new or ready; loaded
        self.inserted: set[int] = set()
        self.again: set[int] = set()  # found ready or loaded, not inserted by itself
        self.missed: set[int] = set()  # of which the policy has heard that they were new

    def found(self, keys: Iterable[int]) -> None:
        """Chunks were there, ready."""
        for key in keys:
            self.seen.add(key)
            if key not in self.inserted:
                self.again.add(key)


@dataclass(frozen=True, slots=True)
class Offered:
    """What became of an offer."""

    new: list[int]  # to be copied
    evicted: list[int]


class HostCache:
    """The tier. `store_threshold`: a chunk is stored from the so many-th offer on."""

    def __init__(self, capacity: int, policy: EvictionPolicy, store_threshold: int = 0) -> None:
        self._capacity = capacity
        self._chunks: Policy = Lru() if policy == "lru" else Arc(capacity)
        self._threshold = store_threshold
        self._num_offers: dict[int, int] = {}

    def __len__(self) -> int:
        """Chunks that have a place, pending ones included."""
        return len(self._chunks)

    def get(self, key: int) -> HostChunk | None:
        """The chunk of that name, if it has a place."""
        return self._chunks.get(key)

    def offer(self, keys: Sequence[int], accesses: Accesses) -> Offered | None:
        """Make room for the new ones among these; None if there is none for all of them."""
        new: list[int] = []
        for key in keys:
            chunk = self.get(key)
            if self._threshold > 1:
                self._num_offers[key] = self._num_offers.get(key, 0) + 1
            if chunk is None:
                if self._threshold <= 1 or self._num_offers[key] >= self._threshold:
                    new.append(key)
                    accesses.seen.add(key)
            elif not chunk.is_pending:
                accesses.found([key])
        missed = [key for key in new if key not in accesses.missed]
        self._chunks.missed(missed)
        accesses.missed.update(missed)
        num_lacking = len(new) - (self._capacity - len(self._chunks))
        evicted: list[int] = []
        if new and num_lacking > 0:
            victims = self._chunks.evict(num_lacking, set(keys))
            if victims is None:
                return None
            evicted = victims
        for key in new:
            self._chunks.insert(key)
        accesses.inserted.update(new)
        return Offered(new, evicted)

    def stored(self, keys: Iterable[int]) -> None:
        """The copies of pending chunks have been reported."""
        for key in keys:
            self._held(key).is_pending = False

    def pin(self, keys: Sequence[int], accesses: Accesses) -> None:
        """Chunks begin to be loaded."""
        for key in keys:
            self._held(key).num_loads += 1
        accesses.found(keys)

    def unpin(self, keys: Iterable[int]) -> None:
        """Loads of chunks have ended."""
        for key in keys:
            self._held(key).num_loads -= 1

    def end(self, keys: Sequence[int], accesses: Accesses) -> None:
        """A request has ended that had these chunks, in the order of its prompt."""
        only_inserted = accesses.inserted - accesses.again
        for key in reversed(keys):
            self._chunks.used(key, is_new=key in only_inserted, again=key in accesses.again)

    def _held(self, key: int) -> HostChunk:
        chunk = self._chunks.get(key)
        if chunk is None:
            raise InvariantError(f"chunk {key} has no place in the host's tier")
        return chunk
