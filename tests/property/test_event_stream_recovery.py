"""Whatever happens to messages, a stream ends with what its worker holds."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st
from test_indexers_agree import streams

from dynosim.indexer.base import BlockEvent
from dynosim.indexer.compressed import CompressedRadixIndex
from dynosim.indexer.stream import EventBuffer, EventStream


@settings(max_examples=300, deadline=None)
@given(streams(), st.integers(0, 2**32), st.integers(1, 30))
def test_a_stream_recovers_from_loss_repetition_and_disorder(
    events: list[tuple[int, BlockEvent | None]], seed: int, capacity: int
) -> None:
    rng = random.Random(seed)
    buffer, stream, index = EventBuffer(capacity), EventStream(max_early=5), CompressedRadixIndex()
    truth = CompressedRadixIndex()
    sent: list[tuple[int, BlockEvent]] = []
    for _, event in events:
        if event is None:
            continue
        truth.apply(0, event)
        sent.append((buffer.append(event), event))
        while sent and rng.random() < 0.6:
            message = sent.pop(rng.randrange(len(sent)))
            copies = rng.choice([0, 1, 1, 1, 2])
            for _ in range(copies):
                for ready in stream.receive(*message):
                    index.apply(0, ready)
        if stream.missing is not None and rng.random() < 0.3:
            for ready in stream.resync(buffer.replay(stream.missing)):
                index.apply(0, ready)
    for ready in stream.resync(buffer.replay(stream.next_id)):
        index.apply(0, ready)
    assert stream.missing is None
    assert stream.next_id == buffer.next_id
    assert held_blocks(index) == held_blocks(truth)


def held_blocks(index: CompressedRadixIndex) -> dict[int, tuple[int | None, int]]:
    """What worker 0 holds: block hash -> (block before, local hash)."""
    blocks: dict[int, tuple[int | None, int]] = {}
    for event in index.dump(0):
        before = event.parent
        for name, local in zip(event.block_hashes, event.local_hashes, strict=True):
            blocks[name] = (before, local)
            before = name
    return blocks
