"""Tables of kernels as a serving engine meets them: cold caches, sustained clocks; the sampler."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynosim.timing.cold_cache import with_cold_cache
from dynosim.timing.sampler import Sampling, sampling_ms
from dynosim.timing.silicon_table import SiliconTable
from dynosim.timing.sustained import SUSTAINED_SLOWDOWN, at_sustained_clocks

LAUNCH_MS = 0.4
COLD_MS, WARM_MS = 1e-5, 3e-6  # for a token of context, from memory and from the L2 cache
CACHED_TOKENS = 12_000


def attention_ms(tokens: float) -> float:
    """A kernel that is run over and over: what fits the cache is read from it."""
    return LAUNCH_MS + tokens * (WARM_MS if tokens <= CACHED_TOKENS else COLD_MS)


def table(*, knows_extent: bool = True) -> SiliconTable:
    batches = np.array([1.0, 8.0, 32.0, 64.0])
    contexts = np.array([1.0, 64.0, 256.0, 1024.0, 4096.0, 16384.0])
    decode = [[attention_ms(b * c) for c in contexts] for b in batches]
    tokens = np.arange(2049.0)
    linear = np.where(tokens > 0, np.maximum(5.0, 0.02 * tokens), 0.0)
    return SiliconTable(
        linear_ms=linear,
        collective_ms=np.zeros(2049),
        head_ms=np.zeros(65),
        counts=np.array([1.0, 2.0]),
        new_tokens=np.array([1.0, 2048.0]),
        prefix_tokens=np.array([0.0, 16.0]),
        prefill_ms=np.zeros((2, 2, 2), np.float32),
        batches=batches,
        contexts=contexts,
        decode_ms=np.array(decode, np.float32),
        measured_batches=batches if knows_extent else np.zeros(0),
        measured_contexts=np.full(4, 16384.0) if knows_extent else np.zeros(0),
        measured_counts=np.zeros(0),
        measured_new_tokens=np.zeros(0),
        meta={},
    )


def test_what_fits_the_l2_cache_is_read_from_memory() -> None:
    before, after = table(), with_cold_cache(table())
    i, j = 1, 3  # 8 sequences of 1,024 tokens: within the cache
    assert before.decode_ms[i, j] == pytest.approx(LAUNCH_MS + 8192 * WARM_MS)
    launch_ms = attention_ms(8 * 64)
    assert after.decode_ms[i, j] == pytest.approx(launch_ms + 8 * (1024 - 64) * COLD_MS, rel=1e-5)


def test_beyond_the_cache_and_for_short_contexts_nothing_changes() -> None:
    before, after = table(), with_cold_cache(table())
    np.testing.assert_array_equal(after.decode_ms[:, :2], before.decode_ms[:, :2])
    np.testing.assert_allclose(after.decode_ms[2:, 5], before.decode_ms[2:, 5], rtol=2e-3)


def test_no_entry_gets_faster_and_rows_still_rise() -> None:
    before, after = table(), with_cold_cache(table())
    assert (after.decode_ms >= before.decode_ms).all()
    assert (np.diff(after.decode_ms, axis=1) >= 0).all()


def test_a_table_of_unknown_extent_is_left_alone() -> None:
    unknown = table(knows_extent=False)
    assert with_cold_cache(unknown) is unknown


def test_attention_that_does_not_grow_is_left_alone() -> None:
    flat = replace(table(), decode_ms=np.full((4, 6), 0.5, np.float32))
    assert with_cold_cache(flat) is flat


def test_sustained_clocks_slow_computing_and_leave_reading() -> None:
    before, after = table().linear_ms, at_sustained_clocks(table()).linear_ms
    np.testing.assert_array_equal(after[:257], before[:257])
    assert after[200] == before[200] == 5.0  # still reading the weights
    computing_ms = before[2048] - before[256]  # what 256 tokens take is mostly reading
    assert after[2048] == pytest.approx(before[2048] + SUSTAINED_SLOWDOWN * computing_ms)


@given(
    sampling=st.sampled_from(("greedy", "random", "truncated")),
    vocabulary=st.integers(1000, 300_000),
    bandwidth=st.floats(200, 8000),
)
def test_a_token_costs_more_the_more_is_done_with_its_logits(
    sampling: Sampling, vocabulary: int, bandwidth: float
) -> None:
    def cost(how: Sampling, version: tuple[int, ...] = (0, 15), size: int = vocabulary) -> float:
        return sampling_ms(how, vocabulary=size, memory_gb_per_s=bandwidth, version=version)

    assert 0 < cost("greedy") < cost("random") < cost("truncated")
    assert cost(sampling, size=2 * vocabulary) == pytest.approx(2 * cost(sampling))
    assert cost("truncated", (0, 15, 1)) > cost("truncated", (0, 19)) > cost("truncated", (0, 24))
    assert cost("random", (0, 12)) == cost("random", (0, 24))


def test_sorting_takes_what_was_published() -> None:
    row_ms = sampling_ms("truncated", vocabulary=131_072, memory_gb_per_s=3350, version=(0, 15, 1))
    assert 128 * row_ms == pytest.approx(2.3 + 128 * 131_072 * 60 / 3350e6, rel=0.02)
