"""Random streams of block events: as engines publish them, and as they never should."""

import random

from dynosim.blocks.hashing import sequence_hashes
from dynosim.blocks.tier import Tier
from dynosim.indexer.base import BlockEvent, Cleared, Removed, Stored
from dynosim.testing.index_model import Chain

NUM_WORKERS = 3
EventStream = list[tuple[int, BlockEvent | None]]
"""(worker, event; None: it left)"""


def name_of(chain: Chain) -> int:
    """An engine's name of a block: unlike any of ours."""
    return sequence_hashes(chain)[-1] ^ 0x5555


def random_prompt(draw: random.Random) -> Chain:
    """So few different blocks that equal chunks stand at many places."""
    return tuple(draw.choices((1, 2, 3), (6, 3, 1), k=draw.randint(1, 9)))


def random_stream(draw: random.Random) -> EventStream:
    """Events as engines publish them, and with unknown parents, repetitions and holes."""
    known: list[Chain] = []
    stream: EventStream = []
    for _ in range(draw.randint(1, 25)):
        kind = draw.random()
        if kind < 0.6 or not known:
            event: BlockEvent | None = _stored(draw, known)
        else:
            event = _removed(draw, known) if kind < 0.95 else draw.choice([Cleared(), None])
        stream.append((draw.randrange(NUM_WORKERS), event))
    return stream


def confused(draw: random.Random, stream: EventStream) -> EventStream:
    """The stream of engines that give several blocks one name, and several names to one block."""

    def other(name: int) -> int:
        return name if draw.random() < 0.7 else draw.randrange(4)

    confusion: EventStream = []
    for worker, event in stream:
        if isinstance(event, Stored | Removed):
            event = event._replace(block_hashes=[other(name) for name in event.block_hashes])
        confusion.append((worker, event))
    return confusion


def tier_event(draw: random.Random, known: list[Chain]) -> BlockEvent:
    """Of any tier: blocks with and without what comes before them, evictions, a tier emptied."""
    tier, point = draw.choice([Tier.DEVICE, *Tier]), draw.random()
    if point < 0.65 or not known:
        chain = random_prompt(draw)
        if known and draw.random() < 0.7:
            chain = draw.choice(known) + chain
        first = draw.randrange(len(chain)) if draw.random() < 0.7 else 0
        names = sequence_hashes(chain)
        known += [chain[: end + 1] for end in range(len(chain))]
        return Stored(names[first - 1] if first else None, names[first:], chain[first:], tier)
    if point < 0.95:
        return Removed([sequence_hashes(c)[-1] for c in draw.choices(known, k=3)], tier)
    return Cleared(draw.choice([None, tier]))


def _stored(draw: random.Random, known: list[Chain]) -> Stored:
    prompt = random_prompt(draw)
    if known and draw.random() < 0.5:
        prompt = draw.choice(known) + prompt
    first = draw.randrange(len(prompt)) if draw.random() < 0.5 else 0  # its parent may be unknown
    chains = [prompt[: end + 1] for end in range(first, len(prompt))]
    known += chains
    parent = name_of(prompt[:first]) if first else None
    return Stored(parent, [name_of(chain) for chain in chains], list(prompt[first:]))


def _removed(draw: random.Random, known: list[Chain]) -> Removed:
    """Single blocks from anywhere, or a chain from its end as engines evict, or from its front."""
    chain = draw.choice(known)
    gone = [chain[: end + 1] for end in range(draw.randrange(len(chain)), len(chain))]
    kind = draw.randrange(3)
    if kind == 0:
        gone = draw.choices(known, k=draw.randint(1, 4))
    elif kind == 1:
        gone.reverse()
    return Removed([name_of(chain) for chain in gone])
