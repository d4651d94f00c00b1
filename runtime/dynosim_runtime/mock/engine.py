"""The twin's engine with requests that have tokens, step by step, in its own time.

It knows no real clock: its driver asks when the oldest step in flight ends, waits for that time,
real or simulated, and collects what the step produced. The engine being the twin's, its token times
are the twin's for the same arrivals.
"""

from collections import deque
from collections.abc import Sequence
from typing import Literal, Protocol

import msgspec
import numpy as np

from dynosim.blocks.retention import block_claims
from dynosim.engine.cores import CORES
from dynosim.engine.engine import Engine
from dynosim.engine.instant import ArrivalTimes, instant_end
from dynosim.engine.lanes import CopyLanes, LaneSpec
from dynosim.engine.pace import NEVER
from dynosim.engine.plan import StepPlan
from dynosim.engine.recorder import Recorder
from dynosim.engine.sequence import Sequence as EngineSequence
from dynosim.engine.spec import EngineSpec
from dynosim.indexer.wire import EngineEvent
from dynosim.memory.network import Transfer
from dynosim.records import Retention
from dynosim.timing.model import StepTimeModel
from dynosim_runtime.mock.blocks import BlockLedger
from dynosim_runtime.mock.links import IngressLinks
from dynosim_runtime.mock.report import MockReport, StepMemory, mock_report
from dynosim_runtime.mock.stats import MockStats
from dynosim_runtime.mock.tokens import TokenSource, tokens_until_stop


class MockCall(msgspec.Struct, frozen=True, kw_only=True):
    """What a client asks for."""

    request_id: str
    prompt_ids: list[int]
    max_tokens: int
    min_tokens: int = 0
    stop_token_ids: tuple[int, ...] = ()
    priority: int = 0  # lower is served earlier
    cache_salt: str = ""
    pin_ttl_ms: float | None = None  # in engine time
    is_sent: bool = False  # its KV is held after its end, see `MockEngine.sent`
    remote_tokens: int = 0  # of its prompt, those whose KV is elsewhere
    source: str = ""  # where
    remote_compute_ms: float = 0.0  # for how long they were computed there


class Receiver(Protocol):
    """Who gets the tokens of a request."""

    async def push(self, request: "MockRequest") -> None:
        """There is a new token, `request.output[request.num_delivered - 1]`. Must not wait."""
        ...

    def end(self) -> None:
        """The last token has been pushed, or there will be none: see `MockRequest.has_failed`."""
        ...


class MockRequest:
    """A call under way. All its output is known from the start; `num_delivered` of it is out."""

    __slots__ = (
        "arrival_ms",
        "blocks",
        "call",
        "finish_reason",
        "has_failed",
        "is_loaded",
        "is_over",
        "last_token_ms",
        "num_delivered",
        "num_prompt",
        "output",
        "receiver",
        "sequence",
        "stop_reason",
        "transfer_ms",
    )

    def __init__(
        self,
        sequence: EngineSequence,
        output: list[int],
        *,
        blocks: list[int],
        stop_reason: int | None,
        receiver: Receiver,
        call: MockCall,
    ) -> None:
        self.call = call
        self.transfer_ms: float | None = None  # in which its KV came, in engine time
        self.is_loaded = False  # nothing more is read of its KV elsewhere
        self.has_failed = False  # for want of it
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
        """Prompt tokens found in the cache, or in a slower tier, when it was admitted first."""
        found = max(self.sequence.cached_tokens, 0)
        return found if self.call.remote_tokens else found + self.sequence.external_tokens


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


class _LastStep(Recorder):
    """The `Recorder` of a mock engine: keeps who got a token in the step that was delivered last.

    Every token is handed out as its step ends, so the engine makes no runs.
    """

    def __init__(self, stats: MockStats, steps: StepMemory) -> None:
        self.emitting: list[EngineSequence] = []
        self._stats = stats
        self._steps = steps

    def admitted(self, sequences: Sequence[EngineSequence], start_ms: float) -> None:
        """Count what was found in the cache."""
        self._stats.note_admitted(sequences)

    def missed(self, plan: StepPlan, last_token_ms: float) -> None:
        """Gaps are measured where tokens are counted."""

    def delivered(self, plan: StepPlan, num_waiting: int) -> None:
        """Keep who got a token, and what that took."""
        self.emitting = plan.emitting
        self._steps.note(plan)

    def delivered_run(
        self, start_ms: float, end_ms: float, num_steps: int, first_context: int, num_waiting: int
    ) -> None:
        """Not possible with single steps."""
        raise AssertionError("a run of steps in real time")

    def ended(self, sequences: Sequence[EngineSequence], end_ms: float) -> None:
        """Whoever completes a step is told."""

    def wants_single_steps(self) -> bool:
        """Always."""
        return True


