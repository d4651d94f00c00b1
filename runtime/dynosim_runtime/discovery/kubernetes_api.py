"""The few calls of the Kubernetes API that discovery needs."""

import json
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp

CALL_TIMEOUT_S = 10.0
WATCH_TIMEOUT_S = 300  # the API server ends a watch after so long; then it is asked anew
SILENCE_TIMEOUT_S = WATCH_TIMEOUT_S + 30


class KubernetesError(Exception):
    """The API server refused, or cannot be reached (`status` 0)."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class ApiServer:
    """A cluster's API server, with the token of a service account."""

    def __init__(self, url: str, *, token_file: Path | None, ca_file: Path | None) -> None:
        self._url = url.rstrip("/")
        self._token_file = token_file
        self._ssl = ssl.create_default_context(cafile=str(ca_file)) if ca_file else True
        self._session: aiohttp.ClientSession | None = None

    async def call(
        self, method: str, path: str, body: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """The answer to one call. Raises: KubernetesError."""
        timeout = aiohttp.ClientTimeout(total=CALL_TIMEOUT_S)
        try:
            async with self._client().request(
                method,
                self._url + path,
                json=body,
                headers=self._headers(),
                ssl=self._ssl,
                timeout=timeout,
            ) as response:
                answer: dict[str, Any] = await response.json(content_type=None)
        except (aiohttp.ClientError, TimeoutError, json.JSONDecodeError) as error:
            raise self._unreachable(error) from None
        if response.status >= 400:
            raise self._refused(method, path, answer, response.status)
        return answer

    async def list(self, path: str) -> list[dict[str, Any]]:
        """All objects of a kind. Raises: KubernetesError."""
        items: list[dict[str, Any]] = (await self.call("GET", path)).get("items") or []
        return items

    async def watch(self, path: str, version: str) -> AsyncIterator[dict[str, Any]]:
        """What happens to the objects of a kind after `version`, until the server ends it.

        Raises: KubernetesError.
        """
        wish = {"watch": "true", "resourceVersion": version, "allowWatchBookmarks": "true",
                "timeoutSeconds": str(WATCH_TIMEOUT_S)}  # fmt: skip
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=CALL_TIMEOUT_S, sock_read=SILENCE_TIMEOUT_S
        )
        try:
            async with self._client().get(
                self._url + path,
                params=wish,
                headers=self._headers(),
                ssl=self._ssl,
                timeout=timeout,
            ) as response:
                if response.status >= 400:
                    answer = await response.json(content_type=None)
                    raise self._refused("watch", path, answer, response.status)
                async for line in _lines(response.content):
                    yield json.loads(line)
        except (aiohttp.ClientError, TimeoutError, json.JSONDecodeError) as error:
            raise self._unreachable(error) from None

    async def close(self) -> None:
        """Release connections."""
        if self._session is not None:
            await self._session.close()

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession()
        return self._session

    def _headers(self) -> dict[str, str]:
        if self._token_file is None:
            return {}
        return {"Authorization": f"Bearer {self._token_file.read_text().strip()}"}

    def _unreachable(self, error: Exception) -> KubernetesError:
        reason = str(error) or "no answer"
        return KubernetesError(f"the Kubernetes API at {self._url} cannot be reached: {reason}")

    def _refused(self, method: str, path: str, answer: Any, status: int) -> KubernetesError:
        reason = answer.get("message") if isinstance(answer, dict) else None
        return KubernetesError(f"Kubernetes refused {method} {path}: {reason or status}", status)


class Collection:
    """The objects of one kind by name, as last heard of."""

    def __init__(self, api: ApiServer, path: str) -> None:
        self._api = api
        self.path = path
        self._version = ""
        self.objects: dict[str, dict[str, Any]] = {}

    async def load(self) -> None:
        """Read them all. Raises: KubernetesError."""
        answer = await self._api.call("GET", self.path)
        self.objects = {item["metadata"]["name"]: item for item in answer.get("items") or ()}
        self._version = answer["metadata"]["resourceVersion"]

    async def follow(self) -> AsyncIterator[None]:
        """Yields after each change, until the server ends the watch.

        Raises: KubernetesError, also when the version is too old, so that one must `load` anew.
        """
        async for event in self._api.watch(self.path, self._version):
            item = event["object"]
            if event["type"] == "ERROR":
                raise KubernetesError(str(item.get("message")), int(item.get("code", 0)))
            self._version = item["metadata"]["resourceVersion"]
            if event["type"] == "BOOKMARK":
                continue
            name = item["metadata"]["name"]
            if event["type"] == "DELETED":
                self.objects.pop(name, None)
            else:
                self.objects[name] = item
            yield


async def _lines(stream: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Lines of any length, which the stream's own `readline` would refuse."""
    rest = b""
    async for part in stream.iter_any():
        *lines, rest = (rest + part).split(b"\n")
        for line in lines:
            if line.strip():
                yield line
