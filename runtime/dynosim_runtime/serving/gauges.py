"""What can be seen of a running frontend: gauges, and two pages besides the API."""

from collections.abc import Callable, Sequence

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from dynosim.planner import frontend_metrics as names
from dynosim.workers.ids import WorkerId
from dynosim_runtime.hosts import without_credentials
from dynosim_runtime.serving.dispatcher import LiveDispatcher
from dynosim_runtime.serving.metrics import FrontendMetrics
from dynosim_runtime.serving.placement import LivePlacement
from dynosim_runtime.serving.pool import Pool

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def observe_frontend(
    metrics: FrontendMetrics,
    dispatcher: LiveDispatcher,
    pools: Sequence[Pool],
) -> None:
    """Add the gauges that are read when somebody asks; over all pools."""
    metrics.observe_stages(
        route=lambda: dispatcher.num_routing,
        dispatch=lambda: dispatcher.num_dispatched,
        prefill=(lambda: dispatcher.num_prefilling) if len(pools) > 1 else None,
    )

    if len(pools) > 1:
        metrics.observe_handoffs()

    def observe(name: str, text: str, of: Callable[[Pool], float]) -> None:
        metrics.observe(name, text, lambda: sum(map(of, pools)))

    observe(names.WORKERS, "Workers that take requests.", lambda pool: pool.members.num_ready)
    observe(
        names.WORKERS_FENCED,
        "Workers that do not answer.",
        lambda pool: pool.members.num_fenced,
    )
    observe(
        names.QUEUED_REQUESTS,
        "Waiting in the router.",
        lambda pool: pool.router.num_queued,
    )
    observe(
        "dynosim_router_index_blocks",
        "(worker, block) pairs in the index.",
        lambda pool: getattr(pool.router.router.index, "size", 0),
    )
    for name, text in (
        ("events", "KV events received."),
        ("malformed", "KV events that made no sense."),
        ("gaps", "Gaps in the numbers of KV event messages."),
        ("replays", "Times messages were asked for again."),
        ("cleared", "Times a worker's blocks were forgotten because messages are gone."),
        ("failures", "Times a worker's KV events could not be followed or taken in."),
    ):
        observe(
            f"dynosim_kv_{name}",
            text,
            lambda pool, name=name: getattr(pool.subscriptions.total(), name),  # type: ignore[misc]
        )
    observe(
        "dynosim_kv_streams_failing",
        "Workers' streams of KV events that cannot be followed at the moment.",
        lambda pool: pool.subscriptions.num_failing,
    )


def status_routes(metrics: FrontendMetrics, pools: Sequence[Pool]) -> list[Route]:
    """`/metrics` for Prometheus, `/workers` for people and tests."""

    async def metrics_page(request: Request) -> Response:
        return Response(metrics.exposition(), headers={"content-type": METRICS_TYPE})

    async def workers_page(request: Request) -> Response:
        return JSONResponse(
            {
                "workers": [row for pool in pools for row in worker_rows(pool.placement)],
                "num_fenced": sum(pool.members.num_fenced for pool in pools),
            }
        )

    return [Route("/metrics", metrics_page), Route("/workers", workers_page)]


def worker_rows(placement: LivePlacement) -> list[dict[str, object]]:
    """Every worker of a pool in use with its load, as the router counts it."""
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
    return rows
