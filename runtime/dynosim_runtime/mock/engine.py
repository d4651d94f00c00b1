"""The engine core with requests that have tokens, step by step, in its own time.

The clockwork knows no real clock: its driver asks when the oldest step under way ends, waits for
that time, real or simulated, and collects what the step produced. Step times and decisions are
those of the twin, so its token times are the twin's for the same arrivals. With asynchronous
scheduling two steps may be under way, as in vLLM.
"""

from collections import deque
from collections.abc import Sequence
from typing import Literal, Protocol

import msgspec
import numpy as np

from dynosim.engine.plan import StepPlan
from dynosim.engine.sequence import DECODING
from dynosim.engine.sequence import Sequence as EngineSequence
from dynosim.engine.spec import EngineSpec
from dynosim.engine.vllm import VllmScheduler
from dynosim.indexer.wire import EngineEvent
from dynosim.timing.model import StepTimeModel
from dynosim_runtime.mock.blocks import BlockLedger, OneBlockExtents
from dynosim_runtime.mock.stats import MockStats
from dynosim_runtime.mock.tokens import TokenSource, tokens_until_stop

NEVER = float("inf")
_MAX_UNDER_WAY = 2  # steps, with asynchronous scheduling


class MockCall(msgspec.Struct, frozen=True, kw_only=True):
    """What a client asks for."""

    request_id: str
    prompt_ids: list[int]
    max_tokens: int
    min_tokens: int = 0
    stop_token_ids: tuple[int, ...] = ()
    priority: int = 0  # lower is served earlier
    cache_salt: str = ""


class Receiver(Protocol):
    """Who gets the tokens of a request."""

    async def push(self, request: "MockRequest") -> None:
        """There is a new token, `request.output[request.num_delivered - 1]`. Must not wait."""
        ...

    def end(self) -> None:
        """The last token has been pushed."""
        ...


