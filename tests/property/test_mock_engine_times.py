"""The mock engine is the twin: same arrivals, same times, same cache hits, same preemptions."""

import random

import numpy as np
from clusters import run_twin
from hypothesis import given, settings
from hypothesis import strategies as st
from mock_support import call, drive, mock_engine
from strategies import random_spec, random_timing, random_trace

from dynosim.records import Trace
from dynosim_runtime.mock.tokens import TokenSource


class UnrepeatedTokens(TokenSource):
    """Never the same output twice: traces do not know equal outputs either."""

    def __init__(self) -> None:
        super().__init__(0, 1 << 31)
        self._next = 1 << 20

    def continuation(self, last_token: int, position: int, num_tokens: int) -> list[int]:
        self._next += num_tokens
        return list(range(self._next - num_tokens, self._next))


def prompt_of(trace: Trace, index: int) -> list[int]:
    """Tokens that are equal where the trace's ids are."""
    size = trace.trace_block_size
    ids = trace.hash_ids[trace.hash_offsets[index] :]
    length = int(trace.input_tokens[index])
    return [int(ids[at // size]) * size + at % size for at in range(length)]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_times_hits_and_preemptions_when_served_step_by_step_equal_the_twins(seed: int) -> None:
    rng = random.Random(seed)
    trace = random_trace(rng)
    spec = random_spec(rng, trace)
    timing = random_timing(rng, spec)
    twin = run_twin(trace, engine=spec, timing=timing, num_workers=1).requests

    engine = mock_engine(spec, timing, UnrepeatedTokens())
    asked = [
        call(
            prompt_of(trace, index),
            int(trace.output_tokens[index]),
            priority=int(trace.priority[index]),
        )
        for index in range(len(trace))
    ]
    requests, logs, outcomes = drive(engine, zip(trace.arrival_ms.tolist(), asked, strict=True))

    for log, request in zip(logs, requests, strict=True):
        assert log.tokens == request.output
    times = [[log.times_ms[0] for log in logs], [log.times_ms[-1] for log in logs]]
    np.testing.assert_allclose(times[0], twin.first_token_ms, rtol=0, atol=1e-6)
    np.testing.assert_allclose(times[1], twin.finish_ms, rtol=0, atol=1e-6)
    assert [r.cached_tokens for r in requests] == twin.cached_tokens.tolist()
    assert [r.sequence.preemptions for r in requests] == twin.preemptions.tolist()
    assert len(engine) == len(engine.ledger) == 0
    assert engine.core.pool.free_blocks == spec.usable_blocks
    assert sum(len(outcome.finished) for outcome in outcomes) == len(trace)
