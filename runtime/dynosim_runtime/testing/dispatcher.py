"""Doubles for tests of what stands in front of a cluster."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

import msgspec

from dynosim_runtime.requests import GenerateRequest, RequestRecord, TokenDelta


class Pause(msgspec.Struct, frozen=True):
    """A step of a script: wait."""

    seconds: float


Step = TokenDelta | Pause | Exception
Script = Callable[[GenerateRequest], Sequence[Step]]


class ScriptedDispatcher:
    """A `Dispatcher` that plays scripts: deltas are delivered, pauses waited, exceptions raised.

    An exception as the first step is raised by `start`. `streams` are all that were started.
    """

    def __init__(
        self,
        script: Script,
        *,
        cached_tokens: int | None = None,
        worker_id: int | None = None,
        start_pause_s: float = 0.0,
    ) -> None:
        self.requests: list[GenerateRequest] = []
        self.streams: list[ScriptedStream] = []
        self._script = script
        self._cached_tokens = cached_tokens
        self._worker_id = worker_id
        self._start_pause_s = start_pause_s

    async def start(self, request: GenerateRequest) -> "ScriptedStream":
        """See `Dispatcher`."""
        self.requests.append(request)
        if self._start_pause_s:
            await asyncio.sleep(self._start_pause_s)
        steps = list(self._script(request))
        if steps and isinstance(steps[0], Exception):
            raise steps[0]
        record = RequestRecord(
            request_id=request.request_id,
            session_id=request.session_id,
            arrival_ms=0.0,
            dispatch_ms=1.0,
            input_tokens=len(request.token_ids),
            cached_tokens=self._cached_tokens,
            prefill_worker_id=self._worker_id,
            decode_worker_id=self._worker_id,
            prefill_dp_rank=None if self._worker_id is None else 0,
            decode_dp_rank=None if self._worker_id is None else 0,
            prefill_wait_time_ms=1.0,
            kv_hit_rate=0.5,
        )
        stream = ScriptedStream(steps, record)
        self.streams.append(stream)
        return stream


class ScriptedStream:
    """See `ScriptedDispatcher`. One ms passes per delta; `aclose` sets `is_closed`.

    Told to `let_end`, it delivers no more of its script.
    """

    def __init__(self, steps: Sequence[Step], record: RequestRecord) -> None:
        self.record = record
        self.is_closed = False
        self._may_end = False
        self._steps = steps

    async def __aiter__(self) -> AsyncIterator[TokenDelta]:
        now_ms = 1.0
        for step in self._steps:
            if self._may_end:
                return
            if isinstance(step, Exception):
                self.record.status = "failed"
                raise step
            if isinstance(step, Pause):
                await asyncio.sleep(step.seconds)
                continue
            now_ms += 1.0
            if self.record.first_token_ms is None:
                self.record.first_token_ms = now_ms
                self.record.prefill_time_ms = now_ms - 1.0
            self.record.output_tokens += len(step.token_ids)
            if step.finish_reason is not None:
                self.record.finish_ms, self.record.status = now_ms, "completed"
            yield step

    def let_end(self) -> None:
        """See `TokenStream`."""
        self._may_end = True
        self.record.status = "completed"

    async def aclose(self) -> None:
        """See `TokenStream`."""
        self.is_closed = True
        if self.record.finish_ms is None:
            self.record.finish_ms = 1.0 + self.record.output_tokens
        if self.record.status == "unfinished":
            self.record.status = "cancelled"


def token_by_token(token_ids: Sequence[int], finish_reason: str = "stop") -> list[Step]:
    """A script that delivers tokens one at a time."""
    deltas: list[Step] = [TokenDelta([token_id]) for token_id in token_ids]
    return [*deltas, msgspec.convert({"token_ids": [], "finish_reason": finish_reason}, TokenDelta)]
