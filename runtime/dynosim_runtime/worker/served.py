"""What `serve worker` runs: a simulated engine in this process, or a real one beside it.

Each gives a card when it is ready, tells when it dies, and ends what is under way before it stops.
"""

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal, Protocol

from dynosim.config import RunConfig
from dynosim.errors import ConfigError
from dynosim_runtime.adapters.base import EngineAdapter, EngineFacts, LaunchSpec
from dynosim_runtime.adapters.engine_http import EngineCallError, EngineHttp
from dynosim_runtime.adapters.metrics import EngineLoad
from dynosim_runtime.adapters.openai_models import model_name
from dynosim_runtime.card import LiveCard, Role, worker_id_of
from dynosim_runtime.config import model_folder
from dynosim_runtime.errors import LiveError
from dynosim_runtime.mock.worker import MockWorker
from dynosim_runtime.worker.engine import EngineProcess, wait_ready
from dynosim_runtime.worker.event_sources import EventEndpoints

DRAIN_POLL_S = 0.1
HEALTH_INTERVAL_S = 1.0  # of an attached engine
OWN_HEALTH_INTERVAL_S = 10.0
MAX_FAILED_PROBES = 3  # in a row, before an attached engine counts as gone


class ServedEngine(Protocol):
    """An engine that a worker stands for."""

    async def start(self) -> LiveCard:
        """Returns its card once it answers requests. Raises: LiveError, ConfigError."""
        ...

    async def died(self) -> LiveError:
        """Returns when it has ended by itself, with what to tell."""
        ...

    async def drain(self, timeout_s: float) -> bool:
        """Wait until no request is in flight; whether that came to pass in time."""
        ...

    async def stop(self) -> None:
        """Stop it, and whatever belongs to it; harmless before `start` and twice."""
        ...


class MockServed:
    """A mock worker in this process."""

    def __init__(
        self,
        worker: MockWorker,
        name: str,
        plan: RunConfig,
        model: Path | None,
        device: Literal["gpu", "cpu"] = "gpu",
        role: Role = "agg",
    ) -> None:
        self._role = role
        self._worker = worker
        self._name = name
        self._plan = plan
        self._model = model
        self._device = device

    async def start(self) -> LiveCard:
        """See `ServedEngine`."""
        endpoint = await self._worker.start()
        folder = model_folder(self._plan, self._model)
        return LiveCard(
            worker_id=worker_id_of(self._name),
            name=self._name,
            engine="mock",
            url=endpoint.url,
            model=endpoint.model,
            model_path=None if folder is None else str(folder),
            role=self._role,
            block_size=endpoint.block_size,
            kv_dtype=self._plan.engine.kv_cache_dtype,
            total_kv_blocks=endpoint.total_kv_blocks,
            max_num_batched_tokens=endpoint.max_num_batched_tokens,
            max_num_seqs=endpoint.max_num_seqs,
            max_model_len=endpoint.max_model_len,
            device=self._device,
            taints=self._plan.live.taints,
            topology=self._plan.live.topology,
            events=endpoint.events,
            accepts_priority=endpoint.accepts_priority,
            speedup=self._worker.speedup,
            pid=os.getpid(),
        )

    async def died(self) -> LiveError:
        """See `ServedEngine`. It lives as long as this process, unless it has a defect."""
        try:
            await self._worker.wait()
        except Exception as error:
            return LiveError(f"{self._name}: the simulated engine failed: {error!r}")
        return LiveError(f"{self._name}: the simulated engine has stopped")

    async def drain(self, timeout_s: float) -> bool:
        """See `ServedEngine`."""
        return await self._worker.stop(timeout_s)

    async def stop(self) -> None:
        """See `ServedEngine`."""
        await self._worker.stop(0.0)


