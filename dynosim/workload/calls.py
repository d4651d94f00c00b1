"""Recorded calls of agents into one `Trace`: names into rows, rows into an order, ids made dense.

What the formats with graphs of requests have in common. Each reads its file into calls; here is
checked that every call waits for calls that exist and not, over others, for itself, and rows are
put in the order of their recorded or nominal arrivals, each behind those it waits for.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from math import isnan, nan

import numpy as np

from dynosim.errors import TraceError
from dynosim.records import NO_REQUEST, Dependencies, FloatArray, IntArray, Retention, Trace
from dynosim.workload.assemble import first_appearance_ids
from dynosim.workload.columns import Awaited
from dynosim.workload.synthetic import NOMINAL_TOKEN_MS

_Edges = list[tuple[int, float, bool]]
"""What a call waits for: which, how long after it, and whether from its start."""


@dataclass(slots=True)
class RecordedCall:
    """One call. Without `waits` it comes at `arrival_ms`; else that only helps to order rows."""

    name: str
    line: int  # 1-based, for messages
    input_tokens: int
    output_tokens: int
    block_ids: Sequence[Hashable] | IntArray  # one for every block, equal ones are the same
    arrival_ms: float = nan  # NaN: not recorded
    waits: list[Awaited] = field(default_factory=list)
    session: str = ""
    kind: str = ""
    priority: int = 0  # lower is served earlier
    expected_output_tokens: int = 0  # the client's guess; 0: it has none
    is_speculative: bool = False  # see `Trace`
    is_prefetch: bool = False  # see `Trace`
    retention: Retention | None = None


def trace_of_calls(
    calls: Sequence[RecordedCall], *, block_tokens: int, path: str, waits_field: str = ""
) -> Trace:
    """The trace of some calls; the first arrival becomes 0.

    Raises: TraceError naming the line of a call whose name another has, or that waits for one that
    does not exist or for itself.
    """
    if not calls:
        raise TraceError("no requests: the file has no row", path=path)
    place = _places(calls, path)
    waited = _waited(calls, place, path, waits_field)
    order = _in_order(calls, waited, path, waits_field)
    arrivals = _arrivals_ms(calls, waited, order)
    order.sort(key=arrivals.__getitem__)
    return _trace(calls, waited, order, arrivals, block_tokens, path)


def _places(calls: Sequence[RecordedCall], path: str) -> dict[str, int]:
    place: dict[str, int] = {}
    for index, call in enumerate(calls):
        if call.name in place:
            first = calls[place[call.name]].line
            message = f"{call.name!r} was given to an earlier request, in line {first}"
            raise TraceError(message, path=path, line=call.line)
        place[call.name] = index
    return place


def _waited(
    calls: Sequence[RecordedCall], place: dict[str, int], path: str, field: str
) -> list[_Edges]:
    """What each call waits for, as places."""
    found: list[_Edges] = []
    for call in calls:
        edges = []
        for wait in call.waits:
            if wait.request_id not in place:
                message = (
                    f"{call.name!r} waits for {wait.request_id!r}, which the file does not have"
                )
                raise TraceError(message, path=path, line=call.line, field=field)
            edges.append((place[wait.request_id], wait.delay_ms, wait.from_start))
        found.append(edges)
    return found


def _in_order(
    calls: Sequence[RecordedCall], waited: list[_Edges], path: str, field: str
) -> list[int]:
    """The calls, each behind those it waits for, as the file has them where that is free."""
    missing = [len({other for other, _, _ in edges}) for edges in waited]
    followers: dict[int, list[int]] = {}
    for index, edges in enumerate(waited):
        for other in dict.fromkeys(other for other, _, _ in edges):
            followers.setdefault(other, []).append(index)
    order = [index for index, count in enumerate(missing) if not count]
    for index in order:
        for follower in followers.get(index, ()):
            missing[follower] -= 1
            if not missing[follower]:
                order.append(follower)
    if len(order) < len(calls):
        cycle = _cycle(waited, missing)
        names = " waits for ".join(calls[index].name for index in [*cycle, cycle[0]])
        raise TraceError(f"a cycle: {names}", path=path, line=calls[cycle[0]].line, field=field)
    return order


def _cycle(waited: list[_Edges], missing: list[int]) -> list[int]:
    """Calls that wait for each other in a round, from the first in the file of those met."""
    way: list[int] = []
    index = next(place for place, count in enumerate(missing) if count)
    while index not in way:
        way.append(index)
        index = next(other for other, _, _ in waited[index] if missing[other])
    cycle = way[way.index(index) :]
    start = cycle.index(min(cycle))
    return cycle[start:] + cycle[:start]


def _arrivals_ms(
    calls: Sequence[RecordedCall], waited: list[_Edges], order: list[int]
) -> list[float]:
    """When each call comes: as recorded, else as if answers took `NOMINAL_TOKEN_MS` a token."""
    arrivals = [0.0] * len(calls)
    for index in order:
        call = calls[index]
        if isnan(call.arrival_ms):
            arrivals[index] = max(
                (
                    arrivals[other]
                    + delay_ms
                    + (0.0 if from_start else calls[other].output_tokens * NOMINAL_TOKEN_MS)
                    for other, delay_ms, from_start in waited[index]
                ),
                default=0.0,
            )
        else:
            arrivals[index] = call.arrival_ms
        # Rows of a trace never stand before what they wait for.
        for other, _, _ in waited[index]:
            arrivals[index] = max(arrivals[index], arrivals[other])
    return arrivals


def _trace(
    calls: Sequence[RecordedCall],
    waited: list[_Edges],
    order: list[int],
    arrivals: list[float],
    block_tokens: int,
    path: str,
) -> Trace:
    row_of = {index: row for row, index in enumerate(order)}
    in_rows = [calls[index] for index in order]
    edges = [
        [(row_of[other], delay_ms, from_start) for other, delay_ms, from_start in waited[index]]
        for index in order
    ]
    arrival_ms = np.array([arrivals[index] for index in order])
    previous, delay_ms, dependencies = _links(in_rows, edges)
    priority = np.array([call.priority for call in in_rows], np.int64)
    expected = np.array([call.expected_output_tokens for call in in_rows], np.int64)
    speculative = np.array([call.is_speculative for call in in_rows], np.bool_)
    prefetch = np.array([call.is_prefetch for call in in_rows], np.bool_)
    has_links = bool((previous != NO_REQUEST).any())
    return Trace(
        arrival_ms=np.round(arrival_ms - arrival_ms[0], 3),
        input_tokens=np.array([call.input_tokens for call in in_rows], np.int64),
        output_tokens=np.array([call.output_tokens for call in in_rows], np.int64),
        hash_ids=_dense_ids([call.block_ids for call in in_rows]),
        hash_offsets=np.cumsum([0, *(len(call.block_ids) for call in in_rows)]),
        trace_block_size=block_tokens,
        previous_turn=previous if has_links else None,
        delay_ms=delay_ms if has_links else None,
        dependencies=dependencies,
        priority=priority if priority.any() else None,
        session_ids=_texts([call.session for call in in_rows]),
        request_ids=tuple(call.name for call in in_rows),
        classes=_texts([call.kind for call in in_rows]),
        expected_output_tokens=expected if expected.any() else None,
        is_speculative=speculative if speculative.any() else None,
        is_prefetch=prefetch if prefetch.any() else None,
        retention=_said([call.retention for call in in_rows]),
        source=path,
    )


def _links(
    calls: Sequence[RecordedCall], edges: list[_Edges]
) -> tuple[IntArray, FloatArray, Dependencies | None]:
    """Previous turns, their delays, and what rows wait for that wait for more than that."""
    previous = np.full(len(calls), NO_REQUEST, np.int64)
    delay_ms = np.zeros(len(calls))
    last: dict[str, int] = {}  # row of each session
    kept: list[_Edges] = []
    for row, (call, waited) in enumerate(zip(calls, edges, strict=True)):
        if waited:
            previous[row] = waited[0][0]
        is_turn = len(waited) == 1 and not waited[0][2] and call.session != ""
        if is_turn and last.get(call.session) == waited[0][0]:
            delay_ms[row] = waited[0][1]
            kept.append([])
        else:
            kept.append(waited)
        last[call.session] = row
    flat = [edge for waited in kept for edge in waited]
    if not flat:
        return previous, delay_ms, None
    return previous, delay_ms, Dependencies(
        offsets=np.cumsum([0, *(len(waited) for waited in kept)]),
        rows=np.array([edge[0] for edge in flat], np.int64),
        delay_ms=np.array([edge[1] for edge in flat], np.float64),
        from_start=np.array([edge[2] for edge in flat], np.bool_),
    )  # fmt: skip


def _dense_ids(blocks: Sequence[Sequence[Hashable] | IntArray]) -> IntArray:
    """Ids 0, 1, 2, ... in order of first appearance."""
    arrays = [ids for ids in blocks if isinstance(ids, np.ndarray)]
    if arrays and len(arrays) == len(blocks):
        return first_appearance_ids(np.concatenate(arrays))
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(one, len(numbers)) for ids in blocks for one in ids],
                    np.int64)  # fmt: skip


def _said(values: list[Retention | None]) -> tuple[Retention | None, ...] | None:
    return tuple(values) if any(values) else None


def _texts(values: list[str]) -> tuple[str, ...] | None:
    return tuple(values) if any(values) else None
