"""Requests that wait for several others: who waits for whom, and which of them belong together.

A tree is all that hangs together by waiting: an agent's task with its sub-agents. It may have
several requests that wait for none; its first is the earliest of them.
"""

from collections.abc import Iterator

import numpy as np

from dynosim.records import NO_REQUEST, Dependencies, IntArray, Trace

_Due = tuple[float, int]
"""A time in ms, and the request that arrives then."""


def tree_numbers(trace: Trace) -> IntArray:
    """The number of each request's tree, by first request, from 0. (n,)"""
    first = np.arange(len(trace)).tolist()  # of each request's tree, as far as it is known

    def top(row: int) -> int:
        while first[row] != row:
            first[row] = first[first[row]]
            row = first[row]
        return row

    previous = trace.previous_turn
    if previous is not None:
        for row in np.flatnonzero(previous != NO_REQUEST).tolist():
            _join(first, top(row), top(int(previous[row])))
    if trace.dependencies is not None:
        edges = zip(
            trace.dependencies.waiting().tolist(), trace.dependencies.rows.tolist(), strict=True
        )
        for row, other in edges:
            _join(first, top(row), top(other))
    tops = [top(row) for row in range(len(first))]
    return np.unique(np.array(tops, np.int64), return_inverse=True)[1].astype(np.int64)


def _join(first: list[int], one: int, other: int) -> None:
    """Make one tree of two, under the earlier first request."""
    first[max(one, other)] = min(one, other)


class WaitingRows:
    """What is still waited for, by request; told of starts and ends, it says what may come.

    A request comes once: when the last delay of what it waits for is over. One that waits for a
    request that was given up never comes.
    """

    def __init__(self, trace: Trace, dependencies: Dependencies) -> None:
        assert trace.previous_turn is not None  # a row that waits for more has one
        size = len(trace)
        self._tree: list[int] = tree_numbers(trace).tolist()
        self._on_start: dict[int, list[tuple[int, float]]] = {}  # who waits for it, and how long
        self._on_end: dict[int, list[tuple[int, float]]] = {}
        self._missing: list[int] = [0] * size  # what each still waits for
        self._due_ms: list[float] = [0.0] * size  # by what it has waited for
        self._is_done: list[bool] = [False] * size  # has ended, or never comes
        self._is_start = trace.previous_turn == NO_REQUEST
        self._arrival_ms = trace.arrival_ms
        num_trees = max(self._tree, default=-1) + 1
        self._left: list[int] = np.bincount(self._tree, minlength=num_trees).tolist()
        self._is_announced: list[bool] = [False] * num_trees  # that it is over
        self._starts: list[list[int]] = [[] for _ in range(num_trees)]
        for row in np.flatnonzero(self._is_start).tolist():
            self._starts[self._tree[row]].append(row)
        edges = zip(
            dependencies.waiting().tolist(),
            dependencies.rows.tolist(),
            dependencies.delay_ms.tolist(),
            dependencies.from_start.tolist(),
            strict=True,
        )
        for row, other, delay_ms, from_start in edges:
            self._wait(row, other, delay_ms, from_start)
        plain = (np.diff(dependencies.offsets) == 0) & ~self._is_start
        for row in np.flatnonzero(plain).tolist():
            delay_ms = 0.0 if trace.delay_ms is None else float(trace.delay_ms[row])
            self._wait(row, int(trace.previous_turn[row]), delay_ms, False)

    def starts(self) -> IntArray:
        """All requests that wait for none."""
        return np.flatnonzero(self._is_start)

    def first_of_trees(self) -> IntArray:
        """The first request of each tree."""
        return np.array(sorted(rows[0] for rows in self._starts), np.int64)

    def starts_of_tree(self, first: int, now_ms: float) -> Iterator[_Due]:
        """When the requests of a tree come that wait for none, if its first one comes now."""
        for row in self._starts[self._tree[first]]:
            yield now_ms + float(self._arrival_ms[row] - self._arrival_ms[first]), row

    def on_start(self, index: int, now_ms: float) -> Iterator[_Due]:
        """A request arrives now: what waits for nothing more."""
        return self._released(self._on_start.get(index), now_ms)

    def on_end(self, index: int, now_ms: float) -> Iterator[_Due]:
        """A request has ended: what waits for nothing more."""
        self._finish(index)
        return self._released(self._on_end.get(index), now_ms)

    def on_give_up(self, index: int) -> list[int]:
        """A request was given up: all that will never come for that, in the trace's order."""
        self._finish(index)
        unsent: list[int] = []
        todo = [index]
        while todo:
            row = todo.pop()
            later = [follower for follower, _ in self._on_end.get(row, ())]
            if row != index:
                later += [follower for follower, _ in self._on_start.get(row, ())]
            for follower in later:
                if not self._is_done[follower]:
                    self._finish(follower)
                    unsent.append(follower)
                    todo.append(follower)
        return sorted(unsent)

    def is_over(self, index: int) -> bool:
        """Whether all of a request's tree has ended, asked for the first time since."""
        tree = self._tree[index]
        is_over = self._left[tree] == 0 and not self._is_announced[tree]
        self._is_announced[tree] |= is_over
        return is_over

    def _wait(self, row: int, other: int, delay_ms: float, from_start: bool) -> None:
        self._missing[row] += 1
        news = self._on_start if from_start else self._on_end
        news.setdefault(other, []).append((row, delay_ms))

    def _finish(self, index: int) -> None:
        if not self._is_done[index]:
            self._is_done[index] = True
            self._left[self._tree[index]] -= 1

    def _released(self, waiting: list[tuple[int, float]] | None, now_ms: float) -> Iterator[_Due]:
        for row, delay_ms in waiting or ():
            self._missing[row] -= 1
            self._due_ms[row] = max(self._due_ms[row], now_ms + delay_ms)
            if not self._missing[row] and not self._is_done[row]:
                yield self._due_ms[row], row
