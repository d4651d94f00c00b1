"""What the silicon tables were measured on, read from the tables themselves.

aiconfigurator extrapolates without saying so; the measurements' own extent (longest context at
each batch size) is what tells whether a step lay inside them. Reads Parquet with polars, only when
a table is extracted.
"""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from dynosim.records import FloatArray
from dynosim.silicon.catalogue import core_folder
from dynosim.silicon.table_versions import TableName
from dynosim.timing.architecture import ModelShape

Extent = tuple[FloatArray, FloatArray]
"""Batch sizes, and the longest length measured at each; empty when nothing is known."""

_GENERATION = ("attention", "generation_attention_perf")
_CONTEXT = ("attention", "context_attention_perf")


def measured_decode_range(
    system: str,
    backend: str,
    *,
    kv_heads: int,
    is_latent: bool,
    versions: Mapping[TableName, str] | None = None,
) -> Extent:
    """Per batch size, the longest context whose decode attention was measured.

    `kv_heads` are those of one rank; `is_latent` means multi-head latent attention; `versions` are
    the tables in use (None: all there are).
    """
    family, name = ("mla", "mla_generation_module_perf") if is_latent else _GENERATION
    files = _files(system, backend, family, name, versions)
    return _extent(files, kv_heads, is_prefill=False)


def measured_prefill_range(
    system: str,
    backend: str,
    *,
    kv_heads: int,
    is_latent: bool,
    versions: Mapping[TableName, str] | None = None,
) -> Extent:
    """Per number of prompts, the most new tokens of each whose attention was measured."""
    family, name = ("mla", "mla_context_module_perf") if is_latent else _CONTEXT
    files = _files(system, backend, family, name, versions)
    return _extent(files, kv_heads, is_prefill=True)


ExpertWidths = tuple[int, int, int, int]
"""Hidden width, an expert's inner width, experts for each token, experts."""


def expert_widths(shape: ModelShape) -> ExpertWidths:
    """What a model's expert kernels are looked up by."""
    return (shape.hidden, shape.expert_intermediate, shape.experts_per_token, shape.experts)


@cache
def measured_experts(system: str, backend: str) -> frozenset[ExpertWidths]:
    """The widths of all expert kernels that were measured, in any version."""
    try:
        import polars as pl
    except ImportError:
        return frozenset()
    names = ["hidden_size", "inter_size", "topk", "num_experts"]
    found: set[ExpertWidths] = set()
    for file in _files(system, backend, "moe", "moe_perf", None):
        found.update(pl.read_parquet(file, columns=names).select(names).unique().rows())
    return frozenset(found)


def _files(
    system: str,
    backend: str,
    family: str,
    name: str,
    versions: Mapping[TableName, str] | None,
) -> list[Path]:
    folder = core_folder()
    if folder is None:
        return []
    version = "*" if versions is None else versions.get((family, f"{name}.parquet"), "*")
    place = folder / "systems" / "data" / system / family / backend
    return sorted(place.glob(f"{version}/{name}.parquet"))


def _extent(files: list[Path], kv_heads: int, *, is_prefill: bool) -> Extent:
    unknown: Extent = (np.zeros(0), np.zeros(0))
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
