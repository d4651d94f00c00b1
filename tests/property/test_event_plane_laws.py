"""What frontends know of caches, against engines that are simulated block by block."""

import random
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from clusters import run_twin
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from naive_engine import DECODE_MS, PREFILL_MS, Chain, NaiveEngine
from probing import PROBE, Ask, Watched, watched_run
from same_runs import assert_close
from strategies import pressed_spec, pressing_trace, random_timing

from dynosim.cluster import event_plane
from dynosim.engine.spec import EngineSpec
from dynosim.records import KvEventLog
from dynosim.router.knobs import RouterSpec
from dynosim.router.spec import DelaySpec, RoutingSpec
from dynosim.timing.formulas import FixedModel

SEEDS = st.integers(0, 2**32 - 1)
BLOCK = 4
PLANES: list[dict[str, Any]] = [
    {},
    {"index": "compressed"},
    {"records_events": True},
    {"events": DelaySpec(delay_ms=7.0)},
    {"events": DelaySpec(delay_ms=7.0), "index": "radix"},
    {"events": DelaySpec(delay_ms=7.0, jitter_ms=1e-6)},
]
JITTER_IS_OVER_MS = 0.25  # all that happens lies at whole milliseconds: probes come in between


@dataclass
class World:
    """Engines that serve one request at a time each, so that nothing is ever cached twice."""

    rng: random.Random
    spec: EngineSpec
    prompts: list[Chain]
    engines: list[NaiveEngine]
    asks: list[Ask]
    cached: list[int]  # tokens of each ask that the naive engine had

    def serve(self, worker: int, ids: Chain, output_tokens: int, pause_ms: float) -> None:
        """One more request for a worker."""
        last_tokens = self.rng.randint(1, BLOCK - 1)
        at_ms = self.engines[worker].idle_ms + pause_ms
        self.cached.append(self.engines[worker].serve(at_ms, ids, last_tokens, output_tokens))
        self.asks.append(Ask(at_ms, ids, worker, output_tokens, last_tokens))

    def run(self, probes: list[Ask], **options: Any) -> tuple[Watched, list[int]]:
        """The run, and where each probe is in it."""
        indices = sorted(
            range(len(self.asks) + len(probes)),
            key=lambda index: (*self.asks, *probes)[index].at_ms,
        )
        asks = [(*self.asks, *probes)[index] for index in indices]
        places = {index: place for place, index in enumerate(indices)}
        timing = FixedModel(PREFILL_MS, DECODE_MS)
        watched = watched_run(
            asks, engine=self.spec, timing=timing, num_workers=len(self.engines), **options
        )
        found = watched.result.requests.cached_tokens
        assert [int(found[places[index]]) for index in range(len(self.asks))] == self.cached
        return watched, [places[index] for index in range(len(self.asks), len(asks))]


def some_world(rng: random.Random) -> World:
    """Few prompts that branch, and caches that hold some of them."""
    prompts = [tuple(rng.choice([1, 2]) for _ in range(rng.randint(1, 6))) for _ in range(6)]
    num_blocks = rng.choice([8, 10, 14, 60])
    spec = EngineSpec(
        num_gpu_blocks=num_blocks + 1,
        max_model_len=8 * BLOCK,
        block_size=BLOCK,
        max_num_seqs=2,
        max_num_batched_tokens=rng.choice([BLOCK + 1, 9, 1000]),
        async_scheduling=rng.random() < 0.5,
    )
    step_tokens, is_async = spec.max_num_batched_tokens, spec.async_scheduling
    engines = [
        NaiveEngine(num_blocks, BLOCK, step_tokens, is_async) for _ in range(rng.choice([1, 2, 3]))
    ]
    world = World(rng, spec, prompts, engines, [], [])
    for _ in range(rng.randint(4, 14)):
        ids = rng.choice(prompts)
        room = 8 * BLOCK - BLOCK * len(ids)
        pause_ms = float(rng.choice([0, 1, 30]))
        worker = rng.randrange(len(engines))
        world.serve(worker, ids, rng.choice([1, rng.randint(1, room)]), pause_ms)
    return world


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.sampled_from(PLANES), st.booleans(), st.integers(1, 3))
def test_every_frontend_knows_what_every_engine_had_told_a_delay_ago(
    seed: int, plane: dict[str, Any], exact: bool, frontends: int
) -> None:
    rng = random.Random(seed)
    world = some_world(rng)
    events: DelaySpec = plane.get("events", DelaySpec())
    end_ms = max(engine.idle_ms for engine in world.engines)
    probes = []
    for _ in range(12):
        at_ms = rng.randint(0, int(end_ms) + 20) + 2 * JITTER_IS_OVER_MS
        probes += [Ask(at_ms, rng.choice(world.prompts), PROBE)] * frontends
    watched, places = world.run(probes, frontends=frontends, exact=exact, **plane)
    assert {watched.frontend(place) for place in places} == set(range(frontends))
    for probe, place in zip(probes, places, strict=True):
        told_ms = probe.at_ms - events.delay_ms - JITTER_IS_OVER_MS * (events.jitter_ms > 0)
        known = [engine.known_at(told_ms, probe.ids) for engine in world.engines]
        assert watched.overlaps(place) == known


