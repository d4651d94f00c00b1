"""The workers of a deployment that others run, as discovery shows them."""

import asyncio
import logging
from collections.abc import Mapping

from dynosim.build.live_control import pool_name
from dynosim.planner.observation import PoolState
from dynosim.workers.lifecycle import Phase, WorkerEvent
from dynosim_runtime.card import LiveCard
from dynosim_runtime.discovery.base import Discovery
from dynosim_runtime.errors import LiveError
from dynosim_runtime.outage import Outage
from dynosim_runtime.planner.driver import StopWatch
from dynosim_runtime.planner.lives import LivingWorkers
from dynosim_runtime.planner.workforce import Serving

RETRY_S = 1.0

log = logging.getLogger(__name__)


class WatchedWorkforce:
    """See `Workforce`; nobody is launched or drained. `wanted` is what there is.

    Who starts publishes no card: it is seen once it serves. A card that goes is a worker that has
    drained, if it said that it would, else one that died.
    """

    def __init__(self, pools: Mapping[str, int], watch: StopWatch) -> None:
        self.wanted = dict.fromkeys(pools, 0)
        self._watch = watch
        self._lives = LivingWorkers()
        self._cards: dict[str, LiveCard] = {}

    async def follow(self, discovery: Discovery) -> None:
        """Keep what is known as discovery shows it, until cancelled."""
        watching = Outage(log, "discovery failed; the workers known go on")
        while True:
            try:
                async for cards in discovery.watch():
                    self.show({card.name: card for card in cards.values()})
                    watching.worked()
            except Exception as error:
                watching.failed(error)
            await asyncio.sleep(RETRY_S)

    def show(self, cards: Mapping[str, LiveCard]) -> None:
        """These are the cards that there are."""
        now_ms, before = self._watch(), self._cards
        self._cards = dict(cards)
        for name, old in before.items():
            new = cards.get(name)
            if new is None or (new.pid, new.url) != (old.pid, old.url):
                event = WorkerEvent.DRAINED if old.is_draining else WorkerEvent.DIED
                self._lives.happens(name, event, now_ms)
        for name, card in cards.items():
            pool = pool_name(card.role)
            if pool in self.wanted and name not in self._lives:
                self._lives.begin(name, pool, now_ms)
                self._lives.happens(name, WorkerEvent.BECAME_READY, now_ms)
            if card.is_draining:
                self._lives.happens(name, WorkerEvent.TOLD_TO_DRAIN, now_ms)

    def serving(self) -> list[Serving]:
        """See `Workforce`."""
        return [
            Serving(life.worker_id, life.pool, self._cards[life.name])
            for life in self._lives.lives(Phase.READY, Phase.DRAINING)
        ]

    def pool(self, name: str, num_requests: Mapping[int, int]) -> PoolState:
        """See `Workforce`."""
        found = self._lives.pool(name, 0, num_requests)
        self.wanted[name] = found.count(Phase.READY)
        return PoolState(name, self.wanted[name], found.workers)

    async def launch(self, pool: str) -> None:
        """See `Workforce`."""
        raise LiveError(f"{pool}: whoever runs the workers launches them")

    def drain(self, worker_id: int) -> None:
        """See `Workforce`."""
