"""The measured side: drives a deployment, running or started for it, or reads AIPerf's results."""

import secrets
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynosim.config import RunConfig
from dynosim.records import Trace
from dynosim_runtime.config import model_folder, served_model_name
from dynosim_runtime.launch.control import check_control, controlled
from dynosim_runtime.launch.deployment import LocalDeployment
from dynosim_runtime.launch.specs import DeployOptions, num_workers
from dynosim_runtime.measure.aiperf import read_aiperf
from dynosim_runtime.measure.capacity import ReportedCapacity, read_capacity
from dynosim_runtime.measure.client import CompletionsClient
from dynosim_runtime.measure.clocks import check_clocks
from dynosim_runtime.measure.counters import read_counters
from dynosim_runtime.measure.load import LoadRun, drive, warm_up
from dynosim_runtime.measure.measured import measured_report
from dynosim_runtime.measure.prompts import PromptMaker, vocabulary_of
from dynosim_runtime.measure.transfers import (
    TransferCounters,
    read_transfers,
    transfer_figures,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """How a deployment is driven."""

    model: Path | None  # in place of the plan's
    speedup: float
    warmup: int
    shows_progress: bool


@dataclass(slots=True)
class Measured:
    """The measured side of a comparison."""

    report: dict[str, Any]
    source: str
    run: LoadRun | None = None  # None: only summaries are known
    prompt_seed: int | None = None
    capacity: ReportedCapacity | None = None  # None: it does not tell
    transfers: dict[str, Any] | None = None  # of KV, where there are prefill workers


async def measure_started(
    config: RunConfig, trace: Trace, deploy: DeployOptions, options: LoadOptions
) -> Measured:
    """Start the plan's deployment, drive it, stop it. Raises: LiveError, ConfigError."""
    if options.shows_progress:
        print(f"starting {num_workers(config)} workers and a frontend", file=sys.stderr)
    check_control(config, deploy)

    def say(text: str) -> None:
        if options.shows_progress:
            print(text, file=sys.stderr)

    async with (
        LocalDeployment(config, deploy) as deployment,
        controlled(deployment, config, deploy, say),
    ):
        return await measure_url(config, trace, deployment.url, options)


def client_timeout_s(config: RunConfig, speedup: float) -> float:
    """How long the load generator waits for an answer, on the wall's clock.

    A request that takes longer has failed; `workload.client_timeout_ms` is on the workload's clock.
    """
    timeout_s, client_ms = config.live.request_timeout_s, config.workload.client_timeout_ms
    return timeout_s if client_ms is None else min(timeout_s, client_ms / 1e3 / speedup)


async def measure_url(config: RunConfig, trace: Trace, url: str, options: LoadOptions) -> Measured:
    """Drive what runs at `url` with the trace.

    Raises: LiveError if it does not serve; ConfigError if it goes by another clock.

    Prompts differ from one call to the next: what an earlier run left in the caches must not be
    found by this one.
    """
    seed = secrets.randbits(48)
    folder = model_folder(config, options.model)
    vocabulary = vocabulary_of(str(folder) if folder is not None else config.model)
    prompts = PromptMaker(vocabulary, seed=seed)
    name = served_model_name(config, options.model)
    timeout_s = client_timeout_s(config, options.speedup)
    sampling = config.sampling
    async with CompletionsClient(url, name, timeout_s=timeout_s, sampling=sampling) as client:
        await check_clocks(client, options.speedup)
        at_once = config.workload.concurrency
        await warm_up(client, prompts, trace, options.warmup, concurrency=at_once)
        before = await read_counters(client)
        moved = await read_transfers(client)
        run = await drive(
            trace,
            client,
            prompts,
            concurrency=config.workload.concurrency,
            speed=options.speedup,
            progress=_show_progress if options.shows_progress else None,
        )
        capacity = None
        if not run.was_interrupted:
            block_size = config.engine.block_size
            capacity = await read_capacity(client, before, block_size=block_size)
        if before is not None and not run.was_interrupted:
            after = await read_counters(client)
            run.cache_hit_rate = None if after is None else after.hit_rate_since(before)
        transfers = await _transfers_since(client, moved, config, options.speedup)
        if options.shows_progress:
            print(file=sys.stderr)
        return Measured(_report(config, run), client.url, run, seed, capacity, transfers)


async def _transfers_since(
    client: CompletionsClient, before: TransferCounters | None, config: RunConfig, speedup: float
) -> dict[str, Any] | None:
    """What was handed over meanwhile; None without prefill workers."""
    if before is None or not config.cluster.is_disagg:
        return None
    after = await read_transfers(client)
    return None if after is None else transfer_figures(config, after.since(before), speedup)


def measure_aiperf(config: RunConfig, path: Path) -> Measured:
    """What AIPerf measured. Raises: TraceError if the files cannot be used."""
    results = read_aiperf(path)
    if results.run is None:
        return Measured(results.report, results.source)
    return Measured(_report(config, results.run), results.source, results.run)


def _report(config: RunConfig, run: LoadRun) -> dict[str, Any]:
    parts = config.pools()
    count = sum(part.cluster.workers for part in parts)
    gpus = sum(part.cluster.workers * part.engine.gpus_per_worker for part in parts)
    return measured_report(
        run,
        num_workers=count if gpus % count == 0 else 1,  # it counts their GPUs, which are equal
        gpus_per_worker=gpus // count if gpus % count == 0 else gpus,
        sla=config.sla,
    )


def _show_progress(num_ended: int, num_requests: int) -> None:
    print(f"\r{num_ended:,} of {num_requests:,} requests", end="", file=sys.stderr, flush=True)
