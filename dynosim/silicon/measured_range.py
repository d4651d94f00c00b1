"""What the silicon tables were measured on, read from the tables themselves.

aiconfigurator extrapolates without saying so; the measurements' own extent (longest context at
each batch size) is what tells whether a step lay inside them. Reads Parquet with polars, only when
a table is extracted.
"""

from pathlib import Path
from typing import Any

import numpy as np

from dynosim.records import FloatArray
from dynosim.silicon.catalogue import core_folder

Extent = tuple[FloatArray, FloatArray]
"""Batch sizes, and the longest length measured at each; empty when nothing is known."""

_GENERATION = ("attention", "generation_attention_perf")
_CONTEXT = ("attention", "context_attention_perf")


def measured_decode_range(system: str, backend: str, *, kv_heads: int, is_latent: bool) -> Extent:
    """Per batch size, the longest context whose decode attention was measured.

    `kv_heads` are those of one rank; `is_latent` means multi-head latent attention.
    """
    family, name = ("mla", "mla_generation_module_perf") if is_latent else _GENERATION
    return _extent(system, backend, family, name, kv_heads, is_prefill=False)


def measured_prefill_range(system: str, backend: str, *, kv_heads: int, is_latent: bool) -> Extent:
    """Per number of prompts, the most new tokens of each whose attention was measured."""
    family, name = ("mla", "mla_context_module_perf") if is_latent else _CONTEXT
    return _extent(system, backend, family, name, kv_heads, is_prefill=True)


def _extent(
    system: str, backend: str, family: str, name: str, kv_heads: int, *, is_prefill: bool
) -> Extent:
    folder = core_folder()
    unknown: Extent = (np.zeros(0), np.zeros(0))
    if folder is None:
        return unknown
    files = sorted(
        (folder / "systems" / "data" / system / family / backend).glob(f"*/{name}.parquet")
    )
    rows: dict[int, int] = {}
    for file in files:
        for batch, length in _longest(file, kv_heads, is_prefill=is_prefill):
            rows[batch] = max(rows.get(batch, 0), length)
    if not rows:
        return unknown
    batches = sorted(rows)
    return np.array(batches, np.float64), np.array([rows[b] for b in batches], np.float64)


def _longest(file: Path, kv_heads: int, *, is_prefill: bool) -> list[tuple[int, int]]:
    """Per batch size the longest length in one table, of layers with these heads if there are any.

    In context tables `isl` counts new tokens and `step` cached ones; in generation tables both add
    up to the context.
    """
    try:
        import polars as pl
    except ImportError:
        return []
    table = pl.read_parquet(file)
    if not {"batch_size", "isl", "step"} <= set(table.columns):
        return []
    if "num_key_value_heads" in table.columns:
        same = table.filter(pl.col("num_key_value_heads") == kv_heads)
        table = same if len(same) else table
    length: Any = pl.col("isl") if is_prefill else pl.col("isl") + pl.col("step")
    longest = table.group_by("batch_size").agg(length.max().alias("longest"))
    return [(int(batch), int(value)) for batch, value in longest.rows()]
