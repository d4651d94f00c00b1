"""The workers of a frontend: who is in, who is out, when they are asked, whose events they are."""

import asyncio

import pytest
from event_support import EventEngine, stored
from live_support import BLOCK, MODEL, Inside, ScriptedEngine, card, request, tokens_of
from virtual_time import in_virtual_time, let_others_run, now_ms, now_s
from waiting import until

from dynosim.indexer.base import Stored
from dynosim.indexer.tiers import TieredIndex
from dynosim.router.workers import WorkerCard as RoutingCard
from dynosim.workers.lifecycle import Phase, WorkerEvent
from dynosim_runtime.card import LiveCard, worker_id_of
from dynosim_runtime.serving.member import Member
from dynosim_runtime.serving.membership import DRAINING

A, B = worker_id_of("a"), worker_id_of("b")


def routing_cards(inside: Inside) -> dict[int, RoutingCard]:
    return inside.router.router.table.cards


def test_the_router_is_told_all_that_it_decides_by() -> None:
    inside = Inside(ScriptedEngine())
    inside.show(
        card(
            "a",
            total_kv_blocks=70,
            max_num_batched_tokens=50,
            dp_size=3,
            device="cpu",
            taints=("x", "y"),
            topology={"zone": "z"},
        )
    )
    assert routing_cards(inside) == {
        A: RoutingCard(
            A, BLOCK, total_kv_blocks=70, max_num_batched_tokens=50, dp_size=3, device="cpu",
            taints=frozenset(("x", "y")), topology={"zone": "z"},
        )
    }  # fmt: skip


def test_workers_come_and_go_as_they_are_shown() -> None:
    inside = Inside(ScriptedEngine())
    assert (inside.members.num_ready, inside.num_changes) == (0, 1)
    inside.show(card("a"), card("b"))
    assert list(inside.members.cards) == list(routing_cards(inside)) == [A, B]
    inside.show(card("b"))
    assert list(inside.members.cards) == list(routing_cards(inside)) == [B]
    inside.show()
    assert (inside.members.num_ready, routing_cards(inside), inside.num_changes) == (0, {}, 4)


@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_a_worker_of_another_role_gets_no_whole_request(
    role: str, caplog: pytest.LogCaptureFixture
) -> None:
    inside = Inside(ScriptedEngine())
    inside.show(card("a", role=role), card("b"))
    assert list(inside.members.cards) == list(routing_cards(inside)) == [B]
    assert (
        f"worker a is there for {role}, but this frontend's plan has whole requests" in caplog.text
    )
    inside.show(card("a", role=role), card("b"))
    assert caplog.text.count("is not used") == 1
    inside.show(card("a", pid=3), card("b"))  # another life, of the right role
    assert list(routing_cards(inside)) == [B, A]


def test_a_worker_that_drains_takes_nothing_new_and_stays_known() -> None:
    inside = Inside(ScriptedEngine(), "a", "b")
    inside.show(card("a", is_draining=True), card("b"))
    assert (list(inside.members.cards), list(routing_cards(inside))) == ([A, B], [B])
    assert inside.members.num_ready == 1
    inside.show(card("b"))
    assert list(inside.members.cards) == [B]
    inside.show(card("b"), card("c", is_draining=True))  # came when it was leaving already
    assert list(inside.members.cards) == [B]


def test_what_drains_comes_back_only_in_another_life() -> None:
    inside = Inside(ScriptedEngine(), "a")
    inside.show(card("a", is_draining=True))
    inside.show(card("a"))  # nothing in the life of a worker leads from draining to ready
    assert (inside.members.num_ready, inside.members.absence) == (0, DRAINING)
    assert (list(inside.members.cards), routing_cards(inside)) == ([A], {})
    assert inside.members.cards[A].is_draining
    inside.show(card("a", pid=2))
    assert (inside.members.num_ready, list(routing_cards(inside))) == (1, [A])


def test_a_members_life_follows_the_table() -> None:
    for phases, last in (
        ([WorkerEvent.BECAME_READY], Phase.READY),
        ([WorkerEvent.TOLD_TO_DRAIN], Phase.GONE),
        ([WorkerEvent.BECAME_READY, WorkerEvent.TOLD_TO_DRAIN], Phase.DRAINING),
        ([WorkerEvent.BECAME_READY, WorkerEvent.DIED], Phase.FAILED),
    ):
        member = Member(card("a"), 1)
        assert all(member.happens(event) for event in phases)
        assert member.phase is last
    assert not any(member.happens(event) for event in WorkerEvent)
    assert member.phase is Phase.FAILED  # what cannot happen changes nothing


def test_another_life_of_a_worker_is_another_worker() -> None:
    """Told by its process or its address; what else changes on a card is news of the same one."""
    inside = Inside(ScriptedEngine(), "a")
    first = inside.members.stay_of(A)
    inside.show(card("a", total_kv_blocks=5))
    assert inside.members.stay_of(A) == first
    assert inside.members.cards[A].total_kv_blocks == 5
    inside.show(card("a", pid=2))
    second = inside.members.stay_of(A)
    inside.show(card("a", pid=2, url="http://elsewhere"))
    third = inside.members.stay_of(A)
    assert len({first, second, third}) == 3
    assert inside.members.cards[A].url == "http://elsewhere"
    assert len(routing_cards(inside)) == 1


