"""Random small workloads and engines for property tests of the twin.

What is drawn in a function of a dataclass's own text leaves the draws of others as they are, so
that a seed that once found a fault goes on finding it.
"""

import random
from dataclasses import replace

import numpy as np

from dynosim.engine.spec import EngineSpec
from dynosim.records import NO_REQUEST, Trace
from dynosim.router.busy import BusyThresholds
from dynosim.router.classes import PolicyClass
from dynosim.router.knobs import AffinitySpec, CostSpec, LoadSpec, RouterSpec
from dynosim.router.modes import LOAD_MODES
from dynosim.router.spec import DelaySpec, RoutingSpec
from dynosim.timing.formulas import LinearModel, PolynomialModel
from dynosim.timing.model import StepTimeModel
from dynosim.timing.prefill_estimate import StepTimeEstimator


def random_trace(rng: random.Random) -> Trace:
    """Up to 40 requests with shared prefixes, bursts, exact block multiples, single tokens."""
    count = rng.randint(3, 40)
    block = rng.choice([16, 32, 64])
    spread_ms = rng.choice([50, 2000])
    arrival = np.sort([rng.choice([0.0, rng.uniform(0, spread_ms)]) for _ in range(count)])
    lengths = [
        rng.choice([rng.randint(1, 200), 8 * rng.randint(1, 16), block * rng.randint(1, 3)])
        for _ in range(count)
    ]
    outputs = [rng.choice([1, 2, rng.randint(1, 30), rng.randint(1, 200)]) for _ in range(count)]
    ids: list[int] = []
    offsets = [0]
    for length in lengths:
        used = -(-length // block)
        group, shared = rng.randint(0, 3), rng.randint(0, used)
        ids += [group * 50 + k for k in range(shared)]
        ids += [1000 + len(ids) + k for k in range(used - shared)]
        offsets.append(len(ids))
    return Trace(
        arrival_ms=arrival - arrival[0],
        input_tokens=np.array(lengths, np.int64),
        output_tokens=np.array(outputs, np.int64),
        hash_ids=np.array(ids, np.int64),
        hash_offsets=np.array(offsets, np.int64),
        trace_block_size=block,
        priority=np.array([rng.randint(0, 2) for _ in range(count)], np.int64),
    )


def random_spec(rng: random.Random, trace: Trace) -> EngineSpec:
    """An engine that any request of the trace fits, often barely."""
    block_size = rng.choice([4, 8, 16, 24])
    longest = int((trace.input_tokens + trace.output_tokens).max())
    needed = -(-longest // block_size)
    seats = rng.choice([2, 4, 8, 16])
    spec = EngineSpec(
        num_gpu_blocks=needed + 1 + rng.choice([0, 2, needed, 4 * needed]),
        max_model_len=longest,
        block_size=block_size,
        max_num_seqs=seats,
        max_num_batched_tokens=max(seats, rng.choice([16, 64, 256])),
        enable_prefix_caching=rng.random() < 0.85,
        long_prefill_token_threshold=rng.choice([0, 0, 0, 8]),
        policy=rng.choice(["fcfs", "fcfs", "priority"]),
        watermark=rng.choice([0.0, 0.0, 0.1]),
        async_scheduling=rng.random() < 0.5,
    )
    return _with_rarer_options(spec)


def _with_rarer_options(spec: EngineSpec) -> EngineSpec:
    """The options that most engines leave alone; as vLLM accepts them together."""
    rng = random.Random(repr(spec))
    if rng.random() < 0.3:  # without chunks a step must have room for the longest prompt
        budget = max(spec.max_num_batched_tokens, spec.max_model_len)
        spec = replace(spec, enable_chunked_prefill=False, max_num_batched_tokens=budget)
    return replace(
        spec,
        long_prefill_token_threshold_adaptive=rng.random() < 0.3,
        scheduler_reserve_full_isl=rng.random() < 0.7,
        max_num_active_seqs=rng.choice([None, None, max(1, spec.max_num_seqs // 2)]),
    )


def bounded_spec(rng: random.Random, trace: Trace) -> EngineSpec:
    """`random_spec`, often with a context that is about as long as one of the requests."""
    spec = random_spec(rng, trace)
    if rng.random() < 0.5:
        return spec
    row = rng.randrange(len(trace))
    prompt, output = int(trace.input_tokens[row]), int(trace.output_tokens[row])
    edge = rng.choice([prompt - 1, prompt, prompt + 1, prompt + output - 1, prompt + output])
    limit = max(2, min(edge, spec.max_model_len))
    cap = min(spec.long_prefill_token_threshold, limit)
    return replace(spec, max_model_len=limit, long_prefill_token_threshold=cap)


def pressing_trace(rng: random.Random) -> Trace:
    """Short prompts with longer answers: where memory is short, many lose it.

    The later, the more urgent: with priorities, those who run first are the first to lose.
    """
    count = rng.randint(8, 20)
    arrival = np.sort([rng.choice([0.0, rng.uniform(0, 200)]) for _ in range(count)])
    return Trace(
        arrival_ms=arrival - arrival[0],
        input_tokens=np.array([rng.randint(2, 24) for _ in range(count)]),
        output_tokens=np.array([rng.choice([1, 2, 5, rng.randint(8, 60)]) for _ in range(count)]),
        hash_ids=np.array([value for row in range(count) for value in (row % 3, 10 + row)]),
        hash_offsets=2 * np.arange(count + 1),
        trace_block_size=16,
        priority=np.arange(count)[::-1] // 3,
    )


def pressed_spec(rng: random.Random, trace: Trace) -> EngineSpec:
    """An engine with room for its longest request and little more."""
    longest = int((trace.input_tokens + trace.output_tokens).max())
    block_size = rng.choice([2, 4, 8, 16])
    return EngineSpec(
        num_gpu_blocks=-(-longest // block_size) + 1 + rng.choice([0, 0, 0, 2]),
        max_model_len=longest,
        block_size=block_size,
        max_num_seqs=16,
        max_num_batched_tokens=rng.choice([16, 256, 256]),
        enable_prefix_caching=rng.random() < 0.7,
        scheduler_reserve_full_isl=rng.random() < 0.5,
        policy=rng.choice(["priority", "priority", "priority", "fcfs"]),
        watermark=rng.choice([0.0, 0.0, 0.2]),
        async_scheduling=rng.random() < 0.5,
    )


def with_sessions(rng: random.Random, trace: Trace) -> Trace:
    """The same requests, some of them later turns of others, with think times."""
    count = len(trace)
    previous = np.full(count, NO_REQUEST, np.int64)
    delay_ms = np.zeros(count)
    names = [""] * count
    last: dict[str, int] = {}
    for row in range(count):
        name = rng.choice(["", "a", "b", "c", f"only-{row}"])
        if name in last:
            previous[row] = last[name]
            delay_ms[row] = rng.choice([0.0, rng.uniform(0.0, 300.0)])
        if name:
            last[name] = row
        names[row] = name
    trace = replace(trace, session_ids=tuple(names))
    if (previous == NO_REQUEST).all():
        return trace
    return replace(trace, previous_turn=previous, delay_ms=delay_ms)


def random_timing(rng: random.Random, spec: EngineSpec) -> StepTimeModel:
    """One of the formula models."""
    if rng.random() < 0.5:
        return PolynomialModel(spec.usable_blocks * spec.block_size)
    return LinearModel(
        base_ms=5.0, per_prefill_token_ms=0.05, per_decode_ms=0.1, per_context_token_ms=0.0005
    )


def random_routing(rng: random.Random, spec: EngineSpec) -> RoutingSpec:
    """Any mode, half of the time kv, with and without features."""
    mode = rng.choice(["kv", "kv", "kv", rng.choice(LOAD_MODES)])
    cost = CostSpec(
        overlap_score_credit=rng.choice([1.0, 1.0, 0.5, 2.0]),
        overlap_score_credit_decay=rng.choice([0.0, 0.0, 0.5]),
        temperature=rng.choice([0.0, 0.0, 0.3]),
        active_request_weight=rng.choice([0.0, 0.25]),
    )
    waits = PolicyClass(queue_policy=rng.choice(["fcfs", "lcfs", "wspt"]), prefill_busy_threshold=8)
    settings = RouterSpec(
        spec.block_size,
        mode=mode,
        cost=cost,
        load=LoadSpec(track_output_blocks=rng.random() < 0.2),
        classes=(waits,) if rng.random() < 0.3 else (),
        seed=rng.randint(0, 9),
    )
    frontends = rng.choice([1, 1, 1, 2])
    return RoutingSpec(
        settings,
        index=rng.choice(["extents", "extents", "compressed", "radix"]),
        events=DelaySpec(delay_ms=rng.choice([0.0, 0.0, 7.3])),
        frontends=frontends,
        sync_delay_ms=rng.choice([None, 3.7]) if frontends > 1 else None,
    )


def with_lossy_events(rng: random.Random, routing: RoutingSpec) -> RoutingSpec:
    """The same, now and then with KV events that get lost and overtake each other."""
    if rng.random() < 0.6:
        return routing
    events = replace(
        routing.events,
        jitter_ms=rng.choice([0.0, 4.0, 60.0]),
        loss=rng.choice([0.0, 0.1, 0.6]),
        recovery_ms=rng.choice([0.0, 5.0, 90.0]),
    )
    return replace(routing, events=events)


def with_rarer_routing(
    routing: RoutingSpec, timing: StepTimeModel, spec: EngineSpec
) -> RoutingSpec:
    """The router's rarer options, those that look at clocks among them."""
    rng = random.Random(repr(routing.settings))
    settings = routing.settings
    if rng.random() < 0.2:
        settings = replace(settings, busy=BusyThresholds(active_prefill_tokens_threshold=300))
    if rng.random() < 0.3:
        affinity = AffinitySpec(rng.choice([40.0, 900.0]), rng.choice(["hard", "soft"]))
        settings = replace(settings, affinity=affinity)
    routing = replace(routing, settings=settings, records_events=rng.random() < 0.3)
    if rng.random() < 0.2:
        budget = spec.max_num_batched_tokens
        routing = replace(routing, estimator=StepTimeEstimator(timing, budget))
    kind = rng.randrange(8)
    if kind == 0:
        return replace(routing, predicted_ttl_ms=123.4)
    if kind == 1:
        policy = rng.choice(["ttl", "lru"])
        return replace(routing, use_kv_events=False, ttl_ms=234.5, approximate_cache_policy=policy)
    return routing
