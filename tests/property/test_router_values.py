"""A router's inputs as values: the same as its doors, and its state as a value: nothing is lost."""

import json
import random
from collections.abc import Callable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from router_inputs import (
    Call,
    Inputs,
    PowersOfTwo,
    random_caches,
    random_settings,
    tiers_of,
)
from router_support import Doors

from dynosim.errors import DynosimError
from dynosim.router.kv_router import KvRouter
from dynosim.router.log.checkpoint import checkpoint, difference
from dynosim.router.log.entries import told
from dynosim.router.log.replay import replay_entry
from dynosim.router.log.state import snapshot_from_plain, snapshot_to_plain

SEEDS = st.integers(0, 2**32 - 1)
Make = Callable[[], KvRouter[Any]]


def answer(router: Any, call: Call) -> Any:
    try:
        return told(call(router))
    except DynosimError as error:
        return f"{type(error).__name__}: {error}"


def any_router(rng: random.Random) -> tuple[Make, Inputs]:
    """What makes equal routers, and inputs to them."""
    made = random_settings(rng, is_plain=rng.random() < 0.2)
    make_index, _ = random_caches(rng, is_plain=False)
    estimator = PowersOfTwo() if rng.random() < 0.3 else None
    inputs = Inputs(rng, made, tiers_of(make_index()))
    return lambda: KvRouter(made, make_index(), estimator=estimator), inputs


@settings(max_examples=60, deadline=None)
@given(SEEDS)
def test_an_input_as_a_value_does_what_its_door_does(seed: int) -> None:
    make, inputs = any_router(random.Random(seed))
    router, taking = make(), Doors(make())
    for _ in range(60):
        call = inputs.next()
        assert answer(router, call) == answer(taking, call)
    assert difference(router, taking.router) is None


@settings(max_examples=60, deadline=None)
@given(SEEDS)
def test_a_router_restored_from_a_snapshot_goes_on_as_the_one_that_went_on(seed: int) -> None:
    """Also if the snapshot was taken before more happened, and served twice."""
    rng = random.Random(seed)
    make, inputs = any_router(rng)
    router = make()
    for _ in range(rng.randint(1, 50)):
        answer(router, inputs.next())
    held = [entry for entry in checkpoint(router, inputs.now_ms) if entry[0] != "state"]
    snapshot = router.snapshot()
    plain = json.loads(json.dumps(snapshot_to_plain(snapshot)))
    calls = [inputs.next() for _ in range(40)]
    answers = [answer(router, call) for call in calls]
    for known in (snapshot, snapshot, snapshot_from_plain(plain)):
        born = make()
        for entry in json.loads(json.dumps(held)):
            replay_entry(born, entry)
        born.restore(known)
        assert [answer(born, call) for call in calls] == answers
        assert difference(router, born) is None
