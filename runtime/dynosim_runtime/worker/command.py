"""`dynosim serve worker`: one engine, its card published for as long as it serves."""

import asyncio
import logging
import signal
from collections.abc import Awaitable, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from dynosim.config import RunConfig
from dynosim.errors import ConfigError
from dynosim_runtime.card import LiveCard, Role
from dynosim_runtime.config import load_plan
from dynosim_runtime.discovery.base import Discovery, Registration
from dynosim_runtime.discovery.make import discovery_spec, make_discovery
from dynosim_runtime.errors import LiveError
from dynosim_runtime.hosts import without_credentials
from dynosim_runtime.ports import check_port
from dynosim_runtime.worker.make import make_served
from dynosim_runtime.worker.served import ServedEngine

# From the card that says so to the last request that a frontend sends in ignorance of it: a look
# at the folder (0.25 s) or a message from etcd, and what was being sent.
DRAIN_NOTICE_S = 0.75

T = TypeVar("T")

log = logging.getLogger(__name__)


def serve_worker(
    plan: Path,
    overrides: Sequence[str],
    *,
    name: str,
    engine: str | None,
    host: str,
    port: int,
    discovery: str | None,
    model: Path | None,
    engine_python: Path | None,
    attach: str | None,
    speedup: float,
    taints: Sequence[str] = (),
    topology: Sequence[str] = (),
    role: Role = "agg",
) -> int:
    """Serve until told to stop; returns the exit code.

    `taints` are added to those of the plan's `live:` section, and so is `topology` (DOMAIN=VALUE),
    which wins where both name a domain.

    Raises: ConfigError for a plan, model or engine that cannot be served; LiveError if the engine
    does not become ready or dies, or discovery refuses the worker.
    """
    config = with_places(load_plan(plan, overrides), taints, topology)
    check_port(port)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    spec = discovery or discovery_spec(config.live)

    async def run() -> None:
        served = make_served(
            config,
            name=name,
            engine=engine or config.engine.kind,
            host=host,
            port=port,
            model=model,
            engine_python=engine_python,
            attach=attach,
            speedup=speedup,
            role=role,
        )
        worker = WorkerProcess(served, make_discovery(spec, config.live.lease_s))
        await worker.run(config.live.drain_timeout_s)

    asyncio.run(run())
    return 0


def with_places(plan: RunConfig, taints: Sequence[str], topology: Sequence[str]) -> RunConfig:
    """The plan with more labels and places of this worker. Raises: ConfigError."""
    live = plan.live
    places = dict(live.topology)
    for given in topology:
        domain, equals, value = given.partition("=")
        if not (equals and domain and value):
            raise ConfigError(f"--topology {given}: expected DOMAIN=VALUE (like zone=a)")
        places[domain] = value
    if "" in taints:
        raise ConfigError("--taint: a label must not be empty")
    every = tuple(dict.fromkeys((*live.taints, *taints)))
    return plan.model_copy(
        update={"live": live.model_copy(update={"taints": every, "topology": places})}
    )


class WorkerProcess:
    """An engine and its card. SIGTERM and SIGINT drain it; a second one stops it at once."""

    def __init__(self, served: ServedEngine, discovery: Discovery) -> None:
        self._served = served
        self._discovery = discovery
        self._is_told_to_stop = asyncio.Event()
        self._is_told_to_hurry = asyncio.Event()

    async def run(self, drain_timeout_s: float) -> None:
        """Returns when it has been told to stop and has. Raises: LiveError, ConfigError."""
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._on_signal)
        try:
            card = await _unless(self._is_told_to_stop, self._served.start())
            if card is not None:
                await self._serve(card, drain_timeout_s)
        finally:
            await self._served.stop()
            await self._discovery.close()

    async def _serve(self, card: LiveCard, drain_timeout_s: float) -> None:
        died = asyncio.ensure_future(self._served.died())
        try:
            registration = await self._registered(card, died)
            if registration is not None:
                await self._serve_registered(card, registration, died, drain_timeout_s)
        finally:
            died.cancel()
            await asyncio.gather(died, return_exceptions=True)

    async def _registered(
        self, card: LiveCard, died: "asyncio.Future[LiveError]"
    ) -> Registration | None:
        """The card published, which a full disk may hold up; None: told to stop before.

        Raises: LiveError, also if the engine has died meanwhile.
        """
        registering = asyncio.ensure_future(self._discovery.register(card))
        told = asyncio.ensure_future(self._is_told_to_stop.wait())
        try:
            await asyncio.wait((registering, told, died), return_when=asyncio.FIRST_COMPLETED)
            if registering.done():
                return registering.result()
            if died.done():
                raise died.result()
            return None
        finally:
            for each in (registering, told):
                each.cancel()
            await asyncio.gather(registering, told, return_exceptions=True)

    async def _serve_registered(
        self,
        card: LiveCard,
        registration: Registration,
        died: "asyncio.Future[LiveError]",
        drain_timeout_s: float,
    ) -> None:
        try:
            log.info("%s: %s", card.name, describe(card))
            error = await _unless(self._is_told_to_stop, asyncio.shield(died))
            if error is not None:
                raise error
            await _unless(self._is_told_to_hurry, self._drain(card, registration, drain_timeout_s))
        finally:
            await registration.close()

    async def _drain(
        self, card: LiveCard, registration: Registration, drain_timeout_s: float
    ) -> None:
        log.info("%s: stopping; waiting for the requests under way", card.name)
        try:
            await registration.update(msgspec.structs.replace(card, is_draining=True))
        except LiveError as error:  # nobody learns of it; the requests are still worth waiting for
            log.warning("%s", error)
        await asyncio.sleep(min(DRAIN_NOTICE_S, drain_timeout_s))
        if not await self._served.drain(drain_timeout_s):
            log.warning("%s: requests are cut off", card.name)

    def _on_signal(self) -> None:
        if self._is_told_to_stop.is_set():
            self._is_told_to_hurry.set()
        self._is_told_to_stop.set()


def describe(card: LiveCard) -> str:
    """One line for the log."""
    blocks = "" if card.total_kv_blocks is None else f"{card.total_kv_blocks} "
    return (
        f"{card.engine} serves {card.model} at {without_credentials(card.url)}, "
        f"{blocks}KV blocks of {card.block_size} tokens, "
        f"{'with' if card.events else 'without'} KV events"
    )


async def _unless(event: asyncio.Event, work: Awaitable[T]) -> T | None:
    """What the work gives; None, and the work is cancelled, if the event comes first."""
    task = asyncio.ensure_future(work)
    waiting = asyncio.create_task(event.wait())
    try:
        await asyncio.wait((task, waiting), return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        for each in (task, waiting):
            each.cancel()
        await asyncio.gather(task, waiting, return_exceptions=True)
