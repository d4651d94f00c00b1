"""Thresholds of being busy, exactly: below, at and above, for refusing and for waiting."""

from typing import Any

import pytest
from router_support import BLOCK, card

from dynosim.errors import ConfigError
from dynosim.router.busy import BusyThresholds, busy_mask
from dynosim.router.classes import (
    UNKNOWN_TOKEN_BUDGET,
    PolicyClass,
    class_for,
    is_busy,
    must_wait,
)
from dynosim.router.workers import WorkerTable


def table(*cards: Any) -> WorkerTable:
    made = WorkerTable(BLOCK)
    for entry in cards:
        made.add(entry)
    return made


ONE = table(card(0, total_kv_blocks=100, max_num_batched_tokens=64))
SILENT = table(card(0, total_kv_blocks=None, max_num_batched_tokens=None))


# ---- refusing ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "blocks", "tokens", "is_above"),
    [
        (BusyThresholds(active_decode_blocks_threshold=0.5), 49, 0, False),
        (BusyThresholds(active_decode_blocks_threshold=0.5), 50, 999, False),
        (BusyThresholds(active_decode_blocks_threshold=0.5), 51, 0, True),
        (BusyThresholds(active_prefill_tokens_threshold=40), 999, 40, False),
        (BusyThresholds(active_prefill_tokens_threshold=40), 0, 41, True),
        (BusyThresholds(active_prefill_tokens_threshold_frac=0.5), 999, 32, False),
        (BusyThresholds(active_prefill_tokens_threshold_frac=0.5), 0, 33, True),
        (BusyThresholds(0.5, 40, 0.5), 50, 32, False),
        (BusyThresholds(0.5, 40, 0.5), 51, 32, True),  # any one is enough
        (BusyThresholds(0.5, 40, 1.0), 50, 41, True),
        (BusyThresholds(0.5, 80, 0.5), 50, 33, True),
        (BusyThresholds(0.0, 0, 0.0), 0, 0, False),
        (BusyThresholds(0.0, None, None), 1, 0, True),
        (BusyThresholds(None, 0, None), 0, 1, True),
        (BusyThresholds(None, None, 0.0), 0, 1, True),
    ],
)
def test_a_worker_is_busy_above_a_limit_and_not_at_it(
    limits: BusyThresholds, blocks: int, tokens: int, is_above: bool
) -> None:
    assert limits.is_set
    assert busy_mask(limits, ONE, [blocks], [tokens]) == int(is_above)


def test_a_worker_that_does_not_tell_its_size_is_above_no_share_of_it() -> None:
    shares = BusyThresholds(0.0, None, 0.0)
    assert busy_mask(shares, SILENT, [10**9], [10**9]) == 0
    assert busy_mask(BusyThresholds(0.0, 5, 0.0), SILENT, [0], [6]) == 1


def test_without_limits_nobody_is_busy() -> None:
    limits = BusyThresholds()
    assert not limits.is_set
    assert busy_mask(limits, ONE, [10**9], [10**9]) == 0


def test_one_of_several_ranks_below_the_limit_keeps_the_whole_worker() -> None:
    workers = table(card(7, dp_size=2), card(8), card(9, dp_size=2))
    limits = BusyThresholds(active_prefill_tokens_threshold=10)
    assert busy_mask(limits, workers, [0] * 5, [11, 11, 11, 11, 10]) == 0b00111
    assert busy_mask(limits, workers, [0] * 5, [10, 11, 10, 11, 11]) == 0b11000


@pytest.mark.parametrize("name", BusyThresholds.__slots__)
def test_a_limit_below_zero_is_refused_and_zero_is_not(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"router\.{name}: must be at least 0, got -1"):
        BusyThresholds(**{name: -1})
    with pytest.raises(ConfigError, match=name):
        BusyThresholds(**{name: float("nan")})
    assert getattr(BusyThresholds(**{name: 0}), name) == 0


# ---- waiting -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "tokens", "is_above"),
    [
        ({"prefill_busy_threshold": 40}, 40, False),
        ({"prefill_busy_threshold": 40}, 41, True),
        ({"prefill_busy_threshold": 0}, 0, False),
        ({"prefill_busy_threshold": 0}, 1, True),
        ({"prefill_busy_threshold_frac": 0.5}, 32, False),
        ({"prefill_busy_threshold_frac": 0.5}, 33, True),
        ({"prefill_busy_threshold": 40, "prefill_busy_threshold_frac": 0.5}, 33, True),
        ({"prefill_busy_threshold": 20, "prefill_busy_threshold_frac": 0.5}, 21, True),
        ({"prefill_busy_threshold": 40, "prefill_busy_threshold_frac": 0.5}, 32, False),
        ({}, 10**9, False),
    ],
)
def test_a_slot_is_busy_above_the_threshold_of_a_class_and_not_at_it(
    fields: dict[str, Any], tokens: int, is_above: bool
) -> None:
    rules = PolicyClass(**fields)
    assert is_busy(rules, ONE, 0, [tokens]) == is_above
    assert must_wait(rules, ONE, 1, [tokens]) == is_above
    assert rules.can_wait == bool(fields)


