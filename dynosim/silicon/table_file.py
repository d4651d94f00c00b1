"""The file of a `SiliconTable`."""

import json
from dataclasses import fields
from pathlib import Path

import numpy as np

from dynosim.timing.silicon_table import SiliconTable

TABLE_FORMAT = 6
"""Rises when the meaning of the file changes; part of every cache key."""

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
    if len(table.collective_ms) != len(table.linear_ms):
        raise ValueError("all-reduces and the rest disagree")
    for name in _ARRAYS:
        if not np.all(np.isfinite(getattr(table, name))):
            raise ValueError(f"{name} is not finite")