class MockEngine:
    """Requests in, tokens and KV events out, in the time that the step-time model says.

    Times in ms from any origin; neither arrivals nor planning times may decrease from call to call,
    but a driver that lags behind may submit calls before it plans steps that are due earlier.
    `links` bring the KV of calls whose prompt was computed elsewhere; `lanes` are those to and from
    a host tier of its own.
    """

    def __init__(
        self,
        spec: EngineSpec,
        timing: StepTimeModel,
        tokens: TokenSource,
        stats: MockStats,
        links: IngressLinks | None = None,
        lanes: LaneSpec | None = None,
    ) -> None:
        self.spec = spec
        self.stats = stats
        self.has_events = spec.enable_prefix_caching
        self.core = CORES[spec.kind](
            spec, names_emitting=True, publish_events=self.has_events, retains=self.has_events
        )
        self.ledger = BlockLedger(spec.block_size, _num_kept(spec))
        self._steps = StepMemory(stats.speedup)
        self._last_step = _LastStep(stats, self._steps)
        self._engine = Engine(
            self.core, timing, self._last_step, depth=spec.pipeline_depth, steps_singly=True
        )
        self._lanes = None if lanes is None else CopyLanes(lanes)
        self._engine.lanes = self._lanes
        self._tokens = tokens
        self._unpublished: list[EngineEvent] = []
        self._arriving: deque[MockRequest] = deque()  # not yet with the scheduler
        self._requests: dict[int, MockRequest] = {}  # by the sequence's index
        self._num_submitted = 0
        self._arrivals = ArrivalTimes()
        self._links = links
        self._transfers: dict[Transfer, MockRequest] = {}
        self._by_sequence: dict[int, MockRequest] = {}  # of loads, whose requests may be over

    def __len__(self) -> int:
        return len(self._requests)

    @property
    def requests(self) -> list[MockRequest]:
        """Everyone in hand."""
        return list(self._requests.values())

    @property
    def num_waiting(self) -> int:
        """Requests without a seat."""
        return self.core.num_waiting + len(self._arriving)

    def report(self, query: tuple[int, int], *, is_decode: bool) -> MockReport:
        """What it says of itself, see `mock_report`."""
        return mock_report(
            self.core,
            self._steps,
            num_arriving=len(self._arriving),
            arriving_tokens=sum(request.num_prompt for request in self._arriving),
            usable_blocks=self.spec.usable_blocks,
            is_decode=is_decode,
            query=query,
        )

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
            self._arrivals.next(arrival_ms),
            call.priority,
            call.request_id,
        )
        if call.pin_ttl_ms is not None:
            pin = Retention(pin_ttl_ms=call.pin_ttl_ms)
            ones = [1] * len(blocks)
            sequence.claims = block_claims(pin, ones, self.spec.block_size, len(prompt))
        sequence.is_sent = call.is_sent
        sequence.remote_tokens = min(call.remote_tokens, len(prompt))
        request = MockRequest(
            sequence,
            output,
            blocks=blocks,
            stop_reason=stop_reason,
            receiver=receiver,
            call=call,
        )
        if sequence.remote_tokens:
            self._by_sequence[sequence.index] = request
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
            self._engine.abort(request.sequence)
        self.stats.num_aborted += 1
        self._end(request)

    def next_end_ms(self, now_ms: float) -> float:
        """Plan all steps that can be planned at `now_ms`; returns when the oldest one ends.

        Infinity if there is nothing to do before the next request arrives.
        """
        while self._arriving and self._arriving[0].arrival_ms <= instant_end(now_ms):
            self._engine.add(self._arriving.popleft().sequence, now_ms)
        self._engine.start(now_ms)
        self._collect_events()
        if self._engine.started_loads:
            self._begin_transfers(now_ms)
        return self._engine.next_ms

    # ---- KV from elsewhere and for elsewhere ----------------------------------------------------

    @property
    def next_transfer_ms(self) -> float:
        """When `end_transfers` is to be called; or infinity."""
        next_ms = NEVER if self._links is None else self._links.network.next_ms
        lanes = self._lanes
        if lanes is not None:
            next_ms = min(next_ms, lanes.next_load_ms)
            if self.core.awaits_copies or self._engine.next_ms == NEVER:
                next_ms = min(next_ms, lanes.next_store_ms)
        return next_ms

    @property
    def moving(self) -> list[MockRequest]:
        """Whose KV is on its way."""
        return list(self._transfers.values())

    def end_transfers(self, at_ms: float) -> list[MockRequest]:
        """Take what has come; returns whose it was, of what came from elsewhere."""
        if self._lanes is not None:
            for job in self._lanes.take_loaded(at_ms):
                self._engine.copied(job, at_ms)
            self._engine.hear_stored(at_ms)
            self._collect_events()
        arrived: list[MockRequest] = []
        if self._links is None:
            return arrived
        for transfer in self._links.network.complete(at_ms):
            request = self._transfers.pop(transfer)
            request.transfer_ms = at_ms - (request.transfer_ms or 0.0)
            request.is_loaded = True
            self.stats.note_transfer(request.transfer_ms, transfer.num_bytes)
            sequence = request.sequence
            self._engine.loaded(sequence, at_ms, sequence.reserved_tokens)
            arrived.append(request)
        return arrived

    def fail_transfer(self, request: MockRequest, now_ms: float) -> None:
        """What was on its way is lost: the request fails, or computes it itself."""
        assert self._links is not None
        for transfer, of in self._transfers.items():
            if of is request:
                del self._transfers[transfer]
                self._links.network.cancel(transfer, now_ms)
                self.stats.num_failed_transfers += 1
                request.transfer_ms = None
                request.is_loaded = True
                sequence = request.sequence
                held = sequence.reserved_tokens - sequence.external_tokens
                self._engine.loaded(sequence, now_ms, held)
                return

    def take_failed(self) -> list[MockRequest]:
        """Those that have failed since, for want of KV; they are over."""
        sequences, self._engine.failed = self._engine.failed, []
        failed = [
            self._requests[sequence.index]
            for sequence in sequences
            if sequence.index in self._requests
        ]
        for request in failed:
            request.has_failed = True
            self._end(request)
        return failed

    def sent(self, request: MockRequest, now_ms: float) -> None:
        """The KV held for a request that has ended is wanted no more."""
        self._engine.sent(request.sequence, now_ms)

    def _begin_transfers(self, now_ms: float) -> None:
        started, self._engine.started_loads = self._engine.started_loads, []
        for sequence, start_ms in started:
            request = self._by_sequence.pop(sequence.index)
            assert self._links is not None
            transfer = self._links.begin(
                request.call.source,
                sequence.reserved_tokens,
                sequence.reserved_tokens - sequence.external_tokens,
                compute_ms=request.call.remote_compute_ms,
                start_ms=start_ms,
                now_ms=now_ms,
            )
            request.transfer_ms = start_ms  # becomes its length when it ends
            self._transfers[transfer] = request

    def complete(self) -> StepOutcome:
        """End the oldest step in flight."""
        end_ms = self._engine.next_ms
        finished = self._engine.complete(end_ms)
        self._collect_events()
        requests = self._requests
        emitted = [
            requests[sequence.index]
            for sequence in self._last_step.emitting
            if sequence.index in requests
        ]
        outcome = StepOutcome(end_ms, emitted, self.take_events())
        for request in emitted:
            request.num_delivered += 1
        self.stats.note_tokens(emitted, end_ms)
        for sequence in finished:
            request = requests[sequence.index]
            outcome.finished.append(request)
            self.stats.note_finished(request, end_ms)
            self._end(request)
        return outcome

    def take_events(self) -> list[EngineEvent]:
        """The KV events since the last call or step."""
        events, self._unpublished = self._unpublished, []
        return events

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

    def _collect_events(self) -> None:
        """Put the core's new events into words, while the tokens of their blocks are in hand."""
        events = self.core.take_events()
        if events:
            self._unpublished += self.ledger.engine_events(events)

    def _end(self, request: MockRequest) -> None:
        request.is_over = True
        self._by_sequence.pop(request.sequence.index, None)
        del self._requests[request.sequence.index]
        self.ledger.close(request.blocks)


def _num_kept(spec: EngineSpec) -> int:
    """Blocks of requests that are over, of which a slower tier may yet tell: all it can hold."""
    host = spec.host_cache
    return 0 if host is None else spec.num_gpu_blocks + host.num_chunks * host.blocks_per_chunk
