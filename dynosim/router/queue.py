"""The pending queue: requests that wait in the router because every worker is busy.

Each policy class has a line of its own; requests pinned to one worker wait in lanes of their own,
so that they block nobody else. Inside a lane only the head may go. Among classes the turn goes
round: deficit round robin, by uncached prompt tokens.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from heapq import heappop, heappush
from typing import NamedTuple

from dynosim.errors import ConfigError
from dynosim.router.classes import PolicyClass
from dynosim.router.refusals import QueueFullError
from dynosim.router.request import RoutingRequest

MAIN_LANE = -1


@dataclass(slots=True)
class QueuedRequest:
    """A waiting request; `cached_tokens` are those of the best worker when it came."""

    request: RoutingRequest
    cached_tokens: int
    enqueue_ms: float
    pinned_slot: int | None = None

    @property
    def uncached_tokens(self) -> int:
        """What it will cost to compute, at least one token."""
        return max(1, self.request.input_tokens - self.cached_tokens)


def policy_score(policy: str, entry: QueuedRequest) -> float:
    """Urgency of a request under a queue policy; fixed when it starts to wait."""
    jump = max(entry.request.priority_jump, 0.0)
    if policy == "fcfs":
        return jump - entry.enqueue_ms / 1e3
    if policy == "lcfs":
        return jump + entry.enqueue_ms / 1e3
    return (1 + jump) / entry.uncached_tokens


Key = tuple[int, float, int]  # smaller goes first: strict priority, score (both negated), order
Lane = list[tuple[Key, QueuedRequest]]  # heap


class LineSnapshot(NamedTuple):
    """What the line of a class was: who waits, with the number that tells who came first."""

    deficit: int
    waiting: list[tuple[int, QueuedRequest]]


class ClassQueue:
    """The waiting requests of one class."""

    def __init__(self, policy_class: PolicyClass) -> None:
        self.policy_class = policy_class
        self.deficit = 0
        self.waiting: dict[Hashable, QueuedRequest] = {}
        self.input_tokens = 0
        self.cached_tokens = 0
        self._lanes: dict[int, Lane] = {}

    def push(self, entry: QueuedRequest, order: int) -> None:
        """Let a request wait; `order` tells who came first."""
        score = policy_score(self.policy_class.queue_policy, entry)
        key = (-entry.request.strict_priority, -score, order)
        lane = MAIN_LANE if entry.pinned_slot is None else entry.pinned_slot
        heappush(self._lanes.setdefault(lane, []), (key, entry))
        self.waiting[entry.request.request_id] = entry
        self.input_tokens += entry.request.input_tokens
        self.cached_tokens += entry.cached_tokens

    def forget(self, entry: QueuedRequest) -> None:
        """A request waits no longer; its place in a lane is cleaned up when it comes up."""
        del self.waiting[entry.request.request_id]
        self.input_tokens -= entry.request.input_tokens
        self.cached_tokens -= entry.cached_tokens
        if not self.waiting:
            self._lanes.clear()
            self.deficit = 0

    def head(self, can_go: Callable[[QueuedRequest], bool]) -> tuple[int, QueuedRequest] | None:
        """The most urgent head of a lane that can go, and its lane."""
        best: tuple[Key, int, QueuedRequest] | None = None
        for number in list(self._lanes):
            lane = self._lanes[number]
            while lane and self.waiting.get(lane[0][1].request.request_id) is not lane[0][1]:
                heappop(lane)
            if not lane:
                del self._lanes[number]
                continue
            key, entry = lane[0]
            if (best is None or key < best[0]) and can_go(entry):
                best = key, number, entry
        return None if best is None else best[1:]

    def take(self, lane: int, entry: QueuedRequest) -> None:
        """Remove the head of a lane."""
        heappop(self._lanes[lane])
        self.forget(entry)

    def snapshot(self) -> LineSnapshot:
        """All that future answers depend on, first come first."""
        waiting = [
            (key[2], entry)
            for lane in self._lanes.values()
            for key, entry in lane
            if self.waiting.get(entry.request.request_id) is entry
        ]
        return LineSnapshot(self.deficit, sorted(waiting, key=_order))

    def check_limits(self, num_workers: int) -> None:
        """Raises QueueFullError if the class is at one of its limits already."""
        rules = self.policy_class
        for limit, used, what in (
            (rules.request_queue_limit_per_worker, len(self.waiting), "requests"),
            (rules.raw_isl_token_queue_limit_per_worker, self.input_tokens, "prompt tokens"),
            (rules.cached_token_queue_limit_per_worker, self.cached_tokens, "cached tokens"),
        ):
            if limit is not None and used >= limit * num_workers:
                raise QueueFullError(
                    f"queue of class {rules.name!r} is full: {used} {what} wait, the limit is "
                    f"{limit * num_workers} ({limit} per worker, {num_workers} workers)"
                )


class QueueSnapshot(NamedTuple):
    """What a `PendingQueue` was; lines in the order of the classes."""

    cursor: int
    num_pushed: int
    lines: list[LineSnapshot]


class PendingQueue:
    """All waiting requests. `can_go` arguments tell whether some worker would take a request."""

    def __init__(self, classes: Sequence[PolicyClass]) -> None:
        names = [policy_class.name for policy_class in classes]
        if not names or len(set(names)) < len(names):
            raise ConfigError(f"router.policy_classes: names must be distinct, got {names}")
        self._ring = [ClassQueue(policy_class) for policy_class in classes]
        self._by_name = dict(zip(names, self._ring, strict=True))
        self._cursor = 0
        self._num_pushed = 0

    def __len__(self) -> int:
        return sum(len(line.waiting) for line in self._ring)

    def __contains__(self, request_id: Hashable) -> bool:
        return any(request_id in line.waiting for line in self._ring)

    def snapshot(self) -> QueueSnapshot:
        """All that future answers depend on; see `restore`."""
        return QueueSnapshot(
            self._cursor, self._num_pushed, [line.snapshot() for line in self._ring]
        )

    def restore(self, snapshot: QueueSnapshot) -> None:
        """Make an empty queue of the same classes what another one was."""
        self._cursor, self._num_pushed = snapshot.cursor, snapshot.num_pushed
        for line, known in zip(self._ring, snapshot.lines, strict=True):
            for order, entry in known.waiting:
                line.push(entry, order)
            line.deficit = known.deficit

    def depth(self, class_name: str) -> int:
        """Requests of a class that wait."""
        return len(self._by_name[class_name].waiting)

    def push(self, class_name: str, entry: QueuedRequest, num_workers: int) -> None:
        """Let a request wait.

        Raises: QueueFullError if the class was at a limit before this request came.
        """
        line = self._by_name[class_name]
        line.check_limits(num_workers)
        self._num_pushed += 1
        line.push(entry, self._num_pushed)

    def discard(self, request_id: Hashable) -> bool:
        """Let a request wait no longer (it was cancelled); returns whether it waited."""
        for line in self._ring:
            entry = line.waiting.get(request_id)
            if entry is not None:
                line.forget(entry)
                return True
        return False

    def pop(self, can_go: Callable[[PolicyClass, QueuedRequest], bool]) -> QueuedRequest | None:
        """The next request to go, or None if no head of a lane can."""
        heads: dict[int, tuple[int, QueuedRequest]] = {}
        for position, line in enumerate(self._ring):
            if line.waiting:
                head = line.head(partial(can_go, line.policy_class))
                if head is not None:
                    heads[position] = head
        if not heads:
            return None
        position = self._turn(heads)
        line = self._ring[position]
        lane, entry = heads[position]
        line.deficit -= entry.uncached_tokens
        line.take(lane, entry)
        self._cursor = (position + 1) % len(self._ring)
        return entry

    def _turn(self, heads: dict[int, tuple[int, QueuedRequest]]) -> int:
        """Whose turn it is: the first class from the cursor on that can afford its head.

        Classes passed over earn their quantum. If nobody can pay after one round, all get as many
        whole rounds as the first to be able needs.
        """
        order = [(self._cursor + i) % len(self._ring) for i in range(len(self._ring))]
        order = [position for position in order if position in heads]
        for position in order:
            line = self._ring[position]
            if heads[position][1].uncached_tokens <= line.deficit:
                return position
            line.deficit += line.policy_class.quantum
            if heads[position][1].uncached_tokens <= line.deficit:
                return position
        rounds = min(self._rounds_missing(position, heads) for position in order)
        for position in order:
            line = self._ring[position]
            line.deficit += rounds * line.policy_class.quantum
        return next(p for p in order if heads[p][1].uncached_tokens <= self._ring[p].deficit)

    def _rounds_missing(self, position: int, heads: dict[int, tuple[int, QueuedRequest]]) -> int:
        line = self._ring[position]
        missing = heads[position][1].uncached_tokens - line.deficit
        return -(-missing // line.policy_class.quantum)


def _order(numbered: tuple[int, QueuedRequest]) -> int:
    return numbered[0]
