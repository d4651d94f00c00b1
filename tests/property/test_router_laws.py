"""Laws of the router: shortcuts change nothing, loads balance, indexes are interchangeable."""

import random
from dataclasses import replace

import numpy as np
from clusters import run_twin
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from router_support import make_router, request, store
from strategies import random_routing, random_spec, random_timing, random_trace

from dynosim.cluster.block_names import HashNames
from dynosim.engine.sequence import Sequence
from dynosim.engine.spec import EngineSpec
from dynosim.engine.vllm import VllmScheduler
from dynosim.indexer.extents import ExtentIndex
from dynosim.indexer.radix import RadixIndex
from dynosim.records import RunResult, Trace
from dynosim.router.eligibility import Constraints
from dynosim.router.knobs import RouterSpec
from dynosim.router.spec import DelaySpec, RoutingSpec
from dynosim.timing.formulas import LinearModel
from dynosim.workload.extents import prefix_extents

SEEDS = st.integers(0, 2**32 - 1)


@settings(max_examples=90, deadline=None)
@given(SEEDS)
def test_the_shortcut_finds_exactly_the_cheapest_options(seed: int) -> None:
    """`choose` looks at groups of workers, `options` prices each; powers of two keep it exact."""
    rng = random.Random(seed)
    credit, scale = rng.choice([1.0, 0.5, 0.0]), rng.choice([1.0, 0.25, 4.0])
    router = make_router(
        rng.randint(1, 20),
        overlap_score_credit=credit,
        prefill_load_scale=scale,
        active_request_weight=rng.choice([0.0, 0.5]),
    )
    hand: list[int] = []
    for number in range(40):
        blocks = [rng.randint(0, 2) for _ in range(rng.randint(1, 6))]
        allowed = frozenset(w for w in router.table.cards if rng.random() < 0.7)
        rules = Constraints(allowed_workers=allowed) if allowed and rng.random() < 0.5 else None
        made = request(number, blocks, constraints=rules)
        eligible = router._eligible(made, 0.0)
        options = router.choice.options(made, eligible, 0.0)
        lowest = min(option.cost for option in options)
        decision = router.submit(made, 0.0)
        assert decision is not None
        chosen = next(option for option in options if option.slot == decision.slot)
        assert decision.cost == chosen.cost == lowest
        assert decision.cached_tokens == chosen.cached_tokens
        hand.append(number)
        if rng.random() < 0.7:
            store(router, decision.worker_id, blocks[: rng.randint(1, len(blocks))])
        if rng.random() < 0.5:
            router.first_token(rng.choice(hand), 0.0)
        if rng.random() < 0.4:
            router.free(hand.pop(rng.randrange(len(hand))), 0.0)
    for number in hand:
        router.free(number, 1.0)
    assert set(router.load.own_costs().costs) == {0.0}
    assert set(router.load.num_requests) == {0}
    assert router.load.active.shared_prefix([1, 2]) == []


@settings(max_examples=90, deadline=None)
@given(SEEDS)
def test_extents_and_blocks_tell_the_same(seed: int) -> None:
    """Engine events fed to an extent index and, block by block, to a radix tree."""
    rng = random.Random(seed)
    trace = random_trace(rng)
    spec = replace(random_spec(rng, trace), enable_prefix_caching=True, async_scheduling=False)
    is_capped = spec.long_prefill_token_threshold > 0
    extents = prefix_extents(trace, spec.block_size, single_blocks=is_capped)
    sizes = extents.extent_blocks.tolist()
    names = HashNames(trace, extents, spec.block_size)
    by_extent, by_block = ExtentIndex(sizes), RadixIndex()
    schedulers = [VllmScheduler(spec, sizes, keep_rows=True, publish_events=True) for _ in range(2)]
    waiting = list(range(len(trace)))
    for _ in range(400):
        worker = rng.randrange(2)
        scheduler = schedulers[worker]
        if waiting and rng.random() < 0.3:
            index = waiting.pop()
            path = extents.path[extents.path_offsets[index] : extents.path_offsets[index + 1]]
            tokens = int(trace.input_tokens[index])
            if tokens < spec.max_model_len:
                output = min(int(trace.output_tokens[index]), spec.max_model_len - tokens)
                blocks = int(extents.path_blocks[index]) if len(extents.path) else 0
                scheduler.add(Sequence(index, tokens, output, path.tolist(), blocks))
        if scheduler.has_work:
            scheduler.finish_step(scheduler.plan_step())
        assert scheduler.pool.events is not None
        for event in scheduler.pool.events:
            by_extent.apply(worker, event)
            by_block.apply(worker, names.event(event))
        scheduler.pool.events.clear()
        asked = rng.randrange(len(trace))
        path = extents.path[extents.path_offsets[asked] : extents.path_offsets[asked + 1]]
        local, _ = names.of(asked)
        found = by_extent.find_matches(path.tolist()).by_worker()
        assert found == by_block.find_matches(local).by_worker()
    if by_block.counters.unknown_parents == 0:  # else a block index misses private blocks, too
        assert by_extent.size == by_block.size


