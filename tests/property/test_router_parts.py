"""The parts of the router that stand alone, each against its definition."""

import random
from math import inf
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_load import NaiveLoad
from naive_queue import NaiveQueue
from router_inputs import PowersOfTwo, random_classes, random_cost
from router_support import BLOCK

from dynosim.indexer.answers import members
from dynosim.router.cheapest import LEVELS_IN_VAIN, cheapest, group_by_savings
from dynosim.router.classes import PolicyClass
from dynosim.router.knobs import LoadSpec
from dynosim.router.levels import CostLevels
from dynosim.router.load import ActiveLoad
from dynosim.router.queue import PendingQueue, QueuedRequest
from dynosim.router.refusals import QueueFullError
from dynosim.router.request import RoutingRequest
from dynosim.router.slots import nth_slot
from dynosim.workers.ids import Slot

SEEDS = st.integers(0, 2**32 - 1)
SLOTS = st.integers(1, 2**80 - 1)


@settings(max_examples=40, deadline=None)
@given(st.lists(SLOTS | st.integers(1, 2**17), max_size=8))
def test_every_member_of_a_set_of_slots_is_found_by_its_number(sets: list[int]) -> None:
    for slots in [*sets, 1, 255, 256, 65_535, 65_536, 1 << 79]:
        listed = [i for i in range(slots.bit_length()) if slots >> i & 1]
        assert [nth_slot(slots, number) for number in range(len(listed))] == listed


def disjoint(rng: random.Random, num_slots: int) -> list[tuple[int, int]]:
    """(slots, blocks) of disjoint sets, as an index or an account of load tells them."""
    blocks = [rng.randint(0, 4) for _ in range(num_slots)]
    groups = {depth: sum(1 << i for i, b in enumerate(blocks) if b == depth) for depth in blocks}
    return [(slots, depth) for depth, slots in sorted(groups.items()) if depth]


@settings(max_examples=90, deadline=None)
@given(SEEDS, st.integers(1, 12) | st.integers(60, 300))
def test_the_cheapest_slots_are_those_of_the_lowest_own_cost_less_savings(
    seed: int, num_slots: int
) -> None:
    rng = random.Random(seed)
    overlaps, active = disjoint(rng, num_slots), disjoint(rng, num_slots)
    eligible = rng.randint(1, 2**num_slots - 1)
    block_price = rng.choice([0.0, 0.5, 1.0, 4.0])
    highest = rng.choice([0, 6, 6, 1000])
    own = [float(rng.randint(0, highest)) for _ in range(num_slots)]
    levels = CostLevels()
    for slot in range(num_slots):
        levels.add()
        levels.change(Slot(slot), own[slot])

    def saved(slot: int, groups: list[tuple[int, int]]) -> int:
        return next((blocks for slots, blocks in groups if slots >> slot & 1), 0)

    prices = {
        slot: own[slot] - block_price * saved(slot, overlaps) - saved(slot, active)
        for slot in members(eligible)
    }
    groups = group_by_savings(eligible, overlaps, active, block_price)
    assert sum(slots for _, slots in groups) == eligible
    best, lowest = cheapest(groups, levels)
    assert lowest == min(prices.values())
    assert list(members(best)) == [slot for slot, price in prices.items() if price == lowest]


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.integers(1, 70))
def test_levels_are_the_slots_by_their_latest_costs(seed: int, num_slots: int) -> None:
    rng = random.Random(seed)
    levels, costs = CostLevels(), [inf] * num_slots
    for _ in range(num_slots):
        levels.add()
    for _ in range(100):
        slot = rng.randrange(num_slots)
        costs[slot] = rng.choice([inf, 0.0, 0.25, float(rng.randint(1, 20))])
        levels.change(Slot(slot), costs[slot])
        by_cost = {
            cost: sum(1 << i for i, c in enumerate(costs) if c == cost)
            for cost in sorted(set(costs))
        }
        assert list(levels.by_cost().items()) == list(by_cost.items())
        some = rng.randint(1, 2**num_slots - 1)
        lowest = min(costs[i] for i in members(some))
        assert levels.lowest_of(some) == (lowest, by_cost[lowest] & some)


