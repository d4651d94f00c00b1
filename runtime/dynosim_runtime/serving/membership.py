"""The workers that a frontend uses: taken in when discovery shows them, fenced when they fail.

A worker gets nothing new when its card is gone (its lease has run out, or it said goodbye), and at
once when its server does not answer a probe, which is made whenever a stream from it breaks. Its
streams in flight go on as long as it answers probes, so that a machine that is merely slow to renew
its lease loses none. A fenced worker comes back when it answers again or shows a new card.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from functools import partial

from dynosim.errors import ConfigError
from dynosim.indexer.base import BlockEvent
from dynosim.workers.lifecycle import Phase, WorkerEvent
from dynosim_runtime.card import LiveCard
from dynosim_runtime.hosts import without_credentials
from dynosim_runtime.kv_events.subscriber import EventSubscriber, Subscriptions
from dynosim_runtime.serving.agreement import serves_whole_requests
from dynosim_runtime.serving.in_flight import InFlight
from dynosim_runtime.serving.member import Member, Stay, life_of, shown_event
from dynosim_runtime.serving.router import RouterService

PROBE_INTERVAL_S = 1.0
DRAINING = "the server is draining: its workers finish what they have and take nothing new"
MAX_UNANSWERED = 2  # probes in a row, until a departed worker's streams move on

log = logging.getLogger(__name__)
Probe = Callable[[LiveCard], Awaitable[bool]]


class Membership:
    """The workers in use, kept in step with the router and the event subscriptions.

    `in_flight` tells how many streams a worker has, and moves them on when they cannot go on there.
    `on_change(self)` is called after every change. `model` is the name that cards must carry;
    `check` raises ConfigError for a worker that cannot be used for other reasons.
    """

    def __init__(
        self,
        router: RouterService,
        subscriptions: Subscriptions,
        probe: Probe,
        in_flight: InFlight,
        *,
        model: str,
        block_size: int,
        follows_events: bool,
        check: Callable[[LiveCard], None] = serves_whole_requests,
        on_change: Callable[["Membership"], None] = lambda members: None,
    ) -> None:
        self._router = router
        self._subscriptions = subscriptions
        self._probe = probe
        self._in_flight = in_flight
        self._model = model
        self._block_size = block_size
        self._follows_events = follows_events
        self._check_card = check
        self._on_change = on_change
        self._members: dict[int, Member] = {}  # shown and not failed: ready, or draining
        self._seen: Mapping[int, LiveCard] = {}
        self._fenced: dict[int, asyncio.Task[None]] = {}
        self._checks: dict[int, asyncio.Task[None]] = {}
        self._refused: set[tuple[int, int | None, str]] = set()
        self._num_joins = 0  # of all workers
        self._has_drained = False  # the last worker that left had said so
        self._parting: set[asyncio.Task[None]] = set()

    @property
    def cards(self) -> dict[int, LiveCard]:
        """Of the workers in use, and those that drain."""
        return {worker_id: member.card for worker_id, member in self._members.items()}

    @property
    def num_ready(self) -> int:
        """Workers that take new requests."""
        return sum(member.phase is Phase.READY for member in self._members.values())

    @property
    def num_fenced(self) -> int:
        """Workers that discovery shows but that do not answer."""
        return len(self._fenced)

    @property
    def absence(self) -> str | None:
        """Why no worker takes new requests; None if one does."""
        if self.num_ready:
            return None
        if self._members or self._has_drained:
            return DRAINING
        if self._fenced:
            return "no worker answers at the moment"
        return "all workers have left" if self._num_joins else "no worker has joined yet"

    def card_of(self, worker_id: int) -> LiveCard | None:
        """The card of a worker in use."""
        member = self._members.get(worker_id)
        return None if member is None else member.card

    def stay_of(self, worker_id: int) -> Stay:
        """The present stay of a worker."""
        member = self._members.get(worker_id)
        return (worker_id, 0) if member is None else member.stay

    def is_ready(self, worker_id: int) -> bool:
        """Whether it takes new requests."""
        member = self._members.get(worker_id)
        return member is not None and member.phase is Phase.READY

    def knows(self, worker_id: int) -> bool:
        """Whether it is here, or may be back at once."""
        return worker_id in self._members or worker_id in self._fenced or worker_id in self._seen

    def update(self, cards: Mapping[int, LiveCard]) -> None:
        """All live cards, as discovery shows them now."""
        self._seen = cards
        self._refused &= {life_of(card) for card in cards.values()}
        for worker_id in [known for known in (*self._members, *self._fenced) if known not in cards]:
            self._part(worker_id)
        for card in cards.values():
            self._take(card)
        self._on_change(self)

    def suspect(self, worker_id: int) -> None:
        """A stream from this worker broke: see whether it still lives."""
        member = self._members.get(worker_id)
        if member is not None and worker_id not in self._checks:
            check = asyncio.create_task(self._check(member))
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

    # ---- what cards say ------------------------------------------------------------------------

    def _take(self, card: LiveCard) -> None:
        """A card that discovery shows: new, changed, or known already."""
        member = self._members.get(card.worker_id)
        if life_of(card) in self._refused or (member is not None and member.card == card):
            return
        if member is not None and life_of(member.card) != life_of(card):
            self._fail(member)
            member = None
        if member is not None:
            event = shown_event(card)
            if event is WorkerEvent.BECAME_READY and member.phase is not Phase.READY:
                return  # what drains does not come back in this life
            member.card = card
            if event is WorkerEvent.TOLD_TO_DRAIN:
                self._happens(member, event)
        elif card.worker_id not in self._fenced:  # else its probe takes it in, with the newest card
            self._add(card)

    def _add(self, card: LiveCard) -> None:
        member = Member(card, self._num_joins + 1)
        if not (member.happens(shown_event(card)) and member.phase is Phase.READY):
            return  # came when it was leaving already
        try:
            if card.model != self._model:
                raise ConfigError(
                    f"worker {card.name} serves {card.model!r}, this frontend {self._model!r}"
                )
            self._check_card(card)
            self._router.join(card.routing_card())
        except Exception as error:  # one card must not keep those behind it away
            self._refused.add(life_of(card))
            trace = None if isinstance(error, ConfigError) else error
            log.error("worker %s is not used: %s", card.name, error, exc_info=trace)
            return
        self._members[card.worker_id] = member
        self._has_drained = False
        self._num_joins += 1
        url = without_credentials(card.url)
        log.info("worker %s joined (%s, %s)", card.name, card.engine, url)
        if self._follows_events:
            self._follow_events(card)

    def _follow_events(self, card: LiveCard) -> None:
        for rank, source in enumerate(card.events):
            deliver = partial(self._deliver, card.worker_id, rank)
            subscriber = EventSubscriber(source, self._block_size, deliver)
            self._subscriptions.start(card.worker_id, rank, subscriber)

    def _deliver(self, worker_id: int, dp_rank: int, events: list[BlockEvent]) -> None:
        self._router.apply_events(worker_id, dp_rank, events)

    # ---- how workers go ------------------------------------------------------------------------

    def _happens(self, member: Member, event: WorkerEvent) -> None:
        """What happens to a worker in use, and what follows for the router and its streams."""
        was_ready, worker_id = member.phase is Phase.READY, member.card.worker_id
        if not member.happens(event):
            return
        if was_ready:
            self._subscriptions.stop(worker_id)
            self._router.leave(worker_id)  # its streams go on, new ones go elsewhere
        if member.phase is Phase.FAILED:
            self._in_flight.lose_worker(worker_id)

    def _leave(self, member: Member) -> None:
        """It is in use no more."""
        del self._members[member.card.worker_id]
        self._has_drained = member.card.is_draining
        log.info("worker %s left", member.card.name)

    def _fail(self, member: Member) -> None:
        """It is gone at once: its streams move on."""
        self._leave(member)
        self._happens(member, WorkerEvent.DIED)

    def _part(self, worker_id: int) -> None:
        """A worker's card is gone: nothing new for it, and what it has while it answers."""
        fence = self._fenced.pop(worker_id, None)
        if fence is not None:
            fence.cancel()
        member = self._members.get(worker_id)
        if member is None:
            return
        self._leave(member)
        self._happens(member, WorkerEvent.TOLD_TO_DRAIN)
        if not self._in_flight.num_on(worker_id):
            self._happens(member, WorkerEvent.DRAINED)
            return
        watching = asyncio.create_task(self._watch_parting(member))
        self._parting.add(watching)
        watching.add_done_callback(self._parting.discard)

    async def _watch_parting(self, member: Member) -> None:
        """See its streams to their end, unless it comes back."""
        unanswered, worker_id = 0, member.card.worker_id
        while self._in_flight.num_on(worker_id) and worker_id not in self._members:
            unanswered = 0 if await self._probe(member.card) else unanswered + 1
            if unanswered == MAX_UNANSWERED:
                self._happens(member, WorkerEvent.DIED)
                return
            await asyncio.sleep(PROBE_INTERVAL_S)
        self._happens(member, WorkerEvent.DRAINED)

    async def _check(self, member: Member) -> None:
        """Fence a worker that does not answer."""
        card = member.card
        if await self._probe(card) or self.card_of(card.worker_id) is not card:
            return
        log.warning("worker %s does not answer; its requests move on", card.name)
        self._fail(member)
        self._fenced[card.worker_id] = asyncio.create_task(self._await_return(card))
        self._on_change(self)

    async def _await_return(self, card: LiveCard) -> None:
        """Take a fenced worker in again when it answers."""
        while True:
            await asyncio.sleep(PROBE_INTERVAL_S)
            newest = self._seen.get(card.worker_id)
            if newest is not None and await self._probe(newest):
                self._fenced.pop(card.worker_id, None)
                self._add(newest)
                self._on_change(self)
                return