def run(seed: int, **changes: object) -> RunResult:
    rng = random.Random(seed)
    trace = random_trace(rng)
    spec = random_spec(rng, trace)
    timing = random_timing(rng, spec)
    routing = replace(random_routing(rng, spec), events=DelaySpec(), frontends=1)
    routing = replace(routing, settings=replace(routing.settings, mode="kv"), **changes)  # type: ignore[arg-type]
    return run_twin(trace, engine=spec, timing=timing, num_workers=3, routing=routing)


@settings(max_examples=25, deadline=None)
@given(SEEDS)
def test_every_exact_index_routes_alike(seed: int) -> None:
    first = run(seed, index="extents")
    for kind in ("radix", "compressed", "positional", "positional-binary"):
        other = run(seed, index=kind)
        np.testing.assert_array_equal(first.requests.worker_id, other.requests.worker_id, kind)
        times = first.requests.finish_ms, other.requests.finish_ms
        np.testing.assert_allclose(*times, rtol=0, atol=1e-6, err_msg=kind)


LONGEST_STEP_MS = 30.0  # of `CROWDED_TIMING` with a prompt of `crowded_trace`
CROWDED_TIMING = LinearModel(
    base_ms=5.0, per_prefill_token_ms=0.05, per_decode_ms=0.1, per_context_token_ms=0.0005
)


def crowded_trace(rng: random.Random) -> Trace:
    """Long answers beside prompts of three families, a few at a time."""
    count = rng.randint(12, 24)
    ids: list[int] = []
    offsets, lengths, times_ms = [0], [], [0.0]
    for number in range(count):
        family, shared = rng.randint(0, 2), rng.randint(2, 5)
        ids += [*range(10 * family, 10 * family + shared), 1000 + number]
        offsets.append(len(ids))
        lengths.append(16 * shared + rng.randint(1, 15))
        times_ms.append(times_ms[-1] + rng.choice([5.0, 40.0, 150.0, rng.uniform(0, 300)]))
    return Trace(
        arrival_ms=np.array(times_ms[:count]),
        input_tokens=np.array(lengths, np.int64),
        output_tokens=np.array([rng.choice([1, 2, rng.randint(20, 90)]) for _ in range(count)]),
        hash_ids=np.array(ids, np.int64),
        hash_offsets=np.array(offsets, np.int64),
        trace_block_size=16,
    )


