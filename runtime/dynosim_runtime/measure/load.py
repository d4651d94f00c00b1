"""Drives a server with a trace, open or closed loop, and records what happened to each request.

Who arrives when is decided by `LoadDriver`, the same object as in the twin; here its times pass on
a wall clock. Latencies count from the time a request was due, not from when it was sent: a client
that is late must not flatter the server. How late it was is reported.
"""

import asyncio
from array import array
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dynosim.errors import ConfigError
from dynosim.metrics.percentiles import Summary, summarize_sample
from dynosim.records import FloatArray, Trace
from dynosim.workload.load import NEVER, LoadDriver
from dynosim_runtime.measure.client import CompletionsClient, LoadClock, TimedAnswer
from dynosim_runtime.measure.prompts import PromptMaker
from dynosim_runtime.requests import RequestRecord

WARM_UP_OUTPUT_TOKENS = 32
PROBE_TOKENS = 8
NEVER_SENT = "not sent before the interruption"

Progress = Callable[[int, int], None]


@dataclass(slots=True)
class LoadRun:
    """A load that has been driven: one record per request of the trace, in its order."""

    records: list[RequestRecord]
    token_ms: "list[array[float]]"  # arrival of every token, by request
    lateness_ms: FloatArray  # (n,) sent after it was due; NaN: never sent
    was_interrupted: bool = False
    cache_hit_rate: float | None = None  # as the engine counts; None: it does not tell

    @property
    def gaps_ms(self) -> FloatArray:
        """All gaps between tokens of completed requests."""
        done = [record.status == "completed" for record in self.records]
        parts = [
            np.diff(np.frombuffer(times, dtype=np.float64))
            for times, is_done in zip(self.token_ms, done, strict=True)
            if is_done and len(times) > 1
        ]
        return np.concatenate(parts) if parts else np.zeros(0)

    def lateness(self) -> Summary:
        """How long after their due times requests were sent, in ms."""
        return summarize_sample(self.lateness_ms)


@dataclass(slots=True)
class _Load:
    """The state of a load under way."""

    trace: Trace
    client: CompletionsClient
    prompts: PromptMaker
    clock: LoadClock
    driver: LoadDriver
    progress: Progress | None
    run: LoadRun
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    num_ended: int = 0
    failure: BaseException | None = None  # our own mistake: requests' troubles are in their records

    def forget(self, task: asyncio.Task[None]) -> None:
        """Take note that the task of a request has ended."""
        self.tasks.discard(task)
        if not task.cancelled():
            self.failure = self.failure or task.exception()
        self.changed.set()


async def warm_up(
    client: CompletionsClient,
    prompts: PromptMaker,
    trace: Trace,
    num_requests: int,
    *,
    concurrency: int | None = None,
) -> None:
    """Send requests as long as the trace's, with tokens of their own, and wait for them.

    All at once, but in a closed loop no more than are ever in flight there: over a slow link a
    crowd would run into the frontend's timeouts, and warm nothing. The first one, of a few tokens,
    tells whether the server can be measured at all.
    Raises: LiveError if it cannot.
    """
    await client.probe(prompts.scratch(0, PROBE_TOKENS))
    rows: list[int] = np.linspace(0, len(trace) - 1, num_requests).astype(int).tolist()
    clock = LoadClock()
    free = asyncio.Semaphore(concurrency or max(num_requests, 1))

    async def send(number: int, row: int) -> None:
        async with free:
            await client.complete(
                prompts.scratch(number + 1, int(trace.input_tokens[row])),
                min(int(trace.output_tokens[row]), WARM_UP_OUTPUT_TOKENS),
                clock,
            )

    await asyncio.gather(*(send(number, row) for number, row in enumerate(rows)))


async def drive(
    trace: Trace,
    client: CompletionsClient,
    prompts: PromptMaker,
    *,
    concurrency: int | None = None,
    speed: float = 1.0,
    progress: Progress | None = None,
) -> LoadRun:
    """Send every request of the trace when it is due; returns when all have ended.

    With `speed`, the load is offered so many times faster and all times are multiplied by it, so
    that records are on the trace's clock. Cancelled, it cancels what is under way and returns what
    there is, marked as interrupted.
    """
    records = [_blank_record(trace, index) for index in range(len(trace))]
    run = LoadRun(records, [array("d") for _ in records], np.full(len(trace), np.nan))
    clock = LoadClock(speed)
    load = _Load(trace, client, prompts, clock, LoadDriver(trace, concurrency), progress, run)
    clock.restart()
    try:
        await _send_all(load)
    except asyncio.CancelledError:
        run.was_interrupted = True
        for task in load.tasks:
            task.cancel()
        await asyncio.gather(*load.tasks, return_exceptions=True)
    return run


async def _send_all(load: _Load) -> None:
    driver, clock = load.driver, load.clock
    while True:
        while driver.next_ms <= clock.now_ms():
            due_ms = driver.next_ms
            task = asyncio.create_task(_serve(load, driver.pop(), due_ms))
            load.tasks.add(task)
            task.add_done_callback(load.forget)
        if load.failure is not None:
            raise load.failure
        if driver.next_ms == NEVER and not load.tasks:
            return
        load.changed.clear()
        wait_s = None
        if driver.next_ms < NEVER:
            wait_s = max(0.0, clock.wall_s(driver.next_ms - clock.now_ms()))
        # Not wait_for: in Python 3.11 it loses a cancellation that comes as its wait ends.
        with suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await load.changed.wait()


