"""The clients of all engines, and the probe that tells whether one still lives."""

from collections.abc import Awaitable, Callable

import aiohttp

from dynosim_runtime.card import LiveCard
from dynosim_runtime.clients.base import EngineClient
from dynosim_runtime.clients.connections import Connections
from dynosim_runtime.clients.openai import OpenAiEngineClient
from dynosim_runtime.clients.sglang import SglangEngineClient
from dynosim_runtime.clients.trtllm import TrtllmEngineClient

PROBE_TIMEOUT_S = 2.0


def engine_clients(session: aiohttp.ClientSession) -> dict[str, EngineClient]:
    """By engine kind."""
    connections = Connections()
    openai = OpenAiEngineClient(connections)
    return {
        "mock": openai,
        "vllm": openai,
        "sglang": SglangEngineClient(session),
        "trtllm": TrtllmEngineClient(connections),
    }


def health_probe(session: aiohttp.ClientSession) -> Callable[[LiveCard], Awaitable[bool]]:
    """Asks an engine's /health; anything but a quick 200 means that it is not well."""
    timeout = aiohttp.ClientTimeout(total=PROBE_TIMEOUT_S)

    async def probe(card: LiveCard) -> bool:
        try:
            async with session.get(f"{card.url}/health", timeout=timeout) as response:
                return response.status == 200
        except (aiohttp.ClientError, OSError, ValueError):  # also a name that cannot be one
            return False

    return probe
