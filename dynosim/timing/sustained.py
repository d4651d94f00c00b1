"""Matrix products at the clocks that a GPU sustains, not at those of a short measurement.

Tables of kernels are made in bursts. A GPU that computes prompts for minutes reaches its power
limit and lowers its clocks; reading weights and moving data between GPUs is not slowed by that. So
what the products of a step take beyond reading the weights is taken to be a tenth longer.

`SUSTAINED_SLOWDOWN` was chosen on closed loops of vLLM 0.12 with Qwen3-32B on H100 (TP 2, 4 and 8,
prompts of 4,096 tokens: aiconfigurator's silicon sample), see docs/fidelity.md; nothing else was
looked at.
"""

from dataclasses import replace

import numpy as np

from dynosim.timing.silicon_table import SiliconTable

SUSTAINED_SLOWDOWN = 0.10
"""Further time of computing, as a share of it; 0.05 to 0.15."""

_READING_TOKENS = 256
"""Steps of up to so many tokens mostly read weights: on GPUs with 300 operations a byte, in 16 bits.
Models with many experts read more of them up to about there."""


def at_sustained_clocks(table: SiliconTable, slowdown: float = SUSTAINED_SLOWDOWN) -> SiliconTable:
    """The table with slower computing; steps of few tokens stay as they are."""
    linear = table.linear_ms
    products = linear - table.collective_ms
    reading_ms = float(products[min(_READING_TOKENS, table.max_tokens)])
    slower = linear + slowdown * np.maximum(products - reading_ms, 0.0)
    slower[: _READING_TOKENS + 1] = linear[: _READING_TOKENS + 1]
    return replace(table, linear_ms=slower)
