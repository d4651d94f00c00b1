"""Places requests on workers by load, and leaves it to each worker's front end on which rank."""

from collections.abc import Collection, Iterator

from dynosim.cluster.placement import LoadPlacer, Released
from dynosim.cluster.pool import Worker
from dynosim.engine.pace import NEVER
from dynosim.engine.rank_balance import BalancingRule, RankBalancer
from dynosim.engine.sequence import Sequence


class FrontEnd:
    """A worker's own front end: its ranks, and what it knows of them."""

    __slots__ = ("balancer", "first", "sent")

    def __init__(self, first: Worker, rule: BalancingRule) -> None:
        self.first = first
        number = first.pool.ranks.number
        self.balancer = RankBalancer(number, rule)
        self.sent = [0] * number  # in the course of each rank's step: it has not looked yet


class RankPlacer:
    """Two choices, one after the other: a worker by the router's mode, then one of its ranks."""

    def __init__(self, workers: LoadPlacer, rule: BalancingRule) -> None:
        self.next_ms = NEVER
        self.hears_late = False
        self._workers = workers
        self._rule = rule
        self._front_ends: dict[int, FrontEnd] = {}  # by the id of the first rank

    def join(self, worker: Worker, now_ms: float) -> None:
        """The first rank joins for all."""
        if worker.rank == 0:
            self._front_ends[worker.worker_id] = FrontEnd(worker, self._rule)
            self._workers.join(worker, now_ms)

    def leave(self, worker: Worker, now_ms: float) -> None:
        """The first rank leaves for all."""
        if worker.rank == 0:
            self._workers.leave(worker, now_ms)

    def forget(self, indexes: Collection[int]) -> None:
        """Requests are known by their number only."""

    def place(self, index: int, input_tokens: int, priority: int, now_ms: float) -> int:
        """The rank to serve a request."""
        front_end = self._front_ends[self._workers.place(index, input_tokens, priority, now_ms)]
        rank = front_end.balancer.choose(now_ms)
        front_end.sent[rank] += 1
        return front_end.first.worker_id + rank

    def receive(self, worker: Worker, finished: list[Sequence], now_ms: float) -> None:
        """A rank reports after its step; what came in the course of it, it has not seen yet."""
        rank = worker.rank
        front_end = self._front_ends[worker.first_id]
        self._workers.receive(front_end.first, finished, now_ms)
        core = worker.engine.core
        balancer = front_end.balancer
        if finished:
            balancer.ended(rank, len(finished))
        balancer.report(
            rank,
            waiting=max(core.num_waiting - front_end.sent[rank], 0),
            running=core.num_running,
            kv_usage=core.used_blocks / worker.pool.engine.usable_blocks,
            now_ms=now_ms,
        )
        front_end.sent[rank] = 0

    def give_up(self, index: int, worker: Worker | None, now_ms: float) -> None:
        """Count it as an end, on the worker and on its rank."""
        front_end = None if worker is None else self._front_ends[worker.first_id]
        self._workers.give_up(index, None if front_end is None else front_end.first, now_ms)
        if front_end is not None and worker is not None:
            front_end.balancer.ended(worker.rank, 1)

    def discount(self, index: int, worker: Worker, now_ms: float) -> None:
        """Count it as an end."""
        self.give_up(index, worker, now_ms)

    def releases(self, now_ms: float) -> Iterator[Released]:
        """Nothing ever waits."""
        return iter(())

    def stats(self) -> None:
        """Nothing but load was looked at."""

    def kv_events(self) -> None:
        """Engines publish no events."""
