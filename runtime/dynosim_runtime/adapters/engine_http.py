"""An engine's HTTP server, for what is not a request: health, capacity, load."""

import aiohttp

from dynosim_runtime.hosts import without_credentials

CALL_TIMEOUT_S = 5.0


class EngineCallError(Exception):
    """An engine's server did not answer, or not with what was asked for."""


class EngineHttp:
    """An engine's HTTP server, for what is not a request."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.shown_url = without_credentials(url)
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=CALL_TIMEOUT_S), trust_env=False
        )

    async def get_text(self, path: str) -> str:
        """The body of a 200 answer. Raises: EngineCallError."""
        return await self._text("GET", path)

    async def post_text(self, path: str) -> str:
        """The body of a 200 answer to an empty POST. Raises: EngineCallError."""
        return await self._text("POST", path)

    async def _text(self, method: str, path: str) -> str:
        try:
            async with self._session.request(method, self.url + path) as response:
                text = await response.text()
        except (aiohttp.ClientError, TimeoutError, UnicodeDecodeError) as error:
            raise EngineCallError(
                f"{self.shown_url}{path}: {error or type(error).__name__}"
            ) from None
        if response.status != 200:
            raise EngineCallError(f"{self.shown_url}{path} answers {response.status}")
        return text

    async def is_healthy(self) -> bool:
        """Whether its /health says so."""
        try:
            await self.get_text("/health")
        except EngineCallError:
            return False
        return True

    async def close(self) -> None:
        """Release connections."""
        await self._session.close()
