"""Small routers for tests."""

from collections.abc import Sequence
from random import Random
from typing import Any

from dynosim.blocks.hashing import sequence_hashes
from dynosim.indexer.base import Stored
from dynosim.indexer.compressed import CompressedRadixIndex
from dynosim.router.decision import Refusal
from dynosim.router.inputs import (
    Arrive,
    AskBest,
    AskLoads,
    DropStale,
    End,
    FirstToken,
    Join,
    Leave,
    Release,
    Tokens,
    Unbind,
    WorkerEvents,
)
from dynosim.router.knobs import CostSpec, RouterSpec
from dynosim.router.kv_router import KvRouter
from dynosim.router.log.recorder import RouterLog
from dynosim.router.request import RoutingRequest
from dynosim.router.workers import WorkerCard

BLOCK = 16


def make_router(
    num_workers: int = 3, *, index: Any = None, policy: Any = None, **settings: Any
) -> KvRouter:
    """A router over equal workers 0, 1, ...; keyword arguments are settings, or of their cost."""
    names = CostSpec.__slots__
    cost = CostSpec(**{name: settings.pop(name) for name in names if name in settings})
    made = RouterSpec(BLOCK, cost=cost, **{"mode": "kv", **settings})
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


class Doors:
    """The doors of a router that gets its inputs as values, through `take`.

    What a door gives no time for happens at that of the call before.
    """

    def __init__(self, inputs: Any) -> None:
        self.inputs = inputs
        self.router: KvRouter[Any] = inputs.router if isinstance(inputs, RouterLog) else inputs
        self.now_ms = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.router, name)

    def _give(self, given: Any) -> Any:
        self.now_ms = given.now_ms
        outcome = self.inputs.take(given)
        if isinstance(outcome, Refusal):
            raise outcome.error
        return outcome

    def add_worker(self, card: WorkerCard) -> Any:
        return self._give(Join(self.now_ms, card))

    def remove_worker(self, worker_id: Any) -> Any:
        return self._give(Leave(self.now_ms, worker_id))

    def apply_events(self, worker_id: Any, dp_rank: Any, events: Sequence[Any]) -> Any:
        return self._give(WorkerEvents(self.now_ms, worker_id, dp_rank, events))

    def submit(self, request: RoutingRequest, now_ms: float) -> Any:
        return self._give(Arrive(now_ms, request))

    def first_token(self, request_id: Any, now_ms: float) -> Any:
        return self._give(FirstToken(now_ms, request_id))

    def output_tokens(self, request_id: Any, num_tokens: int, now_ms: float) -> Any:
        return self._give(Tokens(now_ms, request_id, num_tokens))

    def free(self, request_id: Any, now_ms: float) -> Any:
        return self._give(End(now_ms, request_id))

    def release(self, now_ms: float) -> Any:
        return self._give(Release(now_ms))

    def drop_stale(self, now_ms: float) -> Any:
        return self._give(DropStale(now_ms))

    def unbind_session(self, session_id: str) -> Any:
        return self._give(Unbind(self.now_ms, session_id))

    def best_worker(
        self,
        token_ids: Sequence[int],
        request_id: Any = None,
        *,
        update_states: bool = False,
        router_config_override: CostSpec | None = None,
        now_ms: float = 0.0,
    ) -> Any:
        overrides = router_config_override
        return self._give(AskBest(now_ms, token_ids, request_id, update_states, overrides))

    def get_potential_loads(self, token_ids: Sequence[int], now_ms: float = 0.0) -> Any:
        return self._give(AskLoads(now_ms, token_ids))


class Points(Random):
    """Gives the numbers that it is told to."""

    def __init__(self, *points: float) -> None:
        super().__init__()
        self.points = list(points)

    def random(self) -> float:
        return self.points.pop(0)
