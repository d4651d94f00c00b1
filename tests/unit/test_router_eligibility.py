"""Hard rules, wishes, busy thresholds and topology domains."""

from collections import Counter
from math import exp, tanh

import pytest
from router_support import BLOCK, card, make_router, request

from dynosim.errors import ConfigError
from dynosim.router.busy import BusyThresholds
from dynosim.router.eligibility import Constraints, eligible_mask, preference_factors
from dynosim.router.kv_router import KvRouter
from dynosim.router.refusals import NoEligibleWorkerError, WorkersBusyError
from dynosim.router.topology import KvTransferPolicy, decode_constraints
from dynosim.router.workers import WorkerCard, topology_taint


def test_rules_leave_the_workers_that_keep_them_all() -> None:
    router = make_router(2)
    router.add_worker(card(2, taints=frozenset({"a"})))
    router.add_worker(card(3, taints=frozenset({"a", "b"}), dp_size=2))
    table = router.table
    assert eligible_mask(table, Constraints(allowed_workers=frozenset({1, 2, 9}))) == 0b00110
    assert eligible_mask(table, Constraints(required_taints=frozenset({"a"}))) == 0b11100
    assert eligible_mask(table, Constraints(required_taints=frozenset({"a", "b"}))) == 0b11000
    assert eligible_mask(table, Constraints(pinned_worker=3)) == 0b11000
    assert eligible_mask(table, Constraints(pinned_worker=3, pinned_dp_rank=1)) == 0b10000


def test_rules_apply_together() -> None:
    router = make_router(1)
    router.add_worker(card(1, dp_size=2, dp_start=2, taints=frozenset({"a"})))
    router.add_worker(card(2, taints=frozenset({"a"}), topology={"zone": "z"}))
    table, both = router.table, frozenset({"a", topology_taint("zone", "z")})
    assert eligible_mask(table, Constraints()) == 0b1111
    assert eligible_mask(table, Constraints(frozenset({0, 1}))) == 0b0111
    assert eligible_mask(table, Constraints(required_taints=both)) == 0b1000
    assert eligible_mask(table, Constraints(frozenset({0, 2}), required_taints=both)) == 0b1000
    assert eligible_mask(table, Constraints(frozenset({1, 2}), 1)) == 0b0110
    assert eligible_mask(table, Constraints(None, 1, 3)) == 0b0100
    assert eligible_mask(table, Constraints(None, 1, 2, frozenset({"a"}))) == 0b0010


def test_taints_weigh_together_and_more_weight_is_cheaper() -> None:
    router = make_router(1)
    router.add_worker(card(1, taints=frozenset({"a"})))
    router.add_worker(card(2, taints=frozenset({"a", "b"}), dp_size=2))
    wishes = {"a": 0.5, "b": -0.75, "nobody's": 9.0}
    factors = preference_factors(router.table, wishes)
    assert factors == {1: exp(-tanh(0.5)), 2: exp(-tanh(-0.25)), 3: exp(-tanh(-0.25))}
    assert factors[1] < 1 < factors[2]
    assert preference_factors(router.table, {}) == {}


MANY = frozenset(range(90, 100))


@pytest.mark.parametrize(
    ("rules", "reason"),
    [
        (Constraints(pinned_worker=9), "worker 9 is not here; known workers: 0, 1"),
        (Constraints(pinned_worker=0, allowed_workers=frozenset({1})), "only 1 are allowed"),
        (Constraints(pinned_worker=0, pinned_dp_rank=2), "no data-parallel rank 2.*0 to 0"),
        (
            Constraints(pinned_worker=0, pinned_dp_rank=-1),
            "no data-parallel rank -1.*0 to 0",
        ),
        (Constraints(allowed_workers=frozenset({7, 8})), "none of the allowed.*7, 8$"),
        (Constraints(allowed_workers=frozenset()), "none of the allowed.*: none$"),
        (Constraints(allowed_workers=MANY - {99}), "90, 91, .* 96, 97 and 1 more$"),
        (Constraints(allowed_workers=MANY - {98, 99}), "90, 91, .* 96, 97$"),
        (Constraints(required_taints=frozenset({"gold"})), "required taint 'gold'$"),
        (
            Constraints(required_taints=frozenset({topology_taint("zone", "x")})),
            "no worker is in zone 'x', which this request must not leave$",
        ),
        (
            Constraints(pinned_worker=0, required_taints=frozenset({"one"})),
            r"required taint 'one' \(of those that the request's other rules leave\)$",
        ),
    ],
)
def test_a_request_that_nobody_may_serve_is_told_why(rules: Constraints, reason: str) -> None:
    router = make_router(1)
    router.add_worker(card(1, taints=frozenset({"one"})))
    with pytest.raises(NoEligibleWorkerError, match=reason):
        router.submit(request("r", constraints=rules), 0.0)
    assert router.submit(request("next"), 0.0) is not None


def test_a_worker_with_another_block_size_is_not_taken_in() -> None:
    router = make_router(1)
    with pytest.raises(ConfigError, match=r"worker 5: KV block size 32 differs .* 16"):
        router.add_worker(WorkerCard(5, 2 * BLOCK))
    assert set(router.table.cards) == {0}


def test_busy_workers_get_nothing_and_if_all_are_busy_the_request_is_refused() -> None:
    router = make_router(2, busy=BusyThresholds(active_prefill_tokens_threshold=40))
    places = {router.submit(request(n, [n, n + 1, n + 2]), 0.0).worker_id for n in (10, 20)}  # type: ignore[union-attr]
    assert places == {0, 1}
    with pytest.raises(WorkersBusyError, match="busy threshold"):
        router.submit(request("more", [1]), 0.0)
    router.first_token(10, 1.0)
    assert router.submit(request("later", [1]), 1.0) is not None


