"""Speculative prefills: sent behind answers, so that next turns find their prompts cached.

They go the way of all requests. No client waits for them, so nothing that happens to one is told to
anybody but the metrics.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Literal

from dynosim_runtime.dialects.call import Prompt
from dynosim_runtime.dialects.generate_requests import encode_prompt
from dynosim_runtime.dialects.next_turn import speculative_request
from dynosim_runtime.errors import ApiError
from dynosim_runtime.http.registry import ServedModel
from dynosim_runtime.requests import Dispatcher, GenerateRequest, RequestRecord

MAX_UNDER_WAY = 64  # of a frontend; what would come on top is left out

AheadOutcome = Literal["completed", "failed", "skipped", "cancelled"]
Told = Callable[[AheadOutcome, RequestRecord | None], None]

log = logging.getLogger(__name__)


class SpeculativePrefills:
    """Those of one frontend. `told` gets how each ended, and the record of one that was served.

    One is skipped if too many are under way, or if no next turn can follow for lack of room.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        told: Told = lambda outcome, record: None,
        *,
        max_under_way: int = MAX_UNDER_WAY,
    ) -> None:
        self._dispatcher = dispatcher
        self._told = told
        self._max_under_way = max_under_way
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_closed = False

    @property
    def num_under_way(self) -> int:
        """Those that have not ended."""
        return len(self._tasks)

    def send(
        self, request: GenerateRequest, next_prompt: Callable[[], Prompt], model: ServedModel
    ) -> None:
        """Have the prompt of the turn behind `request` computed; returns at once."""
        if self._is_closed or len(self._tasks) >= self._max_under_way:
            self._told("skipped", None)
            return
        task = asyncio.create_task(self._serve(request, next_prompt, model))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """End what is under way, in the engines too, and take no more."""
        self._is_closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(
        self, request: GenerateRequest, next_prompt: Callable[[], Prompt], model: ServedModel
    ) -> None:
        outcome: AheadOutcome = "failed"
        record: RequestRecord | None = None
        try:
            token_ids = await asyncio.to_thread(
                lambda: encode_prompt(next_prompt(), model.tokenizer, "answer")
            )
            if len(token_ids) >= model.max_model_len:
                outcome = "skipped"
                return
            record = await self._run(speculative_request(request, token_ids))
            outcome = "completed"
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        except ApiError as error:
            log.debug("speculative prefill behind %s: %s", request.request_id, error)
        except Exception:
            log.exception("a speculative prefill behind %s failed", request.request_id)
        finally:
            self._told(outcome, record)

    async def _run(self, request: GenerateRequest) -> RequestRecord:
        stream = await self._dispatcher.start(request)
        try:
            async for _ in stream:
                pass
        finally:
            await stream.aclose()
        return stream.record
