"""One request on its way through a prefill and a decode worker.

`HandoffFlow` says whose turn it is. What cannot be seen from here counts as having happened: a
decode worker that is lost before its first token may have taken the KV, and its prefill worker may
have let go of it since. So the prompt goes through a prefill worker again, which has it cached.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import msgspec

from dynosim.router.handoff import Duty, HandoffEvent, HandoffPhase
from dynosim.router.refusals import NoEligibleWorkerError
from dynosim_runtime.clients.base import (
    EngineFailedError,
    EngineLostError,
    EngineRefusedError,
    EngineRequest,
    PrefillAnswer,
)
from dynosim_runtime.errors import ApiError
from dynosim_runtime.requests import Sampling, TokenDelta
from dynosim_runtime.serving.handoffs import LiveHandoffs
from dynosim_runtime.serving.member import Stay
from dynosim_runtime.serving.placement import PlacedAt
from dynosim_runtime.serving.stream import LiveStream, refused_by_engine

HOLD_KV: dict[str, Any] = {
    "do_remote_decode": True,
    "do_remote_prefill": False,
    "remote_engine_id": None,
    "remote_block_ids": None,
    "remote_host": None,
    "remote_port": None,
}
"""Asks an engine to compute a prompt and to hold its KV for another one."""

_Phase, _Event = HandoffPhase, HandoffEvent
AT_SOURCE = (_Phase.PREFILLING, _Phase.HELD, _Phase.MOVING)
"""Phases in which a prefill worker is needed."""


class SourceLostError(EngineLostError):
    """The KV that a prefill worker has computed, or was about to, is gone."""


class HandoffStream(LiveStream):
    """A stream that asks a prefill worker first; see `LiveStream`."""

    def __init__(self, handoffs: LiveHandoffs, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._handoffs = handoffs
        self._flow = handoffs.flow
        self._source: PlacedAt | None = None  # its prefill worker, while it is needed
        self._failed_sources: set[Stay] = set()
        self._answer: PrefillAnswer | None = None
        self._answered_ms: float | None = None
        self._claim_limit: asyncio.TimerHandle | None = None

    @property
    def _phase(self) -> HandoffPhase | None:
        return self._flow.phase_of(self.request.request_id)

    def _happens(self, event: HandoffEvent) -> None:
        """What has to be done then follows from the phase, and is done where the stream goes on."""
        self._flow.happens(self.request.request_id, event)

    @property
    def is_prefilling(self) -> bool:
        """See `LiveStream`."""
        return self._source is not None and self._at is None

    # ---- placement -----------------------------------------------------------------------------

    async def _place(self, allowed: frozenset[int] | None) -> None:
        absence = self._placement.no_worker(self.request)
        if absence is not None:
            raise absence
        if self._arrives(must_be_local=False) is Duty.PLACE_PREFILL:
            await self._place_prefill(allowed)
        else:
            await super()._place(allowed)

    async def _place_again(self) -> None:
        untried = self._placement.untried(self._failed)
        if self._phase in (_Phase.HELD, _Phase.ORPHANED):
            await self._place_decode(untried)
            return
        sources = self._handoffs.prefill.untried(self._failed_sources)
        if self._arrives(must_be_local=not sources) is Duty.PLACE_PREFILL:
            try:
                await self._place_prefill(sources)
                return
            except NoEligibleWorkerError:
                self._arrives(must_be_local=True)
        await super()._place(untried)

    def _arrives(self, *, must_be_local: bool) -> Duty:
        is_local = must_be_local or self._handoffs.is_local(
            self.request, self.all_tokens, self._now_ms()
        )
        return self._flow.arrives(self.request.request_id, is_local=is_local)

    async def _place_prefill(self, allowed: frozenset[int] | None) -> None:
        prefill, record = self._handoffs.prefill, self.record
        # a worker that the client names is the one that answers
        request = msgspec.structs.replace(self.request, worker_id=None, dp_rank=None)
        source = await self._find(prefill, request, allowed)
        self._source = source
        record.dispatch_ms = self._now_ms()
        if record.prefill_wait_time_ms is None:
            self._note_first_placement(source.decision)
        record.prefill_worker_id = source.decision.worker_id
        record.prefill_dp_rank = source.decision.dp_rank
        prefill.attach(source, self.request.request_id, _Source(self))

    async def _place_first_decode(self) -> None:
        """Once its prompt is computed; where it has failed before, it waits for another worker."""
        if not self._failed:
            await self._place_decode(None)
            return
        try:
            await self._place_decode(self._placement.untried(self._failed))
        except NoEligibleWorkerError as error:
            raise EngineLostError(str(error)) from None

    async def _place_decode(self, allowed: frozenset[int] | None) -> None:
        near = None
        if self._source is not None:
            try:
                near = self._handoffs.near(self._source)
            except NoEligibleWorkerError as error:
                raise ApiError(503, str(error), kind="server_error", code="refused") from None
        self._serve_at(await self._find(self._placement, self.request, allowed, near))

    # ---- streaming -----------------------------------------------------------------------------

    async def _attempt(self) -> AsyncGenerator[TokenDelta, None]:
        if self._phase is _Phase.PREFILLING:
            answer = await self._prefill()
            if self._handoffs.spec.first_token == "prefill":
                self._note_tokens(answer.token_ids)
                is_last = answer.finish_reason == "stop" or self._is_complete()
                self._reason = (answer.finish_reason or "length") if is_last else None
                yield TokenDelta(answer.token_ids)
                if is_last:
                    return
            await self._place_first_decode()
        async with aclosing(super()._attempt()) as deltas:
            async for delta in deltas:
                yield delta

    async def _prefill(self) -> PrefillAnswer:
        """Raises: EngineLostError, ApiError."""
        source, handoffs = self._source, self._handoffs
        assert source is not None, "placed before"
        if source.card is None:
            raise SourceLostError("the prefill worker left before the request was sent")
        try:
            answer = await self._wait(
                handoffs.client_for(source.card).prefill(source.card, self._prefill_request(source))
            )
        except EngineRefusedError as error:
            raise refused_by_engine(error) from None
        self._happens(_Event.PREFILLED)
        self._answer = answer
        self._answered_ms = now_ms = self._now_ms()
        self._note_prefill_time(now_ms)
        if self.record.cached_tokens is None:
            self.record.cached_tokens = answer.cached_tokens
        router = handoffs.prefill.router
        router.first_token(self.placed_as)
        router.end(self.placed_as)  # what it holds is no load that routing could spread
        self._claim_limit = asyncio.get_running_loop().call_later(
            handoffs.max_unclaimed_s, self._expire_claim
        )
        return answer

    def _prefill_request(self, source: PlacedAt) -> EngineRequest:
        """The prompt for one token, which counts if the client gets it."""
        sampling = Sampling(max_tokens=1, temperature=0.0, ignore_eos=True)
        if self._handoffs.spec.first_token == "prefill":
            sampling = msgspec.structs.replace(
                self.request.sampling,
                max_tokens=1,
                min_tokens=min(self.request.sampling.min_tokens, 1),
            )
        return EngineRequest(
            request_id=self.placed_as,
            token_ids=self.all_tokens,
            sampling=sampling,
            dp_rank=source.decision.dp_rank,
            priority=-self.request.priority,
            cache_salt=self.request.cache_salt,
            pin_ttl_s=self.request.pin_ttl_s,
            kv_transfer_params=HOLD_KV,
        )

    def _engine_request(self, dp_rank: int) -> EngineRequest:
        """Asked for where it is sent at once: from here on the decode worker takes the KV."""
        asked = super()._engine_request(dp_rank)
        phase = self._phase
        if phase in (_Phase.HELD, _Phase.ORPHANED):
            self._drop_claim_limit()
            self._happens(_Event.RESERVED)
        if phase is not _Phase.HELD:
            return asked  # it computes the prompt itself
        assert self._answer is not None
        return msgspec.structs.replace(asked, kv_transfer_params=self._answer.kv_transfer_params)

    def _note_prefilled(self) -> None:
        if self._phase is _Phase.HELD:
            return  # the prefill worker's token
        super()._note_prefilled()
        if self._phase is _Phase.MOVING:
            self._happens(_Event.ARRIVED)
            self._leave_source()  # the engines have settled the release between them

    def _note_first_token(self, now_ms: float) -> None:
        if self._answered_ms is None:
            super()._note_first_token(now_ms)
        else:
            self.record.handoff_ms = now_ms - self._answered_ms

    # ---- losses --------------------------------------------------------------------------------

    def source_lost(self) -> None:
        """Its prefill worker is gone."""
        if self._phase is _Phase.MOVING and self._handoffs.on_load_failure == "recompute":
            self._happens(_Event.SOURCE_LOST)  # the decode engine notices, and computes the rest
            self._leave_source()
        elif self._phase in AT_SOURCE:
            self.interrupt(SourceLostError("the prefill worker is gone"))

    def _expire_claim(self) -> None:
        limit_s = self._handoffs.max_unclaimed_s
        if self._phase is _Phase.HELD:
            self.interrupt(SourceLostError(f"no decode worker took the KV within {limit_s:g} s"))

    def _note_loss(self, error: EngineLostError) -> bool:
        phase = self._phase
        is_source = phase is _Phase.PREFILLING or isinstance(error, SourceLostError)
        if phase is _Phase.MOVING and isinstance(error, EngineFailedError):
            # Not that the worker is gone: what it was to take did not come, as far as we know.
            assert self._at is not None
            self._placement.members.suspect(self._at.decision.worker_id)
            is_source = True
        if is_source and phase in AT_SOURCE:
            self._lose_source()
            self._leave_worker(is_worker_to_blame=False)
            self._happens(_Event.SOURCE_LOST)
            fails = self._handoffs.on_load_failure == "fail"
            if phase is _Phase.MOVING or (phase is _Phase.HELD and fails):
                self._happens(_Event.DESTINATION_LOST)  # it has given the request up, or would
            return False
        if phase is _Phase.MOVING:
            self._happens(_Event.ARRIVED)  # as it may have
        if phase is not _Phase.HELD:
            self._leave_source()
        self._leave_worker(is_worker_to_blame=True)
        self._happens(_Event.DESTINATION_LOST)
        return True

    def _lose_source(self) -> None:
        """See whether the prefill worker lives, and do not come back to it."""
        source = self._source
        if source is not None:
            self._failed_sources.add(source.stay)
            self._handoffs.prefill.blame(source.decision.worker_id, self.request.session_id)
        self._leave_source()

    def _leave_source(self) -> None:
        self._drop_claim_limit()
        if self._source is not None:
            self._handoffs.prefill.detach(self._source, self.request.request_id, self.placed_as)
            self._source = None

    def _drop_claim_limit(self) -> None:
        if self._claim_limit is not None:
            self._claim_limit.cancel()
            self._claim_limit = None

    def _leave_worker(self, *, is_worker_to_blame: bool) -> None:
        super()._leave_worker(is_worker_to_blame=is_worker_to_blame)
        self._at = None

    def _let_go(self) -> None:
        super()._let_go()
        phase = self._flow.ends(self.request.request_id)
        if phase is _Phase.HELD and self._answer is not None:
            self._handoffs.release(self._answer.kv_transfer_params)
        if self._source is None and phase is _Phase.PREFILLING:
            self._handoffs.prefill.router.end(self.placed_as)  # waited in its queue, perhaps
        self._leave_source()


class _Source:
    """A stream, seen from its prefill worker: a `MovableStream`."""

    def __init__(self, stream: HandoffStream) -> None:
        self._stream = stream

    def worker_lost(self) -> None:
        """See `MovableStream`."""
        self._stream.source_lost()