def test_an_untold_token_budget_counts_as_ten_million() -> None:
    assert UNKNOWN_TOKEN_BUDGET == 10_000_000
    rules = PolicyClass(prefill_busy_threshold_frac=0.5)
    assert not is_busy(rules, SILENT, 0, [5_000_000])
    assert is_busy(rules, SILENT, 0, [5_000_001])


@pytest.mark.parametrize(
    ("ratio", "num_busy", "waits"),
    [(1.0, 3, False), (1.0, 4, True), (0.5, 1, False), (0.5, 2, True), (0.5, 3, True),
     (0.6, 2, False), (0.6, 3, True), (0.25, 1, True), (0.01, 0, False), (0.01, 1, True)],
)  # fmt: skip
@pytest.mark.parametrize("turned", [0, 1, 3])
def test_a_request_waits_from_a_share_of_busy_slots_on(
    ratio: float, num_busy: int, waits: bool, turned: int
) -> None:
    rules = PolicyClass(prefill_busy_threshold=10, busy_worker_ratio=ratio)
    workers = table(*(card(worker_id) for worker_id in range(6)))
    tokens = [11] * num_busy + [10] * (4 - num_busy)
    tokens = tokens[turned:] + tokens[:turned]
    # Slots that the request may not use count neither way.
    assert must_wait(rules, workers, 0b001111, [*tokens, 11, 10]) == waits
    assert not must_wait(rules, workers, 0, [11] * 6)


@pytest.mark.parametrize(
    ("fields", "is_fine"),
    [
        ({"quantum": 1}, True),
        ({"quantum": 0}, False),
        ({"busy_worker_ratio": 1.0}, True),
        ({"busy_worker_ratio": 1.01}, False),
        ({"busy_worker_ratio": 0.01}, True),
        ({"busy_worker_ratio": 0.0}, False),
        ({"prefill_busy_threshold": 0}, True),
        ({"prefill_busy_threshold": -1}, False),
        ({"prefill_busy_threshold_frac": 0.0}, True),
        ({"prefill_busy_threshold_frac": -0.1}, False),
        ({"prefill_busy_threshold_frac": float("nan")}, False),
        ({"min_uncached_tokens": 0, "max_uncached_tokens": 1}, True),
        ({"min_uncached_tokens": 0, "max_uncached_tokens": 0}, False),
        ({"min_uncached_tokens": 9, "max_uncached_tokens": 8}, False),
        ({"min_uncached_tokens": 9}, True),
        ({"min_uncached_tokens": -1}, False),
        ({"queue_policy": "wspt"}, True),
        ({"queue_policy": "sjf"}, False),
    ],
)
def test_what_a_class_may_be(fields: dict[str, Any], is_fine: bool) -> None:
    if is_fine:
        assert PolicyClass(**fields).name == "default"
        return
    with pytest.raises(ConfigError, match="policy class 'default'"):
        PolicyClass(**fields)


@pytest.mark.parametrize(
    ("family", "uncached", "name"),
    [(None, 9, "rest"), (None, 10, "mid"), (None, 19, "mid"), (None, 20, "rest"),
     ("a", 0, "a"), ("a", 99, "a"), ("a", 100, "rest"), ("b", 15, "mid"), ("b", 0, "rest")],
)  # fmt: skip
def test_the_first_class_that_takes_a_request_has_it_and_else_the_last(
    family: str | None, uncached: int, name: str
) -> None:
    classes = [
        PolicyClass("a", policy_family="a", max_uncached_tokens=100),
        PolicyClass("mid", min_uncached_tokens=10, max_uncached_tokens=20),
        PolicyClass("rest", min_uncached_tokens=1000, policy_family="nobody"),
    ]
    assert class_for(classes, family, uncached).name == name


def test_defaults_of_a_class_are_those_of_the_field() -> None:
    rules = PolicyClass()
    assert (rules.queue_policy, rules.quantum, rules.busy_worker_ratio) == ("fcfs", 8192, 1.0)
    assert not rules.can_wait and rules.takes("anything", 0)
