"""Where the KV events of a real engine are: at sockets of the engine's own, or relayed by us."""

import asyncio
from pathlib import Path
from typing import Protocol

from dynosim_runtime.adapters.base import Relay
from dynosim_runtime.adapters.engine_http import EngineHttp
from dynosim_runtime.card import EventSource
from dynosim_runtime.hosts import advertised_host, is_loopback
from dynosim_runtime.kv_events.publisher import EventPublisher
from dynosim_runtime.ports import listening_socket


class EventEndpoints(Protocol):
    """The events of one engine, from before its start to after its end."""

    @property
    def sources(self) -> tuple[EventSource, ...]:
        """What the card tells of them."""
        ...

    async def start(self, http: EngineHttp) -> None:
        """The engine is ready. Raises: LiveError."""
        ...

    async def close(self) -> None:
        """The engine has ended."""
        ...


class GivenEvents:
    """Events of an engine that runs already, at known addresses, or none."""

    def __init__(self, sources: tuple[EventSource, ...] = ()) -> None:
        self.sources = sources

    async def start(self, http: EngineHttp) -> None:
        """Nothing to do."""

    async def close(self) -> None:
        """Nothing to do."""


class EngineSockets:
    """Sockets that an engine of ours is told to publish at.

    Engines of vLLM's kind bind a TCP address only if it stands for all interfaces, so on the
    loopback we give them sockets in a folder that only this user can enter. `sources` is what
    others connect to, `told` is what the engine is told; they differ in the wildcard.
    """

    def __init__(self, host: str, folder: Path) -> None:
        self.sources: tuple[EventSource, ...]
        if is_loopback(host):
            self.told = EventSource(
                endpoint=f"ipc://{folder}/events", replay_endpoint=f"ipc://{folder}/replay"
            )
            self.sources = (self.told,)
            return
        ports = _free_ports(host, 2)
        self.told, advertised = (
            EventSource(
                endpoint=f"tcp://{address}:{ports[0]}",
                replay_endpoint=f"tcp://{address}:{ports[1]}",
            )
            for address in ("*", advertised_host(host))
        )
        self.sources = (advertised,)

    async def start(self, http: EngineHttp) -> None:
        """The engine publishes by itself."""

    async def close(self) -> None:
        """They go with the folder."""


class RelayedEvents:
    """Events that we fetch from an engine and publish ourselves."""

    def __init__(self, host: str, relay: Relay, block_size: int) -> None:
        self._block_size = block_size
        self._publisher = EventPublisher(host=advertised_host(host))
        self._relay = relay
        self._task: asyncio.Task[None] | None = None
        self.sources: tuple[EventSource, ...] = ()

    async def start(self, http: EngineHttp) -> None:
        """Publish from now on. Raises: LiveError if no port can be had."""
        self.sources = (self._publisher.start(),)

        async def run() -> None:
            await self._relay(http, self._publisher, self._block_size)

        self._task = asyncio.create_task(run())

    async def close(self) -> None:
        """Stop publishing."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            await self._publisher.close()


def _free_ports(host: str, count: int) -> list[int]:
    """Ports that nobody listens on now."""
    sockets = [listening_socket(host, 0) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
