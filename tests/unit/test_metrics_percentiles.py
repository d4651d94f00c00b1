import numpy as np
import pytest
from naive_latencies import statistics

from dynosim.metrics.percentiles import (
    STATISTICS,
    median,
    nearest_rank,
    percentile,
    summarize_sample,
)


@pytest.mark.parametrize(
    ("count", "percent", "index"),
    [(1, 99, 0), (2, 50, 1), (3, 50, 1), (4, 50, 2), (11, 95, 10), (101, 99, 99), (5, 90, 4)],
)
def test_rank_is_rounded_half_away_from_zero(count: int, percent: int, index: int) -> None:
    assert nearest_rank(count, percent) == index


def test_percentile_is_an_element_of_the_sample() -> None:
    ordered = np.array([1.0, 2.0, 10.0, 50.0])
    assert percentile(ordered, 50) == 10.0
    assert percentile(ordered, 99) == 50.0


def test_percentile_of_nothing_is_none() -> None:
    assert percentile(np.zeros(0), 50) is None


def test_summary_leaves_nan_out_and_uses_population_deviation() -> None:
    summary = summarize_sample(np.array([4.0, np.nan, 2.0]))
    assert summary.count == 2
    assert summary.statistics["mean"] == 3.0
    assert summary.statistics["std"] == 1.0
    assert summary.keys_for("ttft_ms")["max_ttft_ms"] == 4.0


def test_summary_of_nothing_has_every_key_and_no_value() -> None:
    summary = summarize_sample(np.array([np.nan]))
    assert summary.count == 0
    assert set(summary.statistics.values()) == {None}


@pytest.mark.parametrize("count", [*range(1, 12), 50, 51, 99, 100, 101, 200, 201, 1000])
def test_every_statistic_is_what_sorting_gives(count: int) -> None:
    sample = np.random.default_rng(count).lognormal(3.0, 2.0, count)
    found = summarize_sample(sample)
    expected = statistics(sample.tolist())
    assert found.count == count
    assert list(found.statistics) == list(STATISTICS) == list(expected)
    for name, value in expected.items():
        assert found.statistics[name] == pytest.approx(value, rel=1e-12)  # order of a sum


@pytest.mark.parametrize(
    ("sample", "middle"),
    [([4.0], 4.0), ([4.0, 1.0], 2.5), ([9.0, 1.0, 2.0], 2.0), ([9.0, 1.0, 2.0, 4.0], 3.0)],
)
def test_median_is_the_middle_or_between_the_two_in_the_middle(
    sample: list[float], middle: float
) -> None:
    assert median(np.array(sample)) == middle
