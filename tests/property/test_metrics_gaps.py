"""Gap statistics equal those of the fully expanded pool, for step times of any shape."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynosim.metrics import decode_runs
from dynosim.metrics.gaps import summarize_gaps
from dynosim.metrics.percentiles import PERCENTILES, nearest_rank
from dynosim.records import StepLog

Shape = Callable[[np.ndarray, np.ndarray], np.ndarray]

SHAPES: dict[str, Shape] = {
    "rising": lambda n, s: 5.0 + 0.1 * n + 0.003 * s,
    "falling": lambda n, s: 50.0 - 0.0001 * s,
    "flat": lambda n, s: np.full(len(n), 7.25),
    "flat per batch": lambda n, s: 3.0 + n.astype(np.float64),
    "wavy": lambda n, s: 10.0 + 5.0 * np.sin(s / 50.0) + 0.01 * n,
    "stairs": lambda n, s: 1.0 + (s // 97).astype(np.float64),
    "sometimes zero": lambda n, s: np.where(s % 3 == 0, 0.0, 1.0 + s / 1000.0),
    "spike": lambda n, s: np.where(s > 1500, 1e6, 1.0) + s * 1e-9,
}


class Shaped:
    def __init__(self, shape: Shape) -> None:
        self.decode_step_ms_array = shape


rows = st.lists(
    st.tuples(
        st.integers(1, 60),  # steps
        st.integers(0, 12),  # sequences
        st.integers(1, 2000),  # context
        st.booleans(),  # prefill work
    ),
    max_size=40,
)


def build(drawn: list[tuple[int, int, int, bool]], shape: Shape) -> tuple[StepLog, np.ndarray]:
    """The step log and its pool of gaps, one number per gap."""
    pool, durations = [], []
    table = [(1 if prefill else k, n, s, prefill) for k, n, s, prefill in drawn]
    for k, n, s, prefill in table:
        each = shape(np.full(k, n), s + n * np.arange(k)) + (20.0 if prefill else 0.0)
        durations.append(float(each.sum()))
        pool.append(np.repeat(each, n))
    columns = np.array(table, dtype=np.int64).reshape(len(table), 4)
    zeros = np.zeros(len(table), dtype=np.int64)
    duration = np.array(durations)
    steps = StepLog(
        worker_id=zeros,
        start_ms=np.cumsum(duration) - duration,
        duration_ms=duration,
        num_steps=columns[:, 0],
        num_prefills=columns[:, 3],
        prefill_tokens=columns[:, 3] * 10,
        prefix_tokens=zeros,
        num_decodes=columns[:, 1],
        decode_context_tokens=columns[:, 2],
        num_running=columns[:, 1],
        num_waiting=zeros,
        used_blocks=zeros,
    )
    return steps, np.concatenate(pool) if pool else np.zeros(0)


def check(found: dict[str, float | None], pool: np.ndarray) -> None:
    ordered = np.sort(pool)
    assert found["mean"] == pytest.approx(ordered.mean(), rel=1e-9)
    assert found["std"] == pytest.approx(ordered.std(), rel=1e-6, abs=1e-6 * ordered.mean())
    assert found["min"] == ordered[0]
    assert found["max"] == ordered[-1]
    for name, percent in PERCENTILES.items():
        assert found[name] == ordered[nearest_rank(len(ordered), percent)]


@settings(max_examples=150, deadline=None)
@given(
    drawn=rows,
    shape=st.sampled_from(sorted(SHAPES)),
    stalled=st.lists(st.floats(0.5, 500.0), max_size=4),
    chunk=st.sampled_from([1, 16, 16_384]),
)
def test_statistics_equal_the_expanded_pool(
    drawn: list[tuple[int, int, int, bool]], shape: str, stalled: list[float], chunk: int
) -> None:
    steps, pool = build(drawn, SHAPES[shape])
    pool = np.concatenate((pool, stalled))
    before = decode_runs.CHUNK_STEPS
    decode_runs.CHUNK_STEPS = chunk
    try:
        found = summarize_gaps(steps, np.array(stalled), Shaped(SHAPES[shape]))
    finally:
        decode_runs.CHUNK_STEPS = before
    assert found.gap_ms.count == len(pool)
    positive = pool[pool > 0]
    assert found.token_rate.count == len(positive)
    if len(pool):
        check(found.gap_ms.statistics, pool)
    if len(positive):
        check(found.token_rate.statistics, 1000.0 / positive)


def test_no_decode_steps_means_no_statistics() -> None:
    steps, _ = build([(3, 0, 10, False)], SHAPES["flat"])
    found = summarize_gaps(steps, np.zeros(0), Shaped(SHAPES["flat"]))
    assert found.gap_ms.count == 0
    assert found.gap_ms.statistics["mean"] is None
