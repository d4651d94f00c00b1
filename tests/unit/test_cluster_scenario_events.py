"""What single events of a scenario do to requests, followed by hand.

A prefill step takes 10 ms, a decode step 5.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from clusters import equal_workers
from disagg_support import ENGINE, TIMES, pools
from probing import Ask, trace_of

from dynosim.cluster import ClusterSpec, RunOptions, simulate
from dynosim.cluster.scenario import (
    Crash,
    CutLinks,
    Drain,
    LoseFrontend,
    PlaceTarget,
    Replacement,
    ScenarioEvent,
    Slow,
    SpotLoss,
    WorkerTarget,
    play,
)
from dynosim.errors import ConfigError
from dynosim.metrics import check_conservation, summarize
from dynosim.records import RequestStatus, RunResult
from dynosim.router.handoff import HandoffSpec
from dynosim.router.knobs import RouterSpec
from dynosim.router.spec import RoutingSpec

FIRST = WorkerTarget("workers", 0)
SYNCHRONOUS = replace(ENGINE, async_scheduling=False)


def two(**changes: object) -> ClusterSpec:
    return equal_workers(SYNCHRONOUS, TIMES, num_workers=2, **changes)  # type: ignore[arg-type]


def run(
    cluster: ClusterSpec,
    asks: Sequence[tuple[float, int]],
    *events: ScenarioEvent,
    startup_ms: float = 0.0,
    **options: Any,
) -> RunResult:
    """Requests of 16 prompt tokens of their own: when they come, and tokens that they want.

    Both in bulk, whose result it is, and step by step.
    """
    trace = trace_of(
        [
            Ask(at_ms, tuple(range(100 * i, 100 * i + 4)), 0, output_tokens=wanted)
            for i, (at_ms, wanted) in enumerate(asks)
        ],
        4,
    )
    changed = tuple(replace(pool, startup_ms=startup_ms) for pool in cluster.pools)
    cluster = replace(cluster, pools=changed)
    bulk, single = [
        simulate(
            trace, cluster, RunOptions(**options, exact_stepping=exact), processes=play(events)
        )
        for exact in (False, True)
    ]
    reports = []
    for result in (bulk, single):
        check_conservation(result, trace)
        reports.append(summarize(result, TIMES, sla=None, wall_time_ms=0.0))
    np.testing.assert_allclose(bulk.requests.finish_ms, single.requests.finish_ms)
    for key in ("median_itl_ms", "p99_itl_ms", "mean_itl_ms", "max_itl_ms"):
        assert reports[0][key] == pytest.approx(reports[1][key], abs=1e-9), key
    return bulk


NO_ONE = Replacement(kind="none")


def test_a_crash_moves_requests_on_at_once_with_the_tokens_that_they_have() -> None:
    log = run(two(), [(0.0, 20), (1.0, 2)], Crash(at_ms=42.0, target=FIRST, replacement=NO_ONE))
    # Seven tokens by then: at 10, 15, ... 40. On the other worker prompt and tokens are one prompt,
    # whose end is the eighth.
    assert log.requests.worker_id.tolist() == [1, 1]
    assert log.requests.migrations.tolist() == [1, 0]
    assert log.requests.finish_ms[0] == 42.0 + 10.0 + 12 * 5.0
    assert log.requests.output_tokens.tolist() == [20, 2]


def test_who_hangs_gets_requests_that_wait_until_it_is_noticed() -> None:
    hang = Crash(at_ms=42.0, target=FIRST, detect_ms=100.0, replacement=NO_ONE)
    log = run(two(), [(0.0, 20), (1.0, 2), (50.0, 1), (60.0, 1)], hang).requests
    assert log.status.tolist() == [int(RequestStatus.COMPLETED)] * 4
    assert log.migrations.tolist() == [1, 0, 1, 0]  # in turn, and it was the turn of the first
    assert log.first_token_ms.tolist() == [10.0, 11.0, 152.0, 70.0]
    assert log.finish_ms[0] == 142.0 + 10.0 + 12 * 5.0


def test_who_gives_up_a_hung_worker_keeps_what_it_had() -> None:
    hang = Crash(at_ms=42.0, target=FIRST, detect_ms=100.0, replacement=NO_ONE)
    result = run(two(), [(0.0, 20), (1.0, 2), (50.0, 1)], hang, client_timeout_ms=80.0)
    log = result.requests
    assert log.status.tolist() == [
        int(RequestStatus.TIMED_OUT), int(RequestStatus.COMPLETED), int(RequestStatus.TIMED_OUT)
    ]  # fmt: skip
    assert log.output_tokens.tolist() == [7, 2, 0]


def test_a_request_that_may_not_move_fails() -> None:
    crash = Crash(at_ms=42.0, target=FIRST)
    log = run(two(), [(0.0, 20), (1.0, 2)], crash, migration_limit=0).requests
    assert log.status.tolist() == [int(RequestStatus.FAILED), int(RequestStatus.COMPLETED)]
    assert log.output_tokens.tolist() == [7, 2]
    assert "migration_limit" in log.errors[0]


@pytest.mark.parametrize(
    ("replacement", "ready_ms"),
    [
        (Replacement(), 42.0 + 500.0),
        (Replacement(after_ms=30.0), 42.0 + 30.0 + 500.0),
        (Replacement(kind="takeover", takeover_ms=7.0), 42.0 + 7.0),
    ],
)
def test_what_comes_after_a_lost_worker_takes_its_time(
    replacement: Replacement, ready_ms: float
) -> None:
    crash = Crash(at_ms=42.0, target=FIRST, replacement=replacement)
    lives = run(two(), [(0.0, 200), (0.0, 200)], crash, startup_ms=500.0).workers
    assert lives.ended_ms[0] == 42.0 and lives.ready_ms[2] == ready_ms


def test_a_spot_loss_lets_those_go_on_that_end_within_the_notice() -> None:
    loss = SpotLoss(at_ms=42.0, target=FIRST, notice_ms=30.0, replacement=NO_ONE)
    log = run(two(), [(0.0, 13), (0.0, 2), (0.0, 30)], loss).requests
    assert log.finish_ms[0] == 10.0 + 12 * 5.0 and log.migrations[0] == 0
    assert log.migrations[2] == 1  # was with the first, too


def test_a_place_is_lost_with_all_its_workers() -> None:
    cluster = equal_workers(SYNCHRONOUS, TIMES, num_workers=4)
    cluster = replace(cluster, pools=(replace(cluster.pools[0], topology={"node": ("a", "b")}),))
    crash = Crash(at_ms=42.0, target=PlaceTarget("node", "b"), replacement=NO_ONE)
    lives = run(cluster, [(0.0, 20)], crash).workers
    np.testing.assert_array_equal(lives.ended_ms, [np.nan, 42.0, np.nan, 42.0])


def test_slow_steps_take_as_many_times_as_long_from_the_next_one_on() -> None:
    slow = Slow(at_ms=22.0, target=FIRST, factor=3.0, for_ms=40.0)
    log = run(two(), [(0.0, 10)], slow).requests
    # Tokens at 10, 15, 20, 25, then 40, 55, 70 (the step begun at 55 was planned as slow), then
    # every 5 ms again.
    assert log.finish_ms[0] == 70.0 + 3 * 5.0


def test_a_worker_that_is_gone_or_never_was_cannot_be_hit() -> None:
    twice = [Crash(at_ms=t, target=FIRST, replacement=NO_ONE) for t in (10.0, 20.0)]
    lives = run(two(), [(0.0, 20)], *twice).workers
    assert lives.ended_ms[0] == 10.0
    with pytest.raises(ConfigError, match=r"fail: workers/7: at 0\.01 s there has been no such"):
        run(two(), [(0.0, 20)], Crash(at_ms=10.0, target=WorkerTarget("workers", 7)))


def test_a_lost_frontend_takes_its_requests_with_it_and_others_serve_on() -> None:
    routing = RoutingSpec(RouterSpec(4, mode="kv"), frontends=2)
    loss = LoseFrontend(at_ms=42.0, number=0, for_ms=100.0)
    asks = [(0.0, 20), (1.0, 20), (50.0, 1), (60.0, 1), (150.0, 1), (151.0, 1)]
    log = run(two(routing=routing), asks, loss).requests
    failed, done = int(RequestStatus.FAILED), int(RequestStatus.COMPLETED)
    assert log.status.tolist() == [failed, done, done, done, done, done]
    assert log.errors[0] == "frontend 0 was lost"
    with pytest.raises(ConfigError, match="frontend 5"):
        run(two(routing=routing), asks, LoseFrontend(at_ms=42.0, number=5, for_ms=1.0))
    with pytest.raises(ConfigError, match="but one frontend"):
        run(two(), asks, loss)


@pytest.mark.parametrize("policy", ["fail", "recompute"])
def test_between_pools_that_are_cut_off_no_kv_gets_through(policy: str) -> None:
    cluster = pools(engine=SYNCHRONOUS, failure_policy=policy, gb_s=0.001)
    cut = CutLinks(at_ms=15.0, for_ms=50.0)
    # The first one's KV is on its way from 10 ms on (16 ms for 16 tokens); the second's prompt is
    # computed meanwhile, the third's when the links are there again.
    log = run(cluster, [(0.0, 3), (12.0, 3), (100.0, 3)], cut).requests
    expected = RequestStatus.FAILED if policy == "fail" else RequestStatus.COMPLETED
    assert log.status.tolist() == [int(expected)] * 2 + [int(RequestStatus.COMPLETED)]
    if policy == "recompute":
        assert log.first_token_ms[0] == 25.0  # the decode worker computes the prompt from 15 on


def test_a_drained_decode_worker_is_gone_once_it_has_heard_that_no_kv_comes() -> None:
    """Whatever else goes on in the cluster, or does not."""
    cluster = pools(
        prefill=1, decode=2, engine=SYNCHRONOUS, gb_s=0.0001, handoff=HandoffSpec("decode_first")
    )
    drain = Drain(at_ms=12.0, target=WorkerTarget("decode", 0))
    result = run(cluster, [(0.0, 3)], drain, client_timeout_ms=15.0)
    assert result.requests.status.tolist() == [int(RequestStatus.TIMED_OUT)]
    assert result.workers.ended_ms[1] >= 15.0  # not NaN


@pytest.mark.parametrize("routing", [None, RoutingSpec(RouterSpec(4, mode="kv"))])
def test_who_may_not_move_leaves_the_prefill_worker_that_is_at_its_prompt(
    routing: RoutingSpec | None,
) -> None:
    engine = replace(SYNCHRONOUS, max_num_batched_tokens=4)  # four steps for a prompt
    cluster = pools(
        prefill=1,
        decode=2,
        engine=engine,
        gb_s=0.1,
        handoff=HandoffSpec("decode_first"),
        routing=routing,
        decode_routing=routing,
    )
    crash = Crash(at_ms=15.0, target=WorkerTarget("decode", 0), replacement=NO_ONE)
    log = run(cluster, [(0.0, 3), (1.0, 3)], crash, migration_limit=0).requests
    failed = log.status == int(RequestStatus.FAILED)
    assert failed.any() and (log.status[~failed] == int(RequestStatus.COMPLETED)).all()
    assert all("migration_limit" in log.errors[int(row)] for row in np.flatnonzero(failed))
    assert (log.output_tokens[failed] == 0).all()
