"""Who places requests where there is a pool for each phase: a placer of each."""

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from dynosim.cluster.placement import LoadPlacer, Placer, Released
from dynosim.cluster.pool import Worker
from dynosim.engine.sequence import Sequence
from dynosim.errors import InvariantError
from dynosim.records import KvEventLog, RoutingStats
from dynosim.router.eligibility import Constraints
from dynosim.router.handoff import PoolLoads

if TYPE_CHECKING:
    from dynosim.cluster.router_placer import RouterPlacer

# Ours are named beside the protocol, so that a compiler calls them directly.
OnePlacer: TypeAlias = "LoadPlacer | RouterPlacer | Placer"


class PoolPlacers:
    """The placers of prefill and of decode workers, each with its own view of them."""

    def __init__(self, prefill: OnePlacer, decode: OnePlacer) -> None:
        # Here, or every run would load the routers.
        from dynosim.cluster.router_placer import RouterPlacer

        self.hears_late = prefill.hears_late or decode.hears_late
        self._prefill: OnePlacer = prefill
        self._decode: OnePlacer = decode
        self._prefill_router: RouterPlacer | None = None
        self._decode_router: RouterPlacer | None = None
        if isinstance(prefill, RouterPlacer):
            self._prefill_router = prefill
            prefill.is_one_of_two = True
        if isinstance(decode, RouterPlacer):
            self._decode_router = decode
            decode.is_one_of_two = True

    @property
    def prefill(self) -> OnePlacer:
        """That of prefill workers."""
        return self._prefill

    @property
    def next_ms(self) -> float:
        """When news arrives that only `releases` takes up."""
        return min(self._prefill.next_ms, self._decode.next_ms)

    def join(self, worker: Worker, now_ms: float) -> None:
        """A worker may get requests of its role from now on."""
        self._of(worker).join(worker, now_ms)

    def leave(self, worker: Worker, now_ms: float) -> None:
        """A worker gets no more."""
        self._of(worker).leave(worker, now_ms)

    def forget(self, indexes: Collection[int]) -> None:
        """See `forget_of`: a request may be known in both pools."""
        raise InvariantError("requests are forgotten in one pool only")

    def forget_of(self, worker: Worker, indexes: Collection[int]) -> None:
        """Requests are not on this worker any more, which is gone."""
        self._of(worker).forget(indexes)

    def place(self, index: int, input_tokens: int, priority: int, now_ms: float) -> int:
        """The prefill worker of a request, or QUEUED. Raises: RequestRefusedError."""
        return self._prefill.place(index, input_tokens, priority, now_ms)

    def place_next(
        self,
        index: int,
        input_tokens: int,
        priority: int,
        now_ms: float,
        constraints: Constraints | None,
        *,
        is_prefill: bool,
    ) -> int:
        """The worker for a request's prompt or answer, or QUEUED. Raises: RequestRefusedError."""
        if constraints is None:
            placer = self._prefill if is_prefill else self._decode
            return placer.place(index, input_tokens, priority, now_ms)
        router = self._prefill_router if is_prefill else self._decode_router
        assert router is not None
        return router.place(index, input_tokens, priority, now_ms, constraints)

    def loads(self, index: int, input_tokens: int, now_ms: float) -> PoolLoads:
        """What is known of both pools when a request comes."""
        prefill, decode = self._prefill_router, self._decode_router
        assert prefill is not None and decode is not None
        return PoolLoads(
            cached_tokens=decode.best_cached_tokens(index, input_tokens, now_ms),
            least_prefill_tokens=prefill.least_prefill_tokens(now_ms),
            least_decode_usage=decode.least_usage(),
        )

    def receive(self, worker: Worker, finished: list[Sequence], now_ms: float) -> None:
        """Take note of a step or run that has just ended on a worker."""
        self._of(worker).receive(worker, finished, now_ms)

    def give_up(self, index: int, worker: Worker | None, now_ms: float) -> None:
        """A client waits no more for a request: on a worker, or (None) before prefill workers."""
        placer = self._prefill if worker is None else self._of(worker)
        placer.give_up(index, worker, now_ms)

    def discount(self, index: int, worker: Worker, now_ms: float) -> None:
        """What has just been placed on a worker is no load there."""
        self._of(worker).discount(index, worker, now_ms)

    def give_up_queued(self, index: int, *, at_decode: bool, now_ms: float) -> None:
        """A client waits no more for a request that waits in one of the routers."""
        (self._decode if at_decode else self._prefill).give_up(index, None, now_ms)

    def releases(self, now_ms: float) -> Iterator[Released]:
        """What stops waiting in either router now."""
        yield from self._prefill.releases(now_ms)
        yield from self._decode.releases(now_ms)

    def lose_frontend(self, number: int) -> list[int]:
        """A frontend has a router of each pool; see `RouterPlacer`."""
        return sorted({index for one in self._routers() for index in one.lose_frontend(number)})

    def restore_frontend(self, number: int) -> None:
        """See `RouterPlacer`."""
        for one in self._routers():
            one.restore_frontend(number)

    @property
    def routers(self) -> "list[RouterPlacer]":
        """Of both placers those that are routers."""
        return [one for one in (self._prefill_router, self._decode_router) if one is not None]

    def _routers(self) -> "list[RouterPlacer]":
        """Raises: ValueError unless routers place in both pools."""
        prefill, decode = self._prefill_router, self._decode_router
        if prefill is None or decode is None:
            raise ValueError("there is but one frontend, and nobody to take its place")
        return [prefill, decode]

    def stats(self) -> RoutingStats | None:
        """What was decided in both; overlaps are those of prefill workers."""
        first, second = self._prefill.stats(), self._decode.stats()
        if first is None or second is None:
            return first or second
        refused = dict(first.refused)
        for status, count in second.refused.items():
            refused[status] = refused.get(status, 0) + count
        names = first.counters | second.counters
        return RoutingStats(
            overlap_blocks=first.overlap_blocks,
            queued_ms=np.asarray(first.queued_ms + second.queued_ms),
            num_queued=first.num_queued + second.num_queued,
            refused=refused,
            index_blocks=first.index_blocks + second.index_blocks,
            counters={
                name: first.counters.get(name, 0) + second.counters.get(name, 0) for name in names
            },
        )

    def kv_events(self) -> KvEventLog | None:
        """The KV events of the run, those of prefill workers first."""
        first, second = self._prefill.kv_events(), self._decode.kv_events()
        if first is None or second is None:
            return first or second
        tier = None
        if first.tier is not None or second.tier is not None:
            tier = np.concatenate((first.tiers(), second.tiers()))
        return KvEventLog(
            np.concatenate((first.time_ms, second.time_ms)),
            np.concatenate((first.worker_id, second.worker_id)),
            np.concatenate((first.num_blocks, second.num_blocks)),
            tier,
        )

    def _of(self, worker: Worker) -> OnePlacer:
        return self._prefill if worker.is_prefill else self._decode
