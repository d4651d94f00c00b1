"""`dynosim serve frontend`: HTTP server, router, members and event subscriptions in one process."""

import asyncio
import gc
import logging
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, cast

import uvicorn
from starlette.types import ASGIApp

from dynosim.build.disagg import handoff_spec
from dynosim.config.schema import RunConfig
from dynosim_runtime.card import HANDING_OVER
from dynosim_runtime.clients.base import EngineClient, HandoffClient
from dynosim_runtime.clients.make import engine_clients, health_probe
from dynosim_runtime.config import check_live, load_plan, model_folder, served_model_name
from dynosim_runtime.dialects.parsing.output_parser import Parsing
from dynosim_runtime.discovery.base import Discovery
from dynosim_runtime.discovery.make import discovery_spec, make_discovery
from dynosim_runtime.http.app import create_app
from dynosim_runtime.http.connection import BoundedConnection
from dynosim_runtime.http.limits import HttpLimits
from dynosim_runtime.http.registry import ModelRegistry
from dynosim_runtime.http.speculative_prefills import SpeculativePrefills
from dynosim_runtime.outage import Outage
from dynosim_runtime.ports import BACKLOG, check_port, listening_socket
from dynosim_runtime.serving.dispatcher import LiveDispatcher, stopwatch
from dynosim_runtime.serving.gauges import observe_frontend, status_routes
from dynosim_runtime.serving.handoffs import LiveHandoffs
from dynosim_runtime.serving.membership import Membership, Probe
from dynosim_runtime.serving.metrics import FrontendMetrics
from dynosim_runtime.serving.pool import Pool, make_pool, plan_pools
from dynosim_runtime.serving.request_log import RecordWriter
from dynosim_runtime.serving.wiring import engine_session, keep_ticking
from dynosim_runtime.tokenize.load import load_tokenizer
from dynosim_runtime.tokenize.tokenizer import Tokenizer

LISTENERS = 32  # uvloop takes one connection of each in a turn of its loop, which may be long
COLLECT_AFTER = 20_000  # objects more than freed; in 1,000 streams all objects are looked at often

log = logging.getLogger(__name__)


def serve_frontend(
    plan: Path,
    overrides: Sequence[str],
    *,
    host: str | None,
    port: int | None,
    discovery: str | None,
    model: Path | None,
    out: Path | None,
) -> int:
    """Serve until told to stop; returns the exit code. Raises: ConfigError, LiveError."""
    import uvloop
    from prometheus_client import disable_created_metrics

    disable_created_metrics()  # type: ignore[no-untyped-call]
    config = load_plan(plan, overrides)
    check_live(config)
    check_port(port)
    given = {"host": host, "port": port}
    live = config.live.model_copy(update={k: v for k, v in given.items() if v is not None})
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    frontend = FrontendProcess(
        config.model_copy(update={"live": live}),
        model=served_model_name(config, model),
        tokenizer=load_tokenizer(model_folder(config, model)),
        discovery=make_discovery(discovery or discovery_spec(live), live.lease_s),
        out=out,
    )
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(frontend.run())
    return 0