def crowded_spec(rng: random.Random, trace: Trace) -> EngineSpec:
    """An engine with little room beside its longest request."""
    longest = int((trace.input_tokens + trace.output_tokens).max())
    block_size = rng.choice([4, 8, 16])
    spare = rng.choice([2, 6, 12]) * 16 // block_size
    return EngineSpec(
        num_gpu_blocks=-(-longest // block_size) + 1 + spare,
        max_model_len=longest,
        block_size=block_size,
        max_num_seqs=4,
        async_scheduling=rng.random() < 0.5,
    )


def has_evictions_under_way(timed: RunResult) -> bool:
    """Whether some request arrived while a worker had evicted blocks since it last told anything.

    A worker tells at the end of a prefill step, of a request, and of a run that an arrival cuts.
    """
    log, steps, events = timed.requests, timed.steps, timed.kv_events
    assert events is not None
    for worker_id in range(len(timed.workers)):
        mine, placed = steps.worker_id == worker_id, log.worker_id == worker_id
        prefills = mine & (steps.num_prefills > 0)
        told_ms = np.concatenate(
            [
                (steps.start_ms + steps.duration_ms)[prefills],
                log.finish_ms[placed],
                log.dispatch_ms[placed] + LONGEST_STEP_MS,
            ]
        )
        evicted_ms = events.time_ms[(events.worker_id == worker_id) & (events.num_blocks < 0)]
        for now_ms in log.arrival_ms:
            since_ms = told_ms[told_ms <= now_ms].max(initial=0.0)
            if ((evicted_ms > since_ms) & (evicted_ms < now_ms)).any():
                return True
    return False


@settings(max_examples=25, deadline=None)
@given(SEEDS)
def test_looking_up_evictions_late_and_hearing_of_them_in_time_route_alike(seed: int) -> None:
    """The direct plane asks only the cheapest workers, and only for what runs under way evicted.

    The recording one stamps every event; there every step is decided on its own.
    """
    rng = random.Random(seed)
    trace = crowded_trace(rng)
    spec = crowded_spec(rng, trace)

    def routed(*, records_events: bool) -> RunResult:
        settings = RouterSpec(spec.block_size, mode="kv", seed=seed % 7)
        return run_twin(
            trace,
            engine=spec,
            timing=CROWDED_TIMING,
            num_workers=2,
            routing=RoutingSpec(settings, records_events=records_events),
            exact_stepping=records_events,
        )

    timed = routed(records_events=True)
    assert timed.steps.duration_ms.max() < LONGEST_STEP_MS
    assume(has_evictions_under_way(timed))  # more than every other time
    lazy = routed(records_events=False)
    assert lazy.routing is not None and timed.routing is not None
    np.testing.assert_array_equal(lazy.routing.overlap_blocks, timed.routing.overlap_blocks)
    np.testing.assert_array_equal(lazy.requests.worker_id, timed.requests.worker_id)
    np.testing.assert_allclose(lazy.requests.finish_ms, timed.requests.finish_ms, rtol=0, atol=1e-6)


@settings(max_examples=10, deadline=None)
@given(SEEDS, st.sampled_from(["kv", "round-robin"]))
def test_stores_less_removals_are_what_is_resident(seed: int, mode: str) -> None:
    rng = random.Random(seed)
    trace = random_trace(rng)
    # One request after the other, and no prompt that ends with a block: nothing is held twice.
    lengths = trace.input_tokens - (trace.input_tokens % 8 == 0)
    trace = replace(trace, arrival_ms=1e6 * np.arange(len(trace)), input_tokens=lengths)
    spec = replace(random_spec(rng, trace), block_size=8, enable_prefix_caching=True)
    spec = replace(spec, num_gpu_blocks=-(-spec.max_model_len // 8) + rng.choice([1, 20]))
    routing = RoutingSpec(RouterSpec(spec.block_size, mode=mode), records_events=True)
    timing = random_timing(rng, spec)
    result = run_twin(trace, engine=spec, timing=timing, num_workers=2, routing=routing)
    log = result.kv_events
    assert log is not None and len(log.num_blocks) > 0
    for worker_id in range(2):
        mine = log.worker_id == worker_id
        assert (np.diff(log.time_ms[mine]) >= 0).all()
        resident = np.cumsum(log.num_blocks[mine])
        assert ((resident >= 0) & (resident <= spec.usable_blocks)).all()
    if mode == "kv":
        assert result.routing is not None
        assert result.routing.counters["duplicate_blocks"] == 0
        assert int(log.num_blocks.sum()) == result.routing.index_blocks > 0
