"""Weka's traces of coding sessions: one play a line or file, sub-agents nested in it.

Requests of a thread follow each other by the recorded gaps; one that started while the one before
it ran comes as long after that one's start. A sub-agent starts from its parent's request before it,
and the parent's next request waits for it if it started after the sub-agent's end. Hash ids name
blocks within their play alone; a prompt's part-full last block is its own. The thread of a request
(lead or sub-agent) is its class.
"""

import gzip
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec

from dynosim.errors import TraceError
from dynosim.records import Trace
from dynosim.workload.calls import RecordedCall, trace_of_calls
from dynosim.workload.columns import Awaited
from dynosim.workload.json_messages import UNREADABLE, syntax_problem, type_problem
from dynosim.workload.recorded_lines import require_block_size

MS_PER_S = 1000.0
_GZIP_MAGIC = b"\x1f\x8b"
_SUFFIXES = (".json", ".jsonl", ".json.gz", ".jsonl.gz")
LEAD, SUB_AGENT = "lead", "sub_agent"


class _Entry(msgspec.Struct, gc=False, frozen=True, rename={"inputs": "in", "outputs": "out"}):
    """A request, or with type `subagent` a thread of them. Times in seconds."""

    t: float
    type: str = "n"
    inputs: int = 0
    outputs: int = 0
    hash_ids: list[int] = []
    api_time: float = 0.0
    agent_id: str = ""
    requests: list["_Entry"] = []


class _Play(msgspec.Struct, gc=False, frozen=True):
    id: str
    block_size: int
    requests: list[_Entry]
    hash_id_scope: str = "local"


def read_weka(path: Path, *, block_tokens: int | None, skip_bad_lines: bool) -> Trace:
    """The trace of a Weka file or of a folder of them. Raises: TraceError."""
    calls: list[RecordedCall] = []
    size, num_skipped = block_tokens, 0
    plays: list[tuple[Path, int, _Play]] = []
    for file, line, text in _texts(path):
        try:
            play = msgspec.json.decode(text, type=_Play)
        except UNREADABLE as error:
            if not skip_bad_lines:
                raise _unreadable(file, line, text, error) from None
            num_skipped += 1
            continue
        require_block_size(play.block_size, size, path=str(file), line=line)
        size = play.block_size
        _require_local(play, file, line)
        plays.append((file, line, play))
    is_relative = any(_is_relative(play) for _, _, play in plays)
    for number, (file, line, play) in enumerate(plays):
        reader = _PlayReader(number, play, str(file), line, is_relative=is_relative)
        calls += reader.calls()
    trace = trace_of_calls(calls, block_tokens=size or 1, path=str(path))
    return replace(trace, skipped_lines=num_skipped)


class _PlayReader:
    """The calls of one play."""

    def __init__(
        self, number: int, play: _Play, path: str, line: int, *, is_relative: bool
    ) -> None:
        self._number, self._play, self._path, self._line = number, play, path, line
        self._is_relative = is_relative
        self._calls: list[RecordedCall] = []
        self._num_threads = 0

    def calls(self) -> list[RecordedCall]:
        """All of them, each waiting for others as it did. Raises: TraceError."""
        self._thread(self._play.requests, self._play.id, None, 0.0)
        return self._calls

    def _thread(
        self,
        entries: list[_Entry],
        name: str,
        spawner: tuple[RecordedCall, float] | None,
        from_s: float,
    ) -> tuple[RecordedCall, float] | None:
        """The requests of a thread; returns the last of them and when it ended, in ms."""
        before, threads = spawner, list[tuple[RecordedCall, float]]()
        for entry in sorted(entries, key=lambda one: one.t):
            start_ms = round((from_s + entry.t) * MS_PER_S, 3)
            if entry.type == "subagent":
                self._num_threads += 1
                inner = f"{name}/{entry.agent_id or self._num_threads}"
                base_s = from_s + entry.t if self._is_relative else from_s
                last = self._thread(entry.requests, inner, before, base_s)
                threads += [] if last is None or last is before else [last]
                continue
            call = self._call(entry, name, start_ms)
            if before is not None:
                call.waits.append(_gap(*before, start_ms))
            for child, end_ms in threads:
                if end_ms <= start_ms:
                    call.waits.append(Awaited(child.name, round(start_ms - end_ms, 3), False))
            threads = [one for one in threads if one[1] > start_ms]
            before = call, round(start_ms + entry.api_time * MS_PER_S, 3)
        return before

    def _call(self, entry: _Entry, thread: str, start_ms: float) -> RecordedCall:
        size, number = self._play.block_size, len(self._calls)
        if entry.inputs < 1 or entry.outputs < 1:
            short = "in" if entry.inputs < 1 else "out"
            raise TraceError(
                f"expected an integer >= 1 in request {number} of play {self._play.id}",
                path=self._path, line=self._line, field=short,
            )  # fmt: skip
        whole = entry.inputs // size
        ids: list[object] = [(self._number, one) for one in entry.hash_ids[:whole]]
        num_blocks = -(-entry.inputs // size)
        ids += [(self._number, number, place) for place in range(len(ids), num_blocks)]
        call = RecordedCall(
            f"{self._play.id}/{number}",
            self._line,
            entry.inputs,
            entry.outputs,
            ids,
            arrival_ms=start_ms,
            session=thread,
            kind=LEAD if thread == self._play.id else SUB_AGENT,
        )
        self._calls.append(call)
        return call


def _gap(before: RecordedCall, end_ms: float, start_ms: float) -> Awaited:
    """How a request waits for the one before it of its thread, or for the one that spawned it."""
    if end_ms <= start_ms:
        return Awaited(before.name, round(start_ms - end_ms, 3), False)
    return Awaited(before.name, max(0.0, start_ms - before.arrival_ms), True)


def _is_relative(play: _Play) -> bool:
    """Whether times inside a sub-agent count from its start: some lie before it, read otherwise."""
    threads = [entry for entry in play.requests if entry.type == "subagent"]
    return any(one.t < entry.t for entry in threads for one in entry.requests)


def _require_local(play: _Play, path: Path, line: int) -> None:
    if play.hash_id_scope != "local":
        raise TraceError(
            f'expected "local", got "{play.hash_id_scope}": ids that name blocks across plays are '
            "not read",
            path=str(path), line=line, field="hash_id_scope",
        )  # fmt: skip


def _texts(path: Path) -> Iterator[tuple[Path, int, bytes]]:
    """Every play's text, with its file and line."""
    files = [path]
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.name.endswith(_SUFFIXES))
    for file in files:
        try:
            text = file.read_bytes()
            text = gzip.decompress(text) if text.startswith(_GZIP_MAGIC) else text
        except FileNotFoundError:
            raise TraceError("no such file", path=str(file)) from None
        except (OSError, EOFError) as error:
            raise TraceError(f"cannot be read ({error})", path=str(file)) from None
        if file.name.removesuffix(".gz").endswith(".json"):
            yield file, 1, text
            continue
        for number, line in enumerate(text.split(b"\n"), 1):
            if line.strip():
                yield file, number, line


def _unreadable(path: Path, line: int, text: bytes, error: Exception) -> TraceError:
    if isinstance(error, msgspec.ValidationError):
        found = type_problem(line, text, str(error), _Play)
    else:
        found = syntax_problem(line, text, error)
    return TraceError(found.message, path=str(path), line=line, field=found.field)
