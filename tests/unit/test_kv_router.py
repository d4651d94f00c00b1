"""The router as a whole: modes, sessions, workers that come and go, policies, its log."""

from collections import Counter
from typing import Any

import pytest
from router_support import BLOCK, Doors, card, make_router, request, store

from dynosim.blocks.hashing import local_hashes
from dynosim.errors import ConfigError
from dynosim.indexer.approximate import ApproximateIndex
from dynosim.indexer.base import Removed
from dynosim.indexer.compressed import CompressedRadixIndex
from dynosim.router.classes import PolicyClass
from dynosim.router.eligibility import Constraints
from dynosim.router.knobs import AffinitySpec, RouterSpec
from dynosim.router.kv_router import KvRouter
from dynosim.router.log.recorder import logged_router
from dynosim.router.log.replay import replay_entry
from dynosim.router.refusals import (
    InvalidRequestError,
    NoEligibleWorkerError,
    UnknownWorkerError,
)
from dynosim.router.workers import WorkerCard


def placed(router: KvRouter, name: Any, blocks: Any = (1, 2), **fields: Any) -> int:
    decision = router.submit(request(name, blocks, **fields), fields.pop("now_ms", 0.0))
    assert decision is not None
    return decision.worker_id


@pytest.mark.parametrize("mode", ["round-robin", "random", "power-of-two", "least-loaded"])
def test_load_modes_respect_who_may_serve(mode: str) -> None:
    router = make_router(4, mode=mode)
    rules = Constraints(allowed_workers=frozenset({1, 3}))
    chosen = {placed(router, n, [n], constraints=rules) for n in range(40)}
    assert chosen == {1, 3}


def test_direct_goes_where_the_request_says_and_nowhere_else() -> None:
    router = make_router(3, mode="direct")
    assert placed(router, 1, constraints=Constraints(pinned_worker=2)) == 2
    with pytest.raises(InvalidRequestError, match="names no worker"):
        router.submit(request(2), 0.0)


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="empty"):
        make_router(1).submit(request("r", [], input_tokens=0), 0.0)


def test_without_workers_a_request_is_refused() -> None:
    with pytest.raises(NoEligibleWorkerError, match="no worker has joined"):
        make_router(0).submit(request("r"), 0.0)


def test_every_data_parallel_rank_is_a_candidate() -> None:
    router = make_router(0)
    router.add_worker(card(7, dp_size=3, dp_start=2))
    seen = set()
    for number in range(3):
        decision = router.submit(request(number, [number]), 0.0)
        assert decision is not None
        seen.add((decision.worker_id, decision.dp_rank))
    assert seen == {(7, 2), (7, 3), (7, 4)}


def test_a_name_that_is_in_hand_or_waits_is_refused() -> None:
    router = make_router(1, classes=(PolicyClass(prefill_busy_threshold=0),))
    placed(router, "a")
    assert router.submit(request("b"), 0.0) is None
    for name in ("a", "b"):
        with pytest.raises(InvalidRequestError, match=f"a request '{name}' is in flight already"):
            router.submit(request(name), 1.0)
        with pytest.raises(InvalidRequestError, match="in flight already"):
            router.best_worker([1, 2], name, update_states=True)
    assert InvalidRequestError.http_status == 400
    assert router.best_worker([1, 2], "a") == (0, 0, 0)  # only asks
    router.free("a", 2.0)
    router.release(2.0)
    assert router.num_queued == 0 and set(router.load.bookings) == {"b"}


def test_a_question_that_makes_no_sense_is_refused() -> None:
    router = make_router(1)
    with pytest.raises(InvalidRequestError, match="update_states needs a request_id"):
        router.best_worker([1], update_states=True)
    for ask in (router.best_worker, router.get_potential_loads):
        with pytest.raises(InvalidRequestError, match="the prompt is empty"):
            ask([])


def test_an_event_of_an_unknown_worker_is_an_error_and_changes_nothing() -> None:
    router = make_router(2)
    with pytest.raises(UnknownWorkerError, match=r"worker 9 rank 0.*known workers: 0, 1"):
        router.apply_events(9, 0, [Removed([1])])
    assert placed(router, 1) in (0, 1)


