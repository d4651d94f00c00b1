"""All exact indexes give the answers of a brute-force model, whatever events come."""

import random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from dynosim.blocks.hashing import sequence_hashes
from dynosim.indexer.base import BlockEvent, Cleared, Index, Removed, Stored
from dynosim.indexer.compressed import CompressedRadixIndex
from dynosim.indexer.make import make_indexer
from dynosim.indexer.positional import PositionalIndex
from dynosim.indexer.radix import RadixIndex
from dynosim.indexer.tiers import TieredIndex

NUM_WORKERS = 3
Chain = tuple[int, ...]
Stream = list[tuple[int, BlockEvent | None]]  # (worker, event or None: it left)
seeds = st.integers(0, 2**32 - 1)


def exact_indexes() -> list[Index[BlockEvent]]:
    kinds = ("radix", "compressed", "positional", "positional-binary")
    short = [PositionalIndex(stride=2), PositionalIndex(stride=5, is_binary=True)]
    return [*map(make_indexer, kinds), *short]


def name_of(chain: Chain) -> int:
    """An engine's name of a block: unlike any of ours."""
    return sequence_hashes(chain)[-1] ^ 0x5555


class Model:
    """Per worker the chains (prefixes, the block last) that it holds, by name.

    Of names that clash the newest counts.
    """

    def __init__(self) -> None:
        self.held: dict[int, dict[int, Chain]] = {}
        self.chains: dict[int, set[Chain]] = {}

    def apply(self, worker: int, event: BlockEvent | None) -> None:
        held = self.held.setdefault(worker, {})
        if event is None or isinstance(event, Cleared):
            held.clear()
        elif isinstance(event, Removed):
            for name in event.block_hashes:
                held.pop(name, None)
        elif event.parent is None or event.parent in held:
            prefix: Chain = () if event.parent is None else held[event.parent]
            for name, local in zip(event.block_hashes, event.local_hashes, strict=True):
                prefix = (*prefix, local)
                for older in [other for other, chain in held.items() if chain == prefix]:
                    del held[older]
                held[name] = prefix
        self.chains[worker] = set(held.values())

    def find_matches(self, blocks: list[int]) -> dict[int, int]:
        chain = tuple(blocks)
        depths = {}
        for worker, chains in self.chains.items():
            depth = 0
            while depth < len(chain) and chain[: depth + 1] in chains:
                depth += 1
            if depth:
                depths[worker] = depth
        return depths

    @property
    def size(self) -> int:
        return sum(len(chains) for chains in self.chains.values())


def random_prompt(draw: random.Random) -> Chain:
    """So few different blocks that equal chunks stand at many places."""
    return tuple(draw.choices((1, 2, 3), (6, 3, 1), k=draw.randint(1, 9)))


def random_stored(draw: random.Random, known: list[Chain]) -> Stored:
    prompt = random_prompt(draw)
    if known and draw.random() < 0.5:
        prompt = draw.choice(known) + prompt
    first = draw.randrange(len(prompt)) if draw.random() < 0.5 else 0  # its parent may be unknown
    chains = [prompt[: end + 1] for end in range(first, len(prompt))]
    known += chains
    parent = name_of(prompt[:first]) if first else None
    return Stored(parent, [name_of(chain) for chain in chains], list(prompt[first:]))


def random_removed(draw: random.Random, known: list[Chain]) -> Removed:
    """Single blocks from anywhere, or a chain from its end as engines evict, or from its front."""
    chain = draw.choice(known)
    gone = [chain[: end + 1] for end in range(draw.randrange(len(chain)), len(chain))]
    kind = draw.randrange(3)
    if kind == 0:
        gone = draw.choices(known, k=draw.randint(1, 4))
    elif kind == 1:
        gone.reverse()
    return Removed([name_of(chain) for chain in gone])


def random_stream(draw: random.Random) -> Stream:
    """Events as engines send them, and with unknown parents, repetitions and holes."""
    known: list[Chain] = []
    stream: Stream = []
    for _ in range(draw.randint(1, 25)):
        kind = draw.random()
        if kind < 0.6 or not known:
            event: BlockEvent | None = random_stored(draw, known)
        else:
            event = random_removed(draw, known) if kind < 0.95 else draw.choice([Cleared(), None])
        stream.append((draw.randrange(NUM_WORKERS), event))
    return stream


