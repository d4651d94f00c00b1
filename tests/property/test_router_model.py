"""The router against its definitions: every answer, and all that it has in flight, step by step."""

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from math import isclose
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from naive_router import NEAR, NaiveRouter
from router_inputs import (
    Call,
    Inputs,
    Keeps,
    PowersOfTwo,
    random_caches,
    random_settings,
    tiers_of,
)

from dynosim.blocks.tier import Tier
from dynosim.errors import DynosimError
from dynosim.router.decision import Decision, Refusal
from dynosim.router.kv_router import KvRouter
from dynosim.router.log.checkpoint import checkpoint, difference
from dynosim.router.log.replay import replay_entry
from dynosim.router.refusals import RequestRefusedError

SEEDS = st.integers(0, 2**32 - 1)


def answer(router: Any, call: Call) -> Any:
    try:
        return call(router)
    except DynosimError as error:
        return error


def plain(found: Any) -> Any:
    """An answer with its errors by kind, its costs left out (see `costs_near`)."""
    if isinstance(found, list):
        return [plain(part) for part in found]
    if isinstance(found, Decision):
        return replace(found, cost=0.0)
    if isinstance(found, Refusal):
        return found.request_id, plain(found.error)
    if isinstance(found, RequestRefusedError):
        return type(found), found.http_status
    return type(found) if isinstance(found, DynosimError) else found


def priced(found: Any) -> list[Decision]:
    parts = found if isinstance(found, list) else [found]
    return [part for part in parts if isinstance(part, Decision)]


def costs_near(ones: Sequence[Any], others: Sequence[Any]) -> bool:
    pairs = zip(ones, others, strict=True)
    return all(isclose(one.cost, other.cost, rel_tol=0, abs_tol=NEAR) for one, other in pairs)


def places(found: Any, naive: NaiveRouter) -> list[int]:
    """The slots of an answer."""
    if type(found) is tuple:  # of `best_worker`
        return [naive.slots.index(found[:2])]  # type: ignore[arg-type]
    return [part.slot for part in priced(found)]


def check_in_flight(router: KvRouter, naive: NaiveRouter, now_ms: float) -> None:
    load, known = router.load, naive.load
    assert router.num_queued == naive.num_queued
    assert sorted(map(str, load.bookings)) == sorted(str(entry.name) for entry in known.active)
    for slot in naive.in_use():
        counted = load.num_requests[slot], load.blocks(slot), load.prefill_tokens(slot, now_ms)
        wanted = known.num_requests(slot), known.blocks(slot), known.prefill_tokens(slot, now_ms)
        assert counted == wanted, slot


def reborn(router: KvRouter, make_index: Call, now_ms: float) -> KvRouter:
    """A new router that goes on from what the old one's checkpoint tells."""
    born = KvRouter(router.settings, make_index(), estimator=router.estimator, policy=router.policy)
    for entry in checkpoint(router, now_ms):
        replay_entry(born, json.loads(json.dumps(entry)))
    assert difference(router, born) is None
    return born


def follow(router: KvRouter, naive: NaiveRouter, inputs: Inputs, make_index: Call) -> None:
    for _ in range(60):
        call = inputs.next()
        found = answer(router, call)
        naive.taken = places(found, naive)
        wanted = answer(naive, call)
        assert plain(found) == plain(wanted)
        assert costs_near(priced(found), priced(wanted))
        assert naive.taken == [] or naive.picks is not None
        check_in_flight(router, naive, inputs.now_ms)
        if inputs.rng.random() < 0.01:
            router = reborn(router, make_index, inputs.now_ms)


@settings(max_examples=40, deadline=None)
@given(SEEDS)
def test_plain_routing_is_what_the_cost_formula_says(seed: int) -> None:
    rng = random.Random(seed)
    made = random_settings(rng, is_plain=True)
    make_index, caches = random_caches(rng, is_plain=True)
    router, naive = KvRouter(made, make_index()), NaiveRouter(made, caches)
    assert router.choice.is_plain or made.cost.shared_cache_multiplier
    tiers = rng.choice([[Tier.DEVICE], [Tier.DEVICE, Tier.DEVICE, *Tier]])
    follow(router, naive, Inputs(rng, made, tiers), make_index)


@settings(max_examples=100, deadline=None)
@given(SEEDS)
def test_every_answer_is_what_the_definitions_say(seed: int) -> None:
    rng = random.Random(seed)
    made = random_settings(rng, is_plain=False)
    make_index, caches = random_caches(rng, is_plain=False)
    estimator = PowersOfTwo() if rng.random() < 0.3 else None
    router = KvRouter(made, make_index(), estimator=estimator)
    naive = NaiveRouter(made, caches, estimator=estimator)
    follow(router, naive, Inputs(rng, made, tiers_of(router.index)), make_index)


@settings(max_examples=20, deadline=None)
@given(SEEDS)
def test_a_policy_sees_every_candidate_as_it_is(seed: int) -> None:
    rng = random.Random(seed)
    made = random_settings(rng, is_plain=False)
    make_index, caches = random_caches(rng, is_plain=False)
    seen, known = Keeps(), Keeps()
    router, naive = (
        KvRouter(made, make_index(), policy=seen),
        NaiveRouter(made, caches, picks=known),
    )
    follow(router, naive, Inputs(rng, made, tiers_of(router.index)), make_index)
    for options, wanted in zip(seen.seen, known.seen, strict=True):
        assert [option._replace(cost=0.0) for option in options] == [
            option._replace(cost=0.0) for option in wanted
        ]
        assert costs_near(options, wanted)
