"""A run as a trace for ui.perfetto.dev: Chrome's trace event format, gzipped JSON.

A process is a worker, with tracks for its steps, its queue and its seats, and counters; the front
end is one, too. Arrows follow every request from its arrival over router, queue and chunks of its
prompt to decoding.

Events are kept as columns and become JSON one by one, as they are written.
"""

import gzip
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dynosim.plots.run_slices import (
    ARROW,
    COUNTED,
    DECODED,
    FIRST_WORKER_PID,
    FRONTEND_PID,
    LOADED,
    PREFILLED,
    QUEUE_TID,
    ROUTED,
    SEAT_TID,
    SEATED,
    STEPPED,
    STEPS_TID,
    WAITED,
    Slices,
    slices_of,
    to_ns,
)
from dynosim.records import IntArray, RunResult, Trace

_PHASES = "sft"  # of an arrow's ends: the first, the last, those between
_AT_ONCE = 1000  # events; compressing each on its own takes as long again
_FIRST, _LAST, _BETWEEN = range(3)


class Arrows(NamedTuple):
    """Columns of the ends of arrows, by request in order of time."""

    target: IntArray  # which slice
    request: IntArray
    phase: IntArray  # place in `_PHASES`


def write_perfetto(path: Path | str, result: RunResult, trace: Trace, title: str = "") -> None:
    """Write the trace of a run that kept its trail.

    Raises: ValueError if it did not; OSError when the file cannot be written.
    """
    import orjson

    events = iter(_Events(result, trace, title))
    with (
        open(path, "wb") as raw,
        gzip.GzipFile(filename="", mode="wb", fileobj=raw, compresslevel=6, mtime=0) as file,
    ):
        file.write(b'{"displayTimeUnit":"ms","traceEvents":[\n')
        separator = b""
        while batch := [orjson.dumps(event) for event in islice(events, _AT_ONCE)]:
            file.write(separator + b",\n".join(batch))
            separator = b",\n"
        file.write(b"\n]}\n")


class _Events:
    """All events of a run, in order of time, tracks' names first."""

    def __init__(self, result: RunResult, trace: Trace, title: str) -> None:
        self._slices = slices_of(result)
        assert result.trail is not None
        self._result = result
        self._ids = trace.request_ids
        self._title = title
        self._chunks = result.trail.chunks
        self._arrows = _arrows(self._slices, self._chunks.request)
        self._counted = _counted_rows(result)
        ends_ms = result.steps.start_ms + result.steps.duration_ms
        self._count_ns = to_ns(ends_ms[self._counted])
        self._render: dict[int, Callable[[int], tuple[str, dict[str, Any]]]] = {
            ROUTED: self._routed,
            WAITED: self._waited,
            LOADED: self._loaded,
            SEATED: self._seated,
            PREFILLED: self._prefilled,
            DECODED: self._decoded,
            STEPPED: self._stepped,
        }

    def __iter__(self) -> Iterator[dict[str, Any]]:
        yield from self._names()
        slices, targets = self._slices, self._arrows.target
        num_arrows, num_counts = len(targets), len(self._counted)
        kinds = [slices.kind, np.full(num_arrows, ARROW), np.full(num_counts, COUNTED)]
        places = [np.arange(len(slices.kind)), np.arange(num_arrows), np.arange(num_counts)]
        times = [slices.start_ns, slices.start_ns[targets], self._count_ns]
        kind, place = np.concatenate(kinds), np.concatenate(places)
        order = np.lexsort((kind, np.concatenate(times)))
        for number, at in zip(kind[order].tolist(), place[order].tolist(), strict=True):
            if number == ARROW:
                yield self._arrow(at)
            elif number == COUNTED:
                yield from self._counts(at)
            else:
                yield self._slice(at)

    def _slice(self, at: int) -> dict[str, Any]:
        slices = self._slices
        name, facts = self._render[int(slices.kind[at])](int(slices.item[at]))
        start_ns = int(slices.start_ns[at])
        return {
            "ph": "X",
            "pid": int(slices.pid[at]),
            "tid": int(slices.tid[at]),
            "ts": start_ns / 1000,
            "dur": (int(slices.end_ns[at]) - start_ns) / 1000,
            "name": name,
            "args": facts,
        }

    def _arrow(self, at: int) -> dict[str, Any]:
        slices, arrows = self._slices, self._arrows
        target = int(arrows.target[at])
        event: dict[str, Any] = {
            "ph": _PHASES[int(arrows.phase[at])],
            "id": int(arrows.request[at]) + 1,
            "pid": int(slices.pid[target]),
            "tid": int(slices.tid[target]),
            "ts": int(slices.start_ns[target]) / 1000,
            "name": "request",
            "cat": "request",
        }
        if event["ph"] == "f":
            event["bp"] = "e"
        return event

    def _counts(self, at: int) -> Iterator[dict[str, Any]]:
        steps, row = self._result.steps, int(self._counted[at])
        counters = (
            ("KV blocks in use", steps.used_blocks),
            ("requests waiting", steps.num_waiting),
            ("requests running", steps.num_running),
        )
        for name, column in counters:
            yield {
                "ph": "C",
                "pid": FIRST_WORKER_PID + int(steps.worker_id[row]),
                "ts": int(self._count_ns[at]) / 1000,
                "name": name,
                "args": {"value": int(column[row])},
            }

    # ---- names and facts -----------------------------------------------------------------------

    def _names(self) -> Iterator[dict[str, Any]]:
        """Processes and tracks, in the order in which they are to be shown."""
        slices, workers = self._slices, self._result.workers
        yield _meta("process_name", FRONTEND_PID, name=f"front end {self._title}".strip())
        yield _meta("process_sort_index", FRONTEND_PID, sort_index=0)
        for worker in range(len(workers)):
            pid = FIRST_WORKER_PID + worker
            yield _meta("process_name", pid, name=f"worker {worker}")
            yield _meta("process_sort_index", pid, sort_index=pid)
        tracks = np.unique(np.stack((slices.pid, slices.tid)), axis=1).T
        for pid, tid in tracks.tolist():
            yield _meta("thread_name", pid, tid, name=_track_name(pid, tid))
            yield _meta("thread_sort_index", pid, tid, sort_index=tid)

    def _id(self, index: int) -> str:
        return str(index) if self._ids is None else self._ids[index]

    def _routed(self, index: int) -> tuple[str, dict[str, Any]]:
        log = self._result.requests
        facts = {"worker": int(log.worker_id[index]), "input_tokens": int(log.input_tokens[index])}
        return f"route {self._id(index)}", facts

    def _waited(self, index: int) -> tuple[str, dict[str, Any]]:
        return f"wait {self._id(index)}", {}

    def _loaded(self, index: int) -> tuple[str, dict[str, Any]]:
        onboards = self._result.requests.onboards
        assert onboards is not None  # there are no such slices without
        beyond = int(onboards.num_beyond[index])
        return f"load {int(onboards.num_tokens[index]):,}", {"beyond_tokens": beyond}

    def _seated(self, index: int) -> tuple[str, dict[str, Any]]:
        log = self._result.requests
        facts = {
            "input_tokens": int(log.input_tokens[index]),
            "cached_tokens": int(log.cached_tokens[index]),
            "output_tokens": int(log.output_tokens[index]),
        }
        return f"request {self._id(index)}", facts

    def _prefilled(self, row: int) -> tuple[str, dict[str, Any]]:
        chunks = self._chunks
        before = int(chunks.num_computed_before[row])
        return f"prefill {int(chunks.num_tokens[row]):,}", {"computed_before": before}

    def _decoded(self, index: int) -> tuple[str, dict[str, Any]]:
        return "decode", {"output_tokens": int(self._result.requests.output_tokens[index])}

    def _stepped(self, row: int) -> tuple[str, dict[str, Any]]:
        steps = self._result.steps
        num_decodes, num_steps = int(steps.num_decodes[row]), int(steps.num_steps[row])
        facts = {"steps": num_steps, "decodes": num_decodes}
        if steps.num_prefills[row]:
            facts["prompts"] = int(steps.num_prefills[row])
            facts["prefill_tokens"] = int(steps.prefill_tokens[row])
            facts["cached_tokens"] = int(steps.prefix_tokens[row])
            return f"prefill {facts['prefill_tokens']:,} + {num_decodes} decodes", facts
        facts["context_tokens"] = int(steps.decode_context_tokens[row])
        return f"{num_steps:,} decode steps of {num_decodes}", facts