async def _serve(load: _Load, index: int, due_ms: float) -> None:
    """Send one request, record its end, and tell the driver."""
    trace, run = load.trace, load.run
    record = run.records[index]
    record.arrival_ms = due_ms
    record.error = None
    try:
        answer = await load.client.complete(
            load.prompts.prompt(trace, index),
            int(trace.output_tokens[index]),
            load.clock,
            request_id=record.request_id,
            priority=0 if trace.priority is None else int(trace.priority[index]),
            wishes=None if trace.wishes is None else trace.wishes[index],
            expected_output_tokens=_expected(trace, index),
            pin_ttl_ms=_pin_ttl_ms(trace, index),
        )
    except asyncio.CancelledError:
        record.status, record.error = "cancelled", "cancelled when the load was interrupted"
        return
    run.token_ms[index] = answer.token_ms
    run.lateness_ms[index] = answer.sent_ms - due_ms
    fill_record(record, answer, speed=load.clock.speed)
    load.driver.on_end(index, load.clock.now_ms())
    load.num_ended += 1
    if load.progress is not None:
        load.progress(load.num_ended, len(trace))


def check_sendable(trace: Trace, *, can_pin: bool = True) -> None:
    """Refuse a trace that says what no server can be told; `can_pin`: by who sends the load.

    Raises: ConfigError naming the first such request.
    """
    if trace.is_prefetch is not None:
        row = int(np.flatnonzero(trace.is_prefetch)[0])
        raise ConfigError(
            f"{trace.source or 'workload'}: request {row} is a prefetch: no server can be told to "
            "load KV before the request for it has come (leave out "
            "workload.agents.prefetch_lead_ms, or the rows with prefetch)"
        )
    if trace.is_speculative is not None:
        row = int(np.flatnonzero(trace.is_speculative)[0])
        raise ConfigError(
            f"{trace.source or 'workload'}: request {row} is a speculative prefill: a frontend "
            "makes those itself, of the answers it has given, and not of a trace's prompts (leave "
            "out workload.agents.speculative_prefill, or the rows with speculative_prefill)"
        )
    for row, said in enumerate(trace.retention or ()):
        if said is not None and (said.ranges or said.is_ephemeral or said.pin_ends_with_session):
            raise ConfigError(
                f"{trace.source or 'workload'}: request {row} says what blocks are worth: a live "
                "server can be asked to keep a prompt (pin_ttl_ms), not for priorities of parts, "
                "ephemeral blocks or pins that end with a session (leave out workload.retention, "
                "or the rows' retention, ephemeral and pin_ends_with_session)"
            )
        if said is not None and not can_pin:
            raise ConfigError(
                f"{trace.source or 'workload'}: request {row} pins its prompt, which AIPerf does "
                "not send (leave out pin_ttl_ms, or --aiperf)"
            )


def _pin_ttl_ms(trace: Trace, index: int) -> float | None:
    said = None if trace.retention is None else trace.retention[index]
    return None if said is None else said.pin_ttl_ms


def _expected(trace: Trace, index: int) -> int | None:
    """How long a client expects the answer to be; None: it does not say."""
    expected = trace.expected_output_tokens
    return None if expected is None else int(expected[index]) or None


def _blank_record(trace: Trace, index: int) -> RequestRecord:
    return RequestRecord(
        request_id=str(index) if trace.request_ids is None else trace.request_ids[index],
        session_id=None if trace.session_ids is None else trace.session_ids[index],
        arrival_ms=float("nan"),
        input_tokens=int(trace.input_tokens[index]),
        error=NEVER_SENT,
    )


def fill_record(record: RequestRecord, answer: TimedAnswer, *, speed: float = 1.0) -> None:
    """Write what the answer tells into its request's record.

    The frontend's times are real ones, multiplied by `speed`. Its prefill time is kept; the wait is
    the rest of the time to the first token as the client saw it, so that both add up to it.
    """
    record.dispatch_ms = answer.sent_ms
    record.output_tokens = len(answer.token_ms)
    record.cached_tokens = answer.cached_tokens
    record.error = answer.error
    record.status = _status(answer)
    if answer.token_ms:
        record.first_token_ms = answer.token_ms[0]
    if record.status == "completed":
        record.finish_ms = answer.token_ms[-1]
        if answer.output_tokens is not None:
            record.output_tokens = answer.output_tokens
    workers = _section(answer, "worker_id")
    for name in ("prefill_worker_id", "decode_worker_id", "prefill_dp_rank", "decode_dp_rank"):
        setattr(record, name, workers.get(name))
    timing = _section(answer, "timing")
    record.kv_hit_rate = timing.get("kv_hit_rate")
    prefill_ms = timing.get("prefill_time_ms")
    if prefill_ms is not None and record.ttft_ms is not None:
        record.prefill_time_ms = min(prefill_ms * speed, record.ttft_ms)
        record.prefill_wait_time_ms = record.ttft_ms - record.prefill_time_ms


def _section(answer: TimedAnswer, name: str) -> dict[str, Any]:
    value = answer.extension.get(name)
    return value if isinstance(value, dict) else {}


def _status(answer: TimedAnswer) -> str:
    if answer.error is None:
        return "completed"
    refused = answer.http_status in (400, 413, 422) and not answer.token_ms
    return "rejected" if refused else "failed"
