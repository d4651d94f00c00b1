"""An index that lags is brought up to date where it matters, before anything is decided by it."""

from collections.abc import Callable
from typing import Any

import pytest
from router_support import BLOCK, make_router, request, store

from dynosim.blocks.hashing import local_hashes, sequence_hashes
from dynosim.indexer.answers import members
from dynosim.indexer.base import BlockEvent, Removed
from dynosim.indexer.compressed import CompressedRadixIndex
from dynosim.router.classes import PolicyClass
from dynosim.router.eligibility import Constraints
from dynosim.router.kv_router import KvRouter

PROMPT = [1, 2, 3, 4]


class Late:
    """An index that hears of evictions only when it is asked about their worker."""

    def __init__(self, evicted: dict[int, int]) -> None:
        self.index = CompressedRadixIndex()
        self.evicted = evicted  # worker -> how many of the prompt's last blocks are gone
        self.asked: list[tuple[int, float]] = []
        self.router: KvRouter[BlockEvent]

    def confirm(self, slots: int, now_ms: float) -> bool:
        self.asked.append((slots, now_ms))
        news = [slot for slot in members(slots) if slot in self.evicted]
        for slot in news:
            count = self.evicted.pop(slot)
            self.router.apply_events(slot, 0, [Removed(sequence_hashes(PROMPT)[-count:])])
        return not news


def late_router(evicted: dict[int, int], **settings: Any) -> Late:
    """Three workers that hold four, three and no blocks of the prompt, as far as is known."""
    late = Late(evicted)
    late.router = make_router(3, index=late, **settings)
    store(late.router, 0, PROMPT)
    store(late.router, 1, PROMPT[:3])
    return late


def test_the_favourite_is_asked_until_it_stays_the_favourite() -> None:
    late = late_router({0: 3})  # one block is left
    decision = late.router.submit(request("r", PROMPT), 7.0)
    assert decision is not None
    assert (decision.worker_id, decision.overlap_blocks, decision.cost) == (1, 3, 1 + 4)
    assert late.asked == [(0b001, 7.0), (0b010, 7.0)]


def test_a_favourite_that_lost_too_little_stays_and_is_told_as_it_is_now() -> None:
    late = late_router({0: 1})
    decision = late.router.submit(request("r", PROMPT), 7.0)
    assert decision is not None
    assert (decision.overlap_blocks, decision.cached_tokens, decision.cost) == (3, 48, 1 + 4)
    assert late.asked == [(0b001, 7.0), (0b011, 7.0)]  # then both are the cheapest


def test_nobody_is_asked_twice_where_nothing_changed() -> None:
    late = late_router({})
    late.router.submit(request("r", PROMPT), 7.0)
    assert late.asked == [(0b001, 7.0)]


ONLY = Constraints(allowed_workers=frozenset({0, 2}))
TOKENS = list(range(4 * BLOCK))


@pytest.mark.parametrize(
    ("settings", "ask", "asked"),
    [
        ({"overlap_score_credit": 1.5}, lambda r: r.submit(request("r", PROMPT), 7.0), [0b111]),
        ({"overlap_score_credit": 1.5},
         lambda r: r.submit(request("r", PROMPT, constraints=ONLY), 7.0), [0b101]),
        ({"mode": "round-robin"}, lambda r: r.submit(request("r", PROMPT), 7.0), [0b001]),
        ({"classes": (PolicyClass(prefill_busy_threshold=0),)},
         lambda r: r.submit(request("r", PROMPT, constraints=ONLY), 7.0), [0b101, 0b001]),
        ({}, lambda r: r.get_potential_loads(TOKENS, 7.0), [0b111]),
    ],
)  # fmt: skip
def test_all_that_is_looked_at_is_up_to_date(
    settings: dict[str, Any], ask: Callable[[KvRouter], Any], asked: list[int]
) -> None:
    late = late_router({}, **settings)
    ask(late.router)
    assert late.asked == [(slots, 7.0) for slots in asked]


def test_a_price_is_that_of_the_blocks_that_are_left() -> None:
    late = late_router({0: 3}, overlap_score_credit=1.5)
    decision = late.router.submit(request("r", PROMPT), 7.0)
    assert decision is not None and (decision.worker_id, decision.overlap_blocks) == (1, 3)
    late = late_router({0: 2}, mode="round-robin")
    decision = late.router.submit(request("r", PROMPT), 7.0)
    assert decision is not None and (decision.worker_id, decision.cached_tokens) == (0, 32)


def test_a_class_is_chosen_by_the_blocks_that_are_left() -> None:
    short = PolicyClass("short", max_uncached_tokens=17)  # never waits
    rest = PolicyClass("rest", prefill_busy_threshold=0)
    late = late_router({}, classes=(short, rest))
    pinned = Constraints(pinned_worker=0)
    assert late.router.submit(request("busy", [9], constraints=pinned), 1.0) is not None
    late.evicted[0] = 3
    assert late.router.submit(request("r", PROMPT, constraints=pinned), 2.0) is None


def test_loads_count_the_blocks_that_are_left() -> None:
    local = local_hashes(TOKENS, BLOCK)

    class Evicts:
        index = CompressedRadixIndex()

        def confirm(self, slots: int, now_ms: float) -> bool:
            self.index.apply(0, Removed(sequence_hashes(local)[2:]))
            return False

    router = make_router(1, index=Evicts())
    store(router, 0, local)
    (load,) = router.get_potential_loads(TOKENS, 1.0)
    assert load["potential_prefill_tokens"] == 2 * BLOCK
