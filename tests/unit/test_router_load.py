"""What the router counts as in hand."""

from dataclasses import replace
from math import inf

import pytest
from router_support import BLOCK, request

from dynosim.errors import ConfigError, InvariantError
from dynosim.router.knobs import CostSpec, LoadSpec
from dynosim.router.load import ActiveLoad
from dynosim.router.log.estimates import RecordingEstimator, ReplayEstimator
from dynosim.router.prefill_load import PrefillClock


def make(**settings: object) -> ActiveLoad:
    load = ActiveLoad(BLOCK, CostSpec(), LoadSpec(**settings))  # type: ignore[arg-type]
    load.add_slot(0)
    return load


def test_shared_prompt_blocks_count_once_until_the_last_owner_leaves() -> None:
    load = make()
    load.book(request("a", [1, 2, 3]), 0, 0, 0.0)
    load.book(request("b", [1, 2, 4, 5]), 0, 0, 0.0)
    assert load.blocks(0) == 5
    load.free("a", 1.0)
    assert load.blocks(0) == 4
    load.free("b", 1.0)
    assert (load.blocks(0), load.num_requests[0], load.own_costs().by_cost()) == (0, 0, {0.0: 1})


def test_prefill_counts_without_what_is_cached_and_only_until_the_first_token() -> None:
    load = make()
    load.book(request("a", [1, 2, 3], input_tokens=50), 0, 32, 0.0)
    assert load.prefill_tokens(0, 0.0) == 18
    load.first_token("a", 1.0)
    load.first_token("a", 2.0)
    assert load.prefill_tokens(0, 0.0) == 0


def test_a_request_that_ends_without_a_token_takes_its_prefill_along() -> None:
    load = make()
    load.book(request("a"), 0, 0, 0.0)
    assert load.free("a", 1.0)
    assert load.prefill_tokens(0, 0.0) == 0
    assert not load.free("a", 1.0)


def test_output_blocks_count_when_tracked() -> None:
    load = make(track_output_blocks=True)
    load.book(request("a", [1, 2]), 0, 0, 0.0)
    load.output_tokens("a", 1, 1.0)
    assert load.blocks(0) == 3
    load.output_tokens("a", 16, 1.0)
    assert load.blocks(0) == 3
    load.output_tokens("a", 17, 1.0)
    assert load.blocks(0) == 4
    load.free("a", 2.0)
    assert load.blocks(0) == 0


def test_blocks_count_for_nothing_when_untracked() -> None:
    load = make(track_output_blocks=True, track_active_blocks=False)
    load.book(request("a", [1, 2, 3], input_tokens=50), 0, 32, 0.0)
    load.output_tokens("a", 17, 1.0)
    assert (load.blocks(0), load.prefill_tokens(0, 0.0), load.num_requests[0]) == (0, 18, 1)
    load.free("a", 2.0)
    assert (load.blocks(0), load.own_costs().by_cost()) == (0, {0.0: 1})


@pytest.mark.parametrize(
    ("done", "blocks"),
    # 20 prompt blocks and one for each 16 tokens; what is left of 640 is 3/4, 1/2, 1/4, nothing.
    [(1, 21 * 639 / 640), (160, 30 * 0.75), (320, 40 * 0.5), (480, 50 * 0.25), (640, 0), (900, 0)],
)
def test_own_blocks_count_by_what_is_left_of_the_expected_length(done: int, blocks: float) -> None:
    load = make(track_output_blocks=True)
    load.book(request("a", range(20), expected_output_tokens=640), 0, 0, 0.0)
    load.output_tokens("a", 0, 0.0)
    assert load.blocks(0) == 20
    load.output_tokens("a", done, 1.0)
    assert load.blocks(0) == int(blocks + 0.5)


def test_an_expected_length_of_nothing_is_reached_by_the_first_token() -> None:
    load = make(track_output_blocks=True)
    load.book(request("a", [1], expected_output_tokens=0), 0, 0, 0.0)
    load.output_tokens("a", 1, 1.0)
    assert load.blocks(0) == 0


def test_an_expected_length_lets_own_blocks_fade_and_shared_ones_stay() -> None:
    load = make(track_output_blocks=True)
    load.book(request("a", [1, 2], expected_output_tokens=64), 0, 0, 0.0)
    load.book(request("b", [1, 9]), 0, 0, 0.0)
    load.output_tokens("a", 32, 1.0)
    # Shared block 1, block 9 of b, and at half weight: block 2 and two output blocks.
    assert load._blocks[0] == 2 + 0.5 * 3
    load.book(request("c", [1, 2]), 0, 0, 2.0)
    assert load._blocks[0] == 3 + 0.5 * 2
    for name in "abc":
        load.free(name, 3.0)
    assert load._blocks[0] == 0


