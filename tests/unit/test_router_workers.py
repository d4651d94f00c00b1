"""The table of workers: slots, and sets of slots."""

import pytest
from router_support import BLOCK, card

from dynosim.errors import ConfigError
from dynosim.router.workers import Candidate, WorkerCard, WorkerTable, topology_taint


def filled() -> WorkerTable:
    """Worker 5 with two ranks (slots 0, 1), 6 on a CPU (2), 7 in a zone (3)."""
    table = WorkerTable(BLOCK)
    assert table.add(card(5, dp_size=2, dp_start=3, taints=frozenset({"x", "y"}))) == [0, 1]
    assert table.add(card(6, device="cpu", taints=frozenset({"x"}))) == [2]
    assert table.add(card(7, topology={"zone": "a", "rack": "r1"})) == [3]
    return table


def test_every_rank_has_a_slot_and_its_workers_card() -> None:
    table = filled()
    assert table.candidates == [(5, 3), (5, 4), (6, 0), (7, 0)]
    assert [table.slot_of(*who) for who in ((5, 3), (5, 4), (6, 0), (7, 0))] == [0, 1, 2, 3]
    assert [table.slot_of(*who) for who in ((5, 0), (5, 5), (6, 1), (8, 0))] == [None] * 4
    assert table.slot_of(7) == 3
    assert [table.card(slot).worker_id for slot in range(4)] == [5, 5, 6, 7]
    assert table.candidate(1) == Candidate(5, 4)
    assert Candidate(9) == (9, 0)


def test_sets_of_slots() -> None:
    table = filled()
    assert (table.all_mask, table.cpu_mask) == (0b1111, 0b0100)
    assert [table.mask_of_worker(worker_id) for worker_id in (5, 6, 7, 8)] == [3, 4, 8, 0]
    taints = ("x", "y", "z", "dynamo.topology/zone=a", topology_taint("rack", "r1"))
    assert [table.mask_with_taint(taint) for taint in taints] == [0b0111, 0b0011, 0, 8, 8]
    assert table.mask_with_taint(topology_taint("zone", "b")) == 0


def test_a_worker_that_leaves_is_in_no_set_and_its_slots_are_taken_again_lowest_first() -> None:
    table = filled()
    assert table.remove(9) == []
    assert table.remove(5) == [0, 1]
    assert (table.all_mask, table.cpu_mask) == (0b1100, 0b0100)
    assert (table.mask_with_taint("x"), table.mask_with_taint("y")) == (0b0100, 0)
    assert (table.mask_of_worker(5), table.slot_of(5, 3)) == (0, None)
    assert table.candidates == [None, None, (6, 0), (7, 0)]
    assert set(table.cards) == {6, 7}
    assert table.remove(6) == [2]
    assert (table.all_mask, table.cpu_mask) == (0b1000, 0)
    assert table.add(card(8, dp_size=4)) == [0, 1, 2, 4]
    assert table.all_mask == 0b11111 and table.mask_of_worker(8) == 0b10111


def test_a_worker_that_joins_again_is_what_its_new_card_says() -> None:
    table = filled()
    assert table.add(card(5, device="cpu", taints=frozenset({"z"}))) == [0]
    assert table.candidates == [(5, 0), None, (6, 0), (7, 0)]
    assert (table.mask_with_taint("y"), table.mask_with_taint("z")) == (0, 1)
    assert table.cpu_mask == 0b0101 and table.all_mask == 0b1101


def test_a_card_that_does_not_fit_changes_nothing() -> None:
    table = filled()
    for bad, message in (
        (WorkerCard(5, 2 * BLOCK), "worker 5: KV block size 32 differs from the router's 16"),
        (card(5, dp_size=0), "worker 5: dp_size must be at least 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            table.add(bad)
        assert table.candidates == filled().candidates and table.cards == filled().cards
        assert table.all_mask == 0b1111


def test_a_restored_table_is_what_the_old_one_was() -> None:
    table, restored = filled(), WorkerTable(BLOCK)
    table.remove(6)
    assert restored.restore(table.cards.values(), table.candidates) == [0, 1, 3]
    assert restored.cards == table.cards and restored.candidates == table.candidates
    for one in (table, restored):
        one.add(card(9, dp_size=2, taints=frozenset({"y"})))
    assert restored.candidates == table.candidates
    assert (restored.all_mask, restored.cpu_mask) == (table.all_mask, table.cpu_mask) == (31, 0)
    for taint in ("x", "y", "dynamo.topology/zone=a"):
        assert restored.mask_with_taint(taint) == table.mask_with_taint(taint) > 0
    assert [restored.slot_of(9, rank) for rank in range(3)] == [2, 4, None]
    assert restored.mask_of_worker(9) == 0b10100


def test_a_plain_card_is_one_gpu_rank_that_does_not_tell_its_sizes() -> None:
    made = WorkerCard(1, BLOCK)
    assert (made.dp_size, made.dp_start, made.device) == (1, 0, "gpu")
    assert (made.total_kv_blocks, made.max_num_batched_tokens) == (None, None)
    assert made.all_taints == frozenset()