class Counted(list[int]):
    """A list that counts how often it is looked at."""

    looks = 0

    def __getitem__(self, place: Any) -> Any:
        self.looks += 1
        return super().__getitem__(place)


@pytest.mark.parametrize("num_slots", [10, 100, 1000])
def test_a_choice_looks_at_no_more_levels_than_there_are_workers_with_overlap(
    num_slots: int,
) -> None:
    """The dearest few hold the prompt: the levels between them and the cheapest do not matter."""
    levels = CostLevels()
    for slot in range(num_slots):
        levels.add()
        levels.change(Slot(slot), float(slot))
    levels.holders = looked_at = Counted(levels.holders)
    dearest = 0b111 << num_slots - 3
    everybody = (1 << num_slots) - 1
    for overlap in (1, num_slots // 2, 2 * num_slots):
        groups = group_by_savings(everybody, [(dearest, overlap)], [], 1.0)
        price, slot = min((i - overlap * (i >= num_slots - 3), i) for i in range(num_slots))
        assert cheapest(groups, levels) == (1 << slot, price)
    assert looked_at.looks <= 3 * (LEVELS_IN_VAIN + 1)


# ---- the account of what is in flight ------------------------------------------------------------

SIZES = [1, 3, 2, 1, 4]
PATHS = [(), (0,), (0, 1), (0, 1, 2), (0, 3), (4,), (4, 2)]  # of a prefix tree


def random_request(rng: random.Random, name: int, sizes: list[int] | None) -> RoutingRequest:
    """A prompt of shared blocks, blocks of its own and a rest; some bring other weights."""
    keys = rng.choice(PATHS)
    named = len(keys) if sizes is None else sum(sizes[key] for key in keys)
    num_blocks = named + rng.choice([0, 0, 1, 3])
    return RoutingRequest(
        name,
        BLOCK * num_blocks + rng.choice([1, 8, 15]),
        num_blocks,
        keys,
        keys,
        expected_output_tokens=rng.choice([None, 64, 16, 0]),
        overrides=random_cost(rng, is_plain=False) if rng.random() < 0.2 else None,
    )


@settings(max_examples=70, deadline=None)
@given(SEEDS, st.booleans(), st.booleans())
def test_the_account_is_the_sum_over_what_is_in_hand(
    seed: int, has_sizes: bool, has_estimator: bool
) -> None:
    rng = random.Random(seed)
    sizes = SIZES if has_sizes else None
    cost, rules = (
        random_cost(rng, is_plain=False),
        LoadSpec(rng.random() < 0.8, rng.random() < 0.8, 8.0),
    )
    estimator = PowersOfTwo() if has_estimator else None
    load = ActiveLoad(BLOCK, cost, rules, key_blocks=sizes, estimator=estimator)
    naive = NaiveLoad(BLOCK, cost, rules, key_blocks=sizes, estimator=estimator)
    num_slots, now_ms = 2, 0.0
    for slot in range(num_slots):
        load.add_slot(slot)
    for number in range(50):
        now_ms += rng.choice([0.0, 0.5, 2.0])
        name = rng.randrange(number + 1)
        kind = rng.random()
        for account in (load, naive):
            if kind < 0.4:
                made = random_request(random.Random(f"{seed}/{number}"), number, sizes)
                account.book(made, number % num_slots, 16 * (number % 3), now_ms)
            elif kind < 0.55:
                account.first_token(name, now_ms)
            elif kind < 0.75:
                account.output_tokens(name, rng_tokens(number), now_ms)
            elif kind < 0.97:
                account.free(name, now_ms)
        if kind >= 0.97:
            assert load.remove_slot(1) == naive.remove_slot(1)
            load.add_slot(1)
        check_account(load, naive, num_slots, now_ms)


def rng_tokens(number: int) -> int:
    """Output lengths at and beside the ends of blocks, and quarters of what was expected."""
    return (0, 1, 4, 8, 15, 16, 17, 32, 48, 64, 80)[number % 11]


def check_account(load: ActiveLoad, naive: NaiveLoad, num_slots: int, now_ms: float) -> None:
    slots = range(num_slots)
    tokens = [naive.prefill_tokens(slot, now_ms) for slot in slots]
    blocks = [naive.blocks(slot) for slot in slots]
    assert load.active_prefill_tokens(now_ms) == tokens
    assert [load.prefill_tokens(slot, now_ms) for slot in slots] == tokens
    assert load.active_blocks() == blocks == [load.blocks(slot) for slot in slots]
    assert load.num_requests == [naive.num_requests(slot) for slot in slots]
    assert load.stale(now_ms) == naive.stale(now_ms)
    assert load.decays == (naive.estimator is not None)
    for path in PATHS:
        found = {
            slot: size for mask, size in load.active.shared_prefix(path) for slot in members(mask)
        }
        depths = {slot: naive.active_prefix(slot, path) for slot in slots}
        assert found == {slot: depth for slot, depth in depths.items() if depth}
    if not load.decays:
        check_own_costs(load, naive, num_slots)


def check_own_costs(load: ActiveLoad, naive: NaiveLoad, num_slots: int) -> None:
    """What a slot costs any request: its prefill if that counts, its blocks and its requests."""
    cost, levels = naive.cost, load.own_costs()
    scale = cost.prefill_load_scale if cost.track_prefill_tokens else 0.0
    for slot in range(num_slots):
        own = scale * (naive.prefill_tokens(slot, 0.0) / BLOCK)
        own += naive.blocks(slot) + cost.active_request_weight * naive.num_requests(slot)
        assert [level for level, slots in levels.by_cost().items() if slots >> slot & 1] == [own]
    assert all(levels.holders)


# ---- the queue -----------------------------------------------------------------------------------


def random_entry(rng: random.Random, name: int, now_ms: float) -> QueuedRequest:
    tokens = rng.choice([1, 8, 16, 40, 64, 100])
    cached_tokens = rng.choice([0, 0, 8, 16, tokens])
    made = RoutingRequest(
        name,
        tokens,
        0,
        priority_jump=rng.choice([0.0, 0.0, 0.0005, 0.002, -5.0]),
        strict_priority=rng.choice([0, 0, 0, 1, 2]),
    )
    return QueuedRequest(made, cached_tokens, now_ms, rng.choice([None, None, 0, 1]))


def pushed(queue: PendingQueue | NaiveQueue, name: str, entry: QueuedRequest, workers: int) -> bool:
    try:
        queue.push(name, entry, workers)
    except QueueFullError:
        return False
    return True


@settings(max_examples=90, deadline=None)
@given(SEEDS)
def test_requests_leave_the_queue_as_turns_and_urgency_say(seed: int) -> None:
    rng = random.Random(seed)
    classes = random_classes(rng)
    queue, naive = PendingQueue(classes), NaiveQueue(classes)
    now_ms = 0.0
    for number in range(60):
        now_ms += rng.choice([0.0, 0.5, 1.0])
        kind = rng.random()
        if kind < 0.5:
            name, entry = rng.choice(classes).name, random_entry(rng, number, now_ms)
            workers = rng.randint(1, 3)
            assert pushed(queue, name, entry, workers) == pushed(naive, name, entry, workers)
        elif kind < 0.6:
            gone = rng.randrange(number + 1)
            assert queue.discard(gone) == naive.discard(gone)
        elif kind < 0.65:
            restored = PendingQueue(classes)
            restored.restore(queue.snapshot())
            queue = restored
        else:
            stuck = rng.choice([None, 0, 1, 2]), rng.choice([*classes, None, None])

            def can_go(
                rules: PolicyClass, entry: QueuedRequest, stuck: tuple[object, object] = stuck
            ) -> bool:
                return entry.pinned_slot != stuck[0] and rules is not stuck[1]

            assert queue.pop(can_go) is naive.pop(can_go)
        assert len(queue) == len(naive)
        assert [queue.depth(c.name) for c in classes] == [naive.depth(c.name) for c in classes]
        asked = rng.randrange(60)
        assert (asked in queue) == (asked in naive)
