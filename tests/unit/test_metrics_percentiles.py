import numpy as np
import pytest

from dynosim.metrics.percentiles import (
    nearest_rank,
    percentile,
    summarize_sample,
    weighted_order_statistic,
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


def test_weighted_order_statistic_counts_repeats() -> None:
    values, weights = np.array([5.0, 1.0, 3.0]), np.array([1, 2, 3])
    expanded = [1.0, 1.0, 3.0, 3.0, 3.0, 5.0]
    assert [weighted_order_statistic(values, weights, i) for i in range(6)] == expanded
    with pytest.raises(IndexError):
        weighted_order_statistic(values, weights, 6)
