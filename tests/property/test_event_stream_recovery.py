"""Whatever happens to messages, a stream ends with what its worker holds."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from dynosim.blocks.tier import Tier
from dynosim.indexer.base import BlockEvent, Cleared, Removed, Stored
from dynosim.indexer.stream import EventBuffer, EventStream

Chain = tuple[int, ...]
seeds = st.integers(0, 2**32 - 1)


class Model:
    """The chains (prefixes, the block last) held, by tier and name."""

    def __init__(self) -> None:
        self.held: dict[Tier, dict[int, Chain]] = {tier: {} for tier in Tier}
        self.past: dict[int | None, Chain] = {}  # all that were ever held

    def holds(self, name: int | None) -> bool:
        return name is None or any(name in held for held in self.held.values())

    def apply(self, event: BlockEvent) -> None:
        if isinstance(event, Stored):
            if not self.holds(event.parent):
                if event.tier is Tier.DEVICE or event.parent not in self.past:
                    return
            chain = () if event.parent is None else self.past[event.parent]
            for name, local in zip(event.block_hashes, event.local_hashes, strict=True):
                chain = (*chain, local)
                self.held[event.tier][name] = self.past[name] = chain
        elif isinstance(event, Removed):
            for name in event.block_hashes:
                self.held[event.tier].pop(name, None)
        else:
            for tier in Tier if event.tier is None else (event.tier,):
                self.held[tier].clear()
            if event.tier is None:
                self.past.clear()


def random_event(draw: random.Random, names: dict[Chain, int]) -> BlockEvent:
    """Stored blocks, some after unknown ones; removed ones, also before those behind them."""
    tier = draw.choice((Tier.DEVICE, Tier.DEVICE, *Tier))
    kind = draw.random()
    if kind < 0.6 or not names:
        chain = tuple(draw.choices((1, 2, 3), (6, 3, 1), k=draw.randint(1, 6)))
        if names and draw.random() < 0.5:
            chain = draw.choice(list(names)) + chain
        first = draw.randrange(len(chain)) if draw.random() < 0.5 else 0
        chains = [chain[: end + 1] for end in range(len(chain))]
        blocks = [names.setdefault(part, 100 + len(names)) for part in chains]
        return Stored(blocks[first - 1] if first else None, blocks[first:], chain[first:], tier)
    if kind < 0.95:
        return Removed(draw.choices(list(names.values()), k=draw.randint(1, 4)), tier)
    return Cleared(draw.choice((None, tier)))


class Rehearsal:
    """A worker, a network that loses, repeats and reorders, and a router's stream."""

    def __init__(self, draw: random.Random, capacity: int, max_early: int) -> None:
        self.draw = draw
        self.buffer, self.stream = EventBuffer(capacity), EventStream(max_early)
        self.worker, self.router = Model(), Model()
        self.sent: list[tuple[int, BlockEvent]] = []

    def tell(self, event: BlockEvent) -> None:
        self.worker.apply(event)
        self.sent.append((self.buffer.append(event), event))

    def deliver_some(self) -> None:
        draw = self.draw
        while self.sent and draw.random() < 0.6:
            number, event = self.sent.pop(draw.randrange(len(self.sent)))
            for _ in range(draw.choice((0, 1, 1, 1, 2))):
                self.take(self.stream.receive(number, event))

    def take(self, events: list[BlockEvent]) -> None:
        for event in events:
            self.router.apply(event)

    def ask(self) -> None:
        """Ask about a gap; more may happen before the answer comes."""
        missing = self.stream.missing
        if missing is not None and self.draw.random() < 0.4:
            answer = self.buffer.replay(missing)
            self.deliver_some()
            self.take(self.stream.resync(answer))


@settings(max_examples=300, deadline=None)
@given(seeds, st.integers(0, 40), st.integers(0, 5))
def test_a_stream_recovers_from_loss_repetition_and_disorder(
    seed: int, capacity: int, max_early: int
) -> None:
    draw = random.Random(seed)
    rehearsal = Rehearsal(draw, capacity, max_early)
    names: dict[Chain, int] = {}
    for _ in range(draw.randint(1, 30)):
        event = random_event(draw, names)
        if capacity < 30 and isinstance(event, Stored) and not rehearsal.worker.holds(event.parent):
            event = event._replace(tier=Tier.DEVICE)  # no dump tells the names of what is nowhere
        rehearsal.tell(event)
        rehearsal.deliver_some()
        rehearsal.ask()
    stream, buffer = rehearsal.stream, rehearsal.buffer
    rehearsal.take(stream.resync(buffer.replay(stream.next_id)))
    assert stream.missing is None
    assert stream.next_id == buffer.next_id
    assert rehearsal.router.held == rehearsal.worker.held


@settings(max_examples=200, deadline=None)
@given(seeds)
def test_a_dump_alone_rebuilds_everything(seed: int) -> None:
    draw = random.Random(seed)
    buffer, worker, router = EventBuffer(0), Model(), Model()
    names: dict[Chain, int] = {}
    for _ in range(draw.randint(1, 30)):
        event = random_event(draw, names)
        buffer.append(event)
        worker.apply(event)
    for event in buffer.dump().events:
        assert (
            not isinstance(event, Stored)
            or event.parent is None
            or event.parent in {name for held in router.held.values() for name in held}
        )  # parents come first
        router.apply(event)
    assert router.held == worker.held
