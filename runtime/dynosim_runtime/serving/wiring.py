"""Everything that serves requests without a server: router, members, events, engines' clients."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import aiohttp

from dynosim.config.live import LiveConfig
from dynosim_runtime.clients.make import engine_clients, health_probe
from dynosim_runtime.discovery.base import Discovery
from dynosim_runtime.kv_events.subscriber import Subscriptions
from dynosim_runtime.outage import Outage
from dynosim_runtime.requests import RequestRecord
from dynosim_runtime.serving.dispatcher import LiveDispatcher
from dynosim_runtime.serving.in_flight import InFlight
from dynosim_runtime.serving.make_router import LiveRouting
from dynosim_runtime.serving.membership import Membership
from dynosim_runtime.serving.metrics import FrontendMetrics
from dynosim_runtime.serving.placement import LivePlacement
from dynosim_runtime.serving.router import Clock, RouterService

TICK_S = 0.25
CONNECT_TIMEOUT_S = 10.0
KEEPALIVE_S = 2.0  # less than engines keep idle connections (uvicorn: 5 s): none is used too late

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Wired:
    """The parts, connected."""

    router: RouterService
    members: Membership
    placement: LivePlacement
    dispatcher: LiveDispatcher
    subscriptions: Subscriptions


@asynccontextmanager
async def wired(
    routing: LiveRouting,
    discovery: Discovery,
    live: LiveConfig,
    *,
    model: str,
    metrics: FrontendMetrics,
    now_ms: Clock,
    write_record: Callable[[RequestRecord], None] = lambda record: None,
    on_change: Callable[[Membership], None] = lambda members: None,
    on_close: Callable[[], None] = lambda: None,
) -> AsyncIterator[Wired]:
    """The parts, and the tasks that keep them going; `on_close` is called when all have ended.

    `on_change` is called with the members after every change of them.
    """
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(engine_session())
        stack.callback(on_close)
        clients = engine_clients(session)
        for client in clients.values():
            stack.push_async_callback(client.close)
        router = RouterService(routing.inputs, now_ms, maintain=routing.maintain)
        in_flight, subscriptions = InFlight(), Subscriptions()
        members = Membership(
            router,
            subscriptions,
            health_probe(session),
            in_flight,
            model=model,
            block_size=routing.block_size,
            follows_events=routing.follows_events,
            on_change=on_change,
        )
        placement = LivePlacement(
            router,
            members,
            in_flight,
            clients,
            block_size=routing.block_size,
            tracks_output=routing.tracks_output,
            ignores_pins=live.ignore_cache_control,
        )
        dispatcher = LiveDispatcher(placement, live, metrics, now_ms, write_record=write_record)
        stack.push_async_callback(members.close)
        stack.push_async_callback(discovery.close)
        for work in (_watch(discovery, members), keep_ticking(router)):
            stack.callback(asyncio.create_task(work).cancel)
        yield Wired(router, members, placement, dispatcher, subscriptions)


async def _watch(discovery: Discovery, members: Membership) -> None:
    """Keep the members as discovery shows them, whatever happens there."""
    watching = Outage(log, "discovery failed; the workers known go on")
    while True:
        try:
            async for cards in discovery.watch():
                members.update(cards)
                watching.worked()
        except Exception as error:
            watching.failed(error)
        await asyncio.sleep(1)


async def keep_ticking(router: RouterService) -> None:
    """Let the router look at what has become of its requests, now and then, whatever happens."""
    ticking = Outage(log, "the router failed at a tick")
    while True:
        await asyncio.sleep(TICK_S)
        try:
            router.tick()
            ticking.worked()
        except Exception as error:  # a placement policy's; the next may do better
            ticking.failed(error)


def engine_session() -> aiohttp.ClientSession:
    """Connections to engines: as many as there are requests; each stream has its own deadlines."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE_S),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S),
        auto_decompress=False,
        trust_env=False,
    )
