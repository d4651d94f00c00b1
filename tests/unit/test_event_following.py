"""What a follower of an engine's events tells, asks for and counts, message by message."""

import asyncio

import pytest
from event_support import BLOCK, CLEARED, EventEngine, following, message, stored
from waiting import PATIENCE_S, until

from dynosim.blocks.hashing import local_hashes
from dynosim.blocks.tier import Tier
from dynosim.indexer.base import Cleared, Removed, Stored
from dynosim.indexer.wire import EngineEvent, encode_batch, removed_event, stored_event
from dynosim_runtime.kv_events import subscriber
from dynosim_runtime.kv_events.subscriber import EventSubscriber, SubscriberCounters, Subscriptions


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pauses, and more patience than a busy machine needs."""
    monkeypatch.setattr(subscriber, "PAUSE_S", 0.0)
    monkeypatch.setattr(subscriber, "RETRY_S", PATIENCE_S)
    monkeypatch.setattr(subscriber, "REPLAY_TIMEOUT_S", PATIENCE_S)


async def test_messages_in_order_are_told_once_and_nothing_is_asked_for_again() -> None:
    async with following() as (engine, follower):
        await follower.until(lambda: engine.asked == [0])  # what came before it subscribed
        await engine.publish(*map(stored, range(5)))
        await follower.has(0, 1, 2, 3, 4)
        assert engine.asked == [0]
        first = follower.seen[0]
        assert first == Stored(None, [0], local_hashes(range(BLOCK), BLOCK), Tier.DEVICE)
        assert follower.counters == SubscriberCounters(messages=5, events=5, replays=1)


async def test_every_kind_of_event_is_told_and_counted() -> None:
    async with following() as (engine, follower):
        parts = [removed_event([7], Tier.HOST), EngineEvent("AllBlocksCleared", {})]
        await engine.publish(message(0, *stored(0).events, *parts))
        await engine.publish(message(1))  # nothing happened
        await engine.publish(message(2, removed_event([0])))
        await follower.until(lambda: follower.counters.messages == 3)
        local = local_hashes(range(BLOCK), BLOCK)
        assert follower.seen == [
            Stored(None, [0], local),
            Removed([7], Tier.HOST),
            Cleared(),
            Removed([0]),
        ]
        assert (follower.counters.events, follower.counters.malformed) == (4, 0)


async def test_what_came_before_it_subscribed_is_asked_for() -> None:
    async with following(*map(stored, range(3))) as (engine, follower):
        await follower.has(0, 1, 2)
        await engine.publish(stored(3))
        await follower.has(0, 1, 2, 3)
        assert engine.asked == [0]
        assert follower.counters == SubscriberCounters(messages=4, events=4, replays=1)


async def test_published_while_it_catches_up_is_told_once() -> None:
    async with following(*map(stored, range(3))) as (engine, follower):
        await engine.publish(stored(2), stored(3), is_kept=False)
        await follower.has(0, 1, 2, 3)
        assert follower.counters.messages == 4


async def test_a_replay_that_begins_late_voids_what_is_known_at_once() -> None:
    async with following() as (engine, follower):
        await engine.publish(stored(0))
        await follower.has(0)
        engine.kept.clear()
        await engine.publish(stored(1), stored(2), is_lost=True, is_kept=False)
        await engine.publish(stored(3))
        await follower.has(0, CLEARED, 3)
        assert engine.asked == [0, 1]  # one question was enough
        assert follower.counters == SubscriberCounters(
            messages=2, events=3, gaps=1, replays=2, cleared=1
        )
        await engine.publish(stored(4))
        await follower.has(0, CLEARED, 3, 4)
        assert engine.asked == [0, 1]


async def test_a_late_join_that_cannot_have_it_all_begins_with_the_oldest_there_is() -> None:
    async with following(stored(5), stored(6)) as (engine, follower):
        await follower.has(CLEARED, 5, 6)
        assert engine.asked == [0]
        assert follower.counters == SubscriberCounters(messages=2, events=3, replays=1, cleared=1)


async def test_a_lost_message_is_asked_for_and_told_in_its_place() -> None:
    async with following() as (engine, follower):
        await engine.publish(stored(0), stored(1))
        await follower.has(0, 1)
        await engine.publish(stored(2), is_lost=True)
        await engine.publish(stored(3))
        await follower.has(0, 1, 2, 3)
        assert engine.asked == [0, 2]
        assert follower.counters == SubscriberCounters(messages=4, events=4, gaps=1, replays=2)


async def test_three_answers_in_a_row_that_do_not_help_void_what_is_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with following() as (engine, follower):
        await engine.publish(stored(0))
        await follower.has(0)
        monkeypatch.setattr(subscriber, "RETRY_S", 0.01)
        engine.kept.clear()
        await engine.publish(stored(2), is_kept=False)
        await follower.has(0, CLEARED, 2)
        assert engine.asked == [0, 1, 1, 1]
        assert (follower.counters.gaps, follower.counters.cleared) == (1, 1)
        await asyncio.sleep(3 * subscriber.RETRY_S)  # the last retry is over: same loop, same clock
        await engine.publish(stored(4), is_kept=False)  # and again, from the start
        await follower.has(0, CLEARED, 2, CLEARED, 4)
        assert engine.asked == [0, 1, 1, 1, 3, 3, 3]
        assert (follower.counters.gaps, follower.counters.cleared) == (2, 2)


async def test_an_answer_that_helps_begins_the_count_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    async with following() as (engine, follower):
        await engine.publish(stored(0))
        await follower.has(0)
        monkeypatch.setattr(subscriber, "RETRY_S", 0.01)
        engine.kept = []
        engine.kept_from = {4: [stored(1), stored(2)], 5: []}
        await engine.publish(stored(2), is_kept=False)
        await follower.has(0, 1, 2)
        await asyncio.sleep(3 * subscriber.RETRY_S)
        await engine.publish(stored(4), is_kept=False)
        await follower.has(0, 1, 2, CLEARED, 4)
        assert engine.asked == [0, 1, 1, 1, 3, 3, 3]


@pytest.mark.parametrize("last", [0, 2])
async def test_an_engine_that_starts_anew_voids_what_is_known(last: int) -> None:
    """Its numbers begin at 0 again: lower than the last one, or the same."""
    async with following() as (engine, follower):
        await engine.publish(*map(stored, range(last + 1)))
        before = list(range(last + 1))
        await follower.has(*before)
        engine.kept.clear()
        await engine.publish(stored(0, block=100))
        await follower.has(*before, CLEARED, 100)
        await engine.publish(stored(1, block=101))
        await follower.has(*before, CLEARED, 100, 101)
        await follower.until(lambda: len(engine.asked) == 2)
        assert follower.counters.cleared == 0  # nothing was lost: it is another life


async def test_an_engine_that_started_anew_is_asked_for_what_was_missed_of_its_new_life() -> None:
    async with following() as (engine, follower):
        await engine.publish(*map(stored, range(5)))
        await follower.has(0, 1, 2, 3, 4)
        engine.kept = [stored(0, block=100), stored(1, block=101)]
        await engine.publish(stored(2, block=102))
        await follower.has(0, 1, 2, 3, 4, CLEARED, 100, 101, 102)
        assert engine.asked == [0, 0]


async def test_a_higher_number_than_expected_is_a_gap_and_no_new_life() -> None:
    async with following() as (engine, follower):
        await engine.publish(stored(0))
        await follower.has(0)
        await engine.publish(*map(stored, range(1, 9)), is_lost=True)
        await engine.publish(stored(9))
        await follower.has(*range(10))


async def test_without_a_replay_endpoint_a_gap_voids_what_is_known_at_once() -> None:
    async with following(can_replay=False) as (engine, follower):
        await engine.publish(stored(0), stored(1))
        await follower.has(0, 1)
        await engine.publish(stored(3), stored(4))
        await follower.has(0, 1, CLEARED, 3, 4)
        assert follower.counters == SubscriberCounters(messages=4, events=5, gaps=1, cleared=1)
        assert engine.asked == []


async def test_without_a_replay_endpoint_a_late_join_begins_with_what_comes() -> None:
    async with following(can_replay=False) as (engine, follower):
        await engine.publish(stored(5))
        await follower.has(CLEARED, 5)


async def test_a_replay_endpoint_that_is_not_there_yet_is_asked_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(subscriber, "REPLAY_TIMEOUT_S", 0.02)
    monkeypatch.setattr(subscriber, "RETRY_S", 0.02)
    monkeypatch.setattr(subscriber, "MAX_UNANSWERED", 1 << 30, raising=False)
    async with following(answers_replays=False) as (engine, follower):
        engine.kept = [stored(0)]
        await engine.publish(stored(1))
        await asyncio.sleep(0.1)  # it has asked in vain by now, or asks later
        assert (follower.story, follower.counters.replays) == ([], 0)
        engine.answer_replays()
        await follower.has(0, 1)
        assert follower.counters.cleared == 0


async def test_what_makes_no_sense_is_counted_said_once_and_passed_over(
    caplog: pytest.LogCaptureFixture,
) -> None:
    wrong_size = stored_event(None, [9], list(range(8)), 8)
    async with following(garbled=(b"", b"short", b"x")) as (engine, follower):
        await follower.until(lambda: follower.counters.replays == 1)
        for odd in ([b""], [b"", b"short", b"x"], [b"", b"\0" * 8, b"no msgpack"]):
            await engine.pub.send_multipart(odd)
        await engine.publish(message(0, wrong_size, *stored(0).events))
        await follower.has(0)
        assert follower.counters == SubscriberCounters(
            messages=1, events=1, malformed=1 + 3 + 1, replays=1
        )
    assert len([record for record in caplog.records if record.levelname == "WARNING"]) == 1


async def test_only_the_topic_that_was_named_is_followed() -> None:
    async with following(topic="kv") as (engine, follower):
        await engine.pub.send_multipart(encode_batch(stored(0, block=50), "other"))
        await engine.publish(stored(0))
        await follower.has(0)


async def test_many_messages_at_once_all_arrive() -> None:
    async with following() as (engine, follower):
        await engine.publish(*map(stored, range(2 * subscriber.MAX_AT_ONCE + 50)))
        await follower.has(*range(2 * subscriber.MAX_AT_ONCE + 50))
        assert engine.asked == [0]


async def test_subscriptions_are_kept_by_worker_and_rank_and_end_by_worker() -> None:
    engines = [EventEngine() for _ in range(3)]
    subscriptions = Subscriptions()
    seen: dict[tuple[int, int], list[object]] = {(1, 0): [], (1, 1): [], (2, 0): []}
    for key, engine in zip(seen, engines, strict=True):
        subscriptions.start(*key, EventSubscriber(engine.source(), BLOCK, seen[key].extend))
        await engine.subscribed()
    for number, engine in enumerate(engines):
        await engine.publish(*map(stored, range(number + 1)))
    await until(lambda: [len(events) for events in seen.values()] == [1, 2, 3])
    counters = subscriptions.counters()
    assert {key: one.messages for key, one in counters.items()} == {(1, 0): 1, (1, 1): 2, (2, 0): 3}
    subscriptions.stop(1)
    subscriptions.stop(7)  # nobody
    assert set(subscriptions.counters()) == {(2, 0)}
    for engine in engines[:2]:
        await engine.left()
    await engines[2].publish(stored(3))
    await until(lambda: len(seen[2, 0]) == 4)
    await subscriptions.close()
    assert subscriptions.counters() == {}
    await engines[2].left()
    for engine in engines:
        await engine.close()
