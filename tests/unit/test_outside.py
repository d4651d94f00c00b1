"""Time spent outside of engines: the same run, told on the clients' clock."""

import random
from dataclasses import fields, replace

import numpy as np
import pytest
from clusters import run_twin
from strategies import random_spec, random_trace

from dynosim.cluster.outside import as_clients_see
from dynosim.records import RequestLog, RunResult, StepLog
from dynosim.router.knobs import RouterSpec
from dynosim.router.spec import RoutingSpec
from dynosim.timing.formulas import LinearModel

INGRESS_MS, EGRESS_MS = 3.25, 1.5
# By how much each time of a request or step is later for a client than for an engine.
LATER_MS = {
    "arrival_ms": 0.0,
    "dispatch_ms": INGRESS_MS,
    "scheduled_ms": INGRESS_MS,
    "first_token_ms": INGRESS_MS + EGRESS_MS,
    "second_token_ms": INGRESS_MS + EGRESS_MS,
    "finish_ms": INGRESS_MS + EGRESS_MS,
    "start_ms": INGRESS_MS,
    "duration_ms": 0.0,
}


def run(seed: int, ingress_ms: float, egress_ms: float) -> RunResult:
    rng = random.Random(seed)
    trace = random_trace(rng)
    spec = replace(random_spec(rng, trace), enable_prefix_caching=True)
    timing = LinearModel(
        base_ms=5.0, per_prefill_token_ms=0.05, per_decode_ms=0.1, per_context_token_ms=0.0005
    )
    timing.ingress_ms, timing.egress_ms = ingress_ms, egress_ms
    routing = RoutingSpec(RouterSpec(spec.block_size, mode="kv"), records_events=True)
    return run_twin(trace, engine=spec, timing=timing, num_workers=2, routing=routing)


@pytest.mark.parametrize("seed", range(4))
def test_a_load_by_the_clock_is_served_alike_and_seen_later(seed: int) -> None:
    inside, outside = run(seed, 0.0, 0.0), run(seed, INGRESS_MS, EGRESS_MS)
    pairs = [
        (RequestLog, inside.requests, outside.requests),
        (StepLog, inside.steps, outside.steps),
    ]
    for kind, engines, clients in pairs:
        for column in fields(kind):
            ours, theirs = getattr(engines, column.name), getattr(clients, column.name)
            if column.name == "errors":
                assert ours == theirs
            elif column.name in LATER_MS:
                np.testing.assert_array_equal(ours + LATER_MS[column.name], theirs, column.name)
            else:
                np.testing.assert_array_equal(ours, theirs, column.name)
    assert outside.end_ms == inside.end_ms + INGRESS_MS + EGRESS_MS
    np.testing.assert_array_equal(outside.stalled_gaps_ms, inside.stalled_gaps_ms)
    assert inside.kv_events is not None and outside.kv_events is not None
    assert len(inside.kv_events.time_ms) > 0
    np.testing.assert_array_equal(outside.kv_events.time_ms, inside.kv_events.time_ms + INGRESS_MS)
    np.testing.assert_array_equal(outside.kv_events.num_blocks, inside.kv_events.num_blocks)


def test_a_run_without_events_has_none_for_clients_either() -> None:
    rng = random.Random(0)
    trace = random_trace(rng)
    result = run_twin(
        trace,
        engine=random_spec(rng, trace),
        timing=LinearModel(
            base_ms=5.0, per_prefill_token_ms=0.0, per_decode_ms=0.0, per_context_token_ms=0.0
        ),
        num_workers=1,
    )
    seen = as_clients_see(result, ingress_ms=1.0, egress_ms=2.0)
    assert seen.kv_events is None
    assert seen.end_ms == result.end_ms + 3.0
