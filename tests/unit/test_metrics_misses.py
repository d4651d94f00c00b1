"""In words which bound is missed, by whom; and when a measurement is too short."""

import pytest

from dynosim.metrics.carried import NOT_SERVED
from dynosim.metrics.misses import misses_text
from dynosim.metrics.sample_size import requests_wanted, sample_warning


@pytest.mark.parametrize(
    ("misses", "words"),
    [
        ({"ttft_ms": 150, "tpot_ms": 20}, "15 % miss TTFT (median prompt 31,000 tokens)"),
        ({"tpot_ms": 1000}, "100 % miss time per token (median prompt 31,000 tokens)"),
        ({"e2e_ms": 52}, "5.2 % miss end to end (median prompt 31,000 tokens)"),
        ({NOT_SERVED: 300}, "30 % are not served (median prompt 31,000 tokens)"),
        ({}, ""),
    ],
)
def test_the_bound_that_most_miss_is_named(misses: dict[str, int], words: str) -> None:
    tokens = dict.fromkeys(misses, 31_000.0)
    assert misses_text({"misses": misses, "num_judged": 1000, "miss_tokens": tokens}) == words


def test_a_closed_loop_wants_forty_requests_for_each_slot() -> None:
    assert requests_wanted(56, is_closed=True) == 2240
    assert sample_warning(2240, 56, is_closed=True) == ""
    assert sample_warning(800, 56, is_closed=True) == (
        "800 requests are 14.3 for each of 56 in flight; 40 each (2,240) would be enough"
    )


def test_a_schedule_wants_twenty_times_a_request() -> None:
    assert requests_wanted(30.5, is_closed=False) == 610
    assert sample_warning(610, 30.5, is_closed=False) == ""
    assert "20 each (610)" in sample_warning(609, 30.5, is_closed=False)
