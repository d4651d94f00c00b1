"""The twin's driver of the router: the same `KvRouter` as in the live layer, in virtual time.

Each frontend has a router of its own with its own view of caches and load; requests come to the
frontends in turn. A frontend hears of first tokens and ends of its own requests at once; if
frontends synchronise, the others' bookings reach it after a delay.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dynosim.cluster.block_names import PromptNames
from dynosim.cluster.event_plane import EventPlane
from dynosim.cluster.placement import QUEUED, Release
from dynosim.cluster.worker import Worker
from dynosim.engine.instant import instant_end
from dynosim.engine.pace import NEVER
from dynosim.engine.sequence import Sequence
from dynosim.records import KvEventLog, RoutingStats, Trace
from dynosim.router.kv_router import Decision, KvRouter
from dynosim.router.refusals import RequestRefusedError
from dynosim.router.request import RoutingRequest

new_tuple = tuple.__new__


@dataclass(slots=True)
class RoutingLog:
    """What the routers decided, by request index."""

    overlap_blocks: list[float]
    queued_ms: list[float]
    num_queued: int = 0
    refused: dict[int, int] = field(default_factory=dict)  # HTTP status -> requests


class RouterPlacer:
    """Places requests through one or several routers.

    `sync_delay_ms`: how late frontends learn of each other's bookings; None: never. `observed`:
    workers whose requests' tokens are reported to the routers as they come.
    """

    def __init__(
        self,
        trace: Trace,
        routers: list[KvRouter],
        names: PromptNames,
        plane: EventPlane,
        *,
        block_size: int,
        sync_delay_ms: float | None = None,
        observed: list[Worker] | None = None,
    ) -> None:
        self._observed = observed
        self.routers = routers
        self.plane = plane
        self._collect = plane.collect
        self._is_late = plane.is_late
        self.num_requests = [0] * len(routers[0].table.cards)
        self.log = RoutingLog([0.0] * len(trace), [0.0] * len(trace))
        self._names = names
        self._block_size = block_size
        self._session_ids = trace.session_ids
        self._sync_delay_ms = sync_delay_ms if len(routers) > 1 else None
        self._news: deque[tuple[float, int, Callable[[KvRouter], object]]] = deque()
        self._home: dict[int, int] = {}  # requests in hand -> frontend
        self._turn = 0
        self._may_release = False  # a first token or an end was heard of since the last look
        self.next_ms = NEVER  # when the next news of other frontends arrives

    def place(self, index: int, input_tokens: int, priority: int, now_ms: float) -> int:
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
        self._turn = (frontend + 1) % len(self.routers)
        request = self._request(index, input_tokens, priority)
        try:
            decision = self.routers[frontend].submit(request, now_ms)
        except RequestRefusedError as error:
            self._count_refusal(error)
            raise
        self._home[index] = frontend
        if decision is None:
            self.log.num_queued += 1
            self._may_release = False
            return QUEUED
        return self._note(decision, index, frontend, now_ms)

    def hear(self, worker: Worker, finished: list[Sequence], now_ms: float) -> None:
        """Pass on events, first tokens and ends."""
        self._collect(worker, now_ms)
        first_tokens = worker.token_log.first_tokens
        if first_tokens:
            self._may_release = True
            for index in first_tokens:
                self.routers[self._home[index]].first_token(index, now_ms)
                if self._sync_delay_ms is not None:
                    self._tell_first_token(index, now_ms)
            first_tokens.clear()
        if finished:
            self._may_release = True
            worker_id = worker.worker_id
            self.num_requests[worker_id] -= len(finished)
            if self.num_requests[worker_id] == 0:
                self.plane.busy ^= 1 << worker_id
            for sequence in finished:
                index = sequence.index
                self.routers[self._home[index]].free(index, now_ms)
                if self._sync_delay_ms is not None:
                    self._tell_end(index, now_ms)
                del self._home[index]

    def releases(self, now_ms: float) -> Iterator[Release]:
        """Waiting requests that can go now.

        As in a live frontend, only first tokens and ends let them go: not a load that merely
        decays, or it would matter in how many steps the twin looks.
        """
        if self._news:
            self._deliver_news(now_ms)
        if not self._may_release:
            return
        self._may_release = False
        for frontend, router in enumerate(self.routers):
            if not router.num_queued:
                continue
            self.plane.refresh(now_ms)
            for outcome in router.release(now_ms):
                index = int(outcome.request_id)  # type: ignore[call-overload]
                if isinstance(outcome, Decision):
                    yield Release(index, self._note(outcome, index, frontend, now_ms))
                else:
                    self._count_refusal(outcome.error)
                    del self._home[index]
                    yield Release(index, QUEUED, outcome.error)

    def stats(self) -> RoutingStats:
        """What was decided, and what the first frontend's index holds."""
        self.plane.finish()
        log = self.log
        index: Any = self.routers[0].index
        counters = {name: getattr(index.counters, name) for name in index.counters.__slots__}
        return RoutingStats(
            overlap_blocks=np.array(log.overlap_blocks),
            queued_ms=np.array(log.queued_ms),
            num_queued=log.num_queued,
            refused=log.refused,
            index_blocks=index.size,
            counters=counters | self.plane.counters(),
        )

    def kv_events(self) -> KvEventLog | None:
        """The KV events of the run, if they were recorded."""
        return self.plane.recorded()

    def _report_tokens(self, now_ms: float) -> None:
        """Tell each router how far its decoding requests are."""
        assert self._observed is not None
        for worker in self._observed:
            for index, num_tokens in worker.engine.progress(now_ms):
                self.routers[self._home[index]].output_tokens(index, num_tokens, now_ms)

    def _request(self, index: int, input_tokens: int, priority: int) -> RoutingRequest:
        blocks, keys = self._names.of(index)
        num_blocks = input_tokens // self._block_size
        jump = -priority if priority < 0 else 0
        session_id = None if self._session_ids is None else self._session_ids[index] or None
        # As `RoutingRequest(...)`, without a call of Python code.
        return new_tuple(
            RoutingRequest,
            (index, input_tokens, num_blocks, blocks, keys, jump, 0, None, session_id, None, None,
             None),
        )  # fmt: skip

    def _note(self, decision: Decision, index: int, frontend: int, now_ms: float) -> int:
        _, worker_id, _, _, _, overlap_blocks, _, queued_ms = decision
        self.log.overlap_blocks[index] = overlap_blocks
        if queued_ms:
            self.log.queued_ms[index] = queued_ms
        self.num_requests[worker_id] += 1
        self.plane.busy |= 1 << worker_id
        if self._sync_delay_ms is not None:
            self._tell_booking(decision, index, now_ms)
        return worker_id

    def _count_refusal(self, error: RequestRefusedError) -> None:
        refused = self.log.refused
        refused[error.http_status] = refused.get(error.http_status, 0) + 1

    # ---- several frontends ---------------------------------------------------------------------

    def _tell_booking(self, decision: Decision, index: int, now_ms: float) -> None:
        booking = self.routers[self._home[index]].load.bookings[index]
        blocks, keys = self._names.of(index)
        request = RoutingRequest(
            index, booking.input_tokens, booking.input_tokens // self._block_size, blocks, keys
        )
        slot, cached_tokens, delay_ms = decision.slot, decision.cached_tokens, self._sync_delay_ms
        assert delay_ms is not None
        due_ms = now_ms + delay_ms

        def book(router: KvRouter) -> None:
            router.load.book(request, slot, cached_tokens, due_ms)

        self._tell(index, due_ms, book)

    def _tell_first_token(self, index: int, now_ms: float) -> None:
        assert self._sync_delay_ms is not None
        due_ms = now_ms + self._sync_delay_ms
        self._tell(index, due_ms, lambda router: router.load.first_token(index, due_ms))

    def _tell_end(self, index: int, now_ms: float) -> None:
        assert self._sync_delay_ms is not None
        due_ms = now_ms + self._sync_delay_ms
        self._tell(index, due_ms, lambda router: router.load.free(index, due_ms))

    def _tell(self, index: int, due_ms: float, news: Callable[[KvRouter], object]) -> None:
        """Send news of a request to the frontends that did not place it."""
        self._news.append((due_ms, self._home[index], news))
        self.next_ms = self._news[0][0]
        if self._sync_delay_ms == 0:
            self._deliver_news(due_ms)

    def _deliver_news(self, now_ms: float) -> None:
        until_ms = instant_end(now_ms)
        while self._news and self._news[0][0] <= until_ms:
            _, source, news = self._news.popleft()
            self._may_release = True
            for frontend, router in enumerate(self.routers):
                if frontend != source:
                    news(router)
        self.next_ms = self._news[0][0] if self._news else NEVER