def confused(draw: random.Random, stream: Stream) -> Stream:
    """The stream of engines that give several blocks one name, and several names to one block."""

    def other(name: int) -> int:
        return name if draw.random() < 0.7 else draw.randrange(4)

    confusion: Stream = []
    for worker, event in stream:
        if isinstance(event, Stored | Removed):
            event = event._replace(block_hashes=[other(name) for name in event.block_hashes])
        confusion.append((worker, event))
    return confusion


def follow(index: Index[BlockEvent], worker: int, event: BlockEvent | None) -> None:
    if event is None:
        index.remove_worker(worker)
    else:
        index.apply(worker, event)


def check_agreement(stream: Stream, queries: list[list[int]]) -> None:
    model, indexes = Model(), exact_indexes()
    for worker, event in stream:
        model.apply(worker, event)
        answers = [model.find_matches(query) for query in queries]
        for index in indexes:
            follow(index, worker, event)
            assert [index.find_matches(query).by_worker() for query in queries] == answers
    everything = {chain for chains in model.chains.values() for chain in chains}
    for index in indexes:
        assert index.size == model.size
        for chain in everything:
            overlaps = index.find_matches(list(chain))
            assert overlaps.by_worker() == model.find_matches(list(chain))
            depths = [depth for _, depth in overlaps.classes]
            assert depths == sorted(set(depths))


@settings(max_examples=90, deadline=None)
@given(seeds)
def test_exact_indexes_answer_as_brute_force_does(seed: int) -> None:
    draw = random.Random(seed)
    stream = random_stream(draw)
    check_agreement(stream, [list(random_prompt(draw)) for _ in range(4)])


@settings(max_examples=60, deadline=None)
@given(seeds)
def test_they_agree_on_engines_that_confuse_names(seed: int) -> None:
    draw = random.Random(seed)
    stream = confused(draw, random_stream(draw))
    check_agreement(stream, [list(random_prompt(draw)) for _ in range(4)])


@settings(max_examples=60, deadline=None)
@given(seeds)
def test_a_dump_rebuilds_what_can_be_matched(seed: int) -> None:
    stream = random_stream(random.Random(seed))
    model = Model()
    for worker, event in stream:
        model.apply(worker, event)
    everything = {chain for chains in model.chains.values() for chain in chains}
    for kind in (RadixIndex, CompressedRadixIndex):
        index, copy = kind(), kind()
        for worker, event in stream:
            follow(index, worker, event)
        for worker in range(NUM_WORKERS):
            for told in index.dump(worker):
                copy.apply(worker, told)
        assert copy.counters.unknown_parents == 0
        for chain in everything:
            assert copy.find_matches(chain).by_worker() == index.find_matches(chain).by_worker()


@settings(max_examples=60, deadline=None)
@given(seeds, st.booleans())
def test_an_emptied_index_keeps_nothing(seed: int, by_removal: bool) -> None:
    draw = random.Random(seed)
    stream = random_stream(draw)
    if draw.random() < 0.3:
        stream = confused(draw, stream)
    model, indexes = Model(), exact_indexes()
    for worker, event in stream:
        model.apply(worker, event)
        for index in indexes:
            follow(index, worker, event)
    for worker in range(NUM_WORKERS):
        names = list(model.held.get(worker, {}))
        draw.shuffle(names)
        for index in indexes:
            follow(index, worker, Removed(names) if by_removal else None)
    assert [index.size for index in indexes] == [0] * len(indexes)
    parts: list[Any] = [i.device if isinstance(i, TieredIndex) else i for i in indexes]
    radix, compressed, *positional = parts
    assert isinstance(radix, RadixIndex) and not radix._root.children
    assert isinstance(compressed, CompressedRadixIndex) and not compressed._root.children
    for index in positional:
        assert isinstance(index, PositionalIndex) and not any(index._positions)
        assert not index._with_holes
