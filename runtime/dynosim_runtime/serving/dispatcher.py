"""Everything behind the HTTP routes: requests in, streams of tokens out.

See `dynosim_runtime.requests.Dispatcher`.
"""

import logging
import time
from collections.abc import Callable

from dynosim.config.live import LiveConfig
from dynosim_runtime.errors import ApiError, unavailable
from dynosim_runtime.requests import GenerateRequest, RequestRecord
from dynosim_runtime.serving.handoff_stream import HandoffStream
from dynosim_runtime.serving.handoffs import LiveHandoffs
from dynosim_runtime.serving.metrics import FrontendMetrics
from dynosim_runtime.serving.placement import LivePlacement
from dynosim_runtime.serving.stream import LiveStream

log = logging.getLogger(__name__)


def stopwatch() -> Callable[[], float]:
    """A clock that counts milliseconds from now and never goes back."""
    started = time.monotonic()
    return lambda: (time.monotonic() - started) * 1e3


class LiveDispatcher:
    """Serves requests where `placement` says; `write_record` gets the record of each that ended.

    With `handoffs` they go through prefill workers first; `placement` is that of decode workers.
    """

    def __init__(
        self,
        placement: LivePlacement,
        live: LiveConfig,
        metrics: FrontendMetrics,
        now_ms: Callable[[], float],
        *,
        write_record: Callable[[RequestRecord], None] = lambda record: None,
        handoffs: LiveHandoffs | None = None,
    ) -> None:
        self.is_draining = False
        self._placement = placement
        self._live = live
        self._metrics = metrics
        self._unseen = FrontendMetrics(namespace="", model="")  # of requests that no client sent
        self._now_ms = now_ms
        self._write_record = write_record
        self._handoffs = handoffs
        self._active: dict[str, LiveStream] = {}

    @property
    def num_routing(self) -> int:
        """Requests that wait to be placed."""
        return len(self._active) - self.num_dispatched - self.num_prefilling

    @property
    def num_dispatched(self) -> int:
        """Requests in flight on a worker."""
        return len(self._placement.in_flight)

    @property
    def num_prefilling(self) -> int:
        """Requests that a prefill worker has, and no decode worker yet."""
        return sum(stream.is_prefilling for stream in self._active.values())

    @property
    def num_active(self) -> int:
        """Requests that have come and have not ended."""
        return len(self._active)

    async def start(self, request: GenerateRequest) -> LiveStream:
        """See `Dispatcher`."""
        if self.is_draining:
            raise unavailable("the frontend is draining: it is shutting down")
        if request.request_id in self._active:
            raise ApiError(400, f"request id {request.request_id!r} is in use", param="request_id")
        self._placement.check_engines(request)
        record = RequestRecord(
            request_id=request.request_id,
            session_id=request.session_id,
            arrival_ms=self._arrival_ms(request),
            input_tokens=len(request.token_ids),
        )
        stream = self._stream(request, record)
        self._active[request.request_id] = stream
        self._metrics_of(request).note_arrival(record.input_tokens)
        await stream.place()
        return stream

    def _stream(self, request: GenerateRequest, record: RequestRecord) -> LiveStream:
        metrics = self._metrics_of(request)
        parts = (request, record, self._placement, self._live, metrics, self._now_ms)
        if self._handoffs is None:
            return LiveStream(*parts, on_end=self._note_end)
        return HandoffStream(self._handoffs, *parts, on_end=self._note_end)

    def _metrics_of(self, request: GenerateRequest) -> FrontendMetrics:
        return self._unseen if request.is_speculative else self._metrics

    def _arrival_ms(self, request: GenerateRequest) -> float:
        """When the request had come in, before it was templated and tokenized."""
        now_ms = self._now_ms()
        if request.received_s is None:
            return now_ms
        return now_ms - (time.monotonic() - request.received_s) * 1e3

    def _note_end(self, record: RequestRecord) -> None:
        """A stream ended, however it ended."""
        stream = self._active.pop(record.request_id, None)
        if stream is not None and stream.request.is_speculative:
            return  # who sent it looks at its record
        self._metrics.note_end(record)
        try:
            self._write_record(record)
        except OSError as error:  # a full disk must not end anybody's stream
            log.error("the record of request %s is lost: %s", record.request_id, error)
