"""The workers that a frontend uses: taken in when discovery shows them, fenced when they fail.

A worker gets nothing new when its card is gone (its lease has run out, or it said goodbye), and at
once when its server does not answer a probe, which is made whenever a stream from it breaks. What
it has in hand goes on as long as it answers probes, lest a machine that is merely slow to renew its
lease lose everything. A fenced worker comes back when it answers again or shows a new card.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from functools import partial

from dynosim.errors import ConfigError
from dynosim.indexer.base import BlockEvent
from dynosim_runtime.card import WorkerCard
from dynosim_runtime.hosts import without_credentials
from dynosim_runtime.kv_events.subscriber import EventSubscriber, Subscriptions
from dynosim_runtime.serving.router import RouterService

PROBE_INTERVAL_S = 1.0
DRAINING = "the server is draining: its workers finish what they have and take nothing new"
MAX_UNANSWERED = 2  # probes in a row, until what a departed worker has in hand moves on

log = logging.getLogger(__name__)
Probe = Callable[[WorkerCard], Awaitable[bool]]
Stay = tuple[int, int]
"""A worker and the number of its joining: one that comes back is given another try."""


def _life(card: WorkerCard) -> tuple[int, int | None, str]:
    """What distinguishes a worker from the one of the same name before it."""
    return card.worker_id, card.pid, card.url


class Fleet:
    """Cards of the workers in use, kept in step with the router and the event subscriptions.

    `num_in_hand(worker_id)` tells how many streams a worker has; `on_lost(worker_id)` is called
    when they cannot go on, `on_change()` after every change. `model` is the name that cards must
    carry.
    """

    def __init__(
        self,
        router: RouterService,
        subscriptions: Subscriptions,
        probe: Probe,
        *,
        model: str,
        block_size: int,
        follows_events: bool,
        num_in_hand: Callable[[int], int],
        on_lost: Callable[[int], None],
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self.cards: dict[int, WorkerCard] = {}  # in use, and those that drain
        self._router = router
        self._subscriptions = subscriptions
        self._probe = probe
        self._model = model
        self._block_size = block_size
        self._follows_events = follows_events
        self._num_in_hand = num_in_hand
        self._on_lost = on_lost
        self._on_change = on_change
        self._seen: Mapping[int, WorkerCard] = {}
        self._fenced: dict[int, asyncio.Task[None]] = {}
        self._checks: dict[int, asyncio.Task[None]] = {}
        self._refused: set[tuple[int, int | None, str]] = set()
        self._num_joins = 0  # of all workers
        self._has_drained = False  # the last worker that left had said so
        self._stays: dict[int, Stay] = {}  # of the workers in use
        self._parting: set[asyncio.Task[None]] = set()

    @property
    def num_ready(self) -> int:
        """Workers that take new requests."""
        return sum(not card.is_draining for card in self.cards.values())

    @property
    def num_fenced(self) -> int:
        """Workers that discovery shows but that do not answer."""
        return len(self._fenced)

    @property
    def absence(self) -> str | None:
        """Why no worker takes new requests; None if one does."""
        if self.num_ready:
            return None
        if self.cards or self._has_drained:
            return DRAINING
        if self._fenced:
            return "no worker answers at the moment"
        return "all workers have left" if self._num_joins else "no worker has joined yet"

    def knows(self, worker_id: int) -> bool:
        """Whether it is here, or may be back at once."""
        return worker_id in self.cards or worker_id in self._fenced or worker_id in self._seen

    def stay_of(self, worker_id: int) -> Stay:
        """The present stay of a worker."""
        return self._stays.get(worker_id, (worker_id, 0))

    def update(self, cards: Mapping[int, WorkerCard]) -> None:
        """All live cards, as discovery shows them now."""
        self._seen = cards
        self._refused &= {_life(card) for card in cards.values()}
        for worker_id in [known for known in (*self.cards, *self._fenced) if known not in cards]:
            self._part(worker_id)
        for card in cards.values():
            self._take(card)
        self._on_change()

    def suspect(self, worker_id: int) -> None:
        """A stream from this worker broke: see whether it still lives."""
        if worker_id in self.cards and worker_id not in self._checks:
            check = asyncio.create_task(self._check(self.cards[worker_id]))
            self._checks[worker_id] = check
            check.add_done_callback(lambda _: self._checks.pop(worker_id, None))

    async def close(self) -> None:
        """Stop probing and following."""
        tasks = [*self._fenced.values(), *self._checks.values(), *self._parting]
        for task in tasks:
            task.cancel()
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await self._subscriptions.close()

    # ---- inside --------------------------------------------------------------------------------

    def _part(self, worker_id: int) -> None:
        """A worker's card is gone: nothing new for it, and what it has while it answers."""
        card = self.cards.get(worker_id)
        self._drop(worker_id)
        if card is not None and self._num_in_hand(worker_id):
            watching = asyncio.create_task(self._watch_parting(card))
            self._parting.add(watching)
            watching.add_done_callback(self._parting.discard)

    async def _watch_parting(self, card: WorkerCard) -> None:
        unanswered = 0
        while self._num_in_hand(card.worker_id) and card.worker_id not in self.cards:
            unanswered = 0 if await self._probe(card) else unanswered + 1
            if unanswered == MAX_UNANSWERED:
                self._on_lost(card.worker_id)
                return
            await asyncio.sleep(PROBE_INTERVAL_S)

    def _take(self, card: WorkerCard) -> None:
        """A card that discovery shows: new, changed, or known already."""
        known = self.cards.get(card.worker_id)
        if known == card or _life(card) in self._refused:
            return
        if known is not None and _life(known) != _life(card):
            self._drop(card.worker_id)
            self._on_lost(card.worker_id)
            known = None
        fence = self._fenced.get(card.worker_id)
        if fence is not None and known is None:
            return  # its probe will take it in again, with the newest card
        if known is None:
            self._add(card)
        elif card.is_draining and not known.is_draining:
            self.cards[card.worker_id] = card
            self._router.leave(card.worker_id)  # its streams go on, new ones go elsewhere
            self._subscriptions.stop(card.worker_id)
        else:
            self.cards[card.worker_id] = card

    def _add(self, card: WorkerCard) -> None:
        if card.is_draining:
            return
        try:
            if card.model != self._model:
                raise ConfigError(
                    f"worker {card.name} serves {card.model!r}, this frontend {self._model!r}"
                )
            self._router.join(card.routing_card())
        except Exception as error:  # one card must not keep those behind it away
            self._refused.add(_life(card))
            trace = None if isinstance(error, ConfigError) else error
            log.error("worker %s is not used: %s", card.name, error, exc_info=trace)
            return
        self.cards[card.worker_id] = card
        self._has_drained = False
        self._num_joins += 1
        self._stays[card.worker_id] = (card.worker_id, self._num_joins)
        url = without_credentials(card.url)
        log.info("worker %s joined (%s, %s)", card.name, card.engine, url)
        if self._follows_events:
            for rank, source in enumerate(card.events):
                deliver = partial(self._deliver, card.worker_id, rank)
                subscriber = EventSubscriber(source, self._block_size, deliver)
                self._subscriptions.start(card.worker_id, rank, subscriber)

    def _deliver(self, worker_id: int, dp_rank: int, events: list[BlockEvent]) -> None:
        self._router.apply_events(worker_id, dp_rank, events)

    def _drop(self, worker_id: int) -> None:
        """A worker gets nothing new any more."""
        fence = self._fenced.pop(worker_id, None)
        if fence is not None:
            fence.cancel()
        self._stays.pop(worker_id, None)
        card = self.cards.pop(worker_id, None)
        if card is None:
            return
        self._has_drained = card.is_draining
        self._subscriptions.stop(worker_id)
        self._router.leave(worker_id)
        log.info("worker %s left", card.name)

    async def _check(self, card: WorkerCard) -> None:
        """Fence a worker that does not answer."""
        if await self._probe(card) or self.cards.get(card.worker_id) is not card:
            return
        log.warning("worker %s does not answer; its requests move on", card.name)
        self._drop(card.worker_id)
        self._on_lost(card.worker_id)
        self._fenced[card.worker_id] = asyncio.create_task(self._await_return(card))
        self._on_change()

    async def _await_return(self, card: WorkerCard) -> None:
        """Take a fenced worker in again when it answers."""
        while True:
            await asyncio.sleep(PROBE_INTERVAL_S)
            newest = self._seen.get(card.worker_id)
            if newest is not None and await self._probe(newest):
                self._fenced.pop(card.worker_id, None)
                self._add(newest)
                self._on_change()
                return
