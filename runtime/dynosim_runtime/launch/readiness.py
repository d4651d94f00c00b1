"""Whether a process serves: a worker while discovery tells its card, the frontend if it answers."""

import asyncio
import logging
from collections.abc import Collection
from urllib.parse import urlsplit

import aiohttp
import orjson

from dynosim_runtime.card import LiveCard
from dynosim_runtime.discovery.make import make_discovery
from dynosim_runtime.launch.specs import ProcessSpec
from dynosim_runtime.outage import Outage

PROBE_INTERVAL_S = 0.1
PROBE_TIMEOUT_S = 2.0
LIVENESS_TIMEOUT_S = 5.0  # of one that has served and may be busy
RETRY_S = 1.0
OK = 200

log = logging.getLogger(__name__)


class Readiness:
    """Looks from outside, as frontends and clients do. `url` is the frontend's."""

    def __init__(self, discovery: str, lease_s: float) -> None:
        self.url = ""
        self._discovery = discovery
        self._lease_s = lease_s
        self._cards: dict[str, LiveCard] = {}
        self._liveness: aiohttp.ClientSession | None = None  # one connection for all its probes

    async def watch_cards(self) -> None:
        """Follow discovery until cancelled. Raises: LiveError if that is not possible at first."""
        discovery = make_discovery(self._discovery, self._lease_s)
        watching = Outage(log, "discovery cannot be followed")
        has_begun = False
        try:
            while True:
                try:
                    async for cards in discovery.watch():
                        has_begun = True
                        watching.worked()
                        self._cards = {card.name: card for card in cards.values()}
                except Exception as error:
                    if not has_begun:
                        raise
                    watching.failed(error)
                await asyncio.sleep(RETRY_S)
        finally:
            await discovery.close()

    @property
    def cards(self) -> dict[str, LiveCard]:
        """The workers' cards as discovery shows them, by name."""
        return self._cards

    async def close(self) -> None:
        """Release connections."""
        if self._liveness is not None:
            await self._liveness.close()

    async def is_answering(self, spec: ProcessSpec) -> bool:
        """Whether a process that has served does so now: a worker renews its lease."""
        if spec.role == "worker":
            return spec.name in self._cards
        if self._liveness is None:
            self._liveness = _session(LIVENESS_TIMEOUT_S)
        return await _page(self._liveness, f"{self.url}/live") is not None

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
        async with _session(PROBE_TIMEOUT_S) as session:
            while True:
                page = await _page(session, f"{self.url}/workers")
                rows = [] if page is None else orjson.loads(page)["workers"]
                healthy = await _page(session, f"{self.url}/health") is not None
                if healthy and {row["name"] for row in rows} >= set(names):
                    return
                await asyncio.sleep(PROBE_INTERVAL_S)

    async def _frontend_answers(self) -> None:
        async with _session(PROBE_TIMEOUT_S) as session:
            while await _page(session, f"{self.url}/live") is None:
                await asyncio.sleep(PROBE_INTERVAL_S)


def _session(timeout_s: float) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=timeout_s))


async def _page(session: aiohttp.ClientSession, url: str) -> bytes | None:
    """What is there, or None if it is not (yet)."""
    try:
        async with session.get(url) as answer:
            return await answer.read() if answer.status == OK else None
    except (aiohttp.ClientError, OSError):
        return None
