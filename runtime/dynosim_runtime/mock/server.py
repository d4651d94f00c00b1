"""The HTTP side of a mock worker: vLLM's dialect over an engine loop.

The engine loop writes each token to its client's connection itself, so that a token costs one
write and wakes no task; a request's handler only waits for the end. aiohttp was measured as cheap
per token as bare ASGI under uvicorn, and half as costly as a streaming response fed by a queue.
"""

import asyncio
import time
import uuid

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from dynosim_runtime.errors import ApiError
from dynosim_runtime.mock.calls import CallReader, error_body
from dynosim_runtime.mock.collector import EngineCollector
from dynosim_runtime.mock.engine import MockRequest
from dynosim_runtime.mock.frames import DONE, CompletionFrames, whole_answer
from dynosim_runtime.mock.held_kv import HeldKv, KvPlace, KvTaker
from dynosim_runtime.mock.loop import EngineLoop
from dynosim_runtime.mock.report import PAGE, report_query

VLLM_VERSION = "0.32.0"  # whose scheduler and dialect this is
# Below this many unsent bytes asyncio never makes a writer wait (its low-water mark).
_UNSENT_BYTES_ALLOWED = 16 * 1024
CLAIM_INTERVAL_S = 0.25


class WholeAnswer:
    """Receives the tokens of a request whose client wants them all at once."""

    def __init__(self) -> None:
        self.is_done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def push(self, request: MockRequest) -> None:
        """Nothing to do: the request keeps its output."""

    def end(self) -> None:
        """Wake the handler."""
        if not self.is_done.done():
            self.is_done.set_result(None)


class StreamedAnswer(WholeAnswer):
    """Sends tokens as they come; a client too slow to read gets several in one event.

    The last event is left to the handler, which sends it together with the end of the stream.
    """

    def __init__(
        self, response: web.StreamResponse, transport: asyncio.Transport, frames: CompletionFrames
    ) -> None:
        super().__init__()
        self.frames = frames
        self.unsent: list[int] = []
        self._response = response
        self._transport = transport

    async def push(self, request: MockRequest) -> None:
        """Send a token."""
        token_id = request.output[request.num_delivered - 1]
        is_last = request.num_delivered == len(request.output)
        if is_last or self._transport.get_write_buffer_size() > _UNSENT_BYTES_ALLOWED:
            self.unsent.append(token_id)
            return
        if self.unsent:
            frame = self.frames.tokens([*self.unsent, token_id])
            self.unsent.clear()
        else:
            frame = self.frames.token(token_id)
        try:
            await self._response.write(frame)
        except ConnectionError:
            pass  # the client has gone; the handler is being cancelled, which aborts the request


