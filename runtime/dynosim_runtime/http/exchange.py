"""One request's streams, followed to their end: tokens in, texts of its choices out."""

import asyncio
from collections.abc import Sequence

from starlette.types import Receive

from dynosim_runtime.dialects.output import ChoiceDelta, ChoiceOutput
from dynosim_runtime.errors import ApiError
from dynosim_runtime.http.fanout import ChoiceNews, Fanout, Signal, watch_client
from dynosim_runtime.http.limits import ClientGoneError
from dynosim_runtime.requests import Dispatcher, GenerateRequest, TokenDelta


class Exchange:
    """Feeds `outputs` until all choices have ended.

    A context manager: on leaving, whatever is under way is closed, in the engines too.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        requests: Sequence[GenerateRequest],
        outputs: Sequence[ChoiceOutput],
        receive: Receive,
    ) -> None:
        self.outputs = outputs
        self._fanout = Fanout(dispatcher, requests)
        self._inbox = self._fanout.inbox
        self._open = set(range(len(outputs)))
        self._failure: ApiError | None = None  # raised when what came before has been given
        self._watcher = asyncio.create_task(watch_client(receive, self._inbox))

    async def __aenter__(self) -> "Exchange":
        return self

    async def __aexit__(self, *_: object) -> None:
        self._watcher.cancel()
        await self._fanout.close()

    @property
    def is_over(self) -> bool:
        """All choices have ended."""
        return not self._open

    @property
    def is_placed(self) -> bool:
        """All choices have found a worker."""
        return None not in self._fanout.streams

    async def settle(self) -> None:
        """Returns, soon, when all choices that were stopped have ended in their engines too.

        Only then do their records tell all.
        """
        await self._fanout.ended()

    def tick(self) -> None:
        """Wake the one who waits for changes."""
        self._inbox.put(Signal.TICK)

    async def changes(self) -> list[ChoiceDelta]:
        """What has come since the last time, by choice; waits for something to happen.

        Empty after a `tick` with nothing new. Raises: ApiError (a stream failed; what came
        before has been given), ClientGoneError.
        """
        if self._failure is not None:
            raise self._failure
        changes: dict[int, ChoiceDelta] = {}
        for news in await self._inbox.take():
            if news is Signal.CLIENT_GONE:
                raise ClientGoneError
            if isinstance(news, ChoiceNews) and news.choice in self._open:
                change = changes.get(news.choice)
                if change is None:
                    change = changes[news.choice] = ChoiceDelta(news.choice)
                self._apply(news.what, change)
        if self._failure is not None and not any(map(ChoiceDelta.has_gained, changes.values())):
            raise self._failure
        return list(changes.values())

    def _apply(self, what: TokenDelta | ApiError | None, change: ChoiceDelta) -> None:
        output = self.outputs[change.index]
        if what is None:
            change.text += output.finish()
            self._end(change)
        elif isinstance(what, ApiError):
            self._failure = self._failure or what
        else:
            before, told_before = output.num_tokens, len(output.logprobs)
            change.text += output.feed(what)
            change.token_ids += output.token_ids[before:]
            if what.logprobs is not None:
                change.logprobs += output.logprobs[told_before:]
            if output.stop_text is not None:
                self._stop(change)

    def _stop(self, change: ChoiceDelta) -> None:
        """A stop string was found: for the client the answer is complete, the engine goes on."""
        stream = self._fanout.streams[change.index]
        assert stream is not None, "it has given tokens"
        stream.let_end()
        self._end(change)

    def _end(self, change: ChoiceDelta) -> None:
        stream, output = self._fanout.streams[change.index], self.outputs[change.index]
        assert stream is not None, "it has given tokens"
        if output.finish_reason is None:
            self._failure = ApiError(
                502, "the engine broke off its answer", kind="server_error", code="engine_failed"
            )
            return
        output.record = stream.record
        change.has_ended = True
        self._open.discard(change.index)
