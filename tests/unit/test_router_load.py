"""What the router counts as in hand."""

import pytest
from router_support import BLOCK, request

from dynosim.errors import InvariantError
from dynosim.router.load import ActiveLoad
from dynosim.router.prefill_load import PrefillClock
from dynosim.router.settings import CostSettings, LoadSettings


def make(**settings: object) -> ActiveLoad:
    load = ActiveLoad(BLOCK, CostSettings(), LoadSettings(**settings))  # type: ignore[arg-type]
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
    assert (load.blocks(0), load.num_requests[0], load.own_costs()) == (0, 0, {0.0: 1})


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


def test_an_expected_length_lets_own_blocks_fade_and_shared_ones_stay() -> None:
    load = make(track_output_blocks=True)
    load.book(request("a", [1, 2], expected_output_tokens=64), 0, 0, 0.0)
    load.book(request("b", [1, 9]), 0, 0, 0.0)
    load.output_tokens("a", 32, 1.0)
    # Shared block 1, block 9 of b, and at half weight: block 2 and two output blocks.
    assert load._blocks[0] == pytest.approx(2 + 0.5 * 3)
    load.book(request("c", [1, 2]), 0, 0, 2.0)
    assert load._blocks[0] == pytest.approx(3 + 0.5 * 2)
    for name in "abc":
        load.free(name, 3.0)
    assert load._blocks[0] == 0


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
    assert load.stale(101.0) == ["a"]
    assert load.stale(161.0) == ["a", "b"]


def test_a_clocked_prefill_progresses_into_the_next_ones() -> None:
    clock = PrefillClock()
    clock.add("a", 100, 10.0, 0.0)
    clock.add("b", 50, 5.0, 0.0)
    assert [clock.tokens(t) for t in (0.0, 5.0, 10.0, 12.0, 99.0)] == [150, 100, 50, 30, 0]
    clock.remove("a", 12.0)
    assert [clock.tokens(t) for t in (12.0, 14.5)] == [50, 25]


def test_with_an_unknown_duration_only_the_oldest_progresses() -> None:
    clock = PrefillClock()
    clock.add("a", 100, 10.0, 0.0)
    clock.add("b", 50, None, 0.0)
    assert [clock.tokens(t) for t in (5.0, 20.0)] == [100, 50]
    clock.remove("a", 20.0)
    assert clock.tokens(99.0) == 50
