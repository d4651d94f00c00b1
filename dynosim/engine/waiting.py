"""Queues of requests that have no seat yet: first come first served, or by priority."""

from collections import deque
from heapq import heapify, heappop, heappush
from typing import Protocol

from dynosim.engine.sequence import Sequence


class WaitingQueue(Protocol):
    """What the scheduler, which counts them, needs of a queue; peek and pop need someone in it."""

    def push(self, sequence: Sequence) -> None:
        """Add a new request."""

    def push_preempted(self, sequence: Sequence) -> None:
        """Return a request that lost its seat."""

    def peek(self) -> Sequence:
        """The request to admit next."""
        ...

    def pop(self) -> Sequence:
        """Take the request that `peek` showed."""
        ...

    def discard(self, sequence: Sequence) -> None:
        """Remove a request that ended while waiting."""

    def sequences(self) -> list[Sequence]:
        """Everyone in the queue, in no particular order."""
        ...


class FcfsQueue:
    """Order of hand-over; preempted requests go to the front."""

    def __init__(self) -> None:
        self._queue: deque[Sequence] = deque()

    def push(self, sequence: Sequence) -> None:
        """Add a new request at the end."""
        self._queue.append(sequence)

    def push_preempted(self, sequence: Sequence) -> None:
        """Return a preempted request to the front."""
        self._queue.appendleft(sequence)

    def peek(self) -> Sequence:
        """The request at the head."""
        return self._queue[0]

    def pop(self) -> Sequence:
        """Remove and return the head."""
        return self._queue.popleft()

    def discard(self, sequence: Sequence) -> None:
        """Remove a request that ended while waiting."""
        self._queue.remove(sequence)

    def sequences(self) -> list[Sequence]:
        """Everyone in the queue."""
        return list(self._queue)


class PriorityQueue:
    """Smallest (priority, arrival time, request id as a string) first, as vLLM orders it."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, float, str, int, Sequence]] = []

    def push(self, sequence: Sequence) -> None:
        """Add a new or preempted request."""
        key = (sequence.priority, sequence.arrival_ms, sequence.request_id, sequence.index)
        heappush(self._heap, (*key, sequence))

    def push_preempted(self, sequence: Sequence) -> None:
        """Return a preempted request to its place."""
        self.push(sequence)

    def peek(self) -> Sequence:
        """The most urgent request."""
        return self._heap[0][4]

    def pop(self) -> Sequence:
        """Remove and return the most urgent request."""
        return heappop(self._heap)[4]

    def discard(self, sequence: Sequence) -> None:
        """Remove a request that ended while waiting."""
        self._heap = [entry for entry in self._heap if entry[4] is not sequence]
        heapify(self._heap)

    def sequences(self) -> list[Sequence]:
        """Everyone in the queue."""
        return [entry[4] for entry in self._heap]


def make_queue(policy: str) -> WaitingQueue:
    """The waiting queue of a scheduling policy, `fcfs` or `priority`."""
    return FcfsQueue() if policy == "fcfs" else PriorityQueue()
