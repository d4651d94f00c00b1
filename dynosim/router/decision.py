"""What comes of a request: a decision, or a refusal."""

from collections.abc import Hashable
from dataclasses import dataclass

from dynosim.router.refusals import RequestRefusedError
from dynosim.workers.ids import DpRank, Slot, WorkerId


@dataclass(slots=True, init=False)
class Decision:
    """Where a request goes, and why: what the chosen candidate would cost and holds already."""

    request_id: Hashable
    worker_id: WorkerId
    dp_rank: DpRank
    slot: Slot
    cost: float
    overlap_blocks: float
    cached_tokens: int
    queued_ms: float  # time spent waiting in the router

    def __init__(
        self,
        request_id: Hashable,
        worker_id: WorkerId,
        dp_rank: DpRank,
        slot: Slot,
        cost: float,
        overlap_blocks: float,
        cached_tokens: int,
        queued_ms: float,
    ) -> None:
        self.request_id = request_id
        self.worker_id = worker_id
        self.dp_rank = dp_rank
        self.slot = slot
        self.cost = cost
        self.overlap_blocks = overlap_blocks
        self.cached_tokens = cached_tokens
        self.queued_ms = queued_ms


@dataclass(slots=True)
class Refusal:
    """A request that the router will not place, at once or after it has waited."""

    request_id: Hashable
    error: RequestRefusedError


@dataclass(slots=True, init=False)
class ChosenSlot:
    """A slot chosen for a request, and what is known of it there."""

    slot: Slot
    cost: float
    overlap_blocks: float
    cached_tokens: int

    def __init__(
        self,
        slot: Slot,
        cost: float,
        overlap_blocks: float,
        cached_tokens: int,
    ) -> None:
        self.slot = slot
        self.cost = cost
        self.overlap_blocks = overlap_blocks
        self.cached_tokens = cached_tokens
