"""One request on its way through the cluster: placed, streamed, moved on when its worker is lost.

Tokens that have been delivered are part of the prompt wherever the request goes on, so that the
client's stream continues without a lost or repeated token.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import aclosing
from typing import TypeVar, cast

import msgspec

from dynosim.config.live import LiveConfig
from dynosim.router.decision import Decision
from dynosim.router.eligibility import Constraints
from dynosim.router.refusals import NoEligibleWorkerError, RequestRefusedError
from dynosim_runtime.clients.base import (
    FINDING_STOPS,
    EngineDelta,
    EngineLostError,
    EngineRefusedError,
    EngineRequest,
)
from dynosim_runtime.errors import ApiError
from dynosim_runtime.requests import FinishReason, GenerateRequest, RequestRecord, TokenDelta
from dynosim_runtime.serving.member import Stay
from dynosim_runtime.serving.metrics import FrontendMetrics
from dynosim_runtime.serving.placement import LivePlacement, PlacedAt

T = TypeVar("T")

RETRY_PLACEMENT_S = 0.25
MAX_WAIT_FOR_WORKER_S = 30.0  # a request whose worker was lost waits so long for another one
LET_END_S = 0.2  # for an engine that has found a stop string to tell what it knows
PASSED_ON = (400, 404, 413, 422)  # an engine's answers that are the client's business


class LiveStream:
    """See `dynosim_runtime.requests.TokenStream`; `on_end` gets its record, once."""

    def __init__(
        self,
        request: GenerateRequest,
        record: RequestRecord,
        placement: LivePlacement,
        live: LiveConfig,
        metrics: FrontendMetrics,
        now_ms: Callable[[], float],
        *,
        on_end: Callable[[RequestRecord], None],
    ) -> None:
        self.request = request
        self.record = record
        self.placed_as = request.request_id  # the router's name for it
        self._placement = placement
        self._live = live
        self._metrics = metrics
        self._now_ms = now_ms
        self._on_end = on_end
        self._tokens: list[int] = []  # delivered so far
        self._num_placed_with = 0  # of them, those that were there when it was placed
        self._failed: set[Stay] = set()  # where it was lost
        self._at: PlacedAt | None = None
        self._is_prefilled = False  # on the worker it is on now
        self._reason: FinishReason | None = None
        self._reader: asyncio.Task[object] | None = None  # waits inside right now
        self._interruption: Exception | None = None
        self._may_end = False  # nobody waits for more tokens
        self._is_over = False
        self._iterator: AsyncGenerator[TokenDelta, None] | None = None
        loop = asyncio.get_running_loop()
        self._deadline = loop.call_later(live.request_timeout_s, self._expire)
        self._first_deadline = loop.call_later(live.first_token_timeout_s, self._expire)

    @property
    def is_prefilling(self) -> bool:
        """Whether a prefill worker has it, and no other yet."""
        return False

    # ---- the consumer's side -------------------------------------------------------------------

    def __aiter__(self) -> AsyncIterator[TokenDelta]:
        self._iterator = self._deltas()
        return self._iterator

    async def aclose(self) -> None:
        """See `TokenStream`."""
        if self._reader is not None:
            self.interrupt(ApiError(499, "cancelled by the client", code="cancelled"))
            return  # the reader cleans up
        if self._iterator is not None:
            await self._iterator.aclose()
        self._finish("cancelled", None)

    def let_end(self) -> None:
        """See `TokenStream`."""
        if self._is_over or self._may_end:
            return
        self._may_end = True
        self.record.status = "completed"
        card = None if self._at is None else self._at.card
        if card is not None and card.engine in FINDING_STOPS and self.record.cached_tokens is None:
            self._deadline.cancel()
            loop = asyncio.get_running_loop()
            self._deadline = loop.call_later(LET_END_S, self.interrupt, _no_more())
        else:
            self.interrupt(_no_more())

    def interrupt(self, reason: Exception) -> None:
        """Break what it waits for now, or will wait for next; `reason` is raised there."""
        if self._is_over or self._interruption is not None:
            return
        self._interruption = reason
        if self._reader is not None:
            self._reader.cancel()

    def worker_lost(self) -> None:
        """The worker that serves it is gone."""
        self.interrupt(EngineLostError("the worker is gone"))

    # ---- placement -----------------------------------------------------------------------------

    async def place(self) -> None:
        """Find a worker, waiting in the router's queue if need be. Raises: ApiError."""
        try:
            await self._place(None)
        except ApiError as error:
            self._finish("rejected" if error.code == "refused" else "failed", error)
            raise
        except BaseException:
            self._finish("cancelled", None)
            raise

    async def _place(self, allowed: frozenset[int] | None) -> None:
        """Raises: ApiError; NoEligibleWorkerError only where `allowed` is given."""
        at = await self._find(self._placement, self.request, allowed)
        self.record.dispatch_ms = self._now_ms()
        if self.record.prefill_wait_time_ms is None:
            self._note_first_placement(at.decision)
        self._serve_at(at)

    async def _place_again(self) -> None:
        """Find a worker where it has not failed yet. Raises: ApiError, NoEligibleWorkerError."""
        await self._place(self._placement.untried(self._failed))

    async def _find(
        self,
        placement: LivePlacement,
        request: GenerateRequest,
        allowed: frozenset[int] | None,
        near: Constraints | None = None,
    ) -> PlacedAt:
        """Ask a router. Raises: as `_place`."""
        try:
            return await self._wait(
                placement.place(request, self.placed_as, self.all_tokens, allowed, near)
            )
        except NoEligibleWorkerError as error:
            if allowed is not None:
                raise
            raise placement.no_worker(request) or _refusal(error) from None
        except RequestRefusedError as error:
            raise _refusal(error) from None

    @property
    def all_tokens(self) -> list[int]:
        """The prompt, and what has been delivered."""
        return [*self.request.token_ids, *self._tokens]

    def _serve_at(self, at: PlacedAt) -> None:
        """This worker is to produce the tokens."""
        record = self.record
        self._at = at
        self._is_prefilled = False
        self._num_placed_with = len(self._tokens)
        record.decode_worker_id = at.decision.worker_id
        record.decode_dp_rank = at.decision.dp_rank
        self._placement.attach(at, self.request.request_id, self)

    def _note_first_placement(self, decision: Decision) -> None:
        record = self.record
        record.prefill_worker_id = decision.worker_id
        record.prefill_dp_rank = decision.dp_rank
        assert record.dispatch_ms is not None
        record.prefill_wait_time_ms = record.dispatch_ms - record.arrival_ms
        record.kv_hit_rate = decision.cached_tokens / record.input_tokens
        self._metrics.note_placed(decision.cached_tokens, record.prefill_wait_time_ms)

    async def _move_on(self, error: EngineLostError) -> None:
        """Go on at another worker. Raises: ApiError if that cannot be."""
        record, limit = self.record, self._live.migration_limit
        is_own_fault = self._note_loss(error)
        if self.request.worker_id is not None and is_own_fault:
            raise ApiError(502, f"the worker asked for failed: {error}", kind="server_error")
        if self.request.sampling.structured is not None and self._tokens:
            # another engine would begin the form anew
            raise ApiError(
                502,
                f"{error}; an answer of a given form cannot go on elsewhere",
                kind="server_error",
            )
        if record.migrations >= limit:
            raise ApiError(
                502,
                f"{error} (moved {record.migrations} times, live.migration_limit is {limit})",
                kind="server_error",
            )
        record.migrations += 1
        self._metrics.migrations.inc()
        self.placed_as = f"{self.request.request_id}/{record.migrations}"
        for _ in range(int(MAX_WAIT_FOR_WORKER_S / RETRY_PLACEMENT_S)):
            try:
                return await self._place_again()
            except NoEligibleWorkerError:
                await self._wait(asyncio.sleep(RETRY_PLACEMENT_S))
        raise ApiError(503, f"{error}; no other worker came", kind="server_error", retry_after_s=5)

    def _note_loss(self, error: EngineLostError) -> bool:
        """Leave what was lost; returns whether the worker that produced tokens is to blame."""
        self._leave_worker(is_worker_to_blame=True)
        return True

    def _leave_worker(self, *, is_worker_to_blame: bool) -> None:
        """The router's and the worker's part of a stream that broke or is over."""
        at, request = self._at, self.request
        self._placement.detach(at, request.request_id, self.placed_as)
        if is_worker_to_blame and at is not None and at.card is not None:
            self._failed.add(at.stay)
            self._placement.blame(at.card.worker_id, request.session_id)

    # ---- streaming -----------------------------------------------------------------------------

    async def _deltas(self) -> AsyncGenerator[TokenDelta, None]:
        try:
            while True:
                try:
                    async with aclosing(self._attempt()) as deltas:
                        async for delta in deltas:
                            yield delta
                except EngineLostError as error:
                    if not self._is_complete():
                        await self._move_on(error)
                        continue
                self._finish("completed", None)
                yield TokenDelta([], self._reason or "length")
                return
        except ApiError as error:
            self._finish("cancelled" if error.code == "cancelled" else "failed", error)
            raise
        finally:
            self._finish("cancelled", None)

    def _is_complete(self) -> bool:
        """Whether the client has all there is to come, though the stream broke."""
        has_all = len(self._tokens) >= self.request.sampling.max_tokens
        return self._may_end or self._reason is not None or has_all

    async def _attempt(self) -> AsyncGenerator[TokenDelta, None]:
        """Tokens from the worker that the request is on, to the end of the engine's stream."""
        assert self._at is not None
        card = self._at.card
        if card is None:
            raise EngineLostError("the worker left before the request was sent")
        client = self._placement.client_for(card)
        asked = self._engine_request(self._at.decision.dp_rank)
        pieces = cast(AsyncGenerator[EngineDelta, None], client.stream(card, asked))
        try:
            while (delta := await self._next(pieces)) is not None:
                if delta.cached_tokens is not None and self.record.cached_tokens is None:
                    self.record.cached_tokens = delta.cached_tokens
                if delta.transfer_ms is not None:
                    self.record.transfer_ms = delta.transfer_ms
                if delta.finish_reason is not None:
                    self._reason = delta.finish_reason
                if delta.token_ids and not self._may_end:
                    self._note_tokens(delta.token_ids)
                    yield TokenDelta(delta.token_ids, None, delta.logprobs)
        finally:
            await pieces.aclose()

    def _engine_request(self, dp_rank: int) -> EngineRequest:
        """What the worker is asked for: the rest, where some tokens are there already."""
        request, done = self.request, len(self._tokens)
        sampling = request.sampling
        if done:
            sampling = msgspec.structs.replace(
                sampling,
                max_tokens=sampling.max_tokens - done,
                min_tokens=max(sampling.min_tokens - done, 0),
            )
        return EngineRequest(
            request_id=self.placed_as,
            token_ids=self.all_tokens,
            sampling=sampling,
            dp_rank=dp_rank,
            priority=-request.priority,
            cache_salt=request.cache_salt,
            pin_ttl_s=request.pin_ttl_s,
        )

    def _note_tokens(self, token_ids: list[int]) -> None:
        record, metrics = self.record, self._metrics
        if not self._is_prefilled:
            self._is_prefilled = True
            self._note_prefilled()
        now_ms = self._now_ms()
        if record.first_token_ms is None:
            self._first_deadline.cancel()
            record.first_token_ms = now_ms
            self._note_first_token(now_ms)
            metrics.note_first_tokens(now_ms - record.arrival_ms, len(token_ids))
        else:
            assert record.finish_ms is not None
            metrics.note_gap(now_ms - record.finish_ms, len(token_ids))
        record.finish_ms = now_ms  # of the last token so far
        before = record.output_tokens - self._num_placed_with
        record.output_tokens += len(token_ids)
        self._tokens += token_ids
        self._placement.note_progress(self.placed_as, before, before + len(token_ids))

    def _note_prefilled(self) -> None:
        """The worker that it is on has come to its first token."""
        self._placement.router.first_token(self.placed_as)

    def _note_first_token(self, now_ms: float) -> None:
        self._note_prefill_time(now_ms)

    def _note_prefill_time(self, now_ms: float) -> None:
        """From the first placement, wherever it went on: with the wait, the time to here."""
        record = self.record
        assert record.prefill_wait_time_ms is not None
        record.prefill_time_ms = now_ms - record.arrival_ms - record.prefill_wait_time_ms

    async def _next(self, pieces: AsyncGenerator[EngineDelta, None]) -> EngineDelta | None:
        """The engine's next piece; None at the end."""
        try:
            return await self._wait(anext(pieces))
        except StopAsyncIteration:
            return None
        except EngineRefusedError as error:
            raise refused_by_engine(error) from None

    # ---- waiting, and its interruption -----------------------------------------------------------

    async def _wait(self, awaitable: Awaitable[T]) -> T:
        """Wait for something outside; raises what `interrupt` was given, if it was."""
        if self._interruption is not None:
            if isinstance(awaitable, Coroutine):
                awaitable.close()
            reason, self._interruption = self._interruption, None
            raise reason
        task = asyncio.current_task()
        assert task is not None
        self._reader = task
        try:
            return await awaitable
        except asyncio.CancelledError:
            interruption, self._interruption = self._interruption, None
            if interruption is None or task.uncancel() > 0:  # cancelled from outside (as well)
                raise
            raise interruption from None
        finally:
            self._reader = None

    def _expire(self) -> None:
        record, live = self.record, self._live
        what, limit_s = "request_timeout_s", live.request_timeout_s
        if record.first_token_ms is None and live.first_token_timeout_s < limit_s:
            what, limit_s = "first_token_timeout_s", live.first_token_timeout_s
        message = f"not done within {limit_s:g} s (live.{what})"
        self.interrupt(ApiError(504, message, kind="server_error", code="timeout"))

    def _finish(self, status: str, error: ApiError | None) -> None:
        """Close the books, once."""
        if self._is_over:
            return
        self._is_over = True
        self._deadline.cancel()
        self._first_deadline.cancel()
        self._let_go()
        if not self._may_end:
            self.record.status = status
        self.record.error = None if error is None or self._may_end else error.message
        self._on_end(self.record)

    def _let_go(self) -> None:
        """It is over: nobody has anything to do for it."""
        self._leave_worker(is_worker_to_blame=False)


def refused_by_engine(error: EngineRefusedError) -> ApiError:
    """An engine's refusal as the client is told."""
    status = error.status if error.status in PASSED_ON else 502
    return ApiError(status, f"the engine refuses the request: {error}")


def _no_more() -> ApiError:
    return ApiError(499, "nothing more is wanted of it", code="cancelled")


def _refusal(error: RequestRefusedError) -> ApiError:
    """The router's refusal as the client is told."""
    if error.http_status == 400:
        return ApiError(400, str(error), code="refused")
    return ApiError(
        error.http_status, str(error), kind="server_error", code="refused", retry_after_s=1
    )
