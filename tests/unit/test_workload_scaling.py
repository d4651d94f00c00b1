"""Sessions started faster, and traces put end to end."""

import numpy as np
import pytest

from dynosim.records import Trace
from dynosim.workload.scaling import common_ids, is_start, start_sessions_faster, tiled


def trace_of_sessions() -> Trace:
    """Sessions of two turns; all use the system prompt 0, each has an id of its own."""
    num_sessions = 20
    n = 2 * num_sessions
    turn, session = np.arange(n) % 2, np.arange(n) // 2
    own = np.stack([np.zeros(n, np.int64), 1 + session], axis=1).ravel()
    return Trace(
        arrival_ms=session * 1000.0,
        input_tokens=np.full(n, 1024),
        output_tokens=np.full(n, 8),
        hash_ids=own,
        hash_offsets=np.arange(n + 1) * 2,
        trace_block_size=512,
        previous_turn=np.where(turn == 1, np.arange(n) - 1, -1),
        delay_ms=turn * 300.0,
        session_ids=tuple(f"s{i}" for i in session),
        request_ids=tuple(f"r{i}" for i in range(n)),
    )


def test_only_starts_of_sessions_come_faster() -> None:
    trace = trace_of_sessions()
    fast = start_sessions_faster(trace, 4.0)
    assert fast.arrival_ms[is_start(fast)].tolist() == [250.0 * i for i in range(20)]
    assert fast.delay_ms is trace.delay_ms and fast.hash_ids is trace.hash_ids
    assert fast.of_prompts is trace.of_prompts
    assert start_sessions_faster(trace, 1.0) is trace


def test_tiles_have_tokens_of_their_own_but_for_what_all_sessions_share() -> None:
    trace = trace_of_sessions()
    twice = tiled(trace, 3)
    assert len(twice) == 3 * len(trace)
    assert common_ids(trace).tolist() == [True] + [False] * 20
    ids = twice.hash_ids.reshape(3, -1, 2)
    assert (ids[:, :, 0] == 0).all()
    assert len(np.unique(ids[:, :, 1])) == 60
    assert twice.hash_offsets.tolist() == list(range(0, 241, 2))


def test_tiles_follow_each_other_and_keep_their_turns() -> None:
    trace = trace_of_sessions()
    twice = tiled(trace, 2)
    starts = twice.arrival_ms[is_start(twice)]
    assert np.diff(starts) == pytest.approx(1000.0)
    assert twice.previous_turn is not None and trace.previous_turn is not None
    assert twice.previous_turn[:40].tolist() == trace.previous_turn.tolist()
    later = twice.previous_turn[40:]
    assert (later[1::2] == np.arange(40, 80, 2)).all() and (later[::2] == -1).all()
    assert twice.session_ids is not None and twice.request_ids is not None
    assert len(set(twice.session_ids)) == 40 and len(set(twice.request_ids)) == 80
    assert twice.request_ids[40] == "r0+1"


def test_one_tile_is_the_trace() -> None:
    trace = trace_of_sessions()
    assert tiled(trace, 1) is trace


def test_a_trace_without_anything_optional() -> None:
    n = 10
    plain = Trace(
        np.arange(n) * 10.0,
        np.full(n, 5),
        np.full(n, 5),
        np.zeros(0, np.int64),
        np.zeros(n + 1, np.int64),
        512,
    )
    twice = tiled(plain, 2)
    assert twice.arrival_ms.tolist() == [10.0 * i for i in range(20)]
    assert twice.previous_turn is None and len(twice.hash_offsets) == 21