class FrontendProcess:
    """One frontend process. `run` returns when it has been told to stop and has drained.

    Raises: LiveError if its port or its folder cannot be used.
    """

    def __init__(
        self,
        config: RunConfig,
        *,
        model: str,
        tokenizer: Tokenizer,
        discovery: Discovery,
        out: Path | None,
    ) -> None:
        self._live = config.live
        self._model = model
        self._tokenizer = tokenizer
        self._discovery = discovery
        self._socket = listening_socket(config.live.host, config.live.port)
        self._records = None if out is None else RecordWriter(out)
        self._plan = config
        self._pool_plans = plan_pools(config, out)
        self._pools: list[Pool] = []
        self._metrics = FrontendMetrics(namespace=config.live.metrics_namespace, model=model)
        self._models = ModelRegistry()
        self._speculative_prefills: SpeculativePrefills | None = None
        self._now_ms = stopwatch()

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT."""
        stopping = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stopping.set)
        async with self._wired() as (dispatcher, app), self._served(app):
            gc.enable()  # the command line has turned it off, for commands that are short
            gc.collect()
            gc.set_threshold(COLLECT_AFTER)
            gc.freeze()  # what has been built so far will live as long as the process
            host, port = self._socket.getsockname()[:2]
            log.info("frontend for %s on http://%s:%s", self._model, host, port)
            await stopping.wait()
            await self._drain(dispatcher)

    async def _drain(self, dispatcher: LiveDispatcher) -> None:
        """Refuse what is new; let what is under way end, for a while."""
        dispatcher.is_draining = True
        if self._speculative_prefills is not None:
            await self._speculative_prefills.close()
        log.info("stopping; %d requests under way", dispatcher.num_active)
        limit_ms = self._now_ms() + self._live.drain_timeout_s * 1e3
        while dispatcher.num_active and self._now_ms() < limit_ms:
            await asyncio.sleep(0.05)
        if dispatcher.num_active:
            log.warning("%d requests are cut off", dispatcher.num_active)

    @asynccontextmanager
    async def _served(self, app: ASGIApp) -> AsyncIterator[None]:
        """The HTTP server around the application."""
        server = _Server(
            uvicorn.Config(
                app, http=BoundedConnection, ws="none", lifespan="off", proxy_headers=False,
                log_level="error",  # warnings are of what clients send: they could fill the disk
                access_log=False, backlog=BACKLOG,
                timeout_keep_alive=75, timeout_graceful_shutdown=1,
            )
        )  # fmt: skip
        listeners = [self._socket, *(self._socket.dup() for _ in range(LISTENERS - 1))]
        serving = asyncio.create_task(server.serve(sockets=listeners))
        try:
            yield
        finally:
            server.should_exit = True
            await serving

    @asynccontextmanager
    async def _wired(self) -> AsyncIterator[tuple[LiveDispatcher, ASGIApp]]:
        """Everything behind the routes, and the tasks that keep it going."""
        async with AsyncExitStack() as stack:
            session = await stack.enter_async_context(engine_session())
            stack.callback(self._close_files)
            clients = engine_clients(session)
            for client in clients.values():
                stack.push_async_callback(client.close)
            handoffs = self._make_pools(clients, health_probe(session))
            placement = self._pools[-1].placement  # of those that answer clients
            dispatcher = LiveDispatcher(
                placement,
                self._live,
                self._metrics,
                self._now_ms,
                write_record=self._records or (lambda record: None),
                handoffs=handoffs,
            )
            self._speculative_prefills = SpeculativePrefills(
                dispatcher, self._metrics.note_sent_ahead
            )
            stack.push_async_callback(self._speculative_prefills.close)
            if handoffs is not None:
                stack.push_async_callback(handoffs.close)
            for pool in self._pools:
                stack.push_async_callback(pool.members.close)
            stack.push_async_callback(self._discovery.close)
            observe_frontend(self._metrics, dispatcher, self._pools)
            self._observe_files()
            for work in (self._watch(), *(keep_ticking(pool.router) for pool in self._pools)):
                stack.callback(asyncio.create_task(work).cancel)
            yield dispatcher, self._app(dispatcher)

    def _make_pools(self, clients: Mapping[str, EngineClient], probe: Probe) -> LiveHandoffs | None:
        """Set them up; returns how requests go from one to the other, where there are two."""
        plan, pools = self._plan, self._pools
        spec = handoff_spec(plan)
        for pool_plan in self._pool_plans:
            pools.append(
                make_pool(
                    pool_plan,
                    self._now_ms,
                    probe,
                    clients,
                    model=self._model,
                    first_token=spec.first_token,
                    others=pools,
                    on_change=self._follow,
                )
            )
        if not plan.cluster.is_disagg:
            return None
        return LiveHandoffs(
            spec,
            pools[0].placement,
            pools[1].placement,
            {kind: cast(HandoffClient, clients[kind]) for kind in HANDING_OVER},
            block_size=pools[1].routing.block_size,
            on_load_failure=plan.cluster.handoff.load_failure_policy,
        )

    def _app(self, dispatcher: LiveDispatcher) -> ASGIApp:
        live = self._live
        return create_app(
            dispatcher,
            self._models,
            limits=HttpLimits(
                max_body_bytes=live.max_body_bytes,
                max_concurrent_requests=live.max_concurrent_requests,
            ),
            metrics=self._metrics,
            extra_routes=status_routes(self._metrics, self._pools),
            strip_anthropic_preamble=live.strip_anthropic_preamble,
            parsing=Parsing(live.tool_parser, live.reasoning_parser),
            speculative_prefills=self._speculative_prefills,
        )

    def _follow(self, changed: Membership) -> None:
        """The model is served as long as a worker is there for it that answers clients."""
        lengths = []
        for pool in self._pools:
            cards = pool.members.cards.values()
            pool.routing.follow_speedups(card.speedup for card in cards)
            lengths += [card.max_model_len for card in cards]
        members = self._pools[-1].members
        if members.cards:
            self._models.add(self._model, self._tokenizer, min(lengths))
        else:
            self._models.remove(self._model, members.absence)

    async def _watch(self) -> None:
        """Keep the members as discovery shows them, whatever happens there."""
        watching = Outage(log, "discovery failed; the workers known go on")
        while True:
            try:
                async for cards in self._discovery.watch():
                    for pool in self._pools:
                        pool.members.update(pool.cards_of(cards))
                    watching.worked()
            except Exception as error:
                watching.failed(error)
            await asyncio.sleep(1)

    def _observe_files(self) -> None:
        records, pools = self._records, self._pool_plans
        self._metrics.observe(
            "dynosim_records_lost",
            "Records of requests that could not be written.",
            lambda: 0 if records is None else records.num_lost,
        )
        self._metrics.observe(
            "dynosim_router_log_failing",
            "1 while the router's log cannot be written.",
            lambda: any(pool.routing.is_log_failing for pool in pools),
        )

    def _close_files(self) -> None:
        for pool in self._pool_plans:
            pool.routing.close()
        if self._records is not None:
            self._records.close()


class _Server(uvicorn.Server):
    """Leaves signals to the frontend, which drains first."""

    @contextmanager
    def capture_signals(self) -> Any:
        yield