def test_a_worker_that_leaves_takes_its_load_and_blocks_along() -> None:
    router = make_router(2)
    store(router, 1, [1, 2, 3, 4])
    assert placed(router, "a", [1, 2, 3, 4]) == 1
    assert router.remove_worker(1) == ["a"]
    assert router.index.find_matches([1, 2]).classes == []
    assert placed(router, "b", [1, 2, 3, 4]) == 0
    router.add_worker(card(5))  # takes the free slot
    router.free("b", 1.0)
    seen = {placed(router, n, [50 + n]) for n in range(8)}
    assert seen == {0, 5}


def test_a_worker_that_joins_again_starts_empty() -> None:
    router = make_router(1)
    store(router, 0, [1, 2])
    placed(router, "a")
    router.add_worker(card(0))
    assert router.load.num_requests == [0]
    assert router.index.find_matches([1, 2]).classes == []


@pytest.mark.parametrize("bad", [card(0, dp_size=0), WorkerCard(0, 2 * BLOCK)])
def test_a_card_that_does_not_fit_changes_nothing(bad: WorkerCard) -> None:
    router = make_router(1)
    store(router, 0, [1, 2])
    placed(router, "a")
    with pytest.raises(ConfigError, match="worker 0"):
        router.add_worker(bad)
    assert router.load.num_requests == [1] and router.table.cards == {0: card(0)}
    assert router.index.find_matches([1, 2]).by_worker() == {0: 2}


def test_a_session_stays_until_it_was_idle_for_long() -> None:
    router = make_router(4, affinity=AffinitySpec(ttl_ms=100.0))
    first = placed(router, 0, [100], session_id="s")
    for number in range(1, 6):
        assert placed(router, number, [number], session_id="s") == first
    for number in range(6):
        router.free(number, 50.0)
    decision = router.submit(request(9, [9], session_id="s"), 140.0)
    assert decision is not None and decision.worker_id == first
    router.free(9, 150.0)
    others = set()
    for number in range(20, 40):
        decision = router.submit(request(number, [number], session_id=f"s{number}"), 260.0)
        assert decision is not None
        others.add(decision.worker_id)
    assert len(others) == 4


def test_a_hard_session_is_refused_elsewhere_and_a_soft_one_is_not() -> None:
    for mode in ("hard", "soft"):
        router = make_router(2, affinity=AffinitySpec(100.0, mode))  # type: ignore[arg-type]
        home = placed(router, 1, session_id="s")
        rules = Constraints(allowed_workers=frozenset({1 - home}))
        if mode == "soft":
            assert placed(router, 2, session_id="s", constraints=rules) == 1 - home
        else:
            with pytest.raises(NoEligibleWorkerError, match=f"lives on worker {home}"):
                router.submit(request(2, session_id="s", constraints=rules), 0.0)


def test_a_session_whose_worker_left_goes_anywhere() -> None:
    router = make_router(2, affinity=AffinitySpec(1e9))
    home = placed(router, 1, session_id="s")
    router.remove_worker(home)
    assert placed(router, 2, session_id="s") == 1 - home


def test_a_request_from_before_a_session_was_unbound_does_not_end_its_new_binding() -> None:
    router = make_router(2, affinity=AffinitySpec(ttl_ms=10.0))
    placed(router, "old", [1], session_id="s")
    router.unbind_session("s")
    home = placed(router, "new", [2], session_id="s")
    router.free("old", 1.0)
    for number in range(6):
        decision = router.submit(request(number, [50 + number], session_id="s"), 100.0)
        assert decision is not None and decision.worker_id == home
        router.free(number, 100.0)


@pytest.mark.parametrize("ends_first", [True, False])
@pytest.mark.parametrize(("at_ms", "worker_id"), [(19.5, 1), (20.0, 2)])
def test_a_request_lost_where_the_session_has_left_does_not_keep_it_bound(
    ends_first: bool, at_ms: float, worker_id: int
) -> None:
    router = make_router(2, affinity=AffinitySpec(ttl_ms=10.0, mode="soft"))
    for number in range(2):  # the second moves the session from worker 0 to worker 1
        rules = Constraints(allowed_workers=frozenset({number}))
        assert placed(router, number, [number], session_id="s", constraints=rules) == number
    if ends_first:
        router.free(1, 10.0)
    assert router.remove_worker(0) == [0]
    router.free(1, 10.0)
    router.add_worker(card(2))
    placed(router, "other", range(50, 60), constraints=Constraints(pinned_worker=1))
    decision = router.submit(request("next", [70], session_id="s"), at_ms)
    assert decision is not None and decision.worker_id == worker_id


