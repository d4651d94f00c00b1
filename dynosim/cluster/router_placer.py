"""The twin's driver of the router: the same `KvRouter` as in the live layer, in virtual time.

Each frontend has a router of its own with its own view of caches and load; requests come to the
frontends in turn. A frontend receives first tokens and ends of its own requests at once; if
frontends synchronise, the others' bookings reach it after a delay.
"""

from array import array
from collections import deque
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

import numpy as np

from dynosim.cluster.block_names import PromptNames
from dynosim.cluster.event_faults import EventFault
from dynosim.cluster.event_plane import AnyPlane, DelayedPlane
from dynosim.cluster.frontends import FrontendRouter
from dynosim.cluster.placement import QUEUED, Released
from dynosim.cluster.pool import Worker
from dynosim.cluster.shared_store import SharedStore
from dynosim.cluster.wishes import RequestWishes, in_pool
from dynosim.engine.instant import instant_end
from dynosim.engine.pace import NEVER
from dynosim.engine.sequence import Sequence as EngineSequence
from dynosim.errors import InvariantError
from dynosim.indexer.answers import members
from dynosim.records import KvEventLog, RoutingStats, Trace, packed
from dynosim.router.decision import Decision
from dynosim.router.eligibility import Constraints, both
from dynosim.router.inputs import End, FirstToken, Join, Leave, Release, Tokens
from dynosim.router.kv_router import AnyRouter
from dynosim.router.refusals import RequestRefusedError
from dynosim.router.request import RoutingRequest
from dynosim.workers.ids import WorkerId


@dataclass(slots=True)
class RoutingLog:
    """What the routers decided, by request index."""

    overlap_blocks: "array[float]"
    queued_ms: "array[float]"
    num_queued: int = 0
    refused: dict[int, int] = field(default_factory=dict)  # HTTP status -> requests


@dataclass(frozen=True, slots=True)
class Booked:
    """Another frontend placed a request."""

    request: RoutingRequest
    worker_id: WorkerId
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class News:
    """Something that a frontend did, on its way to the others."""

    due_ms: float
    frontend: int
    what: Booked | FirstToken | End


