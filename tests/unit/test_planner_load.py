"""One more, one fewer or none: every threshold below, at and above, and the rules of targets."""

import pytest
from planner_support import card, linear, report

from dynosim.planner.engine_model import EngineModel, RequestMix
from dynosim.planner.load import (
    EASY,
    LoadThresholds,
    Vote,
    both,
    by_itl,
    by_thresholds,
    by_ttft,
    threshold_load,
)
from dynosim.planner.observation import EngineReport

MIX = RequestMix(isl=100, osl=20)  # a sequence half through holds 110 tokens
ENGINE = EngineModel.of(card(), linear())


@pytest.mark.parametrize(
    ("target", "role", "loads", "expected"),
    [
        ("throughput", "prefill", [0.0, 1.0], (1, "scale_up")),  # any, and at the threshold
        ("throughput", "prefill", [0.2, 0.99], (0, "no_change")),
        ("throughput", "prefill", [0.09, 0.0], (-1, "scale_down")),
        ("throughput", "prefill", [0.1, 0.0], (0, "no_change")),
        ("latency", "prefill", [0.1, 0.0], (1, "scale_up")),
        ("latency", "prefill", [0.0, 0.0], (-1, "scale_down")),  # only if nothing is queued
        ("latency", "prefill", [0.01, 0.0], (0, "no_change")),
        ("throughput", "decode", [1.0, 0.7], (0, "no_change")),  # above, not at
        ("throughput", "decode", [1.01, 0.0], (1, "scale_up")),
        ("throughput", "decode", [0.49, 0.2], (-1, "scale_down")),
        ("throughput", "decode", [0.55, 0.2], (0, "scale_down_refused_consolidation")),
        ("throughput", "decode", [0.59] * 3, (-1, "scale_down")),  # 0.885 on two
        ("latency", "decode", [0.41], (1, "scale_up")),
        ("latency", "decode", [0.09, 0.09], (-1, "scale_down")),
        ("latency", "decode", [0.1, 0.1], (0, "no_change")),
    ],
)
def test_thresholds_of_the_easy_targets(
    target: str, role: str, loads: list[float], expected: tuple[int, str]
) -> None:
    vote = by_thresholds(loads, EASY[target, role])
    assert (vote.step, vote.verdict) == expected


def test_thresholds_of_ones_own_count_where_they_are_met() -> None:
    rule = LoadThresholds("tokens", 100.0, 20.0, True, True)
    assert by_thresholds([100.0, 0.0], rule).step == 1
    assert by_thresholds([20.0, 20.0], rule).step == -1
    assert by_thresholds([20.1, 0.0], rule).step == 0


@pytest.mark.parametrize(
    ("role", "target", "expected"),
    [
        ("prefill", "latency", 0.5),
        ("prefill", "load", 500.0),
        ("decode", "throughput", 0.8),
        ("decode", "load", 80.0),
        ("agg", "throughput", 1.3),  # queued prompts will need KV as well
    ],
)
def test_what_a_load_is(role: str, target: str, expected: float) -> None:
    seen = report(0, queued=500, kv=600, queued_kv=200)
    assert threshold_load(role, target, seen, 1000) == expected


def _prefill(*queues: int) -> list[EngineReport]:
    return [report(index, "p", queued=queue) for index, queue in enumerate(queues)]


def _ttft(*queues: int, target_ms: float = 100.0) -> Vote:
    return by_ttft(_prefill(*queues), ENGINE, MIX, target_ms, 0.8)


def test_a_prefill_pool_grows_once_every_queue_makes_the_next_prompt_late() -> None:
    """A prompt of 100 alone takes 20 ms, behind 801 queued tokens 100.1 ms."""
    assert _ttft(801, 801).step == 1
    assert _ttft(801, 800).step == 0
    assert _ttft(801).step == 1


def test_a_prefill_pool_shrinks_if_one_engine_fewer_keeps_80_percent_of_the_wait() -> None:
    """Allowed are 0.8 of 80 ms: 640 tokens queued, so fewer than 320 each on two engines."""
    assert _ttft(319, 0).step == -1
    refused = _ttft(320, 0)
    assert (refused.step, refused.verdict) == (0, "scale_down_refused_consolidation")
    assert (_ttft(700, 0).step, _ttft(700, 0).verdict) == (0, "no_change")


def test_cached_tokens_do_not_queue() -> None:
    """At half a hit rate 1601 queued tokens are 801 to compute; a prompt is 15 ms, not 20."""
    mix = RequestMix(isl=100, osl=20, hit_rate=0.5)
    assert by_ttft(_prefill(1705), ENGINE, mix, 100.0, 0.8).step == 1
    assert by_ttft(_prefill(1695), ENGINE, mix, 100.0, 0.8).step == 0


def test_one_engine_is_not_made_none_by_a_vote() -> None:
    assert _ttft(0).step == 0
    assert _itl((0, 0)).step == 0


def _itl(*loads: tuple[int, int], target_ms: float = 12.0, max_kv_tokens: int = 10_000) -> Vote:
    """(running, KV tokens) of each engine."""
    reports = [report(i, "d", running=num, kv=kv) for i, (num, kv) in enumerate(loads)]
    engine = EngineModel.of(card(max_kv_tokens=max_kv_tokens), linear())
    return by_itl(reports, engine, MIX, target_ms, 0.95)


def test_a_decode_pool_grows_once_one_request_more_is_late_everywhere() -> None:
    """One more than n takes 10 + (n + 1) / 2 ms: 12 ms for 3."""
    assert _itl((4, 400), (4, 400)).step == 1
    assert _itl((4, 400), (3, 300)).step == 0


def test_a_decode_pool_shrinks_if_one_engine_fewer_keeps_its_share_of_the_target() -> None:
    """Allowed are 0.95 of 12 = 11.4 ms: below 2.8 sequences with the one more. One each on two
    engines are two and one more on one: 11.5 ms."""
    assert _itl((1, 100), (1, 100)).verdict == "scale_down_refused_consolidation"
    assert _itl((1, 100), (1, 100), (1, 100)).verdict == "scale_down_refused_consolidation"
    assert _itl((0, 0), (0, 0)).step == -1
    assert _itl((1, 100), (0, 0), target_ms=12.2).step == -1


def test_a_decode_pool_does_not_shrink_beyond_the_kv_there_is() -> None:
    assert _itl((1, 200), (1, 200), target_ms=50.0, max_kv_tokens=401).step == -1
    assert _itl((1, 200), (1, 200), target_ms=50.0, max_kv_tokens=400).step == 0


def test_requests_that_wait_to_decode_count() -> None:
    """440 tokens are 4 sequences."""
    waiting = report(0, "d", queued_kv=440)
    assert by_itl([waiting], ENGINE, MIX, 12.0, 0.95).step == 1


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [(1, 0, 1), (-1, 1, 1), (-1, 0, 0), (-1, -1, -1), (0, 0, 0)],
)
def test_an_aggregated_pool_grows_for_either_and_shrinks_for_both(
    first: int, second: int, expected: int
) -> None:
    assert both(Vote(first, "a", ("x",)), Vote(second, "b", ("y",))).step == expected
    assert both(Vote(first, "a", ("x",)), Vote(second, "b", ("y",))).reasons == ("x", "y")


def test_a_vote_names_its_figures() -> None:
    vote = _ttft(801, 801)
    assert vote.reasons == (
        "TTFT behind the queues of 2 engines 100.1 ms, target 100 ms: all are above it",
    )
    assert vote.figures["queued_prefill_tokens_max"] == 801.0
