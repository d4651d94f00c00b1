"""What a router takes in and tells, as plain values and back: no field is lost or mixed up."""

import json
from dataclasses import asdict, fields, replace
from typing import Any

import pytest
from router_support import BLOCK, card, request

from dynosim.blocks.kv_event import KvEvent
from dynosim.blocks.tier import Tier
from dynosim.indexer.base import Cleared, Removed, Stored
from dynosim.router.decision import Decision, Refusal
from dynosim.router.eligibility import Constraints
from dynosim.router.knobs import CostSpec
from dynosim.router.log.plain import (
    card_from_plain,
    card_to_plain,
    cost_from_plain,
    cost_to_plain,
    event_from_plain,
    event_to_plain,
    outcome_to_plain,
    pack,
    request_from_plain,
    request_to_plain,
    unpack,
)
from dynosim.router.refusals import NoEligibleWorkerError, QueueFullError
from dynosim.router.request import RoutingRequest
from dynosim.router.workers import WorkerCard

COST = CostSpec(0.5, 0.25, 2.0, 0.625, 0.125, 3.0, 0.75, False, False, 0.375)
RULES = Constraints(frozenset({3, 1}), 7, 2, frozenset({"b", "a"}), {"y": 0.5, "x": -1.0})
REQUEST = RoutingRequest(
    "name", 70, 4, [1, 2], [3, 4], 1.5, 2, 640, "session", RULES, "family", COST,
    ((0, 2), (3, 4)),
)  # fmt: skip
CARD = WorkerCard(
    5, BLOCK, 100, 1024, 2, 3, "cpu", frozenset({"x", "y"}), {"zone": "a", "rack": "b"}
)  # fmt: skip


def names_of(kind: type) -> tuple[str, ...]:
    return tuple(field.name for field in fields(kind))


FIELDS = names_of(RoutingRequest)


def through_json(plain: Any) -> Any:
    return json.loads(json.dumps(plain))


def test_every_weight_of_the_cost_comes_back() -> None:
    plain = cost_to_plain(COST)
    assert plain == asdict(COST) and len(set(map(str, plain.values()))) >= 8
    assert cost_from_plain(through_json(plain)) == COST


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_of_a_request_comes_back_alone_and_with_all_others(name: str) -> None:
    plain = RoutingRequest("r", 16, 1)
    alone = replace(plain, **{name: getattr(REQUEST, name)})
    assert alone != plain
    for made in (alone, REQUEST):
        told = through_json(request_to_plain(made))
        assert request_from_plain(told) == made
        assert name in told


def test_what_a_request_leaves_at_its_default_is_not_told() -> None:
    plain = RoutingRequest("r", 16, 1)
    assert request_to_plain(plain) == {"request_id": "r", "input_tokens": 16, "num_blocks": 1}
    full = request_to_plain(REQUEST)
    assert set(full) == set(FIELDS)
    assert full["constraints"] == {
        "allowed_workers": [1, 3],
        "pinned_worker": 7,
        "pinned_dp_rank": 2,
        "required_taints": ["a", "b"],
        "preferred_taints": {"y": 0.5, "x": -1.0},
    }


@pytest.mark.parametrize("name", names_of(Constraints))
def test_every_rule_comes_back_alone(name: str) -> None:
    made = request("r", constraints=replace(Constraints(), **{name: getattr(RULES, name)}))
    back = request_from_plain(through_json(request_to_plain(made)))
    assert back.constraints == made.constraints


def test_a_request_may_be_left_to_no_worker_at_all() -> None:
    made = request("r", constraints=Constraints(allowed_workers=frozenset()))
    assert request_from_plain(through_json(request_to_plain(made))).constraints == made.constraints


@pytest.mark.parametrize("name", names_of(WorkerCard))
def test_every_field_of_a_card_comes_back(name: str) -> None:
    plain = WorkerCard(1, 32)
    alone = replace(plain, **{name: getattr(CARD, name)})
    assert alone != plain
    for made in (alone, CARD, card(3)):
        assert card_from_plain(through_json(card_to_plain(made))) == made


@pytest.mark.parametrize(
    "event",
    [
        Stored(None, [1, 2], [3, 4]),
        Stored(9, [1, 2], [3, 4], Tier.HOST),
        Stored(0, [2**64 - 1], [5], Tier.DISK),
        Removed([1, 2]),
        Removed([3], Tier.HOST),
        Removed([3], Tier.DISK),
        Cleared(),
        *map(Cleared, Tier),
        KvEvent(True, 1, 2, 3, 4),
        KvEvent(False, 5, 0, 7, None),
        KvEvent(True, 5, 3, 4, 2, Tier.HOST),
    ],
)
def test_every_event_comes_back(event: Any) -> None:
    back = event_from_plain(through_json(event_to_plain(event)))
    assert back == event and type(back) is type(event)
    if hasattr(event, "tier"):
        assert type(back.tier) is type(event.tier)


def test_a_decision_is_told_field_by_field() -> None:
    decision = Decision("r", 5, 2, 7, 1.25, 3.5, 56, 4.5)
    assert outcome_to_plain(decision) == ["r", 5, 2, 7, 1.25, 3.5, 56, 4.5]
    assert tuple(field.name for field in fields(Decision)) == (
        "request_id", "worker_id", "dp_rank", "slot", "cost", "overlap_blocks", "cached_tokens",
        "queued_ms",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("error", "status"), [(NoEligibleWorkerError("nobody"), 503), (QueueFullError("full"), 529)]
)
def test_a_refusal_tells_who_how_and_why(error: Any, status: int) -> None:
    assert outcome_to_plain(Refusal("r", error)) == {
        "id": "r", "status": status, "reason": str(error),
    }  # fmt: skip


@pytest.mark.parametrize(
    "numbers", [[], [0], [1, 2, 3], [2**64 - 1, 0, 5], list(range(1000)), [-1, 5], [2**64]]
)
def test_numbers_are_packed_and_unpacked(numbers: list[int]) -> None:
    fits = all(0 <= number < 2**64 for number in numbers)
    packed = pack(numbers)
    assert isinstance(packed, str) == fits
    assert unpack(through_json(packed)) == numbers
    if fits:
        assert len(packed) == -(-8 * len(numbers) // 3) * 4


def test_a_text_that_holds_no_numbers_is_refused() -> None:
    with pytest.raises(ValueError, match="9 bytes are no 64-bit numbers"):
        unpack("AAAAAAAAAAAA")