class RealServed:
    """A real engine: a process of ours, or (`is_attached`) one that runs already."""

    def __init__(
        self,
        adapter: EngineAdapter,
        spec: LaunchSpec,
        events: EventEndpoints,
        *,
        name: str,
        url: str,
        is_attached: bool,
        on_stop: Callable[[], None],
        role: Role = "agg",
    ) -> None:
        self._role = role
        self._adapter = adapter
        self._spec = spec
        self._events = events
        self._name = name
        self._on_stop = on_stop
        self._http = EngineHttp(url)
        self._process: EngineProcess | None = None
        if not is_attached:
            command, environment = start_of(adapter, spec)
            self._process = EngineProcess(name, command, environment, spec.scratch)

    async def start(self) -> LiveCard:
        """See `ServedEngine`."""
        plan = self._spec.plan
        if self._process is not None:
            await self._process.start()
        await wait_ready(self._name, self._http, self._process, plan.live.ready_timeout_s)
        try:
            facts = await self._adapter.facts(self._http, plan)
            model = await self._model_name()
        except EngineCallError as error:
            raise LiveError(f"{self._name}: {error}") from None
        check_facts(self._name, facts, plan)
        await self._events.start(self._http)
        return self._card(facts, model)

    async def died(self) -> LiveError:
        """See `ServedEngine`. An engine of ours is also dead when it is silent for very long."""
        if self._process is not None:
            return await self._process_died(self._process)
        failed_probes = 0
        while failed_probes < MAX_FAILED_PROBES:
            await asyncio.sleep(HEALTH_INTERVAL_S)
            failed_probes = 0 if await self._http.is_healthy() else failed_probes + 1
        return LiveError(f"{self._name}: the engine at {self._http.shown_url} answers no more")

    async def _process_died(self, process: EngineProcess) -> LiveError:
        """It may be silent for as long as a first token may take: a long prompt on a CPU."""
        limit_s = self._spec.plan.live.first_token_timeout_s
        ended = asyncio.ensure_future(process.wait())
        answered_s = time.monotonic()
        try:
            while not ended.done():
                await asyncio.wait((ended,), timeout=OWN_HEALTH_INTERVAL_S)
                if await self._http.is_healthy():
                    answered_s = time.monotonic()
                elif time.monotonic() - answered_s > limit_s and not ended.done():
                    return LiveError(
                        f"{self._name}: the engine has not answered /health for {limit_s:g} s "
                        "(live.first_token_timeout_s)"
                    )
            return process.died(ended.result(), "while it was serving")
        finally:
            ended.cancel()
            await asyncio.gather(ended, return_exceptions=True)

    async def drain(self, timeout_s: float) -> bool:
        """See `ServedEngine`. An attached engine may have other clients: it is not waited for."""
        if self._process is None:
            return True
        try:
            async with asyncio.timeout(timeout_s):
                while self._is_busy(await self._adapter.load(self._http)):
                    await asyncio.sleep(DRAIN_POLL_S)
        except TimeoutError:
            return False
        except EngineCallError:  # it is gone, and its requests with it
            return False
        return True

    def _is_busy(self, load: EngineLoad) -> bool:
        """KV that a decode worker may still read is no request any more, but uses its blocks."""
        return load.num_requests != 0 or (self._role == "prefill" and bool(load.kv_usage))

    async def stop(self) -> None:
        """See `ServedEngine`."""
        if self._process is not None:
            await self._process.stop()
        await self._events.close()
        await self._http.close()
        self._on_stop()

    async def _model_name(self) -> str:
        """The name that requests to the engine must give."""
        is_attached = self._process is None
        return await model_name(self._http) if is_attached else self._spec.served_model_name

    def _card(self, facts: EngineFacts, model: str) -> LiveCard:
        engine, live = self._spec.plan.engine, self._spec.plan.live
        folder = self._spec.model if os.path.isdir(self._spec.model) else None
        return LiveCard(
            worker_id=worker_id_of(self._name),
            name=self._name,
            engine=self._adapter.kind,
            url=self._http.url,
            model=model,
            model_path=folder,
            role=self._role,
            block_size=facts.block_size,
            kv_dtype=facts.kv_dtype,
            total_kv_blocks=facts.total_kv_blocks,
            max_num_batched_tokens=engine.max_num_batched_tokens,
            max_num_seqs=engine.max_num_seqs,
            max_model_len=facts.max_model_len,
            device=self._adapter.device,
            taints=live.taints,
            topology=live.topology,
            events=self._events.sources,
            accepts_priority=engine.policy == "priority",
            pid=os.getpid(),
        )


def check_facts(name: str, facts: EngineFacts, plan: RunConfig) -> None:
    """Raises: ConfigError if a running engine is not what the plan says."""
    engine = plan.engine
    if facts.block_size != engine.block_size:
        raise ConfigError(
            f"{name}: the engine's KV blocks hold {facts.block_size} tokens, but the plan says "
            f"engine.block_size: {engine.block_size} (set engine.block_size={facts.block_size})"
        )
    if engine.num_gpu_blocks == "auto" or facts.total_kv_blocks is None:
        return
    if facts.total_kv_blocks != engine.num_gpu_blocks - 1:
        raise ConfigError(
            f"{name}: the engine has {facts.total_kv_blocks} KV blocks and a placeholder, but the "
            f"plan says engine.num_gpu_blocks: {engine.num_gpu_blocks} "
            f"(set engine.num_gpu_blocks={facts.total_kv_blocks + 1})"
        )


def start_of(adapter: EngineAdapter, spec: LaunchSpec) -> tuple[list[str], dict[str, str]]:
    """An engine's command and environment, with what the plan adds at the end: the last wins."""
    live = spec.plan.live
    return (
        [*adapter.command(spec), *live.engine_args],
        {**adapter.environment(spec), **live.engine_env},
    )
