"""The live router: what is handed to it and when, and what waits for it."""

import asyncio

import pytest
from live_support import BLOCK

from dynosim.blocks.hashing import local_hashes, sequence_hashes
from dynosim.errors import ConfigError
from dynosim.indexer.base import Stored
from dynosim.indexer.compressed import CompressedRadixIndex
from dynosim.router.classes import PolicyClass
from dynosim.router.knobs import LoadSpec, RouterSpec
from dynosim.router.kv_router import KvRouter
from dynosim.router.refusals import NoEligibleWorkerError, QueueFullError
from dynosim.router.request import RoutingRequest
from dynosim.router.workers import WorkerCard
from dynosim_runtime.serving.router import RouterService


class Clock:
    now_ms = 0.0

    def __call__(self) -> float:
        return self.now_ms


class Service:
    """One prompt at a time on each worker, others wait; what is unheard of for 100 ms is stale."""

    def __init__(self, *worker_ids: int, limit: int | None = None) -> None:
        rules = PolicyClass(prefill_busy_threshold=1, request_queue_limit_per_worker=limit)
        settings = RouterSpec(
            BLOCK, mode="kv", classes=(rules,), load=LoadSpec(stale_after_ms=100.0)
        )
        self.clock = Clock()
        self.index = CompressedRadixIndex()
        self.router = KvRouter(settings, self.index)
        self.num_maintained = 0
        self.service = RouterService(self.router, self.clock, maintain=self._maintain)
        for worker_id in worker_ids:
            self.service.join(WorkerCard(worker_id, BLOCK))

    def _maintain(self) -> None:
        self.num_maintained += 1

    def placing(self, name: str) -> "asyncio.Task[object]":
        local = local_hashes(range(8), BLOCK)
        asked = RoutingRequest(name, 8, 2, local, sequence_hashes(local))
        return asyncio.create_task(self.service.place(asked))


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_the_next_waits_until_a_first_token_or_an_end() -> None:
    made = Service(7)
    tasks = [made.placing(name) for name in "abc"]
    await turns()
    assert [task.done() for task in tasks] == [True, False, False]
    assert made.service.num_queued == 2
    made.clock.now_ms = 25.0
    made.service.first_token("a")
    await turns()
    assert [task.done() for task in tasks] == [True, True, False]
    made.clock.now_ms = 60.0
    made.service.end("b")
    decision = await tasks[2]
    assert (decision.worker_id, decision.queued_ms) == (7, 60.0)  # type: ignore[attr-defined]
    assert made.service.num_queued == 0
    assert set(made.router.load.bookings) == {"a", "c"}


async def test_who_gives_up_waiting_is_out_of_the_queue_and_lets_the_next_go() -> None:
    made = Service(7)
    first, second, third = (made.placing(name) for name in "abc")
    await turns()
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)
    assert made.service.num_queued == made.router.num_queued == 1
    made.service.end("a")
    await third
    await first
    assert set(made.router.load.bookings) == {"c"}


async def test_who_is_placed_and_gives_up_in_the_same_moment_is_freed() -> None:
    made = Service(7)
    first, second = made.placing("a"), made.placing("b")
    await turns()
    made.service.end("a")  # places b
    second.cancel()
    await asyncio.gather(first, second, return_exceptions=True)
    assert made.router.load.bookings == {}
    assert made.service.num_queued == 0


async def test_a_worker_that_joins_takes_who_waits_and_one_that_leaves_loses_what_it_has() -> None:
    made = Service(7)
    first, second = made.placing("a"), made.placing("b")
    await turns()
    made.service.join(WorkerCard(8, BLOCK))
    assert (await second).worker_id == 8  # type: ignore[attr-defined]
    await first
    assert made.service.leave(7) == ["a"]
    assert made.service.leave(7) == []
    assert set(made.router.load.bookings) == {"b"}
    with pytest.raises(ConfigError, match="block size"):
        made.service.join(WorkerCard(9, BLOCK + 1))


async def test_those_who_wait_when_the_last_worker_leaves_are_refused() -> None:
    made = Service(7)
    first, second = made.placing("a"), made.placing("b")
    await turns()
    made.service.leave(7)
    with pytest.raises(NoEligibleWorkerError):
        await second
    await first
    assert made.service.num_queued == 0


async def test_a_full_queue_refuses_at_once() -> None:
    made = Service(7, limit=1)
    tasks = [made.placing(name) for name in "abc"]
    await turns()
    with pytest.raises(QueueFullError):
        await tasks[2]
    assert made.service.num_queued == 1
    made.service.end("a")
    await tasks[1]


async def test_a_tick_drops_what_was_not_heard_of_and_lets_the_next_go() -> None:
    made = Service(7)
    first, second = made.placing("a"), made.placing("b")
    await turns()
    made.clock.now_ms = 50.0
    made.service.output_tokens("a", 3)  # heard of
    made.clock.now_ms = 150.0
    made.service.tick()
    await turns()
    assert not second.done()
    made.clock.now_ms = 150.5
    made.service.tick()
    await second
    await first
    assert set(made.router.load.bookings) == {"b"}


async def test_the_log_is_maintained_between_inputs_and_at_every_tick() -> None:
    made = Service(7)
    await made.placing("a")
    assert made.num_maintained == 1
    made.service.tick()
    made.service.end("a")
    assert made.num_maintained == 2
    await made.placing("b")
    assert made.num_maintained == 3


async def test_events_of_a_worker_that_has_left_are_dropped() -> None:
    made = Service(7)
    local = local_hashes(range(8), BLOCK)
    stored = [Stored(None, [1, 2], local)]
    made.service.apply_events(7, 0, stored)
    assert made.index.size == 2
    made.service.apply_events(7, 1, stored)  # no such rank
    made.service.apply_events(8, 0, stored)
    assert made.index.size == 2
