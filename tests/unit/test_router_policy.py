"""Placement policies of one's own in the router: what they may choose, and what they hear."""

from typing import Any

import pytest
from router_support import make_router, request

from dynosim.errors import ConfigError
from dynosim.router.classes import PolicyClass
from dynosim.router.cost import WorkerOption
from dynosim.router.kv_router import KvRouter


def placed(router: KvRouter, name: Any, blocks: Any = (1, 2)) -> int:
    decision = router.submit(request(name, blocks), 0.0)
    assert decision is not None
    return decision.worker_id


class Stubborn:
    """Always the last option; remembers what it hears."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, object]] = []

    def choose(self, made: Any, options: Any, now_ms: float) -> Any:
        return options[-1]

    def on_first_token(self, request_id: Any, now_ms: float) -> None:
        self.heard.append(("first", request_id))

    def on_end(self, request_id: Any, now_ms: float) -> None:
        self.heard.append(("end", request_id))


def test_a_policy_of_ones_own_chooses_and_learns() -> None:
    policy = Stubborn()
    router = make_router(3, policy=policy)
    assert {placed(router, n, [n]) for n in range(5)} == {2}
    router.first_token(3, 1.0)
    router.free(3, 2.0)
    assert policy.heard == [("first", 3), ("end", 3)]


def test_a_policy_hears_of_each_first_token_and_end_once_and_of_no_strangers() -> None:
    policy = Stubborn()
    waits = PolicyClass(prefill_busy_threshold=0)
    router = make_router(1, policy=policy, classes=(waits,))
    placed(router, "a")
    assert router.submit(request("b"), 0.0) is None
    router.free("b", 1.0)  # it never went anywhere
    router.free("a", 2.0)
    router.free("a", 3.0)
    placed(router, "c")
    assert router.drop_stale(1e9) == ["c"]
    assert policy.heard == [("end", "a"), ("end", "c")]
    router.use_policy(None)
    assert router.policy is None
    placed(router, "d")
    router.free("d", 4.0)
    assert len(policy.heard) == 2
    router.use_policy(policy)
    placed(router, "e")
    router.first_token("e", 5.0)
    assert policy.heard[2:] == [("first", "e")]


@pytest.mark.parametrize("answer", [0, None, WorkerOption(7, 0, 7, 0.0, 0.0, 0, 0, 0, 0)])
def test_a_policy_that_returns_nonsense_is_named(answer: Any) -> None:
    class Broken:
        def choose(self, made: Any, options: Any, now_ms: float) -> Any:
            return answer

    router = make_router(2, policy=Broken())
    with pytest.raises(ConfigError, match=r"router\.policy Broken: choose\(\) must return one of"):
        router.submit(request("r"), 0.0)
    assert router.load.num_requests == [0, 0]
