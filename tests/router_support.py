"""Small routers for tests."""

from collections.abc import Sequence
from random import Random
from typing import Any

from dynosim.blocks.hashing import sequence_hashes
from dynosim.indexer.base import Stored
from dynosim.indexer.compressed import CompressedRadixIndex
from dynosim.router.kv_router import KvRouter
from dynosim.router.request import RoutingRequest
from dynosim.router.settings import CostSettings, RouterSettings
from dynosim.router.workers import WorkerCard

BLOCK = 16


def make_router(
    num_workers: int = 3, *, index: Any = None, policy: Any = None, **settings: Any
) -> KvRouter:
    """A router over equal workers 0, 1, ...; keyword arguments are settings, or of their cost."""
    names = CostSettings.__slots__
    cost = CostSettings(**{name: settings.pop(name) for name in names if name in settings})
    made = RouterSettings(BLOCK, cost=cost, **settings)
    router = KvRouter(made, index or CompressedRadixIndex(), policy=policy)
    for worker_id in range(num_workers):
        router.add_worker(card(worker_id))
    return router


def card(worker_id: int, **fields: Any) -> WorkerCard:
    """A worker card with usual sizes."""
    defaults: dict[str, Any] = {"total_kv_blocks": 100, "max_num_batched_tokens": 1024}
    return WorkerCard(worker_id, BLOCK, **{**defaults, **fields})


def request(name: Any, blocks: Sequence[int] = (1, 2, 3, 4), **fields: Any) -> RoutingRequest:
    """A request whose prompt consists of these blocks (local hashes), and no rest."""
    local = list(blocks)
    length = fields.pop("input_tokens", BLOCK * len(local))
    return RoutingRequest(name, length, len(local), local, sequence_hashes(local), **fields)


def store(router: KvRouter, worker_id: int, blocks: Sequence[int]) -> None:
    """Let a worker tell that it holds these leading blocks."""
    router.apply_events(worker_id, 0, [Stored(None, sequence_hashes(blocks), list(blocks))])


class Points(Random):
    """Gives the numbers that it is told to."""

    def __init__(self, *points: float) -> None:
        super().__init__()
        self.points = list(points)

    def random(self) -> float:
        return self.points.pop(0)
