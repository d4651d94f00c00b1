"""Names the blocks of requests and tells of them in vLLM's words.

A block's name in the engine core is its sequence hash, so that equal prefixes of any two requests
are the same blocks. The core's events name blocks only; the tokens that a message must carry are
kept here as long as a request that has them is in hand, and a while longer where blocks go on to
slower tiers.
"""

from collections import OrderedDict
from collections.abc import Iterable

from dynosim.blocks.hashing import local_hashes, sequence_hashes
from dynosim.blocks.kv_event import KvEvent
from dynosim.blocks.tier import Tier
from dynosim.indexer.wire import EngineEvent, removed_event, stored_event
from dynosim.records import IntArray


class _Place:
    """Where the tokens of a block are, and how many requests in hand have the block."""

    __slots__ = ("index", "num_users", "salt", "tokens")

    def __init__(self, tokens: IntArray, index: int, salt: str) -> None:
        self.tokens = tokens
        self.index = index
        self.salt = salt
        self.num_users = 1


class BlockLedger:
    """The blocks of all requests in hand, and the last `num_kept` blocks that no longer are."""

    def __init__(self, block_size: int, num_kept: int = 0) -> None:
        self._block_size = block_size
        self._num_kept = num_kept
        self._places: dict[int, _Place] = {}
        self._kept: OrderedDict[int, _Place] = OrderedDict()  # the oldest first

    def __len__(self) -> int:
        return len(self._places)

    def open(self, tokens: IntArray, salt: str) -> list[int]:
        """The names of a request's full blocks, whose tokens are kept until `close`."""
        names = sequence_hashes(local_hashes(tokens, self._block_size, salt=salt))
        places = self._places
        for index, name in enumerate(names):
            place = places.get(name)
            if place is None:
                self._kept.pop(name, None)
                places[name] = _Place(tokens, index, salt)
            else:
                place.num_users += 1
        return names

    def close(self, names: list[int]) -> None:
        """A request with these blocks is in hand no longer."""
        places = self._places
        for name in names:
            place = places[name]
            place.num_users -= 1
            if place.num_users == 0:
                del places[name]
                if self._num_kept:
                    self._kept[name] = place
        while len(self._kept) > self._num_kept:
            self._kept.popitem(last=False)

    def engine_events(self, events: Iterable[KvEvent]) -> list[EngineEvent]:
        """The core's events, in order; blocks stored one behind the other are one event.

        What a slower tier takes in too late for its tokens to be known is not told.
        """
        told: list[EngineEvent] = []
        run: list[KvEvent] = []
        for event in events:
            if run and not (event.is_stored and _goes_on(event, run[-1])):
                told.append(self._stored(run))
                run = []
            if not event.is_stored:
                told.append(removed_event([event.content], event.tier))
            elif event.tier is Tier.DEVICE or self._knows(event.content):
                run.append(event)
        if run:
            told.append(self._stored(run))
        return told

    def _knows(self, name: int) -> bool:
        return name in self._places or name in self._kept

    def _stored(self, run: list[KvEvent]) -> EngineEvent:
        size = self._block_size
        names = [event.content for event in run]
        places = [self._places.get(name) or self._kept[name] for name in names]
        tokens = [
            token
            for place in places
            for token in place.tokens[place.index * size : (place.index + 1) * size].tolist()
        ]
        event = stored_event(run[0].parent, names, tokens, size, run[0].tier)
        if places[0].index == 0 and places[0].salt:
            event.fields["extra_keys"] = [[places[0].salt], *[None] * (len(run) - 1)]
        return event


def _goes_on(event: KvEvent, before: KvEvent) -> bool:
    """Whether a block was stored right behind another one."""
    return event.parent == before.content and event.tier is before.tier
