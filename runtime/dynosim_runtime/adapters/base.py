"""What differs between engines: their command lines, their words for capacity and load."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from dynosim.config import RunConfig
from dynosim.config.cluster import PoolRole
from dynosim_runtime.adapters.engine_http import EngineHttp
from dynosim_runtime.adapters.metrics import EngineLoad
from dynosim_runtime.card import EngineKind, EventSource
from dynosim_runtime.kv_events.publisher import EventPublisher


@dataclass(frozen=True, slots=True, kw_only=True)
class KvExchange:
    """An engine's part in handing KV over."""

    role: PoolRole
    host: str  # where others ask it for what they need to know before they read its KV
    port: int
    load_failure_policy: str  # "fail" or "recompute", of a decode worker


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchSpec:
    """What an engine is to be."""

    plan: RunConfig
    model: str  # folder, or name on the Hugging Face hub
    served_model_name: str
    host: str
    port: int
    python: Path  # of the environment that has the engine
    event_sources: tuple[EventSource, ...]  # where it is to publish KV events
    scratch: Path  # folder for files and sockets of the engine, for as long as it runs
    exchange: KvExchange | None = None  # None: it serves whole requests


Relay = Callable[[EngineHttp, EventPublisher, int], Awaitable[None]]
"""Fetches an engine's events for good, and publishes them; takes its block size, too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFacts:
    """What a running engine says of itself."""

    block_size: int  # tokens
    total_kv_blocks: int | None  # that can hold KV; None: it does not tell
    max_model_len: int
    kv_dtype: str | None = None  # as it tells it


class EngineAdapter(Protocol):
    """One kind of engine."""

    kind: EngineKind
    device: Literal["gpu", "cpu"]
    relay: Relay | None  # fetches the KV events of an engine that does not publish them by itself

    def command(self, spec: LaunchSpec) -> list[str]:
        """The command line. Raises: ConfigError for what this engine cannot do."""
        ...

    def environment(self, spec: LaunchSpec) -> dict[str, str]:
        """Variables on top of ours."""
        ...

    async def facts(self, http: EngineHttp, plan: RunConfig) -> EngineFacts:
        """What a ready engine says of itself. Raises: EngineCallError."""
        ...

    async def load(self, http: EngineHttp) -> EngineLoad:
        """How busy it is. Raises: EngineCallError."""
        ...
