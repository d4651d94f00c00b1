"""Waiting in the router: who waits, in which order they go, whose turn it is, when it is full."""

import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from router_support import make_router, request

from dynosim.errors import ConfigError
from dynosim.router.classes import PolicyClass, class_for, must_wait
from dynosim.router.eligibility import Constraints
from dynosim.router.kv_router import Decision, Refusal
from dynosim.router.queue import PendingQueue, QueuedRequest
from dynosim.router.refusals import QueueFullError


def anyone(rules: PolicyClass, entry: QueuedRequest) -> bool:
    return True


def entry(name: object, tokens: int = 10, at_ms: float = 0.0, **fields: object) -> QueuedRequest:
    return QueuedRequest(name, tokens, 0, at_ms, **fields)  # type: ignore[arg-type]


def drained(
    queue: PendingQueue, can_go: Callable[[PolicyClass, QueuedRequest], bool] = anyone
) -> list[object]:
    names = []
    while (popped := queue.pop(can_go)) is not None:
        names.append(popped.request_id)
    return names


@pytest.mark.parametrize(
    ("policy", "order"),
    [("fcfs", ["a", "b", "c"]), ("lcfs", ["c", "b", "a"]), ("wspt", ["b", "c", "a"])],
)
def test_the_order_of_a_line(policy: str, order: list[str]) -> None:
    queue = PendingQueue([PolicyClass(queue_policy=policy)])  # type: ignore[arg-type]
    for name, tokens, at_ms in (("a", 900, 0.0), ("b", 10, 1.0), ("c", 100, 2.0)):
        queue.push("default", entry(name, tokens, at_ms), 1)
    assert drained(queue) == order


def test_cached_tokens_shorten_a_prompt_for_wspt() -> None:
    queue = PendingQueue([PolicyClass(queue_policy="wspt")])
    queue.push("default", QueuedRequest("long", 1000, 990, 0.0), 1)
    queue.push("default", QueuedRequest("short", 100, 0, 0.0), 1)
    assert drained(queue) == ["long", "short"]


def test_a_priority_jump_is_worth_so_many_seconds() -> None:
    queue = PendingQueue([PolicyClass()])
    queue.push("default", entry("early", at_ms=0.0), 1)
    queue.push("default", entry("late", at_ms=1500.0, priority_jump=2.0), 1)
    queue.push("default", entry("later", at_ms=2500.0, priority_jump=2.0), 1)
    assert drained(queue) == ["late", "early", "later"]


def test_strict_priority_goes_before_everything() -> None:
    queue = PendingQueue([PolicyClass()])
    queue.push("default", entry("a", priority_jump=99.0), 1)
    queue.push("default", entry("b", at_ms=5.0, strict_priority=1), 1)
    assert drained(queue) == ["b", "a"]


def test_a_head_that_cannot_go_blocks_its_line_but_not_pinned_lanes() -> None:
    queue = PendingQueue([PolicyClass()])
    queue.push("default", entry("stuck", at_ms=0.0), 1)
    queue.push("default", entry("behind", at_ms=1.0), 1)
    queue.push("default", entry("pinned", at_ms=2.0, pinned_slot=4), 1)

    def not_stuck(rules: PolicyClass, waiting: QueuedRequest) -> bool:
        return waiting.request_id != "stuck"

    assert drained(queue, not_stuck) == ["pinned"]
    assert len(queue) == 2


def test_a_cancelled_request_is_passed_over() -> None:
    queue = PendingQueue([PolicyClass()])
    for number in range(3):
        queue.push("default", entry(number, at_ms=number), 1)
    assert queue.discard(1) and not queue.discard(1)
    assert drained(queue) == [0, 2]


def test_classes_share_by_their_quanta_where_prompts_exceed_them() -> None:
    queue = PendingQueue([PolicyClass(name="big", quantum=300), PolicyClass("small", quantum=100)])
    for number in range(400):
        queue.push("big", entry(("big", number), 1000), 1)
        queue.push("small", entry(("small", number), 700), 1)
    tokens = {"big": 0, "small": 0}
    for _ in range(300):
        popped = queue.pop(anyone)
        assert popped is not None
        tokens[popped.request_id[0]] += popped.input_tokens  # type: ignore[index]
    assert tokens["big"] / tokens["small"] == pytest.approx(3.0, rel=0.15)


def test_nobody_starves_behind_a_prompt_longer_than_many_quanta() -> None:
    queue = PendingQueue([PolicyClass(name="a", quantum=1), PolicyClass(name="b", quantum=1)])
    queue.push("a", entry("huge", 10_000), 1)
    queue.push("b", entry("tiny", 5_000), 1)
    assert sorted(map(str, drained(queue))) == ["huge", "tiny"]


def test_limits_let_the_crossing_request_in_and_refuse_the_next() -> None:
    rules = PolicyClass(raw_isl_token_queue_limit_per_worker=100)
    queue = PendingQueue([rules])
    queue.push("default", entry("a", 150), 2)
    queue.push("default", entry("b", 150), 2)
    with pytest.raises(QueueFullError, match=r"300 prompt tokens wait, the limit is 200 \(100 per"):
        queue.push("default", entry("c", 1), 2)
    assert QueueFullError.http_status == 529


