"""Intervals of changes: paired where the same sessions were drawn in both runs."""

import numpy as np
import pytest

from dynosim.compare.paired import Sample, interval_of_change, mean, rank_statistic
from dynosim.metrics.percentiles import summarize_sample
from dynosim.metrics.resampling import NUM_DRAWS, session_draws


def sample(values: np.ndarray, session: np.ndarray | None = None) -> Sample:
    return Sample(values, np.arange(len(values)) if session is None else session)


def test_a_small_shift_is_told_by_pairs_and_not_without_them() -> None:
    rng = np.random.default_rng(1)
    before = rng.exponential(1000, 400)
    after = before + rng.normal(20, 5, 400)
    paired = interval_of_change(sample(before), sample(after), mean, is_paired=True)
    apart = interval_of_change(sample(before), sample(after), mean, is_paired=False)
    assert paired is not None and apart is not None
    assert 18 < paired[0] < 20 < paired[1] < 22
    assert apart[0] < 0 < apart[1]


def test_intervals_are_as_wide_as_theory_says() -> None:
    rng = np.random.default_rng(2)
    change = rng.normal(0, 30, 900)
    found = interval_of_change(sample(np.zeros(900)), sample(change), mean, is_paired=True)
    assert found is not None
    assert found[1] - found[0] == pytest.approx(2 * 1.96 * change.std() / 30, rel=0.2)


def test_the_turns_of_a_session_are_drawn_together() -> None:
    rng = np.random.default_rng(3)
    of_session = rng.normal(0, 30, 100)
    change, session = np.repeat(of_session, 10), np.repeat(np.arange(100), 10)
    zeros = np.zeros(1000)
    together = interval_of_change(
        sample(zeros, session), sample(change, session), mean, is_paired=True
    )
    alone = interval_of_change(sample(zeros), sample(change), mean, is_paired=True)
    assert together is not None and alone is not None
    ratio = (together[1] - together[0]) / (alone[1] - alone[0])
    assert ratio == pytest.approx(10**0.5, rel=0.25)


@pytest.mark.parametrize("percent", [50, 95, 99])
def test_ranks_are_those_of_reports_and_count_values_as_often_as_drawn(percent: int) -> None:
    rng = np.random.default_rng(percent)
    values = np.sort(rng.exponential(100, 57))
    statistic = rank_statistic(percent)
    name = "median" if percent == 50 else f"p{percent}"
    assert statistic(values, np.ones(57)) == summarize_sample(values).statistics[name]
    counts = rng.integers(0, 4, 57).astype(float)
    repeated = np.repeat(values, counts.astype(int))
    assert statistic(values, counts) == summarize_sample(repeated).statistics[name]


def test_too_few_sessions_tell_no_interval() -> None:
    one_session = np.zeros(50, np.int64)
    values = sample(np.arange(50.0), one_session)
    assert interval_of_change(values, values, mean, is_paired=True) is None
    few = sample(np.arange(9.0))
    assert interval_of_change(few, few, mean, is_paired=False) is None


def test_streams_of_draws_differ_and_repeat() -> None:
    first, other = session_draws(40), session_draws(40, stream=1)
    assert first.shape == (NUM_DRAWS, 40) and (first.sum(axis=1) == 40).all()
    assert not np.array_equal(first, other)
    assert np.array_equal(other, session_draws(40, stream=1))
