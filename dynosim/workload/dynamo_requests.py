"""Dynamo's request traces: what a frontend recorded of every request, with prefix hashes.

Without agent contexts requests are independent and come when they were received. With a context in
every record they are sessions of agents: the requests of a session follow each other by the
recorded gaps. A child session starts from the request of its parent that was the last to start
before it: after its end, or if it was still running, from its start. A tool call of the parent that
lasted as long as all of a child session was the call of that child: the parent's next request
waits for the child's last one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Literal

import msgspec

from dynosim.errors import TraceError
from dynosim.records import Trace
from dynosim.workload.calls import RecordedCall, trace_of_calls
from dynosim.workload.columns import Awaited
from dynosim.workload.recorded_lines import RecordedLines, require_block_size

SCHEMA = "dynamo.request.trace.v1"
_TOOL_ENDS = ("tool_end", "tool_error")


class _Replay(msgspec.Struct, gc=False, frozen=True):
    trace_block_size: int
    input_length: int
    input_sequence_hashes: list[int]


class _Request(msgspec.Struct, gc=False, frozen=True):
    request_id: str
    output_tokens: int | None = None
    request_received_ms: float | None = None
    total_time_ms: float | None = None
    replay: _Replay | None = None


class _Context(msgspec.Struct, gc=False, frozen=True):
    session_id: str
    parent_session_id: str | None = None


class _Tool(msgspec.Struct, gc=False, frozen=True):
    started_at_unix_ms: float | None = None
    ended_at_unix_ms: float | None = None
    duration_ms: float | None = None


class _Record(msgspec.Struct, gc=False, frozen=True):
    """One event; times in ms since 1970. It may be wrapped in another one's `event`."""

    schema: Literal["dynamo.request.trace.v1"] | None = None
    event_type: str | None = None
    event_time_unix_ms: float | None = None
    agent_context: _Context | None = None
    request: _Request | None = None
    tool: _Tool | None = None
    event: "_Record | None" = None


@dataclass(slots=True)
class _Timed:
    """A recorded request: its call, and when it started and ended."""

    call: RecordedCall
    start_ms: float
    end_ms: float
    context: _Context | None


@dataclass(frozen=True, slots=True)
class _Span:
    """A tool call of a session."""

    session: str
    start_ms: float
    end_ms: float


