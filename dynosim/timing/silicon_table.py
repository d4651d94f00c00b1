"""The compact table of one engine's step times.

A step takes `linear_ms`[all new tokens] + prefill attention(prompts, mean new, mean cached)
+ decode attention(sequences, mean context), and `head_ms`[sequences] more when it only decodes.
`linear_ms` holds every token count because kernel times jump between them; attention is smooth and
sits on a grid.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynosim.records import FloatArray

Float32Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class SiliconTable:
    """Times in ms, lengths in tokens. Attention surfaces are float32 to keep the file small."""

    linear_ms: FloatArray  # (max_tokens + 1,) everything but attention; [0] is 0
    collective_ms: FloatArray  # (max_tokens + 1,) the part of linear_ms that is all-reduces
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
