"""What can be seen of a running frontend: gauges, and two pages besides the API."""

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from dynosim.workers.ids import WorkerId
from dynosim_runtime.hosts import without_credentials
from dynosim_runtime.kv_events.subscriber import Subscriptions
from dynosim_runtime.serving.dispatcher import LiveDispatcher
from dynosim_runtime.serving.metrics import FrontendMetrics
from dynosim_runtime.serving.placement import LivePlacement

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def observe_frontend(
    metrics: FrontendMetrics,
    dispatcher: LiveDispatcher,
    placement: LivePlacement,
    subscriptions: Subscriptions,
) -> None:
    """Add the gauges that are read when somebody asks."""
    router, members = placement.router, placement.members
    metrics.observe_stages(
        route=lambda: dispatcher.num_routing, dispatch=lambda: dispatcher.num_dispatched
    )
    metrics.observe("dynosim_workers", "Workers that take requests.", lambda: members.num_ready)
    metrics.observe(
        "dynosim_workers_fenced", "Workers that do not answer.", lambda: members.num_fenced
    )
    metrics.observe(
        "dynosim_router_queued_requests", "Waiting in the router.", lambda: router.num_queued
    )
    metrics.observe(
        "dynosim_router_index_blocks",
        "(worker, block) pairs in the index.",
        lambda: getattr(router.router.index, "size", 0),
    )
    for name, text in (
        ("events", "KV events received."),
        ("malformed", "KV events that made no sense."),
        ("gaps", "Gaps in the numbers of KV event messages."),
        ("replays", "Times messages were asked for again."),
        ("cleared", "Times a worker's blocks were forgotten because messages are gone."),
        ("failures", "Times a worker's KV events could not be followed or taken in."),
    ):
        metrics.observe(
            f"dynosim_kv_{name}",
            text,
            lambda name=name: getattr(subscriptions.total(), name),  # type: ignore[misc]
        )
    metrics.observe(
        "dynosim_kv_streams_failing",
        "Workers' streams of KV events that cannot be followed at the moment.",
        lambda: subscriptions.num_failing,
    )


def status_routes(metrics: FrontendMetrics, placement: LivePlacement) -> list[Route]:
    """`/metrics` for Prometheus, `/workers` for people and tests."""

    async def metrics_page(request: Request) -> Response:
        return Response(metrics.exposition(), headers={"content-type": METRICS_TYPE})

    async def workers_page(request: Request) -> Response:
        return JSONResponse(worker_rows(placement))

    return [Route("/metrics", metrics_page), Route("/workers", workers_page)]


def worker_rows(placement: LivePlacement) -> dict[str, object]:
    """Every worker in use with its load, as the router counts it."""
    router, rows = placement.router.router, []
    for card in placement.members.cards.values():
        ranks = card.routing_card().ranks
        slots = [router.table.slot_of(WorkerId(card.worker_id), rank) for rank in ranks]
        known = [slot for slot in slots if slot is not None]
        rows.append(
            {
                "worker_id": card.worker_id,
                "name": card.name,
                "engine": card.engine,
                "url": without_credentials(card.url),
                "speedup": card.speedup,
                "role": card.role,
                "taints": sorted(card.routing_card().all_taints),
                "is_draining": card.is_draining,
                "block_size": card.block_size,
                "total_kv_blocks": card.total_kv_blocks,
                "active_requests": sum(router.load.num_requests[slot] for slot in known),
                "active_blocks": sum(router.load.blocks(slot) for slot in known),
            }
        )
    return {"workers": rows, "num_fenced": placement.members.num_fenced}