def recorded(seed: int, *, exact: bool) -> KvEventLog:
    """All events of an engine that is short of memory, event by event."""
    rng = random.Random(seed)
    trace = pressing_trace(rng)
    spec = replace(pressed_spec(rng, trace), enable_prefix_caching=True)
    result = run_twin(
        trace,
        engine=spec,
        timing=random_timing(rng, spec),
        num_workers=1,
        routing=RoutingSpec(RouterSpec(spec.block_size, mode="kv"), records_events=True),
        exact_stepping=exact,
        until_ms=20_000.0,
    )
    assert result.kv_events is not None
    return result.kv_events


@settings(max_examples=40, deadline=None)
@given(SEEDS)
def test_all_that_is_stored_and_evicted_is_told_in_the_order_of_single_steps(seed: int) -> None:
    bulk, single = recorded(seed, exact=False), recorded(seed, exact=True)
    np.testing.assert_array_equal(bulk.num_blocks, single.num_blocks)
    assert_close(bulk.time_ms, single.time_ms, "time of an event")


CLOSING = 12


@settings(max_examples=40, deadline=None)
@given(SEEDS)
def test_frontends_that_lose_events_end_up_with_the_index_that_the_pools_have(seed: int) -> None:
    """Where any event came after the losses, which each worker's last requests see to.

    They fill one block each that nobody else asks for. A frontend that knows the very last of
    them has heard the last event of the worker, hence all; about one in five has not.
    """
    rng = random.Random(seed)
    world = some_world(rng)
    workers = range(len(world.engines))
    last = {}
    for worker in workers:
        for number in range(CLOSING):
            last[worker] = (1000 + CLOSING * worker + number,)
            world.serve(worker, (*last[worker], 0), 1, 200.0)
    frontends = rng.choice([2, 3])
    end_ms = max(engine.idle_ms for engine in world.engines) + 1000.5
    asked = [*world.prompts, *last.values()]
    probes = [Ask(end_ms, ids, PROBE) for ids in asked for _ in range(frontends)]
    events = DelaySpec(
        rng.choice([0.0, 7.0]),
        rng.choice([0.0, 150.0]),
        loss=rng.choice([0.0, 0.2]),
        recovery_ms=rng.choice([0.0, 5.0, 90.0]),
    )
    with pytest.MonkeyPatch.context() as patch:  # what is kept no longer comes as a whole
        patch.setattr(event_plane, "BUFFERED_EVENTS", rng.choice([1, 5, 4096]))
        watched, places = world.run(probes, frontends=frontends, events=events, seed=seed % 1000)
    seen = {
        (watched.frontend(place), probe.ids): watched.overlaps(place)
        for probe, place in zip(probes, places, strict=True)
    }
    complete = 0
    for frontend in range(frontends):
        for worker in workers:
            has_all = seen[frontend, last[worker]][worker] == 1
            complete += has_all
            for ids in world.prompts:
                known = world.engines[worker].known_at(end_ms, ids)
                assert seen[frontend, ids][worker] == known or not has_all
    assert events.loss > 0 or complete == frontends * len(workers)
    assume(complete > 0)
