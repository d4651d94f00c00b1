"""What every discovery must do."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

import pytest

from dynosim_runtime.card import LiveCard, worker_id_of
from dynosim_runtime.discovery.base import Discovery
from dynosim_runtime.errors import LiveError

Cards = Mapping[int, LiveCard]

PATIENCE_S = 120.0
"""After which a test that hangs ends. Nothing is timed: no test passes or fails by less."""


def card_of(name: str, **fields: object) -> LiveCard:
    """A worker's card as the tests publish it."""
    values: dict[str, object] = {
        "worker_id": worker_id_of(name),
        "name": name,
        "engine": "mock",
        "url": "http://127.0.0.1:9",
        "model": "tiny",
        "block_size": 16,
        "max_model_len": 4096,
    }
    return LiveCard(**{**values, **fields})  # type: ignore[arg-type]


class Watcher:
    """A watch that runs beside the test; its next answers can be waited for."""

    def __init__(self, watch: AsyncIterator[dict[int, LiveCard]]) -> None:
        self.seen: list[Cards] = []
        self._num_judged = 0
        self._grown = asyncio.Event()
        self._task = asyncio.create_task(self._run(watch))

    async def until(self, is_met: Callable[[Cards], bool], wait_s: float = PATIENCE_S) -> Cards:
        """The next answer that meets the condition; those before it are passed over."""
        async with asyncio.timeout(wait_s):
            while True:
                while self._num_judged < len(self.seen):
                    self._num_judged += 1
                    if is_met(self.seen[self._num_judged - 1]):
                        return self.seen[self._num_judged - 1]
                self._grown.clear()
                await self._grown.wait()

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self, watch: AsyncIterator[dict[int, LiveCard]]) -> None:
        async for cards in watch:
            self.seen.append(cards)
            self._grown.set()


class DiscoveryPlace:
    """A running back end; heirs know how to reach it."""

    lease_s: float  # after which a silent worker is gone

    def discovery(self, name: str) -> Discovery:
        """A discovery as the process of worker `name`, or of a frontend, has it."""
        raise NotImplementedError

    async def start_worker(self, card: LiveCard) -> Callable[[], Awaitable[None]]:
        """Publish a card from a process of its own; the result kills that process."""
        raise NotImplementedError


class DiscoveryContract:
    """The tests of a `Discovery`, for asyncio (pytest-asyncio in auto mode).

    The heir supplies `place`, a fixture: a running back end that nobody uses besides.

    A worker calls `register` once it serves, `update` when its card changes and `close` when it
    goes; a frontend reads `watch` for as long as it lives. A discovery must not deliver a card
    whose worker is known to be gone, deliver the same cards twice in a row, or give an id to a
    second worker while the first one lives.
    """

    async def test_a_watch_begins_with_what_there_is(self, place: DiscoveryPlace) -> None:
        worker, frontend = place.discovery("a"), place.discovery("frontend")
        card = card_of("a", taints=("x",), topology={"zone": "z1"}, total_kv_blocks=77)
        registration = await worker.register(card)
        watcher = Watcher(frontend.watch())
        assert await watcher.until(bool) == {card.worker_id: card}
        await watcher.close()
        await registration.close()
        await worker.close()
        await frontend.close()

    async def test_a_watch_of_an_empty_place_begins_at_once(self, place: DiscoveryPlace) -> None:
        frontend = place.discovery("frontend")
        watcher = Watcher(frontend.watch())
        assert await watcher.until(lambda cards: True) == {}
        await watcher.close()
        await frontend.close()

    async def test_workers_come_change_and_go(self, place: DiscoveryPlace) -> None:
        first, second = place.discovery("a"), place.discovery("b")
        frontend = place.discovery("frontend")
        watcher = Watcher(frontend.watch())
        one, two = card_of("a"), card_of("b")
        registered = await first.register(one)
        await watcher.until(lambda cards: cards == {one.worker_id: one})
        other = await second.register(two)
        await watcher.until(lambda cards: cards == {one.worker_id: one, two.worker_id: two})
        draining = card_of("a", is_draining=True)
        await registered.update(draining)
        await watcher.until(lambda cards: cards.get(one.worker_id) == draining)
        await registered.close()
        await watcher.until(lambda cards: cards == {two.worker_id: two})
        await other.close()
        await watcher.until(lambda cards: cards == {})
        assert all(a != b for a, b in zip(watcher.seen, watcher.seen[1:], strict=False))
        await watcher.close()
        for discovery in (first, second, frontend):
            await discovery.close()

    async def test_a_killed_worker_goes(self, place: DiscoveryPlace) -> None:
        frontend = place.discovery("frontend")
        watcher = Watcher(frontend.watch())
        await watcher.until(lambda cards: cards == {})
        alive = place.discovery("alive")
        registration = await alive.register(card_of("alive"))
        kill = await place.start_worker(card_of("doomed"))
        alive_id, doomed_id = worker_id_of("alive"), worker_id_of("doomed")
        await watcher.until(lambda cards: doomed_id in cards)
        await kill()
        await watcher.until(lambda cards: set(cards) == {alive_id})
        await watcher.close()
        await registration.close()
        await alive.close()
        await frontend.close()

    async def test_a_killed_workers_name_can_be_used_again(self, place: DiscoveryPlace) -> None:
        kill = await place.start_worker(card_of("a"))
        await kill()
        again, frontend = place.discovery("a"), place.discovery("frontend")
        registration = await again.register(card_of("a", total_kv_blocks=5))
        watcher = Watcher(frontend.watch())
        await watcher.until(lambda cards: [card.total_kv_blocks for card in cards.values()] == [5])
        await watcher.close()
        await registration.close()
        await again.close()
        await frontend.close()

    async def test_a_live_workers_id_is_refused(self, place: DiscoveryPlace) -> None:
        first, second, frontend = (place.discovery(name) for name in ("a", "a2", "frontend"))
        card = card_of("a")
        registration = await first.register(card)
        watcher = Watcher(frontend.watch())
        await watcher.until(bool)
        with pytest.raises(LiveError, match="already has worker id"):
            await second.register(card_of("a", total_kv_blocks=99))
        await watcher.close()
        again = Watcher(frontend.watch())
        assert await again.until(bool) == {card.worker_id: card}
        await again.close()
        await registration.close()
        for discovery in (first, second, frontend):
            await discovery.close()

    async def test_a_card_outlives_its_lease_while_its_worker_lives(
        self, place: DiscoveryPlace
    ) -> None:
        worker, frontend = place.discovery("a"), place.discovery("frontend")
        registration = await worker.register(card_of("a"))
        watcher = Watcher(frontend.watch())
        await watcher.until(bool)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(place.lease_s * 1.8):
                await watcher.until(lambda cards: True)
        await registration.close()
        await worker.close()
        await frontend.close()

    async def test_closing_takes_the_card_away_and_twice_is_harmless(
        self, place: DiscoveryPlace
    ) -> None:
        worker, frontend = place.discovery("a"), place.discovery("frontend")
        registration = await worker.register(card_of("a"))
        await registration.close()
        watcher = Watcher(frontend.watch())
        assert await watcher.until(lambda cards: True) == {}
        again = card_of("a", total_kv_blocks=7)
        successor = await worker.register(again)
        await watcher.until(lambda cards: cards == {again.worker_id: again})
        await registration.close()  # the card is another's by now
        later = Watcher(frontend.watch())
        assert await later.until(lambda cards: True) == {again.worker_id: again}
        for each in (watcher, later, successor, worker, frontend):
            await each.close()
