"""All exact indexes give the answers of a brute-force model, whatever events come."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynosim.hashing import sequence_hashes
from dynosim.indexer.base import BlockEvent, Cleared, Indexer, Removed, Stored
from dynosim.indexer.compressed import CompressedRadixIndex
from dynosim.indexer.make import make_indexer
from dynosim.indexer.positional import PositionalIndex

EXACT = ("radix", "compressed", "positional", "positional-binary", "positional-short")
NUM_WORKERS = 3
Chain = tuple[int, ...]


def make(kind: str) -> Indexer:
    return PositionalIndex(stride=2) if kind == "positional-short" else make_indexer(kind)


def name_of(chain: Chain) -> int:
    """An engine's name of a block: unlike any of ours."""
    return sequence_hashes(chain)[-1] ^ 0x5555


@dataclass
class Model:
    """Per worker the chains (prefixes, the block last) that it holds."""

    held: dict[int, set[Chain]] = field(default_factory=dict)

    def apply(self, worker: int, event: BlockEvent) -> None:
        held = self.held.setdefault(worker, set())
        names = {name_of(chain): chain for chain in held}
        if isinstance(event, Cleared):
            held.clear()
        elif isinstance(event, Removed):
            held -= {names[block] for block in event.block_hashes if block in names}
        elif event.parent is None or event.parent in names:
            prefix: Chain = () if event.parent is None else names[event.parent]
            for local in event.local_hashes:
                prefix = (*prefix, local)
                held.add(prefix)

    def find_matches(self, blocks: list[int]) -> dict[int, int]:
        depths = {}
        for worker, held in self.held.items():
            depth = 0
            while depth < len(blocks) and tuple(blocks[: depth + 1]) in held:
                depth += 1
            if depth:
                depths[worker] = depth
        return depths

    @property
    def size(self) -> int:
        return sum(len(held) for held in self.held.values())


locals_ = st.integers(1, 3)  # so few that equal chunks stand at many places
prompts = st.lists(locals_, min_size=1, max_size=9)


@st.composite
def streams(draw: st.DrawFn) -> list[tuple[int, BlockEvent | None]]:
    """Events as engines send them, and as they should not: (worker, event or None: it left)."""
    known: list[Chain] = []
    events: list[tuple[int, BlockEvent | None]] = []
    for _ in range(draw(st.integers(1, 25))):
        worker = draw(st.integers(0, NUM_WORKERS - 1))
        kind = draw(st.sampled_from(["store", "store", "store", "remove", "remove", "rare"]))
        if kind == "store":
            prompt = tuple(draw(prompts))
            if known and draw(st.booleans()):
                prompt = (*draw(st.sampled_from(known)), *prompt)
            first = draw(st.integers(0, len(prompt) - 1))  # its parent may be unknown
            chains = [prompt[: i + 1] for i in range(first, len(prompt))]
            known += chains
            parent = name_of(prompt[:first]) if first else None
            events.append((worker, Stored(parent, [name_of(c) for c in chains], prompt[first:])))
        elif kind == "remove" and known:
            gone = draw(st.lists(st.sampled_from(known), min_size=1, max_size=4))
            events.append((worker, Removed([name_of(chain) for chain in gone])))
        elif kind == "rare":
            events.append((worker, draw(st.sampled_from([Cleared(), None, Cleared()]))))
    return events


@pytest.mark.parametrize("kind", EXACT)
@settings(max_examples=200, deadline=None)
@given(streams(), st.lists(prompts, min_size=1, max_size=6))
def test_an_exact_index_answers_as_brute_force_does(
    kind: str, events: list[tuple[int, BlockEvent | None]], queries: list[list[int]]
) -> None:
    index, model = make(kind), Model()
    for worker, event in events:
        if event is None:
            index.remove_worker(worker)
            model.held.pop(worker, None)
        else:
            index.apply(worker, event)
            model.apply(worker, event)
        for query in queries:
            assert index.find_matches(query).by_worker() == model.find_matches(query)
    assert index.size == model.size
    for held in model.held.values():
        for chain in held:
            blocks = list(chain)
            assert index.find_matches(blocks).by_worker() == model.find_matches(blocks)


@settings(max_examples=200, deadline=None)
@given(streams())
def test_a_dump_rebuilds_what_can_be_matched(
    events: list[tuple[int, BlockEvent | None]],
) -> None:
    index, copy = CompressedRadixIndex(), CompressedRadixIndex()
    chains: set[Chain] = set()
    for worker, event in events:
        if event is not None:
            index.apply(worker, event)
    model = Model()
    for worker, event in events:
        if event is not None:
            model.apply(worker, event)
    for worker in range(NUM_WORKERS):
        for event in index.dump(worker):
            copy.apply(worker, event)
        chains |= model.held.get(worker, set())
    assert copy.counters.unknown_parents == 0
    for chain in chains:
        blocks = list(chain)
        assert copy.find_matches(blocks).by_worker() == index.find_matches(blocks).by_worker()


@settings(max_examples=100, deadline=None)
@given(streams())
def test_an_emptied_compressed_index_keeps_no_node(
    events: list[tuple[int, BlockEvent | None]],
) -> None:
    index = CompressedRadixIndex()
    for worker, event in events:
        if event is not None:
            index.apply(worker, event)
    for worker in range(NUM_WORKERS):
        index.remove_worker(worker)
    assert index.size == 0
    assert not index._root.children
