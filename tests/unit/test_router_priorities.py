"""Priorities of a trace in the router's queue: below zero is more urgent, as in the engine."""

import numpy as np
import pytest
from clusters import run_twin

from dynosim.engine.spec import EngineSpec
from dynosim.records import Trace
from dynosim.router.classes import PolicyClass
from dynosim.router.knobs import RouterSpec
from dynosim.router.spec import RoutingSpec
from dynosim.timing.formulas import FixedModel

ENGINE = EngineSpec(num_gpu_blocks=1001, max_model_len=4096, block_size=16)


def order_of(priorities: list[int]) -> list[int]:
    """In which order requests that come 1 ms apart get their first token, one at a time."""
    count = len(priorities)
    trace = Trace(
        arrival_ms=np.arange(count, dtype=np.float64),
        input_tokens=np.full(count, 64, np.int64),
        output_tokens=np.full(count, 2, np.int64),
        hash_ids=np.zeros(0, np.int64),
        hash_offsets=np.zeros(count + 1, np.int64),
        trace_block_size=64,
        priority=np.array(priorities, np.int64),
    )
    waits = PolicyClass(prefill_busy_threshold=0)
    routing = RoutingSpec(RouterSpec(16, mode="kv", classes=(waits,)))
    result = run_twin(
        trace, engine=ENGINE, timing=FixedModel(50.0, 1.0), num_workers=1, routing=routing
    )
    first_ms = result.requests.first_token_ms
    assert len(set(first_ms.tolist())) == count
    assert result.routing is not None and result.routing.num_queued == count - 1
    return [int(index) for index in np.argsort(first_ms)]


@pytest.mark.parametrize(
    ("priorities", "order"),
    [
        ([0, 0, 0, 0], [0, 1, 2, 3]),
        ([0, 0, 0, -1], [0, 3, 1, 2]),
        ([0, 0, -1, -2], [0, 3, 2, 1]),
        ([0, 0, -2, -1], [0, 2, 3, 1]),
        ([0, 0, 0, 1], [0, 1, 2, 3]),
        ([0, 5, 9, 0], [0, 1, 2, 3]),  # above zero it costs nothing
        ([0, 5, 0, -1], [0, 3, 1, 2]),
    ],
)
def test_a_priority_below_zero_counts_as_so_many_seconds_earlier(
    priorities: list[int], order: list[int]
) -> None:
    assert order_of(priorities) == order