class MockServer:
    """Answers requests out of an engine loop. Once `is_draining`, it takes no new ones."""

    def __init__(
        self,
        loop: EngineLoop,
        reader: CallReader,
        model: str,
        *,
        model_root: str,
        held: HeldKv | None = None,
        taker: KvTaker | None = None,
    ) -> None:
        """`held` is the KV that it gives to others, `taker` asks others for theirs."""
        self._held = held
        self._taker = taker
        self._places: dict[MockRequest, KvPlace] = {}  # of KV that has not been let go of
        loop.on_loaded = self._release
        self.is_draining = False
        self._loop = loop
        self._reader = reader
        self._model = model
        self._model_root = model_root
        self._created_s = int(time.time())
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(EngineCollector(loop.engine, model))

    def application(self, max_body_bytes: int) -> web.Application:
        """The routes."""
        app = web.Application(client_max_size=max_body_bytes, middlewares=[_tell_errors])
        app.add_routes(
            [
                web.post("/v1/completions", self._completions),
                web.get("/v1/models", self._models),
                web.get("/health", self._health),
                web.get("/version", self._version),
                web.get("/metrics", self._metrics),
                web.get(PAGE, self._report),
                web.post("/kv/claim", self._claim),
                web.post("/kv/release", self._let_go),
            ]
        )
        return app

    async def _completions(self, http: web.Request) -> web.StreamResponse:
        if self.is_draining:
            raise ApiError(503, "the worker is shutting down", kind="ServiceUnavailableError")
        data = await http.read()
        try:
            body = self._reader.body(data)
        except ApiError:
            self._release_refused(data)
            raise
        name = http.headers.get("X-Request-Id") or uuid.uuid4().hex[:16]
        completion_id = f"cmpl-{name}"
        call = self._reader.call(body, completion_id)
        place = self._reader.place(body)
        created_s = int(time.time())
        prompt_ids = call.prompt_ids if body.return_token_ids else None
        if not body.stream:
            receiver = WholeAnswer()
            request = self._loop.submit(call, receiver)
            await self._finished(request, receiver, place)
            params = self._held.hold(request) if self._held is not None and call.is_sent else None
            answer = whole_answer(
                request, completion_id, self._model, created_s, prompt_ids, params
            )
            return web.Response(body=answer, content_type="application/json")
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await response.prepare(http)
        if http.transport is None:
            raise ConnectionResetError("the client has gone")
        frames = CompletionFrames(completion_id, self._model, created_s, prompt_ids)
        stream = StreamedAnswer(response, http.transport, frames)
        request = self._loop.submit(call, stream)
        try:
            await self._finished(request, stream, place)
        except ApiError as error:  # told within the stream, whose head is out
            await response.write_eof(b"data: " + error_body(error) + b"\n\n")
            return response
        end = frames.tokens(
            stream.unsent, finish_reason=request.finish_reason, stop_reason=request.stop_reason
        )
        if body.stream_options is not None and body.stream_options.include_usage:
            end += frames.usage(request, self._real_ms(request.transfer_ms))
        await response.write_eof(end + DONE)
        return response

    async def _finished(
        self, request: MockRequest, receiver: WholeAnswer, place: KvPlace | None
    ) -> None:
        """Wait for the last token; a client that leaves takes its request along.

        Raises: ApiError if KV that it was to get is lost.
        """
        watching = None
        if place is not None:
            self._places[request] = place
            watching = asyncio.create_task(self._watch_source(request, place))
        try:
            await receiver.is_done
        finally:
            if watching is not None:
                watching.cancel()
            self._loop.abort(request)
            self._release(request)
        if request.has_failed:
            raise ApiError(500, "the KV of this request was lost", kind="InternalServerError")

    async def _watch_source(self, request: MockRequest, place: KvPlace) -> None:
        """As long as its KV is elsewhere: hold it there, and notice when it is gone."""
        assert self._taker is not None, "the reader refuses KV for others"
        while not request.is_loaded and request.num_delivered == 0:
            if not await self._taker.claim(place):
                self._loop.fail_transfer(request)
                return
            await asyncio.sleep(CLAIM_INTERVAL_S)

    def _release(self, request: MockRequest) -> None:
        """Nothing more is read of a request's KV elsewhere."""
        place = self._places.pop(request, None)
        if place is not None and self._taker is not None:
            self._taker.release(place)

    def _release_refused(self, data: bytes) -> None:
        """KV that waits for a request that is refused is let go of."""
        place = self._reader.waiting_kv(data)
        if place is not None and self._taker is not None:
            self._taker.release(place)

    def _real_ms(self, engine_ms: float | None) -> float | None:
        return None if engine_ms is None else engine_ms / self._loop.engine.stats.speedup

    async def _claim(self, http: web.Request) -> web.Response:
        held, name = self._held, (await http.json()).get("request_id")
        return web.Response(status=200 if held is not None and held.claim(name) else 404)

    async def _let_go(self, http: web.Request) -> web.Response:
        held, name = self._held, (await http.json()).get("request_id")
        return web.Response(status=200 if held is not None and held.release(name) else 404)

    async def _models(self, http: web.Request) -> web.Response:
        model = {
            "id": self._model,
            "object": "model",
            "created": self._created_s,
            "owned_by": "dynosim",
            "root": self._model_root,
            "parent": None,
            "max_model_len": self._loop.engine.spec.max_model_len,
        }
        return web.json_response({"object": "list", "data": [model]})

    async def _health(self, http: web.Request) -> web.Response:
        return web.Response(status=503 if self.is_draining else 200)

    async def _version(self, http: web.Request) -> web.Response:
        return web.json_response({"version": VLLM_VERSION})

    async def _metrics(self, http: web.Request) -> web.Response:
        return web.Response(
            body=generate_latest(self._registry), headers={"Content-Type": CONTENT_TYPE_LATEST}
        )

    async def _report(self, http: web.Request) -> web.Response:
        is_decode = self._taker is not None
        report = self._loop.engine.report(report_query(dict(http.query)), is_decode=is_decode)
        return web.Response(body=msgspec.json.encode(report), content_type="application/json")


@web.middleware
async def _tell_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Errors in vLLM's form."""
    try:
        return await handler(request)
    except ApiError as error:
        return web.Response(
            status=error.status, body=error_body(error), content_type="application/json"
        )
    except web.HTTPException as error:
        if error.status < 400:
            raise
        told = ApiError(error.status, error.reason, kind=error.reason)
        return web.Response(
            status=error.status, body=error_body(told), content_type="application/json"
        )
