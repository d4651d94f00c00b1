"""How long KV was on its way: what decode workers count, beside what their links should take."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import aiohttp

from dynosim.config import RunConfig
from dynosim.errors import ConfigError
from dynosim_runtime.adapters.metrics import metric_values
from dynosim_runtime.measure.capacity import read_workers
from dynosim_runtime.measure.client import CompletionsClient
from dynosim_runtime.mock.links import handoff_cost

TRANSFER = "vllm:nixl_xfer_time_seconds"
BYTES = "vllm:nixl_bytes_transferred"
FAILED = "vllm:nixl_num_failed_transfers"
HANDOFF = "dynosim_handoff_seconds"
ASK_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class TransferCounters:
    """A reading, over all decode workers; handoffs as the frontend counts them."""

    num_transfers: float = 0.0
    transfer_s: float = 0.0
    num_bytes: float = 0.0
    num_failed: float = 0.0
    num_handoffs: float = 0.0
    handoff_s: float = 0.0

    def since(self, before: "TransferCounters") -> "TransferCounters":
        """What has come since another reading."""
        mine, others = asdict(self), asdict(before)
        return TransferCounters(**{name: mine[name] - others[name] for name in mine})


async def read_transfers(client: CompletionsClient) -> TransferCounters | None:
    """None if what serves there has no decode workers, or they do not tell."""
    urls = [
        str(row["url"])
        for row in await read_workers(client)
        if isinstance(row, dict) and row.get("role") == "decode"
    ]
    if not urls:
        return None
    pages = []
    timeout = aiohttp.ClientTimeout(total=ASK_TIMEOUT_S)
    try:
        async with aiohttp.ClientSession(timeout=timeout, trust_env=False) as session:
            for url in urls:
                async with session.get(f"{url}/metrics") as answer:
                    pages.append(await answer.text())
    except (aiohttp.ClientError, OSError, ValueError):
        return None
    return parse_transfers(pages, await client.get_text("/metrics"))


def parse_transfers(worker_pages: list[str], frontend_page: str) -> TransferCounters:
    """The counters on Prometheus pages."""
    names = tuple(f"{name}_{part}" for name in (TRANSFER, BYTES) for part in ("count", "sum"))
    values = [metric_values(page, (*names, TRANSFER, BYTES, FAILED)) for page in worker_pages]

    def total(name: str) -> float:
        return sum(sum(page[name]) for page in values)

    handoffs = metric_values(frontend_page, (HANDOFF, f"{HANDOFF}_count", f"{HANDOFF}_sum"))
    return TransferCounters(
        num_transfers=total(f"{TRANSFER}_count"),
        transfer_s=total(f"{TRANSFER}_sum"),
        num_bytes=total(f"{BYTES}_sum"),
        num_failed=total(FAILED),
        num_handoffs=sum(handoffs[f"{HANDOFF}_count"]),
        handoff_s=sum(handoffs[f"{HANDOFF}_sum"]),
    )


def transfer_figures(
    config: RunConfig, counters: TransferCounters, speedup: float
) -> dict[str, Any]:
    """The mean transfer as measured, and as the plan's links alone would take for such bytes.

    Waits of transfers for each other are in the measured one only. Times on the plan's clock.
    """
    count = counters.num_transfers
    measured_ms = counters.transfer_s * 1e3 * speedup / count if count else None
    predicted_ms = _links_alone_ms(config, counters.num_bytes / count) if count else None
    handoffs = counters.num_handoffs
    return {
        "transfers": int(count),
        "failed": int(counters.num_failed),
        "bytes_mean": counters.num_bytes / count if count else None,
        "transfer_ms_mean": measured_ms,
        "links_alone_ms_mean": predicted_ms,
        "measured_over_links_alone": (
            measured_ms / predicted_ms if measured_ms is not None and predicted_ms else None
        ),
        "handoff_ms_mean": counters.handoff_s * 1e3 * speedup / handoffs if handoffs else None,
    }


def _links_alone_ms(config: RunConfig, num_bytes: float) -> float | None:
    """None if the size of the model's KV is not known."""
    try:
        cost = handoff_cost(config)
    except ConfigError:
        return None
    per_token = cost.wire_bytes(1)
    return cost.unloaded_ms(math.ceil(num_bytes / per_token)) if per_token else None
