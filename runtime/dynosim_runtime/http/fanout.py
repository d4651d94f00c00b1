"""The streams of one HTTP request, read side by side into one inbox.

Whatever wakes a request's handler goes through that inbox: tokens, ends, failures, the client's
hanging up, the clock. So a handler waits in one place only, and tokens that came while it was busy
are taken together.
"""

import asyncio
import logging
from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple

from starlette.types import Receive

from dynosim_runtime.dialects.errors import internal_error
from dynosim_runtime.errors import ApiError
from dynosim_runtime.requests import Dispatcher, GenerateRequest, TokenDelta, TokenStream

log = logging.getLogger(__name__)


class Signal(Enum):
    """News that belong to no choice."""

    TICK = "the clock"
    CLIENT_GONE = "the client hung up"


class ChoiceNews(NamedTuple):
    """News of one choice: tokens, a failure, or (None) its end."""

    choice: int
    what: TokenDelta | ApiError | None


News = ChoiceNews | Signal


class Inbox:
    """A queue for one reader, who takes all there is."""

    __slots__ = ("_news", "_waiter")

    def __init__(self) -> None:
        self._news: list[News] = []
        self._waiter: asyncio.Future[None] | None = None

    def put(self, news: News) -> None:
        """Never waits; what an answer may hold is bounded by its tokens."""
        self._news.append(news)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def take(self) -> list[News]:
        """All news since the last time; waits for some."""
        if not self._news:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        news, self._news = self._news, []
        return news


class Fanout:
    """Starts one stream per request; `close` ends all that are under way."""

    def __init__(self, dispatcher: Dispatcher, requests: Sequence[GenerateRequest]) -> None:
        self.inbox = Inbox()
        self.streams: list[TokenStream | None] = [None] * len(requests)
        self._dispatcher = dispatcher
        self._tasks = [
            asyncio.create_task(self._read(index, request))
            for index, request in enumerate(requests)
        ]

    async def ended(self) -> None:
        """Returns when all of them have ended by themselves."""
        pending = [task for task in self._tasks if not task.done()]
        if pending:
            await asyncio.wait(pending)

    async def close_choice(self, index: int) -> None:
        """End one stream, whatever it is doing; a failure of that is logged."""
        task = self._tasks[index]
        if not task.done():
            task.cancel()
            await asyncio.wait((task,))
        stream = self.streams[index]
        if stream is not None:
            try:
                await stream.aclose()
            except Exception:
                log.exception("a stream could not be closed")

    async def close(self) -> None:
        """End all of them."""
        for index in range(len(self._tasks)):
            await self.close_choice(index)

    async def _read(self, index: int, request: GenerateRequest) -> None:
        put = self.inbox.put
        try:
            stream = await self._dispatcher.start(request)
            self.streams[index] = stream
            async for delta in stream:
                put(ChoiceNews(index, delta))
            put(ChoiceNews(index, None))
        except ApiError as error:
            put(ChoiceNews(index, error))
        except Exception:
            log.exception("request %s failed", request.request_id)
            put(ChoiceNews(index, internal_error()))


async def watch_client(receive: Receive, inbox: Inbox) -> None:
    """Tell when the client hangs up. To be cancelled when its answer is complete."""
    while (await receive())["type"] != "http.disconnect":
        pass
    inbox.put(Signal.CLIENT_GONE)
