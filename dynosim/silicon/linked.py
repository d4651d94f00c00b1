"""Measured step times over another link than that of the machine they were measured on."""

from dataclasses import replace

import numpy as np

from dynosim.records import FloatArray
from dynosim.timing.links import all_reduces_ms
from dynosim.timing.sheets import HardwareSheet
from dynosim.timing.silicon_table import SiliconTable

_MANY_TOKENS = 512
"""From so many tokens on, an all-reduce is a matter of the link's rate."""


def with_link(table: SiliconTable, link_gb_per_s: float | None) -> SiliconTable:
    """The table with all-reduces over the stated link; None: as they were measured."""
    if link_gb_per_s is None or not table.meta.get("collectives"):
        return table
    linked = _collectives_ms(table, link_gb_per_s)
    rest = table.linear_ms - table.collective_ms
    return replace(table, linear_ms=rest + linked, collective_ms=linked)


def over_link(table: SiliconTable, sheet: HardwareSheet | None) -> float | None:
    """How many times longer the measured all-reduces of many tokens take than the hardware's usual
    link needs; None without any."""
    if sheet is None or not table.meta.get("collectives"):
        return None
    expected = _collectives_ms(table, sheet.link_gb_per_s)[_MANY_TOKENS:]
    measured = table.collective_ms[_MANY_TOKENS:]
    return float(np.median(measured / expected)) if len(expected) else None


def _collectives_ms(table: SiliconTable, link_gb_per_s: float) -> FloatArray:
    """What the all-reduces of a step take over a link, at 0 to `max_tokens` tokens."""
    tokens = np.arange(len(table.linear_ms), dtype=np.float64)
    total = np.zeros(len(tokens))
    for one in table.meta["collectives"]:
        messages = tokens * one["bytes_per_token"]
        total += one["launches"] * all_reduces_ms(messages, one["ranks"], link_gb_per_s)
    return total
