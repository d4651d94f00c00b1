"""Discovery in etcd v3, through the HTTP gateway that etcd serves on its client port.

A worker's key lives under an etcd lease, so that etcd itself removes it. A watch only tells that
something has changed; what there is, is then read anew, so that a lost, late or repeated message
cannot leave a wrong picture. While etcd cannot be reached, frontends go on with what they know.
"""

import asyncio
import base64
import contextlib
import json
import logging
import math
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import msgspec

from dynosim_runtime.card import LiveCard
from dynosim_runtime.errors import LiveError
from dynosim_runtime.hosts import without_credentials
from dynosim_runtime.outage import Outage

PREFIX = "dynosim/workers/"
LEASE_S_MIN = 2  # etcd grants none that is shorter than its election time-out
RETRY_S_MIN = 0.2
RETRY_S_MAX = 5.0

log = logging.getLogger(__name__)


class EtcdUnreachableError(Exception):
    """etcd did not answer, or not as it should."""


class EtcdDiscovery:
    """Cards under `dynosim/workers/` of the etcd at `url`."""

    def __init__(self, url: str, lease_s: float) -> None:
        self.url = url
        self.shown_url = without_credentials(url)
        self.lease_s = max(LEASE_S_MIN, math.ceil(lease_s))  # etcd counts whole seconds
        self._session: aiohttp.ClientSession | None = None
        self._reported: set[str] = set()

    async def register(self, card: LiveCard) -> "EtcdRegistration":
        """Publish a card; waits for a lease to run out that nobody renews.

        Raises: LiveError if another live worker has this id, or etcd cannot be reached.
        """
        registration = EtcdRegistration(self, card)
        try:
            await self._create(registration, card)
        except EtcdUnreachableError as error:
            raise LiveError(f"worker {card.name}: {error}") from None
        registration.start()
        return registration

    async def _create(self, registration: "EtcdRegistration", card: LiveCard) -> None:
        key = {"key": _base64(key_of(card)), "count_only": True}
        for _ in range(2 * (self.lease_s + 1)):
            is_taken = int((await self.call("kv/range", key)).get("count", 0)) > 0
            if not is_taken and await registration.create():
                return
            await asyncio.sleep(0.5)
        raise LiveError(
            f"worker {card.name}: a live worker already has worker id {card.worker_id} in "
            f"{self.shown_url}; stop that one, or give this one another --name"
        )

    async def watch(self) -> AsyncIterator[dict[int, LiveCard]]:
        """All live cards by worker id, at once and then after every change.

        Raises: LiveError if etcd cannot be reached at first; later, it is tried again.
        """
        last: dict[int, LiveCard] | None = None
        retry_s = RETRY_S_MIN
        while True:
            try:
                async for cards in self._looks():
                    retry_s = RETRY_S_MIN
                    if cards != last:
                        last = cards
                        yield dict(cards)
            except EtcdUnreachableError as error:
                if last is None:
                    raise LiveError(str(error)) from None
                log.warning("%s; trying again", error)
                await asyncio.sleep(retry_s)
                retry_s = min(2 * retry_s, RETRY_S_MAX)

    async def close(self) -> None:
        """Release connections."""
        if self._session is not None:
            await self._session.close()

    async def call(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """One call of the gateway. Raises: EtcdUnreachableError."""
        try:
            async with self._client().post(
                f"{self.url}/v3/{path}",
                json=body,
                timeout=aiohttp.ClientTimeout(total=max(2.0, self.lease_s / 2)),
            ) as response:
                answer = await response.json(content_type=None)
                if response.status != 200:
                    raise EtcdUnreachableError(f"etcd at {self.shown_url}: {_reason(answer)}")
        except (aiohttp.ClientError, TimeoutError, json.JSONDecodeError) as error:
            raise EtcdUnreachableError(
                f"etcd at {self.shown_url} cannot be reached: {str(error) or 'no answer'}"
            ) from None
        if not isinstance(answer, dict):
            raise EtcdUnreachableError(f"{self.shown_url} does not answer like etcd's HTTP gateway")
        return answer

    async def _looks(self) -> AsyncIterator[dict[int, LiveCard]]:
        """The cards now, and again whenever etcd says that something has changed."""
        cards, revision = await self._read()
        yield cards
        async for _ in self._doorbell(revision + 1):
            cards, _ = await self._read()
            yield cards

    async def _doorbell(self, revision: int) -> AsyncIterator[None]:
        """Rings on changes since a revision, and when long silent, as a cut line would be."""
        wish = {"create_request": {**_prefix_range(), "start_revision": str(revision)}}
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=self.lease_s)
        try:
            async with asyncio.timeout(max(2.0, self.lease_s)):  # etcd says at once that it watches
                response = await self._client().post(
                    f"{self.url}/v3/watch", json=wish, timeout=timeout
                )
            async with response:
                while await self._rings(response.content):
                    yield
                raise EtcdUnreachableError(f"etcd at {self.shown_url} has ended the watch")
        except (aiohttp.ClientError, TimeoutError) as error:
            reason = str(error) or "no answer"
            raise EtcdUnreachableError(f"etcd at {self.shown_url} is lost: {reason}") from None

    async def _rings(self, stream: aiohttp.StreamReader) -> bool:
        """Wait for anything to be heard, or for long silence; false at the end of the stream."""
        try:
            # not `wait_for`, which may lose a cancellation that comes together with data
            async with asyncio.timeout(self.lease_s):
                return bool(await stream.readany())
        except TimeoutError:
            return True

    async def _read(self) -> tuple[dict[int, LiveCard], int]:
        """All cards, and the revision of the store that has them."""
        answer = await self.call("kv/range", _prefix_range())
        cards: dict[int, LiveCard] = {}
        for pair in answer.get("kvs", []):
            card = self._decode(pair)
            if card is not None:
                cards[card.worker_id] = card
        return cards, int(answer["header"]["revision"])

    def _decode(self, pair: dict[str, str]) -> LiveCard | None:
        key = base64.b64decode(pair["key"]).decode(errors="replace")
        try:
            card = msgspec.json.decode(base64.b64decode(pair.get("value", "")), type=LiveCard)
            if key != key_of(card):
                raise ValueError(f"it holds the card of worker id {card.worker_id}")
        except (msgspec.DecodeError, ValueError) as error:
            if key not in self._reported:
                self._reported.add(key)
                log.warning("etcd key %s is no worker's card, passed over: %s", key, error)
            return None
        return card

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession()
        return self._session


