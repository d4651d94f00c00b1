"""Attainment if other sessions had come."""

from dataclasses import replace

import numpy as np
import pytest

from dynosim.metrics.resampling import NUM_DRAWS, drawn_attainments, sessions_of
from dynosim.records import Trace


def trace_of(num_requests: int) -> Trace:
    ones = np.ones(num_requests, np.int64)
    return Trace(
        np.arange(num_requests) * 1.0, ones, ones, np.zeros(0, np.int64),
        np.zeros(num_requests + 1, np.int64), 512,
    )  # fmt: skip


def test_requests_of_a_session_belong_together() -> None:
    plain = trace_of(5)
    assert sessions_of(plain).tolist() == [0, 1, 2, 3, 4]
    named = replace(plain, session_ids=("a", "b", "a", "", ""))
    assert sessions_of(named).tolist() == [0, 1, 0, 2, 3]
    turns = replace(plain, previous_turn=np.array([-1, -1, 0, 2, 1]))
    assert sessions_of(turns).tolist() == [0, 1, 0, 0, 1]


def test_independent_requests_spread_as_a_binomial_does() -> None:
    n = 2000
    good = np.arange(n) % 10 != 0
    draws = drawn_attainments(np.arange(n), good, np.ones(n, np.bool_))
    assert len(draws) == NUM_DRAWS
    assert draws.mean() == pytest.approx(0.9, abs=0.002)
    assert draws.std() == pytest.approx(np.sqrt(0.9 * 0.1 / n), rel=0.15)


def test_turns_that_share_their_fate_spread_more() -> None:
    session = np.arange(2000) // 10
    good = session % 10 != 0
    draws = drawn_attainments(session, good, np.ones(2000, np.bool_))
    assert draws.std() == pytest.approx(np.sqrt(0.9 * 0.1 / 200), rel=0.15)


def test_the_same_sessions_are_drawn_every_time() -> None:
    session = np.arange(500)
    everything = np.ones(500, np.bool_)
    half = session % 2 == 0
    first, again = (drawn_attainments(session, half, everything) for _ in range(2))
    assert first.tolist() == again.tolist()
    assert drawn_attainments(session, ~half, everything) == pytest.approx(1.0 - first)


def test_only_judged_requests_count() -> None:
    session = np.arange(100)
    judged = session < 50
    good = session < 50
    assert (drawn_attainments(session, good, judged) == 1.0).all()
