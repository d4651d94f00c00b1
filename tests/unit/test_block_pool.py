"""Rules of the block pool: order of eviction, references, copies."""

from dynosim.blocks.kv_event import KvEvent
from dynosim.engine.block_pool import BlockPool, Extent


def fill(pool: BlockPool, content: int) -> Extent:
    """Allocate and cache all blocks of an extent, as one request would."""
    blocks = pool.extent_blocks[content]
    pool.allocate(blocks)
    extent = pool.open_extent(content)
    extent.num_cached = blocks
    return extent


def test_blank_blocks_are_used_before_cached_content_is_evicted() -> None:
    pool = BlockPool(6, [2, 2])
    pool.release([fill(pool, 0)])
    pool.allocate(4)
    assert pool.resident_blocks == {0: 2}
    assert pool.free_blocks == 2


def test_eviction_takes_the_oldest_extent_and_its_last_blocks_first() -> None:
    pool = BlockPool(6, [3, 3])
    first, second = fill(pool, 0), fill(pool, 1)
    pool.release([first])
    pool.release([second])
    pool.allocate(2)
    assert pool.resident_blocks == {0: 1, 1: 3}
    pool.allocate(2)
    assert pool.resident_blocks == {1: 2}


def test_a_path_is_freed_deepest_first() -> None:
    pool = BlockPool(4, [2, 2])
    pool.release([fill(pool, 0), fill(pool, 1)])
    pool.allocate(2)
    assert pool.resident_blocks == {0: 2}


def test_a_hit_refreshes_and_protects_content() -> None:
    pool = BlockPool(4, [2, 2])
    for content in (0, 1):
        pool.release([fill(pool, content)])
    hits, num_blocks, idle_blocks = pool.lookup([0], 8)
    assert (num_blocks, idle_blocks) == (2, 2)
    pool.reference(hits)
    pool.allocate(2)
    assert pool.resident_blocks == {0: 2}
    pool.release(hits)
    assert pool.free_blocks == 2


def test_lookup_stops_at_the_first_missing_or_partial_extent() -> None:
    pool = BlockPool(8, [2, 3, 2])
    pool.release([fill(pool, 0)])
    partial = pool.open_extent(1)
    partial.num_cached = 1
    assert pool.lookup([0, 1, 2], 8)[1] == 3
    assert pool.lookup([0, 2], 8)[1] == 2
    assert pool.lookup([0, 1], 2)[1] == 2


def test_a_younger_copy_takes_over_when_the_older_one_is_evicted() -> None:
    pool = BlockPool(2, [1])
    older, younger = fill(pool, 0), fill(pool, 0)
    pool.release([older])
    pool.allocate(1)
    assert pool.lookup([0], 8)[0] == [younger]
    pool.release([younger])
    pool.allocate(1)
    assert pool.resident_blocks == {}


def test_events_tell_what_was_evicted() -> None:
    pool = BlockPool(3, [3], publish_events=True)
    pool.release([fill(pool, 0)])
    pool.allocate(2)
    assert pool.events is not None
    assert pool.events == [KvEvent(False, 0, first_block=1, num_blocks=2, parent=None)]


def test_events_about_private_blocks_can_be_left_out() -> None:
    pool = BlockPool(1, [1], publish_events=True, announced=[True])
    pool.allocate(1)
    private = Extent(-1)
    private.num_cached = 1
    pool.release_private(private)
    pool.allocate(1)
    assert pool.idle_blocks == 0
    assert pool.events == []


def test_extents_used_again_and_again_do_not_make_the_queue_grow() -> None:
    pool = BlockPool(10, [2, 2])
    held = [fill(pool, 0), fill(pool, 1)]
    pool.release(held)
    for _ in range(1000):
        pool.reference([held[0]])
        pool.release([held[0]])
    assert len(pool._idle) < 200
    pool.allocate(8)  # extent 1 has been idle for longer
    assert pool.resident_blocks == {0: 2}
    pool.allocate(2)
    assert (pool.resident_blocks, pool.free_blocks) == ({}, 0)
