"""Waiting in the router: who waits, in which order they go, whose turn it is, when it is full."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from naive_queue import NaiveQueue
from router_support import BLOCK, card, make_router, request, store

from dynosim.errors import ConfigError
from dynosim.router.classes import PolicyClass, must_wait
from dynosim.router.decision import Decision, Refusal
from dynosim.router.eligibility import Constraints
from dynosim.router.kv_router import KvRouter
from dynosim.router.queue import PendingQueue, QueuedRequest
from dynosim.router.refusals import QueueFullError
from dynosim.router.request import RoutingRequest


def anyone(rules: PolicyClass, entry: QueuedRequest) -> bool:
    return True


def entry(
    name: Any,
    tokens: int = 10,
    at_ms: float = 0.0,
    *,
    cached_tokens: int = 0,
    pinned_slot: int | None = None,
    **wishes: Any,
) -> QueuedRequest:
    made = RoutingRequest(name, tokens, 0, **wishes)
    return QueuedRequest(made, cached_tokens, at_ms, pinned_slot)


def earlier(waiting: QueuedRequest, jump_s: float) -> QueuedRequest:
    """The same, counted as having come so much earlier."""
    return replace(waiting, request=replace(waiting.request, priority_jump=jump_s))


def drained(
    queue: PendingQueue, can_go: Callable[[PolicyClass, QueuedRequest], bool] = anyone
) -> list[object]:
    names = []
    while (popped := queue.pop(can_go)) is not None:
        names.append(popped.request.request_id)
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
    queue.push("default", entry("long", 1000, cached_tokens=990), 1)
    queue.push("default", entry("short", 100), 1)
    assert drained(queue) == ["long", "short"]


def test_a_priority_jump_is_worth_so_many_seconds() -> None:
    queue = PendingQueue([PolicyClass()])
    queue.push("default", entry("early", at_ms=0.0), 1)
    queue.push("default", entry("late", at_ms=1500.0, priority_jump=2.0), 1)
    queue.push("default", entry("later", at_ms=2500.0, priority_jump=2.0), 1)
    assert drained(queue) == ["late", "early", "later"]


def test_a_jump_counts_in_every_order_and_a_negative_one_in_none() -> None:
    def order(policy: str, *entries: QueuedRequest) -> list[object]:
        queue = PendingQueue([PolicyClass(queue_policy=policy)])  # type: ignore[arg-type]
        for waiting in entries:
            queue.push("default", waiting, 1)
        return drained(queue)

    first, last = entry("first", 30, 0.0), entry("last", 30, 1000.0)
    for policy, names in (("fcfs", ["first", "last"]), ("lcfs", ["last", "first"])):
        assert order(policy, first, last) == names
        for jump_s, turned in ((-9.0, False), (0.9, False), (1.0, True), (1.1, True)):
            late = 1 if policy == "fcfs" else 0
            pair = [first, last]
            pair[late] = earlier(pair[late], jump_s)
            wanted = names[::-1] if turned else names
            # At exactly one second both count alike: then the first to come goes.
            assert order(policy, *pair) == (["first", "last"] if jump_s == 1.0 else wanted)
    short, long = entry("short", 10), entry("long", 30)
    assert order("wspt", long, short) == ["short", "long"]
    assert order("wspt", earlier(long, 2.1), short) == ["long", "short"]
    assert order("wspt", earlier(long, 1.9), short) == ["short", "long"]
    assert order("wspt", earlier(long, 2.0), short) == ["long", "short"]
    assert order("wspt", earlier(long, -9.0), short) == ["short", "long"]


def test_of_equally_urgent_ones_the_first_to_come_goes() -> None:
    for policy in ("fcfs", "lcfs", "wspt"):
        queue = PendingQueue([PolicyClass(queue_policy=policy)])  # type: ignore[arg-type]
        for name in ("z", "a", "m"):
            queue.push("default", entry(name, strict_priority=1), 1)
        assert drained(queue) == ["z", "a", "m"]


def test_nothing_cached_costs_the_whole_prompt_and_everything_cached_one_token() -> None:
    assert [
        entry("r", 10, cached_tokens=cached).uncached_tokens for cached in (0, 3, 9, 10, 11)
    ] == [10, 7, 1, 1, 1]


def test_strict_priority_goes_before_everything() -> None:
    queue = PendingQueue([PolicyClass()])
    queue.push("default", entry("a", priority_jump=99.0), 1)
    queue.push("default", entry("b", at_ms=5.0, strict_priority=1), 1)
    queue.push("default", entry("c", at_ms=9.0, strict_priority=2), 1)
    assert drained(queue) == ["c", "b", "a"]


def test_a_head_that_cannot_go_blocks_its_line_but_not_pinned_lanes() -> None:
    queue = PendingQueue([PolicyClass()])
    queue.push("default", entry("stuck", at_ms=0.0), 1)
    queue.push("default", entry("behind", at_ms=1.0), 1)
    queue.push("default", entry("pinned", at_ms=2.0, pinned_slot=4), 1)

    def not_stuck(rules: PolicyClass, waiting: QueuedRequest) -> bool:
        return waiting.request.request_id != "stuck"

    assert drained(queue, not_stuck) == ["pinned"]
    assert len(queue) == 2


def test_a_cancelled_request_is_passed_over() -> None:
    queue = PendingQueue([PolicyClass()])
    for number in range(3):
        queue.push("default", entry(number, at_ms=number), 1)
    assert queue.discard(1) and not queue.discard(1)
    assert drained(queue) == [0, 2]


def test_classes_whose_prompts_fit_their_quanta_take_turns() -> None:
    """What a class has left does not let it go again before the others."""
    names = ("a", "b", "c")
    queue = PendingQueue([PolicyClass(name, quantum=100) for name in names])
    for name in names:
        for number in range(3):
            queue.push(name, entry(f"{name}{number}", 10), 1)
    assert drained(queue) == ["a0", "b0", "c0", "a1", "b1", "c1", "a2", "b2", "c2"]


def test_a_class_saves_its_quanta_for_a_prompt_that_exceeds_them() -> None:
    """Prompts of 250 earn 100 a visit: they go at 300, at 50 + 200, and at 300 again."""
    queue = PendingQueue([PolicyClass("a", quantum=100), PolicyClass("b", quantum=100)])
    for number in range(20):
        queue.push("a", entry(("a", number), 250), 1)
        queue.push("b", entry(("b", number), 100), 1)
    assert "".join(name for name, _ in drained(queue)[:10]) == "bbabbabbba"  # type: ignore[misc]


def test_an_empty_line_forgets_what_its_class_had_left() -> None:
    queue = PendingQueue([PolicyClass("a", quantum=100), PolicyClass("b", quantum=100)])
    queue.push("a", entry("a0", 10), 1)  # leaves 90
    queue.push("b", entry("b0", 100), 1)
    assert drained(queue) == ["a0", "b0"]
    queue.push("a", entry("a1", 150), 1)
    queue.push("b", entry("b1", 100), 1)
    assert drained(queue) == ["b1", "a1"]


def test_classes_share_by_their_quanta_where_prompts_exceed_them() -> None:
    """20,000 to 7,000 tokens in every 30 turns, for quanta of 3 to 1.

    Not 3 to 1 quite: who stands behind the class that goes is visited first the next time, also if
    whole rounds had just been added for all. The naive queue adds those rounds one by one.
    """
    classes = [PolicyClass(name="big", quantum=300), PolicyClass("small", quantum=100)]
    queue, naive = PendingQueue(classes), NaiveQueue(classes)
    for number in range(300):
        for line in (queue, naive):
            line.push("big", entry(("big", number), 1000), 1)
            line.push("small", entry(("small", number), 700), 1)
    tokens = {"big": 0, "small": 0}
    for _ in range(300):
        popped = queue.pop(anyone)
        assert popped is not None and popped == naive.pop(anyone)
        tokens[popped.request.request_id[0]] += popped.request.input_tokens  # type: ignore[index]
    assert tokens["big"] / 20_000 == pytest.approx(10, abs=0.1)  # one prompt is 0.05 and 0.1
    assert tokens["small"] / 7_000 == pytest.approx(10, abs=0.1)


def test_nobody_starves_behind_a_prompt_longer_than_many_quanta() -> None:
    queue = PendingQueue([PolicyClass(name="a", quantum=1), PolicyClass(name="b", quantum=1)])
    queue.push("a", entry("huge", 10_000), 1)
    queue.push("b", entry("tiny", 5_000), 1)
    assert sorted(map(str, drained(queue))) == ["huge", "tiny"]


@pytest.mark.parametrize(
    ("limit", "lengths", "message"),
    [
        ("request_queue_limit_per_worker", [(9, 9)] * 4, "4 requests wait, the limit is 4 (2 per"),
        ("raw_isl_token_queue_limit_per_worker", [(1, 0), (2, 0), (1, 0)],
         "4 prompt tokens wait, the limit is 4 (2 per worker, 2 workers)"),
        ("raw_isl_token_queue_limit_per_worker", [(3, 0), (90, 0)], "93 prompt tokens wait"),
        ("cached_token_queue_limit_per_worker", [(90, 3), (90, 0), (90, 1)],
         "4 cached tokens wait, the limit is 4 (2 per worker, 2 workers)"),
    ],
)  # fmt: skip
def test_a_line_is_full_from_its_limit_on_and_what_crosses_it_is_let_in(
    limit: str, lengths: list[tuple[int, int]], message: str
) -> None:
    queue = PendingQueue([PolicyClass("rest"), PolicyClass("full", **{limit: 2})])  # type: ignore[arg-type]
    for number, (tokens, cached) in enumerate(lengths):
        queue.push("full", entry(number, tokens, cached_tokens=cached), 2)
    with pytest.raises(QueueFullError) as refused:
        queue.push("full", entry("more", 1), 2)
    assert message in str(refused.value) and "class 'full'" in str(refused.value)
    assert (len(queue), queue.depth("full")) == (len(lengths), len(lengths))
    queue.push("rest", entry("other", 1), 2)
    queue.push("full", entry("with more workers", 1), 99)
    assert queue.discard("with more workers") and queue.discard(len(lengths) - 1)
    queue.push("full", entry("in its place", 1), 2)
    assert QueueFullError.http_status == 529


@pytest.mark.parametrize("names", [[], ["a", "a"], ["a", "b", "a"]])
def test_classes_need_names_of_their_own(names: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"router\.policy_classes: names must be distinct"):
        PendingQueue([PolicyClass(name) for name in names])


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


def waiting_router(**settings: object) -> KvRouter:
    """One busy worker (0), one that no request of the tests may use but that holds prompts (1)."""
    router = make_router(1, **settings)
    assert router.submit(request("busy", range(90, 95)), 0.0) is not None
    router.add_worker(card(1, taints=frozenset({"apart"})))
    store(router, 1, [1, 2, 3, 4])
    return router


ONLY_0 = Constraints(allowed_workers=frozenset({0}))


def test_what_a_worker_holds_that_may_not_serve_a_request_does_not_make_it_short() -> None:
    router = waiting_router(classes=(PolicyClass(queue_policy="wspt", prefill_busy_threshold=64),))
    assert router.submit(request("long", [1, 2, 3, 4], constraints=ONLY_0), 1.0) is None
    assert router.submit(request("short", [7, 8, 9], constraints=ONLY_0), 2.0) is None
    router.free("busy", 3.0)
    assert [outcome.request_id for outcome in router.release(3.0)] == ["short", "long"]


def test_nor_does_it_choose_a_requests_class() -> None:
    short = PolicyClass("short", max_uncached_tokens=2 * BLOCK)  # never waits
    rest = PolicyClass("rest", prefill_busy_threshold=64)
    router = waiting_router(classes=(short, rest))
    assert router.submit(request("cached elsewhere", [1, 2, 3], constraints=ONLY_0), 1.0) is None
    store(router, 0, [1, 2])
    assert router.submit(request("cached here", [1, 2, 3], constraints=ONLY_0), 1.0) is not None


@pytest.mark.parametrize(("tokens", "waits"), [(2 * BLOCK, False), (2 * BLOCK + 1, True)])
def test_a_prompt_that_is_all_cached_has_no_uncached_tokens(tokens: int, waits: bool) -> None:
    free = PolicyClass("free", max_uncached_tokens=1)  # never waits
    router = waiting_router(classes=(free, PolicyClass("rest", prefill_busy_threshold=64)))
    store(router, 0, [1, 2])
    made = request("r", [1, 2], input_tokens=tokens, constraints=ONLY_0)
    assert (router.submit(made, 1.0) is None) == waits