class MockRequest:
    """A call under way. All its output is known from the start; `num_delivered` of it is out."""

    __slots__ = (
        "arrival_ms",
        "blocks",
        "finish_reason",
        "is_over",
        "last_token_ms",
        "num_delivered",
        "num_prompt",
        "output",
        "receiver",
        "sequence",
        "stop_reason",
    )

    def __init__(
        self,
        sequence: EngineSequence,
        output: list[int],
        *,
        blocks: list[int],
        stop_reason: int | None,
        receiver: Receiver,
    ) -> None:
        self.sequence = sequence
        self.num_prompt = sequence.prompt_tokens
        self.output = output
        self.blocks = blocks  # names of all full blocks, of prompt and output
        self.stop_reason = stop_reason  # the token id that stops it
        self.finish_reason: Literal["stop", "length"] = "length" if stop_reason is None else "stop"
        self.receiver = receiver  # the driver's business
        self.arrival_ms = sequence.arrival_ms
        self.last_token_ms = NEVER
        self.num_delivered = 0
        self.is_over = False  # finished or aborted

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens found in the cache when it was admitted first."""
        return max(self.sequence.cached_tokens, 0)


class StepOutcome:
    """What a step has produced: one token for each of `emitted`, the last one for `finished`."""

    __slots__ = ("emitted", "end_ms", "events", "finished")

    def __init__(
        self, end_ms: float, emitted: list[MockRequest], events: list[EngineEvent]
    ) -> None:
        self.end_ms = end_ms
        self.emitted = emitted
        self.finished: list[MockRequest] = []
        self.events = events


class _Step:
    """A planned step under way."""

    __slots__ = ("emitting", "end_ms", "plan")

    def __init__(self, plan: StepPlan, end_ms: float, emitting: list[EngineSequence]) -> None:
        self.plan = plan
        self.end_ms = end_ms
        self.emitting = emitting


class MockEngine:
    """Requests in, tokens and KV events out, in the time that the step-time model says.

    Times in ms from any origin; neither arrivals nor planning times may decrease from call to call,
    but a driver that lags behind may submit calls before it plans steps that are due earlier.
    """

    def __init__(
        self, spec: EngineSpec, timing: StepTimeModel, tokens: TokenSource, stats: MockStats
    ) -> None:
        self.spec = spec
        self.stats = stats
        self.has_events = spec.enable_prefix_caching
        self.scheduler = VllmScheduler(spec, OneBlockExtents(), publish_events=self.has_events)
        self.ledger = BlockLedger(spec.block_size)
        self._timing = timing
        self._tokens = tokens
        self._max_under_way = _MAX_UNDER_WAY if spec.async_scheduling else 1
        self._under_way: deque[_Step] = deque()
        self._device_free_ms = 0.0
        self._untold: list[EngineEvent] = []
        self._arriving: deque[MockRequest] = deque()  # not yet with the scheduler
        self._requests: dict[int, MockRequest] = {}  # by the sequence's index
        self._num_submitted = 0

    def __len__(self) -> int:
        return len(self._requests)

    @property
    def requests(self) -> list[MockRequest]:
        """Everyone in hand."""
        return list(self._requests.values())

    @property
    def num_waiting(self) -> int:
        """Requests without a seat."""
        return self.scheduler.num_waiting + len(self._arriving)

    @property
    def next_arrival_ms(self) -> float:
        """When the first request arrives that no step could be planned with yet; or infinity."""
        return self._arriving[0].arrival_ms if self._arriving else NEVER

    def submit(self, call: MockCall, receiver: Receiver, arrival_ms: float) -> MockRequest:
        """Take a call, in order of arrival; steps planned from `arrival_ms` on may serve it.

        Its prompt must be shorter than the model length and not empty.
        """
        prompt = call.prompt_ids
        output, stop_reason = self._output(call)
        blocks: list[int] = []
        if self.spec.enable_prefix_caching:
            blocks = self.ledger.open(np.array(prompt + output, np.int64), call.cache_salt)
        sequence = EngineSequence(
            self._num_submitted,
            len(prompt),
            len(output),
            blocks,
            len(blocks),
            arrival_ms,
            call.priority,
            call.request_id,
        )
        request = MockRequest(
            sequence, output, blocks=blocks, stop_reason=stop_reason, receiver=receiver
        )
        self._requests[sequence.index] = request
        self._num_submitted += 1
        self._arriving.append(request)
        return request

    def abort(self, request: MockRequest) -> None:
        """Drop a request; nothing happens if it is over."""
        if request.is_over:
            return
        if request in self._arriving:
            self._arriving.remove(request)
        else:
            self.scheduler.abort(request.sequence)
        self.stats.num_aborted += 1
        self._end(request)

    def next_end_ms(self, now_ms: float) -> float:
        """Plan all steps that can be planned at `now_ms`; returns when the oldest one ends.

        Infinity if there is nothing to do before the next request arrives.
        """
        scheduler, under_way = self.scheduler, self._under_way
        while self._arriving and self._arriving[0].arrival_ms <= now_ms:
            scheduler.add(self._arriving.popleft().sequence)
        while len(under_way) < self._max_under_way and scheduler.has_work:
            plan = scheduler.plan_step()
            self._collect_events()
            if not plan.is_empty:
                self._launch(plan, now_ms)
            elif under_way or not plan.preempted:
                break  # the head of the queue waits for what a step under way will free
        return under_way[0].end_ms if under_way else NEVER

    def complete(self) -> StepOutcome:
        """End the oldest step under way."""
        step = self._under_way.popleft()
        requests = self._requests
        emitted = [
            requests[sequence.index] for sequence in step.emitting if sequence.index in requests
        ]
        finished = self.scheduler.finish_step(step.plan)
        self._collect_events()
        outcome = StepOutcome(step.end_ms, emitted, self._untold)
        self._untold = []
        for request in emitted:
            request.num_delivered += 1
        self.stats.note_tokens(emitted, step.end_ms)
        for sequence in finished:
            request = requests[sequence.index]
            outcome.finished.append(request)
            self.stats.note_finished(request, step.end_ms)
            self._end(request)
        return outcome

    def _output(self, call: MockCall) -> tuple[list[int], int | None]:
        """All tokens that the call will get, and the one that stops it."""
        prompt = call.prompt_ids
        num_tokens = min(call.max_tokens, self.spec.max_model_len - len(prompt))
        output = self._tokens.continuation(prompt[-1], len(prompt), num_tokens)
        if call.stop_token_ids:
            count = tokens_until_stop(output, set(call.stop_token_ids), call.min_tokens)
            if count is not None:
                return output[:count], output[count - 1]
        return output, None

    def _launch(self, plan: StepPlan, now_ms: float) -> None:
        """Let a plan take its time, from when the device is free."""
        start_ms = max(now_ms, self._device_free_ms)
        step_ms = self._timing.step_ms(plan)
        end_ms = self._device_free_ms = start_ms + step_ms
        self.stats.note_admitted(plan.admitted)
        self._under_way.append(_Step(plan, end_ms, self._emitting(plan)))

    def _emitting(self, plan: StepPlan) -> list[EngineSequence]:
        """Who gets a token from a step that has just been planned."""
        if self.spec.async_scheduling:
            return plan.emitting
        running: Sequence[EngineSequence] = list(self.scheduler.running)
        return [s for s in running if s.state == DECODING and s not in plan.deferred]

    def _collect_events(self) -> None:
        """Put the core's new events into words, while the tokens of their blocks are in hand."""
        events = self.scheduler.pool.events
        if events:
            self._untold += self.ledger.engine_events(events)
            events.clear()

    def _end(self, request: MockRequest) -> None:
        request.is_over = True
        del self._requests[request.sequence.index]
        self.ledger.close(request.blocks)
