"""A stand-in for an engine's OpenAI server whose step times are known, and that can misbehave."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson
from aiohttp import web

StepMs = Callable[[int, int, int], float]


def flat_step_ms(prefill_tokens: int, num_decodes: int, context_tokens: int) -> float:
    """As quick as a test wants it."""
    return 1.0


@dataclass
class StubServer:
    """One engine that serves all prompts that came in since the last step together."""

    step_ms: StepMs = flat_step_ms
    returns_token_ids: bool = True
    refuses_extras: bool = False
    fails: Callable[[dict[str, Any]], str | None] = lambda body: None
    short_by: int = 0
    metrics: str | None = None
    nvext: dict[str, Any] | None = None
    cached_tokens: int | None = None
    bodies: list[dict[str, Any]] = field(default_factory=list)
    num_cancelled: int = 0
    num_running: int = 0

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        """The URL, while it serves."""
        app = web.Application(client_max_size=1 << 24)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_post("/v1/completions", self._completions)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        try:
            host, port = runner.addresses[0][:2]
            yield f"http://{host}:{port}"
        finally:
            await runner.cleanup()

    async def _models(self, _: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "stub", "max_model_len": 4096}]})

    async def _metrics(self, _: web.Request) -> web.Response:
        if self.metrics is None:
            return web.Response(status=404)
        return web.Response(text=self.metrics)

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        body = orjson.loads(await request.read())
        self.bodies.append(body)
        if self.refuses_extras and "return_token_ids" in body:
            return web.json_response(
                {"error": {"message": "unknown field return_token_ids"}}, status=400
            )
        failure = self.fails(body)
        if failure == "refuse":
            return web.json_response({"error": {"message": "prompt too long"}}, status=400)
        if failure == "break":
            return web.json_response({"error": {"message": "engine dead"}}, status=500)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        try:
            self.num_running += 1
            await self._stream(response, body, failure)
        except asyncio.CancelledError:
            self.num_cancelled += 1
            raise
        finally:
            self.num_running -= 1
        return response

    async def _stream(
        self, response: web.StreamResponse, body: dict[str, Any], failure: str | None
    ) -> None:
        tokens = body["max_tokens"] - self.short_by
        await asyncio.sleep(self.step_ms(len(body["prompt"]), 0, 0) / 1e3)
        for index in range(tokens):
            if index:
                context = len(body["prompt"]) + index
                await asyncio.sleep(self.step_ms(0, self.num_running, context) / 1e3)
            if failure == "hang" and index == 1:
                await asyncio.sleep(3600)
            if failure == "error mid-stream" and index == 1:
                await self._send(response, {"error": {"message": "engine died", "code": 500}})
                return
            choice: dict[str, Any] = {"index": 0, "text": "x", "finish_reason": None}
            if self.returns_token_ids and "return_token_ids" in body:
                choice["token_ids"] = [7]
            if index == tokens - 1:
                choice["finish_reason"] = "length"
            await self._send(response, {"choices": [choice]})
        usage: dict[str, Any] = {
            "prompt_tokens": len(body["prompt"]),
            "completion_tokens": tokens,
        }
        if self.cached_tokens is not None:
            usage["prompt_tokens_details"] = {"cached_tokens": self.cached_tokens}
        last: dict[str, Any] = {"choices": [], "usage": usage}
        if self.nvext is not None:
            last["nvext"] = self.nvext
        await self._send(response, last)
        await response.write(b"data: [DONE]\n\n")

    @staticmethod
    async def _send(response: web.StreamResponse, data: dict[str, Any]) -> None:
        await response.write(b"data: " + orjson.dumps(data) + b"\n\n")