class _Recording:
    """The requests and tool calls of a file, as they are read."""

    def __init__(self, path: Path, block_tokens: int | None, *, skip_bad_lines: bool) -> None:
        self.rows = RecordedLines(path, _Record, skip_bad_lines=skip_bad_lines)
        self.requests: list[_Timed] = []
        self.spans: list[_Span] = []
        self.block_tokens = block_tokens

    def read(self) -> None:
        """Raises: TraceError."""
        for line, row in self.rows:
            record = row.event or row
            if record.schema is None:
                self.rows.refuse(line, "schema", f"missing field: expected {SCHEMA}")
            elif record.event_type == "request_end":
                self._take_request(line, record)
            elif record.event_type in _TOOL_ENDS:
                self._take_tool(record)
        self.rows.finish()

    def _take_request(self, line: int, record: _Record) -> None:
        request, rows = record.request, self.rows
        if request is None or request.replay is None:
            rows.refuse(line, "request.replay", "missing field: without it nothing can be replayed")
            return
        times = _times_ms(record, request)
        if times is None:
            rows.refuse(line, "event_time_unix_ms", "neither this nor request_received_ms is given")
            return
        replay = request.replay
        outputs = request.output_tokens or 0
        if not rows.are_lengths(line, input_length=replay.input_length, output_tokens=outputs):
            return
        size = replay.trace_block_size
        require_block_size(size, self.block_tokens, path=str(rows.path), line=line)
        self.block_tokens = size
        needed, given = -(-replay.input_length // size), len(replay.input_sequence_hashes)
        if given != needed:
            what = f"{replay.input_length} tokens are {needed} blocks of {size}"
            rows.refuse(line, "request.replay.input_sequence_hashes", f"{given} hashes, but {what}")
            return
        call = RecordedCall(
            request.request_id,
            line,
            replay.input_length,
            outputs,
            replay.input_sequence_hashes,
            arrival_ms=times[0],
        )
        self.requests.append(_Timed(call, *times, record.agent_context))

    def _take_tool(self, record: _Record) -> None:
        tool, context = record.tool or _Tool(), record.agent_context
        end_ms = tool.ended_at_unix_ms or record.event_time_unix_ms
        if context is None or end_ms is None:
            return
        start_ms = tool.started_at_unix_ms
        if start_ms is None:
            start_ms = end_ms - (tool.duration_ms or 0.0)
        self.spans.append(_Span(context.session_id, start_ms, end_ms))


def read_dynamo_requests(path: Path, *, block_tokens: int | None, skip_bad_lines: bool) -> Trace:
    """The trace of a recording. Raises: TraceError."""
    recording = _Recording(path, block_tokens, skip_bad_lines=skip_bad_lines)
    recording.read()
    requests = recording.requests
    without = [one for one in requests if one.context is None]
    if without and len(without) < len(requests):
        raise TraceError(
            "has no agent_context, but other requests have one: all of them or none",
            path=str(path),
            line=without[0].call.line,
        )
    if not without:
        _link(requests, recording.spans, path)
    calls = [one.call for one in requests]
    trace = trace_of_calls(
        calls,
        block_tokens=recording.block_tokens or 1,
        path=str(path),
        waits_field="agent_context.parent_session_id",
    )
    return replace(trace, skipped_lines=recording.rows.num_skipped)


def _times_ms(record: _Record, request: _Request) -> tuple[float, float] | None:
    """When a request came and when it ended; None if neither is recorded."""
    start_ms, end_ms, took_ms = (
        request.request_received_ms,
        record.event_time_unix_ms,
        request.total_time_ms or 0.0,
    )
    if start_ms is None:
        return None if end_ms is None else (end_ms - took_ms, end_ms)
    return start_ms, start_ms + took_ms if end_ms is None or request.total_time_ms else end_ms


def _link(requests: Sequence[_Timed], spans: Sequence[_Span], path: Path) -> None:
    """Let requests of sessions wait for each other."""
    sessions: dict[str, list[_Timed]] = {}
    for one in sorted(requests, key=lambda timed: timed.start_ms):
        assert one.context is not None
        one.call.session = one.context.session_id
        sessions.setdefault(one.call.session, []).append(one)
    for turns in sessions.values():
        for before, after in pairwise(turns):
            gap_ms = max(0.0, after.start_ms - before.end_ms)
            after.call.waits.append(Awaited(before.call.name, gap_ms, False))
    for name, turns in sessions.items():
        context = turns[0].context
        parent = None if context is None else context.parent_session_id
        if parent is None:
            continue
        if parent not in sessions:
            raise TraceError(
                f"session {name!r} has the parent {parent!r}, of which there is no request",
                path=str(path),
                line=turns[0].call.line,
                field="agent_context.parent_session_id",
            )
        _attach(turns, sessions[parent])
        _join(turns, sessions[parent], [span for span in spans if span.session == parent])


def _attach(child: Sequence[_Timed], parent: Sequence[_Timed]) -> None:
    """A child session starts from the request of its parent that started last before it."""
    first = child[0]
    earlier = [one for one in parent if one.start_ms <= first.start_ms]
    if not earlier:
        return  # comes by itself, as it did
    spawner = earlier[-1]
    overlaps = spawner.end_ms > first.start_ms
    since_ms = spawner.start_ms if overlaps else spawner.end_ms
    wait = Awaited(spawner.call.name, first.start_ms - since_ms, overlaps)
    first.call.waits.append(wait)


def _join(child: Sequence[_Timed], parent: Sequence[_Timed], spans: Sequence[_Span]) -> None:
    """The parent goes on after a child that a tool call of it waited for."""
    start_ms, end_ms = child[0].start_ms, max(one.end_ms for one in child)
    around = [span for span in spans if span.start_ms <= start_ms and end_ms <= span.end_ms]
    if not around:
        return
    later = [one for one in parent if one.start_ms >= min(span.end_ms for span in around)]
    if later:
        gap_ms = later[0].start_ms - child[-1].end_ms
        later[0].call.waits.append(Awaited(child[-1].call.name, max(0.0, gap_ms), False))
