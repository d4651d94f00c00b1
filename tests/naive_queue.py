"""Requests that wait in a router, as plain lists: whose turn it is, looked for one by one."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from dynosim.router.classes import PolicyClass
from dynosim.router.queue import QueuedRequest
from dynosim.router.refusals import QueueFullError

CanGo = Callable[[PolicyClass, QueuedRequest], bool]


@dataclass
class Line:
    """The waiting requests of a class, first come first, and what the class has earned."""

    rules: PolicyClass
    waiting: list[QueuedRequest] = field(default_factory=list)
    deficit: int = 0


def urgency(policy: str, entry: QueuedRequest) -> tuple[int, float]:
    """What goes first within a line: more; equal ones in the order in which they came."""
    jump_s, came_s = max(entry.request.priority_jump, 0.0), entry.enqueue_ms / 1e3
    uncached = max(1, entry.request.input_tokens - entry.cached_tokens)
    score = {"fcfs": jump_s - came_s, "lcfs": jump_s + came_s, "wspt": (1 + jump_s) / uncached}
    return entry.request.strict_priority, score[policy]


class NaiveQueue:
    """Deficit round robin over classes; inside a class lanes that block only themselves."""

    def __init__(self, classes: Sequence[PolicyClass]) -> None:
        self.lines = [Line(rules) for rules in classes]
        self.cursor = 0

    def __len__(self) -> int:
        return sum(len(line.waiting) for line in self.lines)

    def __contains__(self, name: Hashable) -> bool:
        return any(
            entry.request.request_id == name for line in self.lines for entry in line.waiting
        )

    def depth(self, class_name: str) -> int:
        return len(self._line(class_name).waiting)

    def push(self, class_name: str, entry: QueuedRequest, num_workers: int) -> None:
        line = self._line(class_name)
        rules, waiting = line.rules, line.waiting
        input_tokens = sum(entry.request.input_tokens for entry in waiting)
        used = (
            (rules.request_queue_limit_per_worker, len(waiting)),
            (rules.raw_isl_token_queue_limit_per_worker, input_tokens),
            (rules.cached_token_queue_limit_per_worker, sum(e.cached_tokens for e in waiting)),
        )
        if any(limit is not None and amount >= limit * num_workers for limit, amount in used):
            raise QueueFullError("full before this request came")
        waiting.append(entry)

    def discard(self, name: Hashable) -> bool:
        for line in self.lines:
            for entry in line.waiting:
                if entry.request.request_id == name:
                    self._remove(line, entry)
                    return True
        return False

    def pop(self, can_go: CanGo) -> QueuedRequest | None:
        heads = [self._head(line, can_go) for line in self.lines]
        order = [(self.cursor + i) % len(self.lines) for i in range(len(self.lines))]
        order = [place for place in order if heads[place] is not None]
        if not order:
            return None
        place = self._turn(order, heads)
        line, entry = self.lines[place], heads[place]
        assert entry is not None
        line.deficit -= cost_of(entry)
        self._remove(line, entry)
        self.cursor = (place + 1) % len(self.lines)
        return entry

    def _turn(self, order: list[int], heads: list[Any]) -> int:
        """A class that cannot pay earns its quantum; so round by round until one can."""
        for place in order:
            line = self.lines[place]
            if cost_of(heads[place]) > line.deficit:
                line.deficit += line.rules.quantum
            if cost_of(heads[place]) <= line.deficit:
                return place
        while True:
            for place in order:
                self.lines[place].deficit += self.lines[place].rules.quantum
            for place in order:
                if cost_of(heads[place]) <= self.lines[place].deficit:
                    return place

    @staticmethod
    def _head(line: Line, can_go: CanGo) -> QueuedRequest | None:
        """The most urgent of the lanes' heads that can go."""
        policy = line.rules.queue_policy
        lanes: dict[int | None, list[QueuedRequest]] = {}
        for entry in line.waiting:
            lanes.setdefault(entry.pinned_slot, []).append(entry)
        heads = [max(lane, key=lambda entry: urgency(policy, entry)) for lane in lanes.values()]
        able = [entry for entry in heads if can_go(line.rules, entry)]
        came = {id(entry): place for place, entry in enumerate(line.waiting)}
        return max(able, key=lambda entry: (urgency(policy, entry), -came[id(entry)]), default=None)

    def _remove(self, line: Line, entry: QueuedRequest) -> None:
        line.waiting = [other for other in line.waiting if other is not entry]
        if not line.waiting:
            line.deficit = 0

    def _line(self, class_name: str) -> Line:
        return next(line for line in self.lines if line.rules.name == class_name)


def cost_of(entry: QueuedRequest) -> int:
    """Uncached prompt tokens, at least one."""
    return max(1, entry.request.input_tokens - entry.cached_tokens)
