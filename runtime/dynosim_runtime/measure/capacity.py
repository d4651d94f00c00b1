"""How many KV blocks the engines that are measured have, as they or their frontend tell it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dynosim_runtime.errors import LiveError
from dynosim_runtime.measure.client import CompletionsClient
from dynosim_runtime.measure.counters import EngineCounters

PLACEHOLDERS = 1
"""Of vLLM's `num_gpu_blocks`, which the plan counts by; it never holds KV."""


@dataclass(frozen=True, slots=True)
class ReportedCapacity:
    """KV memory of one engine: the smallest, if there are several."""

    num_gpu_blocks: int  # of the plan's block size, the placeholder included
    reported_by: str
    notes: tuple[str, ...] = ()


async def read_capacity(
    client: CompletionsClient, counters: EngineCounters | None, *, block_size: int
) -> ReportedCapacity | None:
    """Ask what serves at the client's address; None if it does not tell.

    `counters` is what its /metrics said, if it is an engine; `block_size` the plan's.
    """
    if counters is not None:
        return engine_capacity(counters.cache_config, block_size=block_size)
    rows = await read_workers(client)
    return workers_capacity(rows, block_size=block_size) if rows else None


async def read_workers(client: CompletionsClient) -> list[Any]:
    """The workers that a frontend lists; none if what serves there is no frontend of ours."""
    try:
        page = await client.get_json("/workers")
    except LiveError:
        return []
    rows = page.get("workers") if isinstance(page, dict) else None
    return rows if isinstance(rows, list) else []


def engine_capacity(config: Mapping[str, str], *, block_size: int) -> ReportedCapacity | None:
    """From the labels of vLLM's `cache_config_info`."""
    blocks = config.get("num_gpu_blocks", "")
    if not blocks.isdigit() or int(blocks) <= PLACEHOLDERS:
        return None
    size = config.get("block_size", "")
    told_size = int(size) if size.isdigit() and int(size) > 0 else block_size
    usable = int(blocks) - PLACEHOLDERS
    return _smallest([(usable, told_size)], "the engine's /metrics", block_size)


def workers_capacity(rows: Sequence[Any], *, block_size: int) -> ReportedCapacity | None:
    """From the workers that a frontend lists."""
    told = []
    for row in rows:
        blocks = row.get("total_kv_blocks") if isinstance(row, dict) else None
        if type(blocks) is not int or blocks < 1:
            return None
        size = row.get("block_size")
        told.append((blocks, size if type(size) is int and size > 0 else block_size))
    return _smallest(told, "the workers' cards", block_size) if told else None


def _smallest(
    engines: Sequence[tuple[int, int]], reported_by: str, block_size: int
) -> ReportedCapacity | None:
    """The smallest of (usable blocks, tokens in each), in blocks of the plan's size."""
    notes = []
    other = next((size for _, size in engines if size != block_size), None)
    if other is not None:
        notes.append(
            f"the engine's KV blocks hold {other} tokens, the plan's {block_size}: the capacity is "
            f"converted (set engine.block_size={other})"
        )
    counts = sorted(blocks * size // block_size for blocks, size in engines)
    if counts[0] != counts[-1]:
        notes.append(
            f"workers have {counts[0]:,} to {counts[-1]:,} KV blocks; all are taken to have the "
            "fewest"
        )
    return (
        ReportedCapacity(counts[0] + PLACEHOLDERS, reported_by, tuple(notes)) if counts[0] else None
    )
