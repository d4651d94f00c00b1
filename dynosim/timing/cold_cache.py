"""Decode attention as a serving engine meets it: with nothing of the KV cache in the GPU's L2.

Tables of kernels are made by running one kernel over and over, so what it reads stays in the L2
cache where it fits (50 MB on an H100, 128 MB on an RTX PRO 6000), and a short batch seems to be
read at the speed of that cache. In an engine the weights of every layer pass through it between two
looks at the same keys and values, which therefore come from memory each time. How fast memory is
read stands in the same table, at the contexts that fit no cache: from the shortest context on, a
batch takes at least that much longer for every token more.
"""

from dataclasses import replace

import numpy as np

from dynosim.records import FloatArray
from dynosim.timing.silicon_table import SiliconTable

_LAUNCH_CONTEXT = 64
"""Mean context, in tokens, up to which a batch costs its launch and next to no reading."""

_LARGEST = 4.0
"""The slope is that of batches within this factor of the table's largest total of tokens."""


def with_cold_cache(table: SiliconTable) -> SiliconTable:
    """The table with decode attention that reads its cache from memory.

    No entry gets faster. A table whose extent is not known is returned as it is.
    """
    slope_ms = _slope_from_memory_ms(table)
    if slope_ms is None:
        return table
    contexts, batches = table.contexts, table.batches
    first = int(np.searchsorted(contexts, _LAUNCH_CONTEXT))
    measured = table.decode_ms.astype(np.float64)
    launch_ms = measured[:, first]
    read_tokens = batches[:, None] * np.maximum(contexts - contexts[first], 0.0)[None, :]
    from_memory_ms = launch_ms[:, None] + slope_ms * read_tokens
    cold = np.where(contexts[None, :] > contexts[first], from_memory_ms, 0.0)
    return replace(table, decode_ms=np.maximum(measured, cold).astype(np.float32))


def _slope_from_memory_ms(table: SiliconTable) -> float | None:
    """ms for one token of context more, where no cache holds what is read; None if not known.

    Of every measured batch size the second half of its longest measured context is looked at; of
    these the median over the largest ones.
    """
    longest = dict(
        zip(table.measured_batches.tolist(), table.measured_contexts.tolist(), strict=True)
    )
    slopes: list[tuple[float, float]] = []
    for row, batch in zip(table.decode_ms.astype(np.float64), table.batches.tolist(), strict=True):
        ends = _halves(table.contexts, longest.get(batch, 0.0))
        if ends is not None:
            middle, end = ends
            tokens = batch * (table.contexts[end] - table.contexts[middle])
            slopes.append((batch * table.contexts[end], (row[end] - row[middle]) / tokens))
    if not slopes:
        return None
    most = max(total for total, _ in slopes)
    slope_ms = float(np.median([slope for total, slope in slopes if total * _LARGEST >= most]))
    return slope_ms if slope_ms > 0 else None


def _halves(contexts: FloatArray, longest: float) -> tuple[int, int] | None:
    """Places of half of the longest context and of itself; None if there is nothing between."""
    end = int(np.searchsorted(contexts, longest, side="right")) - 1
    if end < 1:
        return None
    return min(int(np.searchsorted(contexts, contexts[end] / 2)), end - 1), end
