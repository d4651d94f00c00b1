"""A frontend of the twin: its router, who takes the inputs, and what hands it engines' events."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Never

from dynosim.blocks.kv_event import KvEvent
from dynosim.cluster.block_names import HashNames
from dynosim.indexer.base import BlockEvent
from dynosim.indexer.extents import ExtentIndex
from dynosim.indexer.tiered_extents import TieredExtents
from dynosim.router.decision import Decision, Refusal
from dynosim.router.inputs import Arrive, E, End, FirstToken, WorkerEvents
from dynosim.router.kv_router import AnyRouter, KvRouter
from dynosim.router.log.recorder import RouterLog
from dynosim.router.request import RoutingRequest
from dynosim.workers.ids import FIRST_RANK, WorkerId

Feed = Callable[[WorkerId, Sequence[E], float], None]
"""Gives a worker's events to one router, in order, at a time. What has left publishes nothing."""


@dataclass(frozen=True, slots=True)
class FrontendRouter:
    """`inputs` is the router itself, or its log; `feed_blocks` is there with an index of hashes.

    `submit`, `first_token` and `free` are the doors that each request goes through: the router's
    own, or else ways into its log.
    """

    router: AnyRouter
    inputs: AnyRouter | RouterLog[Never]
    feed: Feed[KvEvent]
    submit: Callable[[RoutingRequest, float], Decision | None]
    first_token: Callable[[Hashable, float], None]
    free: Callable[[Hashable, float], None]
    feed_blocks: Feed[BlockEvent] | None = None


def extent_frontend(inputs: KvRouter[KvEvent] | RouterLog[KvEvent]) -> FrontendRouter:
    """A frontend whose index takes engines' events as they are."""
    if isinstance(inputs, RouterLog):
        return _frontend(inputs, feed_of(inputs))
    table, index = inputs.table, inputs.index
    if not isinstance(index, ExtentIndex | TieredExtents):
        return _frontend(inputs, feed_of(inputs))

    def apply_all(worker_id: WorkerId, events: Sequence[KvEvent], now_ms: float) -> None:
        slot = table.slot_of(worker_id)
        if slot is not None:
            index.apply_all(slot, events)  # as `take` of `WorkerEvents`, without a detour

    return _frontend(inputs, apply_all)


def hash_frontend(
    inputs: KvRouter[BlockEvent] | RouterLog[BlockEvent], names: HashNames
) -> FrontendRouter:
    """A frontend whose index receives every block by its hash."""
    feed_blocks = feed_of(inputs)

    def feed(worker_id: WorkerId, events: Sequence[KvEvent], now_ms: float) -> None:
        feed_blocks(worker_id, [names.event(event) for event in events], now_ms)

    return _frontend(inputs, feed, feed_blocks)


def _frontend(
    inputs: AnyRouter | RouterLog[Never],
    feed: Feed[KvEvent],
    feed_blocks: Feed[BlockEvent] | None = None,
) -> FrontendRouter:
    if not isinstance(inputs, RouterLog):
        doors = inputs.submit, inputs.first_token, inputs.free
        return FrontendRouter(inputs, inputs, feed, *doors, feed_blocks)
    log = inputs

    def submit(request: RoutingRequest, now_ms: float) -> Decision | None:
        outcome = log.take(Arrive(now_ms, request))
        if isinstance(outcome, Refusal):
            raise outcome.error
        return outcome

    def first_token(request_id: Hashable, now_ms: float) -> None:
        log.take(FirstToken(now_ms, request_id))

    def free(request_id: Hashable, now_ms: float) -> None:
        log.take(End(now_ms, request_id))

    return FrontendRouter(log.router, log, feed, submit, first_token, free, feed_blocks)


def feed_of(inputs: KvRouter[E] | RouterLog[E]) -> Feed[E]:
    """What hands events to a router as inputs."""
    table = inputs.router.table if isinstance(inputs, RouterLog) else inputs.table

    def feed(worker_id: WorkerId, events: Sequence[E], now_ms: float) -> None:
        if table.slot_of(worker_id) is not None:
            inputs.take(WorkerEvents(now_ms, worker_id, FIRST_RANK, events))

    return feed