def test_a_card_that_does_not_fit_is_refused_once_and_looked_at_again_when_it_changes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    inside = Inside(ScriptedEngine())
    for _ in range(3):
        inside.show(card("a", model="other"), card("b", block_size=BLOCK + 1))
    assert inside.members.cards == routing_cards(inside) == {}
    errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len(errors) == 2
    assert f"serves 'other', this frontend {MODEL!r}" in errors[0]
    inside.show(card("a", pid=2))  # started anew, with the right model
    assert list(inside.members.cards) == [A]
    inside.show()
    inside.show(card("a", model="other"))  # nobody of that life has been refused since it went
    assert inside.members.cards == {}


@in_virtual_time
async def test_a_fenced_worker_is_asked_every_second_and_comes_back_with_its_newest_card() -> None:
    answers = {"a": False, "b": True}
    inside = Inside(
        ScriptedEngine(dies_after={"a": 1}),
        "a",
        is_well=lambda one: answers[one.name],
        now_ms=now_ms,
    )
    stream = await inside.dispatcher.start(request())
    inside.show(card("a"), card("b"))
    await tokens_of(stream)
    await let_others_run()
    assert (list(inside.members.cards), inside.members.num_fenced) == ([B], 1)
    assert list(routing_cards(inside)) == [B]
    changes = inside.num_changes
    await asyncio.sleep(5.5)
    assert inside.probed == ["a"] * 6  # when the stream broke, and at 1, 2, 3, 4 and 5 s
    inside.show(card("a", total_kv_blocks=9), card("b"))  # shown, but still fenced
    assert (list(inside.members.cards), inside.num_changes) == ([B], changes + 1)
    answers["a"] = True
    await asyncio.sleep(1.0)
    assert (set(inside.members.cards), inside.members.num_fenced) == ({A, B}, 0)
    assert inside.members.cards[A].total_kv_blocks == 9
    assert inside.num_changes == changes + 2
    await asyncio.sleep(10.0)
    assert len(inside.probed) == 7  # asked no more
    await inside.members.close()


@in_virtual_time
async def test_a_fenced_worker_whose_card_goes_is_forgotten() -> None:
    inside = Inside(
        ScriptedEngine(dies_after={"a": 1}), "a", is_well=lambda _: False, now_ms=now_ms
    )
    stream = await inside.dispatcher.start(request())
    inside.show(card("a"), card("b"))
    await tokens_of(stream)
    await let_others_run()
    assert inside.members.num_fenced == 1
    inside.show(card("b"))
    assert inside.members.num_fenced == 0
    await asyncio.sleep(5.0)
    assert inside.probed == ["a"]


@in_virtual_time
async def test_a_worker_that_breaks_a_stream_but_answers_stays() -> None:
    inside = Inside(ScriptedEngine(dies_after={"a": 1}), "a", now_ms=now_ms)
    stream = await inside.dispatcher.start(request())
    inside.show(card("a"), card("b"))
    await tokens_of(stream)
    await let_others_run()
    assert (set(inside.members.cards), inside.members.num_fenced) == ({A, B}, 0)
    assert inside.probed == ["a"]


@in_virtual_time
async def test_streams_of_a_worker_that_has_left_move_after_its_second_silence() -> None:
    answers = iter([True, False, True, False, False])
    engine = ScriptedEngine(hangs={"a"})
    inside = Inside(engine, "a", is_well=lambda _: next(answers), now_ms=now_ms)
    reader = asyncio.create_task(tokens_of(await inside.dispatcher.start(request())))
    await let_others_run()
    inside.show(card("b"))
    await reader
    # Asked at 0, 1, 2, 3 and 4 s; one silence between two answers is none.
    assert (now_s(), inside.probed) == (4.0, ["a"] * 5)
    assert [name for name, _ in engine.requests] == ["a", "b"]


@in_virtual_time
async def test_a_worker_that_has_left_is_asked_only_while_it_has_something_in_hand() -> None:
    engine = ScriptedEngine(pieces=[(0.5, 1)])
    inside = Inside(engine, "a", now_ms=now_ms)
    reader = asyncio.create_task(tokens_of(await inside.dispatcher.start(request(max_tokens=5))))
    await let_others_run()
    inside.show(card("b"))
    assert len(await reader) == 5
    assert now_s() == 2.5
    await asyncio.sleep(10.0)
    assert inside.probed == ["a"] * 3  # at 0, 1 and 2 s


def with_events(name: str, *engines: EventEngine) -> LiveCard:
    return card(name, dp_size=len(engines), events=tuple(one.source() for one in engines))


async def test_events_reach_the_index_under_their_workers_rank_and_end_with_it() -> None:
    engines = [EventEngine() for _ in range(3)]
    inside = Inside(ScriptedEngine(), follows_events=True)
    inside.show(with_events("a", *engines[:2]), with_events("b", engines[2]))
    index, table = inside.router.router.index, inside.router.router.table
    assert isinstance(index, TieredIndex)
    for number, engine in enumerate(engines):  # as many blocks as its number, and one
        await engine.subscribed()
        await engine.publish(*map(stored, range(number + 1)))
    await until(lambda: index.size >= 1 + 2 + 3)
    for number, (worker_id, rank) in enumerate(((A, 0), (A, 1), (B, 0))):
        slot = table.slot_of(worker_id, rank)
        assert slot is not None
        told = [event for event in index.device.dump(slot) if isinstance(event, Stored)]
        assert sum(len(event.block_hashes) for event in told) == number + 1
    inside.show(with_events("b", engines[2]))
    for engine in engines[:2]:
        await engine.left()
    assert index.size == 3
    await inside.members.close()
    await engines[2].left()
    for engine in engines:
        await engine.close()