class RouterPlacer:
    """Places requests through one or several routers.

    `sync_delay_ms`: how late frontends learn of each other's bookings; None: never.
    `reports_tokens`: requests' tokens are reported to the routers as they come. `shared_store` is
    asked for what it holds of each prompt.
    """

    def __init__(
        self,
        trace: Trace,
        frontends: list[FrontendRouter],
        names: PromptNames,
        plane: AnyPlane,
        *,
        block_size: int,
        sync_delay_ms: float | None = None,
        reports_tokens: bool = False,
        shared_store: SharedStore | None = None,
    ) -> None:
        self._shared_store = shared_store
        self._observed: list[Worker] | None = [] if reports_tokens else None
        self._frontends = frontends
        self._inputs = [frontend.inputs for frontend in frontends]
        self.plane = plane
        plane.serve(frontends)
        self._is_late = plane.is_late
        self._num_requests: dict[WorkerId, int] = {}
        self._slot_of = frontends[0].router.table.slot_of  # the same in all
        zeros = array("d", [0.0]) * len(trace)
        self.log = RoutingLog(zeros, zeros[:])
        self._names = names
        self._block_size = block_size
        self._session_ids = trace.session_ids
        self._expected_tokens: array[int] | None = None  # by request; 0: its client has no guess
        if trace.expected_output_tokens is not None:
            self._expected_tokens = packed(trace.expected_output_tokens)
        self.is_one_of_two = False  # another placer has workers that requests may name
        self._wishes: RequestWishes | None = None
        if trace.wishes is not None:
            cost = frontends[0].router.settings.cost
            self._wishes = RequestWishes(trace.wishes, cost)
        self._sync_delay_ms = sync_delay_ms if len(frontends) > 1 else None
        self._news: deque[News] = deque()
        self._home: dict[int, int] = {}  # requests in flight -> frontend
        self._turn = 0
        self._lost: set[int] = set()  # frontends that take no requests
        self._may_release = False  # a first token or an end was received since the last look
        self.next_ms = NEVER  # when the next news of other frontends arrives
        self.hears_late = self._sync_delay_ms is not None

    def join(self, worker: Worker, now_ms: float) -> None:
        """Tell all routers of a worker; the lowest free slot becomes its own in each of them."""
        for inputs in self._inputs:
            inputs.take(Join(now_ms, worker.card))
        worker_id = worker.worker_id
        slot = self._slot_of(worker_id)
        if slot is None:
            raise InvariantError(f"worker {worker_id} has joined and has no slot")
        self._num_requests[worker_id] = 0
        self.plane.join(worker, slot)
        if self._observed is not None:
            self._observed.append(worker)
        self._may_release = True

    def leave(self, worker: Worker, now_ms: float) -> None:
        """Tell all routers that a worker takes no more, as a live one that drains is no member."""
        worker_id = worker.worker_id
        slot = self._slot_of(worker_id)
        if slot is None:
            raise InvariantError(f"worker {worker_id} leaves and has no slot")
        self.plane.leave(worker, slot, now_ms)
        for inputs in self._inputs:
            inputs.take(Leave(now_ms, worker_id))
        self.plane.busy &= ~(1 << slot)
        if self._observed is not None:
            self._observed.remove(worker)
        self._may_release = True

    def forget(self, indexes: Collection[int]) -> None:
        """No frontend has these requests any more: their worker left all routers."""
        for index in indexes:
            del self._home[index]

    def place(
        self,
        index: int,
        input_tokens: int,
        priority: int,
        now_ms: float,
        constraints: Constraints | None = None,
    ) -> int:
        """The worker that the next frontend's router chooses, or QUEUED.

        Raises: RequestRefusedError.
        """
        if self._is_late:
            self.plane.refresh(now_ms)
        if self._news:
            self._deliver_news(now_ms)
        if self._observed is not None:
            self._report_tokens(now_ms)
        frontend = self._turn
        self._turn = (frontend + 1) % len(self._frontends)
        if self._lost:
            self._skip_lost()
        request = self._request(index, input_tokens, priority)
        if self._shared_store is not None:
            request.shared_ranges = self._shared_store.ranges_of(index)
        if constraints is not None:
            wished = request.constraints
            request.constraints = constraints if wished is None else both(wished, constraints)
        try:
            decision = self._frontends[frontend].submit(request, now_ms)
        except RequestRefusedError as error:
            self._count_refusal(error)
            raise
        self._home[index] = frontend
        if decision is None:
            self.log.num_queued += 1
            self._may_release = False
            return QUEUED
        return self._note(decision, index, now_ms)

    def receive(self, worker: Worker, finished: list[EngineSequence], now_ms: float) -> None:
        """Pass on events, first tokens and ends."""
        if worker.engine.unpublished:
            self.plane.collect(worker, now_ms)
        first_tokens = worker.token_log.first_tokens
        if first_tokens:
            self._may_release = True
            for index in first_tokens:
                home = self._home.get(index)
                if home is None:
                    continue  # given up meanwhile
                self._frontends[home].first_token(index, now_ms)
                if self._sync_delay_ms is not None:
                    due_ms = now_ms + self._sync_delay_ms
                    self._publish(index, due_ms, FirstToken(due_ms, index))
            first_tokens.clear()
        if finished:
            self._may_release = True
            worker_id = worker.worker_id
            self._num_requests[worker_id] -= len(finished)
            if self._num_requests[worker_id] == 0:
                self._note_idle(worker_id)
            for sequence in finished:
                self._free(sequence.index, now_ms)

    def give_up(self, index: int, worker: Worker | None, now_ms: float) -> None:
        """Its frontend frees what its client waits for no more; its place is for others.

        The worker is still busy with it until its step ends.
        """
        self._may_release = True
        if worker is not None:
            self._num_requests[worker.worker_id] -= 1
        self._free(index, now_ms)

    def discount(self, index: int, worker: Worker, now_ms: float) -> None:
        """What has just been placed on a worker is no load there.

        Nobody can go for that who could not before it was placed.
        """
        self._num_requests[worker.worker_id] -= 1
        if self._num_requests[worker.worker_id] == 0:
            self._note_idle(worker.worker_id)
        self._free(index, now_ms)

    def _free(self, index: int, now_ms: float) -> None:
        """Tell the frontend that has a request, and with a delay the others, that it is over."""
        self._frontends[self._home[index]].free(index, now_ms)
        if self._sync_delay_ms is not None:
            due_ms = now_ms + self._sync_delay_ms
            self._publish(index, due_ms, End(due_ms, index))
        del self._home[index]

    def releases(self, now_ms: float) -> Iterator[Released]:
        """Waiting requests that can go now.

        As in a live frontend, only first tokens and ends let them go: not a load that merely
        decays, or it would matter in how many steps the twin looks.
        """
        if self._news:
            self._deliver_news(now_ms)
        if not self._may_release:
            return
        self._may_release = False
        for frontend in self._frontends:
            if not frontend.router.num_queued:
                continue
            self.plane.refresh(now_ms)
            for outcome in frontend.inputs.take(Release(now_ms)):
                index = outcome.request_id
                assert isinstance(index, int)  # as `_request` named it
                if isinstance(outcome, Decision):
                    yield Released(index, self._note(outcome, index, now_ms))
                else:
                    self._count_refusal(outcome.error)
                    del self._home[index]
                    yield Released(index, QUEUED, outcome.error)

    # ---- what is known of its workers ----------------------------------------------------------

    def best_cached_tokens(self, index: int, input_tokens: int, now_ms: float) -> int:
        """The most tokens of a prompt that a worker holds, as the next frontend sees it."""
        router = self._frontends[self._turn].router
        request = self._request(index, input_tokens, 0)
        return router.choice.best_cached_tokens(request, router.table.all_mask, now_ms)

    def least_prefill_tokens(self, now_ms: float) -> float:
        """Prompt tokens in flight at the worker with the fewest, as the next frontend sees it."""
        load = self._frontends[self._turn].router.load
        slots = members(self._frontends[self._turn].router.table.all_mask)
        tokens = load.active_prefill_tokens(now_ms)
        return min([float(tokens[slot]) for slot in slots], default=0.0)

    def least_usage(self) -> float:
        """Share of its blocks in use at the worker with the least, as the next frontend sees it."""
        router = self._frontends[self._turn].router
        blocks = router.load.active_blocks()
        usages = []
        for slot in members(router.table.all_mask):
            total = router.table.card(slot).total_kv_blocks
            usages.append(float(blocks[slot]) / total if total else 0.0)
        return min(usages, default=0.0)

    # ---- frontends that are lost -----------------------------------------------------------------

    def lose_frontend(self, number: int) -> list[int]:
        """A frontend dies; returns its requests, in order. They are still to be given up.

        Its router hears of ends and events all the same, as if its peers had told it since. Raises:
        ValueError if there is no such frontend, or no other that is alive.
        """
        alive = [one for one in range(len(self._frontends)) if one not in self._lost]
        if number not in alive:
            raise ValueError(f"no frontend {number} is there; there are {alive}")
        if len(alive) == 1:
            raise ValueError(f"frontend {number} is the only one: nobody would take requests")
        self._lost.add(number)
        self._skip_lost()
        return sorted([index for index, home in self._home.items() if home == number])

    def restore_frontend(self, number: int) -> None:
        """A frontend takes requests again. Raises: ValueError if it was not lost."""
        if number not in self._lost:
            raise ValueError(f"frontend {number} is not lost")
        self._lost.remove(number)

    # ---- KV events that are lost or late ---------------------------------------------------------

    @property
    def events_may_worsen(self) -> bool:
        """Whether KV events travel here, with numbers by which losses are noticed."""
        return isinstance(self.plane, DelayedPlane) and self.plane.is_numbered

    def begin_event_fault(self, fault: EventFault, now_ms: float) -> int:
        """See `DelayedPlane.begin_fault`."""
        assert isinstance(self.plane, DelayedPlane)
        return self.plane.begin_fault(fault, now_ms)

    def end_event_fault(self, number: int, now_ms: float) -> None:
        """See `DelayedPlane.end_fault`."""
        assert isinstance(self.plane, DelayedPlane)
        self.plane.end_fault(number, now_ms)

    def _skip_lost(self) -> None:
        while self._turn in self._lost:
            self._turn = (self._turn + 1) % len(self._frontends)

    def stats(self) -> RoutingStats:
        """What was decided, and what the first frontend's index holds."""
        self.plane.finish()
        log = self.log
        index = self._frontends[0].router.index
        return RoutingStats(
            overlap_blocks=np.array(log.overlap_blocks),
            queued_ms=np.array(log.queued_ms),
            num_queued=log.num_queued,
            refused=log.refused,
            index_blocks=index.size,
            counters=index.counters.by_name() | self.plane.counters(),
        )

    def kv_events(self) -> KvEventLog | None:
        """The KV events of the run, if they were recorded."""
        return self.plane.recorded()

    def _report_tokens(self, now_ms: float) -> None:
        """Tell each router how far its decoding requests are."""
        assert self._observed is not None
        for worker in self._observed:
            for index, num_tokens in worker.engine.progress(now_ms):
                if index in self._home:  # not given up meanwhile
                    self._inputs[self._home[index]].take(Tokens(now_ms, index, num_tokens))

    def _request(self, index: int, input_tokens: int, priority: int) -> RoutingRequest:
        blocks, keys = self._names.of(index)
        num_blocks = input_tokens // self._block_size
        jump = -priority if priority < 0 else 0
        session_id = None if self._session_ids is None else self._session_ids[index] or None
        expected = None
        if self._expected_tokens is not None:
            expected = self._expected_tokens[index] or None
        if self._wishes is None:
            return RoutingRequest(
                index,
                input_tokens,
                num_blocks,
                blocks,
                keys,
                jump,
                expected_output_tokens=expected,
                session_id=session_id,
            )
        constraints, overrides = self._wishes.of(index)
        if constraints is not None and self.is_one_of_two:
            constraints = in_pool(constraints, self._frontends[0].router.table)
        return RoutingRequest(
            index,
            input_tokens,
            num_blocks,
            blocks,
            keys,
            jump,
            expected_output_tokens=expected,
            session_id=session_id,
            constraints=constraints,
            overrides=overrides,
        )

    def _note(self, decision: Decision, index: int, now_ms: float) -> int:
        self.log.overlap_blocks[index] = decision.overlap_blocks
        if decision.queued_ms:
            self.log.queued_ms[index] = decision.queued_ms
        worker_id = decision.worker_id
        if self._num_requests[worker_id] == 0:
            self.plane.busy |= 1 << decision.slot
        self._num_requests[worker_id] += 1
        if self._sync_delay_ms is not None:
            self._publish_booking(decision, index, now_ms + self._sync_delay_ms)
        return worker_id

    def _note_idle(self, worker_id: WorkerId) -> None:
        slot = self._slot_of(worker_id)
        if slot is not None:
            self.plane.busy &= ~(1 << slot)

    def _count_refusal(self, error: RequestRefusedError) -> None:
        refused = self.log.refused
        refused[error.http_status] = refused.get(error.http_status, 0) + 1

    # ---- several frontends ---------------------------------------------------------------------

    def _publish_booking(self, decision: Decision, index: int, due_ms: float) -> None:
        router = self._frontends[self._home[index]].router
        input_tokens = router.load.bookings[index].input_tokens
        blocks, keys = self._names.of(index)
        num_blocks = input_tokens // self._block_size
        overrides = None if self._wishes is None else self._wishes.of(index)[1]
        request = RoutingRequest(index, input_tokens, num_blocks, blocks, keys, overrides=overrides)
        booked = Booked(request, decision.worker_id, decision.cached_tokens)
        self._publish(index, due_ms, booked)

    def _publish(self, index: int, due_ms: float, what: Booked | FirstToken | End) -> None:
        """Send news of a request to the frontends that did not place it."""
        self._news.append(News(due_ms, self._home[index], what))
        self.next_ms = self._news[0].due_ms
        if self._sync_delay_ms == 0:
            self._deliver_news(due_ms)

    def _deliver_news(self, now_ms: float) -> None:
        until_ms = instant_end(now_ms)
        while self._news and self._news[0].due_ms <= until_ms:
            news = self._news.popleft()
            self._may_release = True
            for number, frontend in enumerate(self._frontends):
                if number != news.frontend:
                    _take_news(frontend.router, news)
        self.next_ms = self._news[0].due_ms if self._news else NEVER


def _take_news(router: AnyRouter, news: News) -> None:
    """Count what another frontend did; what it placed on a worker that has left is lost."""
    load = router.load
    match news.what:
        case Booked(request, worker_id, cached_tokens):
            slot = router.table.slot_of(worker_id)
            if slot is not None:
                load.book(request, slot, cached_tokens, news.due_ms)
        case FirstToken(due_ms, request_id):
            load.first_token(request_id, due_ms)
        case End(due_ms, request_id):
            load.free(request_id, due_ms)