def test_buckets_of_uncached_tokens_choose_the_class() -> None:
    short = PolicyClass(name="short", max_uncached_tokens=100)
    agents = PolicyClass(name="agents", policy_family="agents")
    rest = PolicyClass(name="rest")
    classes = [short, agents, rest]
    assert class_for(classes, None, 99) is short
    assert class_for(classes, "agents", 100) is agents
    assert class_for(classes, None, 100) is rest


@pytest.mark.parametrize(
    "fields",
    [
        {"queue_policy": "sjf"},
        {"quantum": 0},
        {"busy_worker_ratio": 0.0},
        {"prefill_busy_threshold": -1},
        {"min_uncached_tokens": 5, "max_uncached_tokens": 5},
    ],
)
def test_a_class_that_makes_no_sense_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="policy class 'default'"):
        PolicyClass(**fields)  # type: ignore[arg-type]


# ---- in the router -----------------------------------------------------------------------------

WAITS = PolicyClass(prefill_busy_threshold_frac=0.0625)  # of 1024 tokens: above 64


def test_a_request_waits_only_if_all_workers_are_busy() -> None:
    router = make_router(2, classes=(WAITS,))
    assert router.submit(request(1, range(0, 5)), 0.0) is not None
    assert router.submit(request(2, range(10, 15)), 0.0) is not None
    assert router.submit(request(3, range(20, 22)), 1.0) is None
    assert router.submit(request(4, [30]), 2.0) is None  # nobody overtakes the line
    assert router.num_queued == 2
    assert router.release(3.0) == []
    router.first_token(1, 7.0)
    outcomes = router.release(7.0)
    assert [(o.request_id, o.queued_ms) for o in outcomes if isinstance(o, Decision)] == [
        (3, 6.0),
        (4, 5.0),
    ]


def test_busy_means_strictly_more_than_the_threshold() -> None:
    router = make_router(1, classes=(WAITS,))
    router.submit(request(1, range(4)), 0.0)  # 64 tokens exactly
    assert not must_wait(WAITS, router.table, 1, router.load.active_prefill_tokens(0.0))
    assert router.submit(request(2, range(10, 12)), 0.0) is not None
    assert must_wait(WAITS, router.table, 1, router.load.active_prefill_tokens(0.0))


def test_a_waiting_request_whose_worker_leaves_is_refused_and_the_others_go_on() -> None:
    router = make_router(2, classes=(WAITS,))
    for number, worker in ((1, 0), (2, 1)):
        rules = Constraints(pinned_worker=worker)
        blocks = range(10 * number, 10 * number + 5)
        assert router.submit(request(number, blocks, constraints=rules), 0.0) is not None
    pinned = request(3, [30], constraints=Constraints(pinned_worker=0))
    assert router.submit(pinned, 1.0) is None
    assert router.submit(request(4, [40]), 1.0) is None
    assert router.remove_worker(0) == [1]
    router.first_token(2, 2.0)
    outcomes = {outcome.request_id: outcome for outcome in router.release(2.0)}
    assert isinstance(outcomes[3], Refusal) and "worker 0 is not here" in str(outcomes[3].error)
    assert isinstance(outcomes[4], Decision)


def test_cancelling_a_waiting_request_frees_its_place() -> None:
    router = make_router(1, classes=(WAITS,))
    router.submit(request(1, range(5)), 0.0)
    assert router.submit(request(2, [9]), 0.0) is None
    router.free(2, 1.0)
    assert router.num_queued == 0


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(["fcfs", "lcfs", "wspt"]))
def test_every_waiting_request_goes_once(seed: int, policy: str) -> None:
    rng = random.Random(seed)
    names = ["x", "y", "z"][: rng.randint(1, 3)]
    classes = [PolicyClass(n, policy, quantum=rng.randint(1, 50)) for n in names]  # type: ignore[arg-type]
    queue = PendingQueue(classes)
    waiting: set[object] = set()
    gone: set[object] = set()
    for number in range(60):
        if rng.random() < 0.6:
            slot = rng.choice([None, None, 0, 1])
            tokens = rng.randint(1, 200)
            made = entry(number, tokens, float(number), pinned_slot=slot)
            queue.push(rng.choice(names), made, 1)
            waiting.add(number)
        elif rng.random() < 0.2 and waiting:
            cancelled = rng.choice(sorted(waiting, key=str))
            assert queue.discard(cancelled)
            waiting.discard(cancelled)
        else:
            blocked = rng.choice([None, 0, 1, 2])
            popped = queue.pop(lambda rules, e: e.pinned_slot != blocked)  # noqa: B023
            if popped is not None:
                assert popped.request_id in waiting
                waiting.discard(popped.request_id)
                gone.add(popped.request_id)
        assert len(queue) == len(waiting)
    assert set(drained(queue)) == waiting