def test_busy_by_share_of_blocks_and_by_multiple_of_the_token_budget() -> None:
    blocks = make_router(1, busy=BusyThresholds(active_decode_blocks_threshold=0.04))
    blocks.submit(request("a", [1, 2, 3, 4, 5]), 0.0)  # 5 of 100 blocks
    with pytest.raises(WorkersBusyError):
        blocks.submit(request("b", [9]), 0.0)
    tokens = make_router(1, busy=BusyThresholds(active_prefill_tokens_threshold_frac=0.05))
    tokens.submit(request("a", [1, 2, 3, 4]), 0.0)  # 64 tokens, the limit is 51.2
    with pytest.raises(WorkersBusyError):
        tokens.submit(request("b", [9]), 0.0)


def test_a_worker_with_several_ranks_is_busy_only_if_all_are() -> None:
    router = make_router(0, busy=BusyThresholds(active_prefill_tokens_threshold=8))
    router.add_worker(card(0, dp_size=2))
    ranks = [router.submit(request(n, [n]), 0.0).dp_rank for n in (1, 2)]  # type: ignore[union-attr]
    assert sorted(ranks) == [0, 1]
    with pytest.raises(WorkersBusyError):
        router.submit(request(3, [3]), 0.0)


# ---- topology: prefill first, then decode in the same domain -----------------------------------


def pools(decodes_per_zone: dict[str, int]) -> tuple[KvRouter, KvRouter]:
    """60 prefill workers in two zones, and decode workers as given."""
    prefill, decode = make_router(0), make_router(0)
    for worker_id in range(60):
        prefill.add_worker(card(worker_id, topology={"zone": "ab"[worker_id % 2]}))
    next_id = 1000
    for zone, count in decodes_per_zone.items():
        for _ in range(count):
            decode.add_worker(card(next_id, topology={"zone": zone}))
            next_id += 1
    return prefill, decode


def transfers(
    policy: KvTransferPolicy, decodes_per_zone: dict[str, int], num_requests: int
) -> Counter[tuple[str, str]]:
    """(zone of prefill, zone of decode or "failed") of requests that stay in hand."""
    prefill, decode = pools(decodes_per_zone)
    seen: Counter[tuple[str, str]] = Counter()
    for number in range(num_requests):
        blocks = [3 * number, 3 * number + 1]
        first = prefill.submit(request(number, blocks), float(number))
        assert first is not None
        source = prefill.table.cards[first.worker_id]
        rules = decode_constraints(policy, source)
        try:
            second = decode.submit(request(number, blocks, constraints=rules), float(number))
        except NoEligibleWorkerError as error:
            assert f"zone '{source.topology['zone']}'" in str(error)
            seen[source.topology["zone"], "failed"] += 1
            continue
        assert second is not None
        target = decode.table.cards[second.worker_id]
        seen[source.topology["zone"], target.topology["zone"]] += 1
    return seen


def test_required_keeps_every_transfer_in_its_zone() -> None:
    seen = transfers(KvTransferPolicy("zone"), {"a": 60, "b": 60}, 600)
    assert seen == {("a", "a"): 300, ("b", "b"): 300}


def test_required_fails_the_requests_of_a_zone_without_decode_workers_and_spills_none() -> None:
    seen = transfers(KvTransferPolicy("zone"), {"a": 60}, 600)
    assert seen == {("a", "a"): 300, ("b", "failed"): 300}


def test_preferred_biases_and_does_not_bind() -> None:
    def in_zone(weight: float) -> float:
        policy = KvTransferPolicy("zone", "preferred", weight)
        seen = transfers(policy, {"a": 3, "b": 60}, 600)
        assert not any(target == "failed" for _, target in seen)
        return sum(n for (source, target), n in seen.items() if source == target) / 600

    assert in_zone(0.0) < in_zone(0.85) < 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"domain": "Zone"}, "not a domain name"),
        ({"domain": "-a"}, "not a domain name"),
        ({"domain": "zone", "preferred_weight": 0.5}, "only valid with enforcement: preferred"),
        ({"domain": "zone", "enforcement": "preferred"}, "0 to 1 is needed"),
        ({"domain": "zone", "enforcement": "preferred", "preferred_weight": 1.5}, "got 1.5"),
        ({"domain": "zone", "enforcement": "preferred", "preferred_weight": -0.1}, "got -0.1"),
        ({"domain": "zone-"}, "not a domain name"),
        ({"domain": "zone", "enforcement": "maybe"}, "known: required, preferred"),
    ],
)
def test_a_transfer_policy_that_makes_no_sense_is_refused(
    fields: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        KvTransferPolicy(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
def test_a_wish_carries_its_weight_and_a_rule_none(weight: float) -> None:
    where = card(4, topology={"zone": "a", "rack": "r"})
    wish = decode_constraints(KvTransferPolicy("zone", "preferred", weight), where)
    assert wish == Constraints(preferred_taints={topology_taint("zone", "a"): weight})
    rule = decode_constraints(KvTransferPolicy("rack"), where)
    assert rule == Constraints(required_taints=frozenset({topology_taint("rack", "r")}))


def test_a_prefill_worker_that_does_not_say_where_it_is_wishes_for_nothing() -> None:
    assert decode_constraints(KvTransferPolicy("zone", "preferred", 1.0), card(4)) == Constraints()


def test_a_prefill_worker_that_does_not_say_where_it_is_fails_its_request() -> None:
    with pytest.raises(NoEligibleWorkerError, match="worker 4 does not say its zone"):
        decode_constraints(KvTransferPolicy("zone"), card(4))
