"""What rows of a file wait for, by the request ids that they name.

A row stands behind all that it waits for, so rows form no cycle; a row that names none of the
earlier ones is bad, and what is wrong with it is known when the whole file has been read.
"""

from dataclasses import dataclass
from typing import NamedTuple

from dynosim.workload.columns import Awaited
from dynosim.workload.problems import RowProblem

FIELD = "wait_for"


class Edge(NamedTuple):
    """A row waits for this one, an index among the good rows of the file."""

    row: int
    delay_ms: float
    from_start: bool


@dataclass(frozen=True, slots=True)
class _Named:
    line: int
    waits: tuple[Awaited, ...]


class References:
    """The request ids of a file so far, and the rows that could not wait for what they name."""

    def __init__(self) -> None:
        self.row_of: dict[str, int] = {}  # by request id, of good rows
        self._named: dict[str, _Named] = {}  # all rows that have an id
        self._open: list[tuple[int, str | None, str]] = []  # line, its id, what it names

    def note(self, line: int, request: str | None, waits: tuple[Awaited, ...] | None) -> None:
        """Take note of a row, good or bad."""
        if request is not None:
            self._named.setdefault(request, _Named(line, waits or ()))

    def edges(
        self, line: int, request: str | None, waits: tuple[Awaited, ...]
    ) -> tuple[Edge, ...] | None:
        """What a row waits for, as rows; None if it names one that is not there (yet)."""
        for wait in waits:
            if wait.request_id not in self.row_of:
                self._open.append((line, request, wait.request_id))
                return None
        return tuple(Edge(self.row_of[one.request_id], *one[1:]) for one in waits)

    def problems(self) -> list[RowProblem]:
        """What is wrong with the rows that could not wait; asked when all rows are known."""
        return [
            RowProblem(line, FIELD, self._why(line, request, wanted))
            for line, request, wanted in self._open
        ]

    def _why(self, line: int, request: str | None, wanted: str) -> str:
        named = self._named.get(wanted)
        if named is None:
            return f"no row of the file has the request_id {wanted!r}"
        if request is not None and (way := self._way_back(wanted, request)):
            return f"a cycle: {' waits for '.join([request, *way])}"
        if named.line >= line:
            return (
                f"{wanted!r} comes later, in line {named.line}: a row stands behind those it waits "
                "for"
            )
        return f"{wanted!r}, in line {named.line}, cannot be used"

    def _way_back(self, start: str, goal: str) -> list[str]:
        """From a request along what it waits for to another, both ends included; empty: none."""
        came_from: dict[str, str | None] = {start: None}
        todo = [start]
        while todo:
            name = todo.pop()
            if name == goal:
                way = [name]
                while (before := came_from[way[-1]]) is not None:
                    way.append(before)
                return way[::-1]
            named = self._named.get(name)
            for wait in () if named is None else named.waits:
                if wait.request_id not in came_from:
                    came_from[wait.request_id] = name
                    todo.append(wait.request_id)
        return []
