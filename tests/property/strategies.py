"""Random small workloads and engines for property tests of the twin."""

import random

import numpy as np

from dynosim.cluster.event_plane import DelaySettings
from dynosim.cluster.routing import RoutingSpec
from dynosim.engine.spec import EngineSpec
from dynosim.records import Trace
from dynosim.router.classes import PolicyClass
from dynosim.router.modes import LOAD_MODES
from dynosim.router.settings import CostSettings, LoadSettings, RouterSettings
from dynosim.timing.formulas import LinearModel, PolynomialModel
from dynosim.timing.model import StepTimeModel


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
    return EngineSpec(
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
    cost = CostSettings(
        overlap_score_credit=rng.choice([1.0, 1.0, 0.5, 2.0]),
        overlap_score_credit_decay=rng.choice([0.0, 0.0, 0.5]),
        temperature=rng.choice([0.0, 0.0, 0.3]),
        active_request_weight=rng.choice([0.0, 0.25]),
    )
    waits = PolicyClass(queue_policy=rng.choice(["fcfs", "lcfs", "wspt"]), prefill_busy_threshold=8)
    settings = RouterSettings(
        spec.block_size,
        mode=mode,
        cost=cost,
        load=LoadSettings(track_output_blocks=rng.random() < 0.2),
        classes=(waits,) if rng.random() < 0.3 else (),
        seed=rng.randint(0, 9),
    )
    frontends = rng.choice([1, 1, 1, 2])
    return RoutingSpec(
        settings,
        index=rng.choice(["extents", "extents", "compressed", "radix"]),
        events=DelaySettings(delay_ms=rng.choice([0.0, 0.0, 7.3])),
        frontends=frontends,
        sync_delay_ms=rng.choice([None, 3.7]) if frontends > 1 else None,
    )
