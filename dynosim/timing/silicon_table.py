"""The compact table of one engine's step times, and its file.

A step takes `linear_ms`[all new tokens] + prefill attention(prompts, mean new, mean cached)
+ decode attention(sequences, mean context), and `head_ms`[sequences] more when it only decodes.
`linear_ms` holds every token count because kernel times jump between them; attention is smooth and
sits on a grid.
"""

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynosim.records import FloatArray

TABLE_FORMAT = 2
"""Rises when the meaning of the file changes; part of every cache key."""

Float32Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class SiliconTable:
    """Times in ms, lengths in tokens. Attention surfaces are float32 to keep the file small."""

    linear_ms: FloatArray  # (max_tokens + 1,) everything but attention; [0] is 0
    head_ms: FloatArray  # (max_batch + 1,) extra of a step without prefill; [0] is 0
    counts: FloatArray  # (k,) prompts in a step
    new_tokens: FloatArray  # (n,) mean new tokens of a prompt
    prefix_tokens: FloatArray  # (p,) mean cached tokens of a prompt; [0] is 0
    prefill_ms: Float32Array  # (k, n, p) attention
    batches: FloatArray  # (b,) decoding sequences
    contexts: FloatArray  # (c,) mean context
    decode_ms: Float32Array  # (b, c) attention
    measured_batches: FloatArray  # (r,) batch sizes of the decode attention measurements
    measured_contexts: FloatArray  # (r,) longest context measured at that batch size
    measured_counts: FloatArray  # (q,) prompt counts of the prefill attention measurements
    measured_new_tokens: FloatArray  # (q,) most new tokens measured at that count
    meta: dict[str, Any]  # what was asked, with which versions, and how good the table is

    @property
    def max_tokens(self) -> int:
        return len(self.linear_ms) - 1

    @property
    def max_batch(self) -> int:
        return len(self.head_ms) - 1


_ARRAYS = [field.name for field in fields(SiliconTable) if field.name != "meta"]


def save_table(table: SiliconTable, path: Path) -> None:
    """Writes the table as an uncompressed NPZ."""
    arrays = {name: getattr(table, name) for name in _ARRAYS}
    meta = np.frombuffer(json.dumps(table.meta).encode(), dtype=np.uint8)
    with path.open("wb") as file:
        np.savez(file, allow_pickle=False, meta=meta, **arrays)


def load_table(path: Path) -> SiliconTable:
    """Reads a table.

    Raises: OSError, EOFError, KeyError or ValueError (also for a damaged archive).
    """
    import zipfile

    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in _ARRAYS}
            meta = json.loads(archive["meta"].tobytes())
    except zipfile.BadZipFile as error:
        raise ValueError(str(error)) from error
    table = SiliconTable(meta=meta, **arrays)
    _check(table)
    return table


def _check(table: SiliconTable) -> None:
    """Raises ValueError if shapes disagree or a number is not finite."""
    prefill = (len(table.counts), len(table.new_tokens), len(table.prefix_tokens))
    decode = (len(table.batches), len(table.contexts))
    if table.prefill_ms.shape != prefill or table.decode_ms.shape != decode:
        raise ValueError("axes and surfaces disagree")
    for name in _ARRAYS:
        if not np.all(np.isfinite(getattr(table, name))):
            raise ValueError(f"{name} is not finite")
