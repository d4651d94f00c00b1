"""Whatever a router is given is in its log, and another router makes the same of it."""

import json
import random
from collections import Counter
from dataclasses import astuple
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from router_inputs import Inputs, PowersOfTwo, random_caches, random_settings, tiers_of
from router_support import Doors

from dynosim.errors import DynosimError
from dynosim.router.decision import Decision, Refusal
from dynosim.router.kv_router import KvRouter
from dynosim.router.log.checkpoint import difference
from dynosim.router.log.estimates import ReplayEstimator
from dynosim.router.log.plain import outcome_to_plain
from dynosim.router.log.recorder import logged_router
from dynosim.router.log.replay import replay_entry

SEEDS = st.integers(0, 2**32 - 1)


def told(found: Any) -> Any:
    """An answer as a log tells it."""
    if isinstance(found, list):
        return [told(part) for part in found]
    if isinstance(found, Decision | Refusal):
        return outcome_to_plain(found)
    return list(found) if isinstance(found, tuple) else found


@settings(max_examples=50, deadline=None)
@given(SEEDS)
def test_a_log_leads_another_router_to_the_same_answers_and_the_same_state(seed: int) -> None:
    rng = random.Random(seed)
    made = random_settings(rng, is_plain=rng.random() < 0.2)
    make_index, _ = random_caches(rng, is_plain=False)
    estimator = PowersOfTwo() if rng.random() < 0.3 else None
    entries: list[Any] = []
    router = Doors(logged_router(entries.append, made, make_index(), estimator=estimator))
    retold = None if estimator is None else ReplayEstimator()
    other = KvRouter(made, make_index(), estimator=retold)
    inputs = Inputs(rng, made, tiers_of(router.index))
    kinds: Counter[str] = Counter()
    for _ in range(60):
        before, call = len(entries), inputs.next()
        try:
            found = call(router)
        except DynosimError as error:
            found = error
        for entry in entries[before:]:
            kinds[entry[0]] += 1
            logged, derived = replay_entry(other, json.loads(json.dumps(entry)))
            assert logged == json.loads(json.dumps(derived))
            if entry[0] in ("arrive", "release", "best", "loads"):
                assert entry[1] == inputs.now_ms
                if not isinstance(found, DynosimError):
                    assert json.loads(json.dumps(told(found))) == logged
        if isinstance(found, Decision):
            assert entries[-1][0] == "arrive" and entries[-1][3] == list(astuple(found))
    assert difference(router.router, other) is None
    assert kinds["arrive"] and kinds["join"]