def test_half_a_block_rounds_up() -> None:
    load = make(track_output_blocks=True)
    load.book(request("a", [1], expected_output_tokens=64), 0, 0, 0.0)
    for tokens, blocks in ((16, 1.5), (32, 1.5), (48, 1.0)):
        load.output_tokens("a", tokens, 1.0)
        assert load._blocks[0] == blocks
        assert load.blocks(0) == load.active_blocks()[0] == int(blocks + 0.5)


def test_a_rest_of_the_prompt_is_a_block_from_the_first_token_on() -> None:
    load = make(track_output_blocks=True)
    load.book(request("a", [1, 2], input_tokens=2 * BLOCK + 5), 0, 0, 0.0)
    assert load.blocks(0) == 2
    for tokens, blocks in ((1, 3), (11, 3), (12, 4), (27, 4), (28, 5)):
        load.output_tokens("a", tokens, 1.0)
        assert load.blocks(0) == blocks


def test_untracked_output_counts_for_nothing_but_being_heard_of() -> None:
    load = make(stale_after_ms=10.0)
    load.book(request("a", [1, 2], expected_output_tokens=64), 0, 0, 0.0)
    load.output_tokens("a", 48, 5.0)
    assert (load.blocks(0), load.stale(15.0), load.stale(15.1)) == (2, [], ["a"])


def test_blocks_that_no_key_names_are_nobody_elses() -> None:
    load = make()
    for name in "ab":
        load.book(replace(request(name, [1, 2]), num_blocks=5), 0, 0, 0.0)
    assert load.blocks(0) == 2 + 2 * 3
    load.free("a", 1.0)
    assert load.blocks(0) == 5


def test_a_request_cannot_be_placed_twice() -> None:
    load = make()
    load.book(request("a"), 0, 0, 0.0)
    with pytest.raises(InvariantError, match="twice"):
        load.book(request("a"), 0, 0, 0.0)


def test_requests_not_heard_of_are_stale() -> None:
    load = make(stale_after_ms=100.0)
    load.book(request("a", [1]), 0, 0, 0.0)
    load.book(request("b", [2]), 0, 0, 0.0)
    load.first_token("b", 60.0)
    assert load.stale(100.0) == []
    assert load.stale(100.5) == load.stale(160.0) == ["a"]
    assert load.stale(160.5) == ["a", "b"]
    assert LoadSpec().stale_after_ms == 300_000.0 and not LoadSpec().track_output_blocks


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_a_request_cannot_be_stale_at_once(value: float) -> None:
    with pytest.raises(ConfigError, match=f"router.stale_after_ms: must be above 0, got {value}"):
        LoadSpec(stale_after_ms=value)


def test_what_a_slot_costs_any_request_is_its_prefill_its_blocks_and_its_requests() -> None:
    cost = CostSpec(prefill_load_scale=2.0, active_request_weight=0.25)
    load = ActiveLoad(BLOCK, cost, LoadSpec())
    for slot in range(3):
        load.add_slot(slot)
    load.book(request("a", [1, 2, 3], input_tokens=3 * BLOCK + 8), 1, 16, 0.0)
    load.book(request("b", [1]), 1, 0, 0.0)
    assert load.own_costs().by_cost() == {0.0: 0b101, 2 * (2.5 + 1) + 3 + 0.5: 0b010}
    load.first_token("a", 1.0)
    assert load.own_costs().by_cost() == {0.0: 0b101, 2 * 1 + 3 + 0.5: 0b010}
    assert load.remove_slot(1) == ["a", "b"]
    assert load.own_costs().by_cost() == {0.0: 0b101, inf: 0b010}
    load.add_slot(1)
    assert load.own_costs().by_cost() == {0.0: 0b111}


# ---- prefill that shrinks ------------------------------------------------------------------------


def test_a_clocked_prefill_progresses_into_the_next_ones() -> None:
    clock = PrefillClock()
    assert clock.tokens(5.0) == 0
    clock.add("a", 100, 10.0, 0.0)
    clock.add("b", 50, 5.0, 0.0)
    assert [clock.tokens(t) for t in (-5.0, 0.0, 5.0, 10.0, 12.0, 15.0, 99.0)] == [
        150, 150, 100, 50, 30, 0, 0,
    ]  # fmt: skip
    clock.remove("a", 12.0)
    assert [clock.tokens(t) for t in (12.0, 14.5, 17.0)] == [50, 25, 0]