def test_without_events_the_router_expects_prompts_where_it_sent_them() -> None:
    router = make_router(3, index=ApproximateIndex(ttl_ms=1000.0))
    first = placed(router, 1, range(8))
    router.free(1, 10.0)
    for number in range(2, 12):
        decision = router.submit(request(number, range(8)), 20.0)
        assert decision is not None
        assert (decision.worker_id, decision.overlap_blocks) == (first, 8)
        router.free(number, 21.0)
    late = router.submit(request(99, range(8)), 1021.0)
    assert late is not None and late.overlap_blocks == 0


def test_routers_with_one_seed_and_other_streams_draw_apart() -> None:
    def drawn(stream: str, seed: int = 1) -> list[int]:
        router = KvRouter(
            RouterSpec(BLOCK, mode="kv", seed=seed), CompressedRadixIndex(), stream=stream
        )
        for worker_id in range(4):
            router.add_worker(card(worker_id))
        return [placed(router, number, [number]) for number in range(12)]

    assert drawn("router") == drawn("router")
    assert drawn("router") not in (drawn("router-1"), drawn("router", seed=2))


def test_best_worker_and_potential_loads_speak_of_tokens() -> None:
    router = make_router(2)
    tokens = list(range(4 * BLOCK))
    store(router, 1, local_hashes(tokens, BLOCK)[:3])
    assert router.best_worker(tokens) == (1, 0, 3)
    assert router.load.num_requests == [0, 0]
    loads = {entry["worker_id"]: entry for entry in router.get_potential_loads(tokens)}
    assert loads[0]["potential_prefill_tokens"] == 4 * BLOCK
    assert loads[1]["potential_prefill_tokens"] == BLOCK
    assert loads[1]["potential_decode_blocks"] == 4
    assert router.best_worker(tokens, request_id="r", update_states=True) == (1, 0, 3)
    assert router.load.num_requests == [0, 1]


def test_what_a_router_logs_decides_alike_again() -> None:
    entries: list[list[Any]] = []
    settings = RouterSpec(BLOCK, mode="kv", affinity=AffinitySpec(50.0), seed=4)
    router = Doors(logged_router(entries.append, settings, CompressedRadixIndex()))
    for worker_id in range(3):
        router.add_worker(card(worker_id, taints=frozenset({f"t{worker_id}"})))
    for number in range(30):
        taints = frozenset({f"t{number % 4}"}) if number % 5 == 0 else frozenset()
        rules = Constraints(required_taints=taints) if taints else None
        try:
            decision = router.submit(
                request(
                    number, [number % 3, number], session_id=f"s{number % 7}", constraints=rules
                ),
                float(number),
            )
        except NoEligibleWorkerError:
            continue
        assert decision is not None
        store(router, decision.worker_id, [number % 3, number])
        router.first_token(number, number + 0.5)
        if number % 2:
            router.free(number, number + 0.7)
    router.remove_worker(1)
    router.submit(request("last", [1, 2, 3]), 99.0)
    again = KvRouter(settings, CompressedRadixIndex())
    kinds: Counter[str] = Counter()
    for entry in entries:
        kinds[entry[0]] += 1
        logged, derived = replay_entry(again, entry)
        assert logged == derived
    assert kinds["arrive"] == 31 and kinds["event"] > 20 and kinds["leave"] == 1


@pytest.mark.parametrize("entry", [[], ["fly", 0.0], ["arrive", 0.0], ["join", 0.0, {"x": 1}], 5])
def test_an_entry_that_no_router_wrote_is_refused(entry: Any) -> None:
    with pytest.raises(ConfigError, match="entry"):
        replay_entry(make_router(1), entry)
