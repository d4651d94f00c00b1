"""The router, driven in real time: one task's worth of asyncio around `KvRouter`.

Every input is handed to the router synchronously, with the time of the frontend's clock; requests
that the router lets wait are futures here. Nothing in this file decides anything.

A placement policy is somebody's own code and may fail. That fails the requests it was to place;
those that have been placed go on.
"""

import asyncio
import logging
from collections.abc import Callable, Hashable, Sequence

from dynosim.indexer.base import BlockEvent
from dynosim.router.decision import Decision, Refusal
from dynosim.router.inputs import (
    Arrive,
    AskBest,
    AskLoads,
    DropStale,
    End,
    FirstToken,
    Join,
    Leave,
    Outcome,
    Release,
    Tokens,
    Unbind,
    WorkerEvents,
)
from dynosim.router.kv_router import KvRouter
from dynosim.router.log.recorder import RouterLog
from dynosim.router.request import RoutingRequest
from dynosim.router.workers import WorkerCard
from dynosim.workers.ids import DpRank, WorkerId

log = logging.getLogger(__name__)
Clock = Callable[[], float]
"""Milliseconds since the frontend's start; never goes back."""


class RouterService:
    """Places requests, and tells the router what becomes of them: itself, or through its log.

    `maintain` is called between two inputs, and at every tick (see `dynosim.routerlog.rotating`).
    """

    def __init__(
        self,
        inputs: KvRouter[BlockEvent] | RouterLog[BlockEvent],
        now_ms: Clock,
        *,
        maintain: Callable[[], None] = lambda: None,
    ) -> None:
        self.router = inputs.router if isinstance(inputs, RouterLog) else inputs
        self._inputs = inputs
        self._now_ms = now_ms
        self._maintain = maintain
        self._waiting: dict[Hashable, asyncio.Future[Decision]] = {}

    @property
    def num_queued(self) -> int:
        """Requests that wait in the router."""
        return len(self._waiting)

    # ---- workers -------------------------------------------------------------------------------

    def join(self, card: WorkerCard) -> None:
        """A worker came. Raises: ConfigError if it does not fit this router."""
        self._inputs.take(Join(self._now_ms(), card))
        self._release()

    def leave(self, worker_id: int) -> list[Hashable]:
        """A worker went; returns the requests it had in flight."""
        lost = self._inputs.take(Leave(self._now_ms(), WorkerId(worker_id)))
        self._release()
        return lost

    def apply_events(self, worker_id: int, dp_rank: int, events: Sequence[BlockEvent]) -> None:
        """Blocks were stored or evicted; news of workers that have left are dropped."""
        who = WorkerId(worker_id), DpRank(dp_rank)
        if self.router.table.slot_of(*who) is not None:
            self._inputs.take(WorkerEvents(self._now_ms(), *who, events))

    # ---- requests ------------------------------------------------------------------------------

    async def place(self, request: RoutingRequest) -> Decision:
        """Where a request goes; waits for its turn if the router says so.

        Raises: RequestRefusedError.
        """
        self._maintain()
        outcome = self._inputs.take(Arrive(self._now_ms(), request))
        if isinstance(outcome, Refusal):
            raise outcome.error
        if outcome is not None:
            return outcome
        turn: asyncio.Future[Decision] = asyncio.get_running_loop().create_future()
        self._waiting[request.request_id] = turn
        try:
            return await turn
        except asyncio.CancelledError:
            self.end(request.request_id)
            raise
        finally:
            self._waiting.pop(request.request_id, None)

    def ask(self, given: AskBest | AskLoads) -> Outcome:
        """The answer to a question, or a refusal."""
        self._maintain()
        return self._inputs.take(given)

    def first_token(self, request_id: Hashable) -> None:
        """A request's prefill is done."""
        try:
            self._inputs.take(FirstToken(self._now_ms(), request_id))
        except Exception:
            log.exception("the router failed at a first token")
        self._release()

    def output_tokens(self, request_id: Hashable, num_tokens: int) -> None:
        """A request has so many tokens by now."""
        self._inputs.take(Tokens(self._now_ms(), request_id, num_tokens))

    def end(self, request_id: Hashable) -> None:
        """A request ended, however it ended."""
        self._free(request_id)
        self._release()

    def unbind_session(self, session_id: str) -> None:
        """A session's worker failed it."""
        self._inputs.take(Unbind(self._now_ms(), session_id))

    def tick(self) -> None:
        """Drop what has been forgotten, let go what can go; call now and then."""
        now_ms = self._now_ms()
        if self.router.load.stale(now_ms):
            self._inputs.take(DropStale(now_ms))
        self._release()
        self._maintain()

    def _release(self) -> None:
        """Wake the waiting requests whose turn has come."""
        if not self._waiting:
            return
        try:
            outcomes = self._inputs.take(Release(self._now_ms()))
        except Exception as error:
            log.exception("the router failed; %d waiting requests fail", len(self._waiting))
            self._fail_waiting(error)
            return
        for outcome in outcomes:
            turn = self._waiting.pop(outcome.request_id, None)
            if turn is None or turn.done():  # cancelled meanwhile
                self._free(outcome.request_id)
            elif isinstance(outcome, Refusal):
                turn.set_exception(outcome.error)
            else:
                turn.set_result(outcome)

    def _free(self, request_id: Hashable) -> None:
        try:
            self._inputs.take(End(self._now_ms(), request_id))
        except Exception:
            log.exception("the router failed at the end of a request")

    def _fail_waiting(self, error: Exception) -> None:
        """Which of the waiting requests the router had placed before it failed is not known."""
        for turn in self._waiting.values():
            if not turn.done():
                turn.set_exception(error)
        self._waiting.clear()