def test_what_is_done_is_rounded_down() -> None:
    clock = PrefillClock()
    clock.add("a", 10, 8.0, 0.0)
    assert [clock.tokens(t) for t in (0.7, 0.8, 1.0, 4.0, 7.9)] == [10, 9, 9, 5, 1]
    clock.add("unknown", 5, None, 1.0)
    assert [clock.tokens(t) - 5 for t in (0.7, 0.8, 1.0, 4.0, 7.9, 8.0, 9.0)] == [
        10, 9, 9, 5, 1, 0, 0,
    ]  # fmt: skip


def test_with_an_unknown_duration_only_the_oldest_progresses() -> None:
    clock = PrefillClock()
    clock.add("a", 100, 10.0, 0.0)
    clock.add("b", 50, None, 0.0)
    assert [clock.tokens(t) for t in (5.0, 20.0)] == [100, 50]
    clock.remove("a", 20.0)
    assert clock.tokens(99.0) == 50


def test_a_prefill_that_takes_no_time_is_done_at_once() -> None:
    clock = PrefillClock()
    clock.add("a", 100, 0.0, 0.0)
    clock.add("b", 50, 10.0, 0.0)
    assert clock.tokens(0.0) == 50


def test_one_that_is_not_the_oldest_leaves_without_a_trace() -> None:
    clock = PrefillClock()
    for name in "abc":
        clock.add(name, 100, 10.0, 0.0)
    clock.remove("b", 5.0)
    assert clock.tokens(5.0) == 150
    clock.remove("a", 8.0)
    assert [clock.tokens(t) for t in (8.0, 13.0)] == [100, 50]


def test_the_clock_starts_when_somebody_comes_to_an_empty_line() -> None:
    clock = PrefillClock()
    clock.add("a", 100, 10.0, 0.0)
    clock.remove("a", 3.0)
    clock.add("b", 100, 10.0, 50.0)
    clock.add("c", 100, 10.0, 52.0)
    assert clock.tokens(55.0) == 150


def test_a_restored_clock_goes_on_as_the_old_one() -> None:
    clock, restored = PrefillClock(), PrefillClock()
    clock.add("gone", 7, 1.0, 0.0)
    clock.add("a", 100, 10.0, 0.0)
    clock.add("b", 50, None, 3.0)
    clock.remove("gone", 2.0)
    restored.restore(clock.snapshot())
    assert restored.snapshot() == clock.snapshot() == (2.0, [("a", 100, 10.0), ("b", 50, None)])
    for one in (clock, restored):
        assert [one.tokens(t) for t in (2.0, 7.0)] == [150, 100]
        one.remove("a", 9.0)
        assert one.tokens(9.0) == 50


class Doubling:
    """Tells prompts apart by their lengths; of long ones it cannot tell."""

    def predict_ms(self, new_tokens: int, cached_tokens: int) -> float | None:
        return None if new_tokens > 99 else 2.0 * new_tokens + 0.5 * cached_tokens


def test_predictions_are_noted_once_in_order_and_told_again_likewise() -> None:
    noted, told = RecordingEstimator(Doubling()), ReplayEstimator()
    asked = [(10, 4), (100, 0), (1, 2)]
    answers = [noted.predict_ms(*prompt) for prompt in asked]
    assert answers == [22.0, None, 3.0]
    assert (noted.take(), noted.take()) == (answers, [])
    told.expect([99.0])  # left over: not asked for
    told.expect(answers)
    assert [told.predict_ms(5, 5) for _ in range(5)] == [22.0, None, 3.0, None, None]


def test_a_booking_asks_for_its_uncached_tokens_behind_its_cached_ones() -> None:
    load = ActiveLoad(BLOCK, CostSpec(), LoadSpec(), estimator=Doubling())
    load.add_slot(0)
    load.add_slot(1)
    load.book(request("a", [1, 2, 3]), 1, 32, 10.0)  # 16 tokens behind 32: 48 ms
    load.book(request("cached", [1, 2]), 1, 32, 11.0)
    assert [load.active_prefill_tokens(t) for t in (10.0, 22.0, 34.0)] == [[0, 16], [0, 12], [0, 8]]
    assert load.prefill_tokens(1, 34.0) == 8
    load.free("a", 34.0)
    assert load.prefill_tokens(1, 34.0) == 0