# ---- arrows and counters -------------------------------------------------------------------------


def _arrows(slices: Slices, chunk_request: IntArray) -> Arrows:
    """The arrows of the requests that a worker served."""
    follows = np.isin(slices.kind, (ROUTED, WAITED, PREFILLED, DECODED))
    places = np.flatnonzero(follows)
    request = slices.item[places].copy()
    is_chunk = slices.kind[places] == PREFILLED
    request[is_chunk] = chunk_request[request[is_chunk]]
    order = np.lexsort((slices.kind[places], slices.start_ns[places], request))
    places, request = places[order], request[order]
    _, inverse, counts = np.unique(request, return_inverse=True, return_counts=True)
    kept = counts[inverse] > 1
    places, request = places[kept], request[kept]
    is_new = np.append(True, request[1:] != request[:-1])[: len(request)]
    is_last = np.append(request[1:] != request[:-1], True)[: len(request)]
    phase = np.where(is_new, _FIRST, np.where(is_last, _LAST, _BETWEEN))
    return Arrows(places, request, phase)


def _counted_rows(result: RunResult) -> IntArray:
    """Rows of steps after which a worker's counters differ from before."""
    steps = result.steps
    order = np.lexsort((steps.start_ms, steps.worker_id))
    columns = (steps.worker_id, steps.used_blocks, steps.num_waiting, steps.num_running)
    values = np.stack([column[order] for column in columns])
    differs = np.append(True, (values[:, 1:] != values[:, :-1]).any(axis=0))[: len(order)]
    rows: IntArray = order[differs]
    return rows


def _meta(what: str, pid: int, tid: int = 0, **facts: Any) -> dict[str, Any]:
    return {"ph": "M", "pid": pid, "tid": tid, "name": what, "args": facts}


def _track_name(pid: int, tid: int) -> str:
    if pid == FRONTEND_PID:
        return f"router {tid}"
    if tid >= SEAT_TID:
        return f"seat {tid - SEAT_TID + 1}"
    return "steps" if tid == STEPS_TID else f"queue {tid - QUEUE_TID + 1}"
