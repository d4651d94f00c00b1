"""The router against its definitions: every answer, and all that it has in hand, step by step."""

import random
from math import isclose
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from naive_router import NEAR, NaiveRouter
from router_inputs import Call, Inputs, Keeps, PowersOfTwo, random_caches, random_settings

from dynosim.errors import DynosimError
from dynosim.indexer.approximate import ApproximateIndex
from dynosim.indexer.base import Tier
from dynosim.indexer.tiers import TieredIndex
from dynosim.router.kv_router import Decision, KvRouter, Refusal
from dynosim.router.refusals import RequestRefusedError

SEEDS = st.integers(0, 2**32 - 1)


def answer(router: Any, call: Call) -> Any:
    try:
        return call(router)
    except DynosimError as error:
        return error


def plain(found: Any) -> Any:
    """An answer with its errors by kind, its costs left out (see `costs`)."""
    if isinstance(found, list):
        return [plain(part) for part in found]
    if isinstance(found, Decision):
        return found._replace(cost=0.0)
    if isinstance(found, Refusal):
        return found.request_id, plain(found.error)
    if isinstance(found, RequestRefusedError):
        return type(found), found.http_status
    return type(found) if isinstance(found, DynosimError) else found


def costs(found: Any) -> list[float]:
    parts = found if isinstance(found, list) else [found]
    return [part.cost for part in parts if isinstance(part, Decision)]


def places(found: Any, naive: NaiveRouter) -> list[int]:
    """The slots of an answer."""
    if type(found) is tuple:  # of `best_worker`
        return [naive.slots.index(found[:2])]  # type: ignore[arg-type]
    parts = found if isinstance(found, list) else [found]
    return [part.slot for part in parts if isinstance(part, Decision)]


def check_in_hand(router: KvRouter, naive: NaiveRouter, now_ms: float) -> None:
    load, known = router.load, naive.load
    assert router.num_queued == naive.num_queued
    assert sorted(map(str, load.bookings)) == sorted(str(entry.name) for entry in known.active)
    for slot in naive.in_use():
        counted = load.num_requests[slot], load.blocks(slot), load.prefill_tokens(slot, now_ms)
        wanted = known.num_requests(slot), known.blocks(slot), known.prefill_tokens(slot, now_ms)
        assert counted == wanted, slot


def follow(router: KvRouter, naive: NaiveRouter, inputs: Inputs, num_steps: int) -> None:
    for _ in range(num_steps):
        call = inputs.next()
        found = answer(router, call)
        naive.taken = places(found, naive)
        wanted = answer(naive, call)
        assert plain(found) == plain(wanted)
        pairs = zip(costs(found), costs(wanted), strict=True)
        assert all(isclose(one, other, rel_tol=0, abs_tol=NEAR) for one, other in pairs)
        assert naive.taken == [] or naive.picks is not None
        check_in_hand(router, naive, inputs.now_ms)


@settings(max_examples=200, deadline=None)
@given(SEEDS)
def test_plain_routing_is_what_the_cost_formula_says(seed: int) -> None:
    rng = random.Random(seed)
    made = random_settings(rng, is_plain=True)
    index, caches = random_caches(rng, is_plain=True)
    router, naive = KvRouter(made, index), NaiveRouter(made, caches)
    assert router.choice.is_plain
    follow(router, naive, Inputs(rng, made, [Tier.DEVICE]), 60)


@settings(max_examples=300, deadline=None)
@given(SEEDS)
def test_every_answer_is_what_the_definitions_say(seed: int) -> None:
    rng = random.Random(seed)
    made = random_settings(rng, is_plain=False)
    index, caches = random_caches(rng, is_plain=False)
    estimator = PowersOfTwo() if rng.random() < 0.3 else None
    router = KvRouter(made, index, estimator=estimator)
    naive = NaiveRouter(made, caches, estimator=estimator)
    tiers = list(Tier) if isinstance(index, TieredIndex) else [Tier.DEVICE]
    guesses = isinstance(index, ApproximateIndex)
    follow(router, naive, Inputs(rng, made, None if guesses else tiers), 60)


@settings(max_examples=60, deadline=None)
@given(SEEDS)
def test_a_policy_sees_every_candidate_as_it_is(seed: int) -> None:
    rng = random.Random(seed)
    made = random_settings(rng, is_plain=False)
    index, caches = random_caches(rng, is_plain=False)
    router, naive = KvRouter(made, index, policy=Keeps()), NaiveRouter(made, caches, picks=Keeps())
    tiers = list(Tier) if isinstance(index, TieredIndex) else [Tier.DEVICE]
    guesses = isinstance(index, ApproximateIndex)
    follow(router, naive, Inputs(rng, made, None if guesses else tiers), 60)
    assert isinstance(router.policy, Keeps)
    for seen, known in zip(router.policy.seen, naive.picks.seen, strict=True):
        assert [option._replace(cost=0.0) for option in seen] == [
            option._replace(cost=0.0) for option in known
        ]
        pairs = zip(seen, known, strict=True)
        assert all(isclose(one.cost, other.cost, rel_tol=0, abs_tol=NEAR) for one, other in pairs)