class EtcdRegistration:
    """A card in etcd, whose lease is renewed by a task until `close`."""

    def __init__(self, discovery: EtcdDiscovery, card: LiveCard) -> None:
        self._etcd = discovery
        self._card = card
        self._key = _base64(key_of(card))
        self._lease_id: str | None = None
        self._heartbeat: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Keep the lease alive from now on."""
        self._heartbeat = asyncio.create_task(self._keep_alive())

    async def create(self) -> bool:
        """Publish the card under a new lease if no other has its id.

        Raises: EtcdUnreachableError.
        """
        granted = await self._etcd.call("lease/grant", {"TTL": self._etcd.lease_s})
        self._lease_id = granted["ID"]
        if await self._put({"target": "CREATE", "create_revision": "0"}):
            return True
        await self._revoke()
        return False

    async def update(self, card: LiveCard) -> None:
        """Publish a changed card. Raises: LiveError if its lease is lost, or etcd is."""
        if card.worker_id != self._card.worker_id:
            raise ValueError(f"card of worker {card.worker_id}, not {self._card.worker_id}")
        self._card = card
        try:
            is_ours = await self._put({"target": "LEASE", "lease": self._lease_id})
        except EtcdUnreachableError as error:
            raise LiveError(f"worker {card.name}: {error}") from None
        if not is_ours:
            raise LiveError(f"worker {card.name}: its lease in {self._etcd.shown_url} has run out")

    async def close(self) -> None:
        """Take the card away at once."""
        if self._heartbeat is not None:
            self._heartbeat.cancel()
            await asyncio.gather(self._heartbeat, return_exceptions=True)
        await self._revoke()

    async def _revoke(self) -> None:
        """Give the lease back, and the key with it; if etcd is away, it runs out."""
        if self._lease_id is not None:
            with contextlib.suppress(EtcdUnreachableError):
                await self._etcd.call("lease/revoke", {"ID": self._lease_id})

    async def _put(self, condition: dict[str, Any]) -> bool:
        value = _base64(msgspec.json.encode(self._card).decode())
        put = {"key": self._key, "value": value, "lease": self._lease_id}
        answer = await self._etcd.call(
            "kv/txn",
            {
                "compare": [{"key": self._key, "result": "EQUAL", **condition}],
                "success": [{"request_put": put}],
            },
        )
        return bool(answer.get("succeeded", False))

    async def _keep_alive(self) -> None:
        what = f"worker {self._card.name} cannot renew its lease"
        renewing = Outage(log, what, (EtcdUnreachableError,))
        while True:
            await asyncio.sleep(self._etcd.lease_s / 3)
            try:
                if not await self._renew():
                    log.error("worker %s: another worker has taken its id", self._card.name)
                    return
                renewing.worked()
            except Exception as error:  # whatever it is, the next time it may be over
                renewing.failed(error)

    async def _renew(self) -> bool:
        """Renew the lease, or publish under a new one if it has run out."""
        answer = await self._etcd.call("lease/keepalive", {"ID": self._lease_id})
        if int(answer.get("result", {}).get("TTL", 0)) > 0:
            return True
        return await self.create()


def key_of(card: LiveCard) -> str:
    """The etcd key of a worker's card."""
    return f"{PREFIX}{card.worker_id}"


def _prefix_range() -> dict[str, str]:
    end = PREFIX[:-1] + chr(ord(PREFIX[-1]) + 1)
    return {"key": _base64(PREFIX), "range_end": _base64(end)}


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _reason(answer: Any) -> str:
    if isinstance(answer, dict):
        return str(answer.get("message") or answer.get("error") or answer)
    return str(answer)
