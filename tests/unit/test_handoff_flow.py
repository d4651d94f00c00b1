"""The table of handoffs: whose turn it is after what, in both orders and after losses."""

import pytest

from dynosim.errors import InvariantError
from dynosim.router.handoff import (
    TRANSITIONS,
    ConditionalSpec,
    Duty,
    HandoffEvent,
    HandoffFlow,
    HandoffPhase,
    HandoffSpec,
    PoolLoads,
)

E, D, P = HandoffEvent, Duty, HandoffPhase


def walk(flow: HandoffFlow, *events: HandoffEvent) -> list[tuple[Duty, ...]]:
    return [flow.happens("r", event) for event in events]


def test_prefill_first() -> None:
    flow = HandoffFlow(HandoffSpec())
    assert flow.arrives("r", is_local=False) is D.PLACE_PREFILL
    assert walk(flow, E.PREFILLED, E.RESERVED, E.ARRIVED) == [
        (D.PLACE_DECODE,),
        (D.BEGIN_TRANSFER,),
        (D.RELEASE_SOURCE,),
    ]
    assert flow.phase_of("r") is P.DECODING
    assert flow.ends("r") is P.DECODING and flow.ends("r") is None and len(flow) == 0


def test_decode_first() -> None:
    flow = HandoffFlow(HandoffSpec(order="decode_first"))
    assert flow.arrives("r", is_local=False) is D.PLACE_DECODE
    assert walk(flow, E.RESERVED, E.PREFILLED, E.ARRIVED) == [
        (D.PLACE_PREFILL,),
        (D.BEGIN_TRANSFER,),
        (D.RELEASE_SOURCE,),
    ]


def test_a_local_request_never_meets_a_prefill_worker() -> None:
    flow = HandoffFlow(HandoffSpec(order="prefill_first"))
    assert flow.arrives("r", is_local=True) is D.PLACE_DECODE
    with pytest.raises(InvariantError, match="request r is local: not prefilled"):
        flow.happens("r", E.PREFILLED)
    assert flow.phase_of("r") is P.LOCAL


@pytest.mark.parametrize(
    ("before", "event", "phase", "duties"),
    [
        (P.PREFILLING, E.SOURCE_LOST, P.PREFILLING, (D.PLACE_PREFILL,)),
        (P.PROMISED, E.SOURCE_LOST, P.PROMISED, (D.PLACE_PREFILL,)),
        (P.HELD, E.SOURCE_LOST, P.ORPHANED, ()),
        (P.ORPHANED, E.RESERVED, P.DECODING, (D.REPORT_LOSS,)),
        (P.MOVING, E.SOURCE_LOST, P.DECODING, (D.CANCEL_TRANSFER, D.REPORT_LOSS)),
        (P.PROMISING, E.DESTINATION_LOST, P.PROMISING, (D.PLACE_DECODE,)),
        (P.PROMISED, E.DESTINATION_LOST, P.PREFILLING, ()),
        (P.HELD, E.DESTINATION_LOST, P.HELD, (D.PLACE_DECODE,)),
        (P.ORPHANED, E.DESTINATION_LOST, P.PREFILLING, (D.PLACE_PREFILL,)),
        (P.MOVING, E.DESTINATION_LOST, P.HELD, (D.CANCEL_TRANSFER, D.PLACE_DECODE)),
        (P.DECODING, E.DESTINATION_LOST, P.PREFILLING, (D.PLACE_PREFILL,)),
        (P.LOCAL, E.DESTINATION_LOST, P.PREFILLING, (D.PLACE_PREFILL,)),
    ],
)
def test_what_follows_a_loss(
    before: HandoffPhase, event: HandoffEvent, phase: HandoffPhase, duties: tuple[Duty, ...]
) -> None:
    assert TRANSITIONS[before][event] == (phase, duties)


def test_every_transfer_that_begins_is_ended_or_cancelled() -> None:
    """Whatever leaves MOVING either arrives or is cancelled, and nothing else ends a transfer."""
    for phase, row in TRANSITIONS.items():
        for event, (after, duties) in row.items():
            assert (D.BEGIN_TRANSFER in duties) == (after is P.MOVING)
            leaves = phase is P.MOVING
            assert (D.CANCEL_TRANSFER in duties) == (leaves and event is not E.ARRIVED)


def test_a_refused_event_changes_nothing() -> None:
    flow = HandoffFlow(HandoffSpec())
    with pytest.raises(InvariantError, match="not in flight"):
        flow.happens("r", E.PREFILLED)
    flow.arrives("r", is_local=False)
    with pytest.raises(InvariantError, match="is prefilling: not arrived"):
        flow.happens("r", E.ARRIVED)
    assert flow.phase_of("r") is P.PREFILLING


IDLE = PoolLoads(cached_tokens=0, least_prefill_tokens=0.0, least_decode_usage=0.0)


def is_local(rule: ConditionalSpec | None, tokens: int, **loads: float) -> bool:
    known = PoolLoads(**{**dict(cached_tokens=0, least_prefill_tokens=0.0,
                                least_decode_usage=0.0), **loads})  # type: ignore[arg-type]  # fmt: skip
    return HandoffSpec(conditional=rule).is_local(tokens, known)


def test_without_a_rule_nothing_is_local() -> None:
    assert not is_local(None, 1, cached_tokens=1)


@pytest.mark.parametrize(
    ("tokens", "cached", "expected"),
    [
        (3000, 953, True),  # 2,047 missing of 3,000: 68 %
        (3000, 952, False),  # 2,048 are not fewer than 2,048
        (1000, 300, False),  # 70 % are not less than 70 %
        (1000, 301, True),
        (1000, 0, False),  # all of it is missing
    ],
)
def test_a_short_uncached_part_is_local(tokens: int, cached: int, expected: bool) -> None:
    rule = ConditionalSpec()
    assert is_local(rule, tokens, cached_tokens=cached) is expected
    assert is_local(ConditionalSpec(policy="isl_or_load"), tokens, cached_tokens=cached) is expected


def test_busy_prefill_workers_make_prompts_local() -> None:
    for policy in ("prefill_load", "isl_or_load"):
        rule = ConditionalSpec(policy=policy, prefill_busy_threshold=100)  # type: ignore[arg-type]
        assert not is_local(rule, 9000, least_prefill_tokens=100)
        assert is_local(rule, 9000, least_prefill_tokens=101)
    assert not is_local(ConditionalSpec(policy="prefill_load"), 9000, least_prefill_tokens=1e9)
    bounding = ConditionalSpec(prefill_busy_threshold=100)
    assert not is_local(bounding, 9000, least_prefill_tokens=101)


def test_decode_workers_in_use_beyond_a_limit_take_no_prompts() -> None:
    rule = ConditionalSpec(eff_isl_ratio_threshold=1.1, decode_busy_threshold=0.5)
    assert is_local(rule, 10, least_decode_usage=0.5)
    assert not is_local(rule, 10, least_decode_usage=0.51)
