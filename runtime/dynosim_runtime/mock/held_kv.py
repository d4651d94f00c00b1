"""KV that a mock prefill worker holds for others, and how a mock decode worker asks for it.

Over HTTP, beside vLLM's dialect: `POST /kv/claim` renews the lease of a request's KV, `POST
/kv/release` lets go of it; 404 says that it is not there (any more).
"""

import asyncio
import contextlib
from typing import Any

import aiohttp
import msgspec

from dynosim.build.engine_command import KV_LEASE_S
from dynosim_runtime.mock.engine import MockRequest
from dynosim_runtime.mock.loop import EngineLoop

ASK_TIMEOUT_S = 2.0


class KvPlace(msgspec.Struct, frozen=True, kw_only=True):
    """Where KV is: what a prefill worker's answer tells, and the decode request repeats."""

    remote_url: str
    remote_engine_id: str  # one life of a prefill worker
    remote_request_id: str
    remote_num_tokens: int
    compute_ms: float = 0.0  # of its prefill, in engine time


class HeldKv:
    """The KV that one prefill worker holds, each piece until it is let go of or its lease ends."""

    def __init__(self, loop: EngineLoop, url: str, engine_id: str) -> None:
        self._loop = loop
        self._url = url
        self._engine_id = engine_id
        self._held: dict[str, tuple[MockRequest, asyncio.TimerHandle]] = {}

    def __len__(self) -> int:
        return len(self._held)

    def hold(self, request: MockRequest) -> dict[str, Any]:
        """Hold what a request that has ended has computed; returns what to tell of it."""
        name = request.sequence.request_id
        self._held[name] = (request, self._lease(name))
        place = KvPlace(
            remote_url=self._url,
            remote_engine_id=self._engine_id,
            remote_request_id=name,
            remote_num_tokens=request.num_prompt,
            compute_ms=request.last_token_ms - request.arrival_ms,
        )
        told: dict[str, Any] = msgspec.to_builtins(place)
        return {"do_remote_prefill": True, "do_remote_decode": False, **told}

    def claim(self, name: str) -> bool:
        """Renew a lease; whether the KV is there."""
        if name not in self._held:
            return False
        request, lease = self._held[name]
        lease.cancel()
        self._held[name] = (request, self._lease(name))
        return True

    def release(self, name: str) -> bool:
        """Let go of it; whether it was there."""
        if name not in self._held:
            return False
        request, lease = self._held.pop(name)
        lease.cancel()
        self._loop.sent(request)
        return True

    def _lease(self, name: str) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(KV_LEASE_S, self.release, name)


class KvTaker:
    """Asks prefill workers: a decode worker's side."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None
        self._tasks: set[asyncio.Task[bool]] = set()

    async def claim(self, place: KvPlace) -> bool:
        """Renew the lease; whether the KV is still there."""
        return await self._ask("claim", place)

    def release(self, place: KvPlace) -> None:
        """Have it let go of; what fails is left to the lease."""
        task = asyncio.create_task(self._ask("release", place))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Finish what is being said."""
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    async def _ask(self, what: str, place: KvPlace) -> bool:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=ASK_TIMEOUT_S), trust_env=False
            )
        body = {"request_id": place.remote_request_id}
        with contextlib.suppress(aiohttp.ClientError, OSError, ValueError):
            async with self._session.post(f"{place.remote_url}/kv/{what}", json=body) as answer:
                return answer.status == 200
        return False
