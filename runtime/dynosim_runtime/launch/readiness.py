"""When a process serves: a worker once discovery tells its card, the frontend once it answers."""

import asyncio
from collections.abc import Collection
from urllib.parse import urlsplit

import aiohttp
import orjson

from dynosim_runtime.card import WorkerCard
from dynosim_runtime.discovery.make import make_discovery
from dynosim_runtime.launch.specs import ProcessSpec

PROBE_INTERVAL_S = 0.1
PROBE_TIMEOUT_S = 2.0
OK = 200


class Readiness:
    """Looks from outside, as frontends and clients do. `url` is the frontend's."""

    def __init__(self, discovery: str, lease_s: float) -> None:
        self.url = ""
        self._discovery = discovery
        self._lease_s = lease_s
        self._cards: dict[str, WorkerCard] = {}

    async def watch_cards(self) -> None:
        """Follow discovery until cancelled. Raises: LiveError if that is not possible."""
        discovery = make_discovery(self._discovery, self._lease_s)
        try:
            async for cards in discovery.watch():
                self._cards = {card.name: card for card in cards.values()}
        finally:
            await discovery.close()

    async def wait_for(self, spec: ProcessSpec) -> int | None:
        """Returns once the process serves: the port it serves on."""
        if spec.role == "worker":
            return await self._worker_is_known(spec.name)
        await self._frontend_answers()
        return spec.port

    async def _worker_is_known(self, name: str) -> int | None:
        """A card that is there from the start is the predecessor's: wait for another one."""
        predecessor = self._cards.get(name)
        while True:
            card = self._cards.get(name)
            if card is None:
                predecessor = None
            elif card != predecessor and not card.is_draining:
                return urlsplit(card.url).port
            await asyncio.sleep(PROBE_INTERVAL_S)

    async def workers_are_served(self, names: Collection[str]) -> None:
        """Returns once the frontend sends requests to all these workers."""
        async with _session() as session:
            while True:
                page = await _page(session, f"{self.url}/workers")
                rows = [] if page is None else orjson.loads(page)["workers"]
                healthy = await _page(session, f"{self.url}/health") is not None
                if healthy and {row["name"] for row in rows} >= set(names):
                    return
                await asyncio.sleep(PROBE_INTERVAL_S)

    async def _frontend_answers(self) -> None:
        async with _session() as session:
            while await _page(session, f"{self.url}/live") is None:
                await asyncio.sleep(PROBE_INTERVAL_S)


def _session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=PROBE_TIMEOUT_S))


async def _page(session: aiohttp.ClientSession, url: str) -> bytes | None:
    """What is there, or None if it is not (yet)."""
    try:
        async with session.get(url) as answer:
            return await answer.read() if answer.status == OK else None
    except (aiohttp.ClientError, TimeoutError):
        return None
