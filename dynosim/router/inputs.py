"""All that a router can be given, as values: what a log holds is a list of them.

Each has the time at which it was given, on the clock of the driver.
`KvRouter.take` says what comes of each.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from dynosim.blocks.kv_event import KvEvent
from dynosim.indexer.base import BlockEvent
from dynosim.router.decision import Decision, Refusal
from dynosim.router.knobs import CostSpec
from dynosim.router.request import RoutingRequest
from dynosim.router.workers import WorkerCard
from dynosim.workers.ids import DpRank, Slot, WorkerId

AnyEvent = BlockEvent | KvEvent
"""What some router's index takes: hash indexes block events, the twin's index extents."""
E = TypeVar("E", bound=AnyEvent)
E_contra = TypeVar("E_contra", bound=AnyEvent, contravariant=True)


@dataclass(slots=True)
class Join:
    """A worker came."""

    now_ms: float
    card: WorkerCard


@dataclass(slots=True)
class Leave:
    """A worker went."""

    now_ms: float
    worker_id: WorkerId


@dataclass(slots=True)
class WorkerEvents(Generic[E]):
    """Blocks of a worker were stored or evicted, in this order."""

    now_ms: float
    worker_id: WorkerId
    dp_rank: DpRank
    events: Sequence[E]


@dataclass(slots=True)
class Arrive:
    """A request is to be placed."""

    now_ms: float
    request: RoutingRequest


@dataclass(slots=True)
class FirstToken:
    """The first token of a request was produced."""

    now_ms: float
    request_id: Hashable


@dataclass(slots=True)
class Tokens:
    """A request has produced `num_tokens` tokens in all."""

    now_ms: float
    request_id: Hashable
    num_tokens: int


@dataclass(slots=True)
class End:
    """A request ended, however it ended."""

    now_ms: float
    request_id: Hashable


@dataclass(slots=True)
class Release:
    """What waits in the router may go, if it can."""

    now_ms: float


@dataclass(slots=True)
class DropStale:
    """Requests that have not been heard of for too long are to be forgotten."""

    now_ms: float


@dataclass(slots=True)
class Unbind:
    """A session may go anywhere again: its worker failed it."""

    now_ms: float
    session_id: str


@dataclass(slots=True)
class AskBest:
    """Where would these tokens go? With `update_states` they count as placed there."""

    now_ms: float
    token_ids: Sequence[int]
    request_id: Hashable = None
    update_states: bool = False
    overrides: CostSpec | None = None


@dataclass(slots=True)
class AskLoads:
    """What would each candidate have in flight with these tokens?"""

    now_ms: float
    token_ids: Sequence[int]


Input = (
    Join
    | Leave
    | WorkerEvents[E]
    | Arrive
    | FirstToken
    | Tokens
    | End
    | Release
    | DropStale
    | Unbind
    | AskBest
    | AskLoads
)

Placed = Decision | Refusal
Best = tuple[int, int, int]  # worker, data-parallel rank, overlapping blocks
Loads = list[dict[str, int]]  # by candidate, in slot order

Outcome = Placed | list[Placed] | list[Slot] | list[Hashable] | Best | Loads | None
