"""Guesses at caches: when blocks are learnt and forgotten, against plain models."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_caches import BoundedGuesses, TimedGuesses

from dynosim.blocks.hashing import sequence_hashes
from dynosim.errors import ConfigError
from dynosim.indexer.answers import Overlaps
from dynosim.indexer.approximate import (
    DEFAULT_TTL_MS,
    ApproximateIndex,
    PredictedIndex,
    merge_overlaps,
)
from dynosim.indexer.base import Removed, RoutingFollower, Stored
from dynosim.indexer.radix import RadixIndex

PROMPTS = [[1, 2, 3, 4], [1, 2, 7], [5], [5, 1, 2, 3], [1, 2, 3, 4, 8, 9], []]
seeds = st.integers(0, 2**32 - 1)


def check_answers(index: ApproximateIndex, held: set[tuple[int, tuple[int, ...]]]) -> None:
    assert index.size == len(held)
    for prompt in PROMPTS:
        depths = {}
        for worker in range(3):
            depth = 0
            while depth < len(prompt) and (worker, tuple(prompt[: depth + 1])) in held:
                depth += 1
            if depth:
                depths[worker] = depth
        assert index.find_matches(prompt).by_worker() == depths


@settings(max_examples=100, deadline=None)
@given(seeds)
def test_timed_guesses_follow_the_model(seed: int) -> None:
    draw = random.Random(seed)
    index, model = ApproximateIndex(ttl_ms=100.0), TimedGuesses(100.0)
    now_ms = 0.0
    for number in range(draw.randint(1, 25)):
        now_ms += draw.choice([0.0, 10.0, 50.0, 100.0])
        worker, prompt = draw.randrange(3), draw.choice(PROMPTS)
        if draw.random() < 0.1:
            index.remove_worker(worker)
            model.leave(worker)
        index.expire(now_ms)
        index.note_routed(worker, number, prompt, now_ms)
        model.route(worker, number, tuple(prompt), now_ms)
        index.note_end(number, now_ms)
        check_answers(index, model.held(now_ms))
    index.expire(now_ms + 100.0)
    assert (index.size, index._holders) == (0, {})


@settings(max_examples=100, deadline=None)
@given(seeds, st.integers(1, 9))
def test_bounded_guesses_follow_the_model(seed: int, capacity_blocks: int) -> None:
    draw = random.Random(seed)
    model = BoundedGuesses(capacity_blocks)
    index = ApproximateIndex(capacity_blocks=capacity_blocks)
    for _ in range(draw.randint(1, 30)):
        worker, request, kind = draw.randrange(3), draw.randrange(5), draw.random()
        if kind < 0.5:
            prompt = draw.choice(PROMPTS)
            index.note_routed(worker, request, prompt, 0.0)
            model.route(worker, request, tuple(prompt), 0.0)
        elif kind < 0.93:
            index.note_end(request, 0.0)
            model.end(request)
        else:
            index.remove_worker(worker)
            model.leave(worker)
        check_answers(index, model.held())
    for worker in range(3):
        index.remove_worker(worker)
    assert (index.size, index._holders) == (0, {})


def test_a_guess_lives_two_minutes_unless_told_otherwise() -> None:
    assert DEFAULT_TTL_MS == 120_000.0
    index = ApproximateIndex()
    index.note_routed(0, "a", [1], 5.0)
    index.expire(120_004.0)
    assert index.find_matches([1]).by_worker() == {0: 1}
    index.expire(120_005.0)
    assert index.find_matches([1]).by_worker() == {}


def test_pruning_spares_what_was_refreshed() -> None:
    index = ApproximateIndex(ttl_ms=1000.0, max_blocks=10)
    index.note_routed(0, "old", [1, 2, 3, 4], 0.0)
    index.note_routed(0, "middle", [5, 6, 7, 8], 1.0)
    index.note_routed(0, "old again", [1, 2, 3, 4], 2.0)
    index.note_routed(0, "new", [9, 10, 11], 3.0)  # 11 blocks: the three deepest of middle's go
    assert index.size == 8
    assert index.find_matches([5, 6, 7, 8]).by_worker() == {0: 1}
    assert index.find_matches([1, 2, 3, 4]).by_worker() == {0: 4}


def test_blocks_of_requests_in_hand_stay_beyond_the_capacity() -> None:
    index = ApproximateIndex(capacity_blocks=3)
    index.note_routed(0, "a", [1, 2, 3], 0.0)
    index.note_routed(0, "b", [1, 2, 4, 5], 0.0)
    assert index.size == 5
    index.note_end("a", 1.0)  # only the third is idle now, and beyond the capacity
    assert index.find_matches([1, 2, 3]).by_worker() == {0: 2}
    assert index.find_matches([1, 2, 4, 5]).by_worker() == {0: 4}
    index.note_end("b", 2.0)
    assert index.find_matches([1, 2, 4, 5]).by_worker() == {0: 3}


def test_the_capacity_holds_for_each_worker() -> None:
    index = ApproximateIndex(capacity_blocks=2)
    for worker in range(3):
        index.note_routed(worker, worker, [1, 2], 0.0)
        index.note_end(worker, 0.0)
    assert index.size == 6


def test_a_request_that_outlives_its_worker_does_not_touch_the_next_one_in_the_slot() -> None:
    index = ApproximateIndex(capacity_blocks=4)
    index.note_routed(0, "old", [1, 2], 0.0)
    index.remove_worker(0)
    index.note_routed(0, "new", [1, 2, 3, 4], 1.0)
    index.note_end("old", 2.0)
    index.note_routed(0, "other", [8, 9], 3.0)
    assert index.find_matches([1, 2, 3, 4]).by_worker() == {0: 4}  # still in hand


def test_a_hot_prompt_costs_no_memory_per_request() -> None:
    for index in (ApproximateIndex(), ApproximateIndex(capacity_blocks=100)):
        for number in range(50):
            index.note_routed(0, number, [1, 2, 3], 0.0)
            index.note_end(number, 0.0)
        assert index.size == 3
        assert index.counters.stored_blocks == 3
        assert index.counters.duplicate_blocks == 147


@pytest.mark.parametrize(
    ("key", "limit"), [("ttl_ms", 0.0), ("ttl_ms", -1.0), ("max_blocks", 0), ("capacity_blocks", 0)]
)
def test_a_limit_must_be_above_zero(key: str, limit: float) -> None:
    with pytest.raises(ConfigError, match=key):
        ApproximateIndex(**{key: limit})  # type: ignore[arg-type]


# ---- beside events -----------------------------------------------------------------------------


def test_a_prediction_keeps_the_siblings_of_a_burst_together_until_events_take_over() -> None:
    index = PredictedIndex(RadixIndex(), ApproximateIndex(ttl_ms=50.0))
    assert isinstance(index, RoutingFollower)
    names = sequence_hashes([1, 2, 3])
    index.note_routed(4, "a", [1, 2, 3], 0.0)
    assert index.find_matches([1, 2, 3]).by_worker() == {4: 3}  # no event yet
    assert index.size == 0
    index.apply(4, Stored(None, names, [1, 2, 3]))
    index.expire(50.0)
    assert index.find_matches([1, 2, 3]).by_worker() == {4: 3}
    index.apply(4, Removed(names[2:]))
    assert index.find_matches([1, 2, 3]).by_worker() == {4: 2}
    assert (index.counters.stored_blocks, index.counters.removed_blocks) == (3, 1)


def test_a_worker_that_leaves_is_forgotten_on_both_sides() -> None:
    index = PredictedIndex(RadixIndex(), ApproximateIndex(ttl_ms=50.0))
    index.apply(0, Stored(None, [11], [1]))
    index.note_routed(0, "a", [1, 2], 0.0)
    index.remove_worker(0)
    assert index.find_matches([1, 2]).classes == []


@settings(max_examples=100, deadline=None)
@given(*[st.dictionaries(st.integers(0, 70), st.integers(1, 6), max_size=8)] * 2)
def test_merged_overlaps_are_the_maximum_by_worker(
    one: dict[int, int], other: dict[int, int]
) -> None:
    def overlaps(depths: dict[int, int]) -> Overlaps:
        classes = sorted(set(depths.values()))
        return Overlaps([(sum(1 << w for w in depths if depths[w] == d), d) for d in classes])

    wanted = {w: max(one.get(w, 0), other.get(w, 0)) for w in one.keys() | other.keys()}
    merged = merge_overlaps(overlaps(one), overlaps(other))
    assert merged.classes == overlaps(wanted).classes
