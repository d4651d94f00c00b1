"""Gap statistics equal those of the fully expanded pool, for step times of any shape.

`build` expands: it lists every gap; `check` sorts and sums that list.
"""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynosim.metrics import decode_runs, gap_pool
from dynosim.metrics.gaps import summarize_gaps
from dynosim.metrics.percentiles import PERCENTILES, nearest_rank
from dynosim.records import StepLog

Shape = Callable[[np.ndarray, np.ndarray], np.ndarray]
Promise = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def nothing(n: np.ndarray, s: np.ndarray, k: np.ndarray) -> np.ndarray:
    return np.zeros(len(k), np.int64)


def all_of_it(n: np.ndarray, s: np.ndarray, k: np.ndarray) -> np.ndarray:
    return k


def up_to(width: int) -> Promise:
    """Bends at every multiple of `width` tokens."""

    def smooth(n: np.ndarray, s: np.ndarray, k: np.ndarray) -> np.ndarray:
        return np.minimum(k, -(-(width - s % width) // np.maximum(n, 1)))

    return smooth


SHAPES: dict[str, tuple[Shape, Promise]] = {
    "rising": (lambda n, s: 5.0 + 0.1 * n + 0.003 * s, all_of_it),
    "steep": (lambda n, s: 1e-6 * n + 0.05 * s, all_of_it),
    "falling": (lambda n, s: 50.0 - 0.0001 * s, all_of_it),
    "falling fast": (lambda n, s: 500.0 - 0.01 * s, all_of_it),
    "bent": (lambda n, s: 3.0 + 2e-3 * s + 1e-7 * s * s, all_of_it),
    "bent down": (lambda n, s: 1.0 + 3e-2 * s - 2e-7 * s * s, all_of_it),
    "flat": (lambda n, s: np.full(len(n), 7.25), all_of_it),
    "flat per batch": (lambda n, s: 3.0 + n.astype(np.float64), all_of_it),
    "never": (lambda n, s: np.zeros(len(n)), all_of_it),
    "stairs": (lambda n, s: 1.0 + (s // 97).astype(np.float64), up_to(97)),
    "roof": (lambda n, s: 2.0 + np.abs(s % 5000 - 2500) * 1e-3, up_to(2500)),
    "from zero": (lambda n, s: np.maximum(0, s - 2500) * 1e-2, up_to(2500)),
    "sometimes known": (lambda n, s: 5.0 + 1e-3 * s, lambda n, s, k: np.where(n % 2, k, 0)),
    "wavy": (lambda n, s: 10.0 + 5.0 * np.sin(s / 50.0) + 0.01 * n, nothing),
    "sometimes zero": (lambda n, s: np.where(s % 3 == 0, 0.0, 1.0 + s / 1000.0), nothing),
    "spike": (lambda n, s: np.where(s > 1500, 1e6, 1.0) + s * 1e-9, nothing),
}


class Shaped:
    def __init__(self, shape: Shape, promise: Promise) -> None:
        self.decode_step_ms_array = shape
        self.smooth_decode_steps = promise


rows = st.lists(
    st.tuples(
        st.integers(1, 60) | st.integers(1, 1500),  # steps
        st.integers(0, 12),  # sequences
        st.integers(1, 2000),  # context
        st.booleans(),  # prefill work
    ),
    max_size=20,
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
    check_order(found, pool)
    assert found["mean"] == pytest.approx(pool.mean(), rel=1e-12)
    assert found["std"] is not None
    rounding = 1e-14 * float(np.abs(pool).max()) ** 2  # of squares, most of which may cancel
    assert found["std"] ** 2 == pytest.approx(pool.var(), rel=1e-12, abs=rounding)


def check_order(found: dict[str, float | None], pool: np.ndarray) -> None:
    ordered = np.sort(pool)
    assert found["min"] == ordered[0]
    assert found["max"] == ordered[-1]
    for name, percent in PERCENTILES.items():
        assert found[name] == ordered[nearest_rank(len(ordered), percent)]


@settings(max_examples=300, deadline=None)
@given(
    drawn=rows,
    shape=st.sampled_from(sorted(SHAPES)),
    is_known=st.booleans(),
    stalled=st.lists(st.floats(0.5, 500.0), max_size=4),
    chunk=st.sampled_from([1, 16, 16_384]),
)
def test_statistics_equal_the_expanded_pool(
    drawn: list[tuple[int, int, int, bool]],
    shape: str,
    is_known: bool,
    stalled: list[float],
    chunk: int,
) -> None:
    times, promise = SHAPES[shape]
    steps, pool = build(drawn, times)
    pool = np.concatenate((pool, stalled))
    timing = Shaped(times, promise if is_known else nothing)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(decode_runs, "CHUNK_STEPS", chunk)
        patched.setattr(gap_pool, "PIECES_AT_ONCE", chunk)
        found = summarize_gaps(steps, np.array(stalled), timing)
    assert found.gap_ms.count == len(pool)
    positive = pool[pool > 0]
    assert found.token_rate.count == len(positive)
    if len(pool):
        check(found.gap_ms.statistics, pool)
    if len(positive):
        check(found.token_rate.statistics, 1000.0 / positive)


@settings(max_examples=150, deadline=None)
@given(drawn=rows, shape=st.sampled_from(["stairs", "spike", "root", "rising"]))
def test_percentiles_are_exact_where_steps_rise_as_promised_but_on_no_parabola(
    drawn: list[tuple[int, int, int, bool]], shape: str
) -> None:
    times = (lambda n, s: np.sqrt(s)) if shape == "root" else SHAPES[shape][0]
    steps, pool = build(drawn, times)
    if len(pool):
        found = summarize_gaps(steps, np.zeros(0), Shaped(times, all_of_it))
        check_order(found.gap_ms.statistics, pool)


def test_a_gap_far_from_where_the_parabola_has_it_is_found() -> None:
    def times(n: np.ndarray, s: np.ndarray) -> np.ndarray:
        return np.where(s < 330, 10.0 + s * 1e-9, 10.01 + s * 1e-9)

    steps, pool = build([(400, 1, 1, False)] * 3, times)
    found = summarize_gaps(steps, np.zeros(0), Shaped(times, all_of_it))
    check_order(found.gap_ms.statistics, pool)


def test_no_decode_steps_means_no_statistics() -> None:
    steps, _ = build([(3, 0, 10, False)], SHAPES["flat"][0])
    found = summarize_gaps(steps, np.zeros(0), Shaped(*SHAPES["flat"]))
    assert found.gap_ms.count == 0
    assert found.gap_ms.statistics["mean"] is None
