"""Rows that say more than a GPU can do: prompts that were not computed, but found in the cache.

In a closed loop every step delivers a token of every request and, in the mean, computes as many
prompt tokens as finished requests bring in. A row whose TPOT is shorter than that takes at the rate
of good matrix products, with the KV cache read once at the memory's bandwidth, was measured with
prompts that had been seen before.
"""

from silicon_rows import SampleRow
from silicon_setup import setup_of

from dynosim.silicon.catalogue import model_entry
from dynosim.silicon.hardware import hardware_sheet
from dynosim.timing.architecture import model_shape

_REACH = 0.78  # of peak, by good matrix products of large steps
_CACHE_BYTES = 1.0  # a number of the cache: at least one byte


def least_tpot_ms(row: SampleRow) -> float:
    """What a step takes at least if every prompt is computed; FP8 at best."""
    shape = model_shape(model_entry(setup_of(row).model))
    sheet = hardware_sheet(row.system)
    active = shape.plain_parameters
    active += shape.expert_layers * shape.experts_per_token * shape.expert_parameters
    steps = row.ttft_ms / row.tpot_ms + row.osl - 1
    tokens = row.concurrency * (row.isl / steps + 1)
    gpus = row.tensor_parallel * row.ranks
    computing = 2 * active * tokens / (gpus * _REACH * sheet.fp8_tflops * 1e9)
    context = row.concurrency * (row.isl + row.osl / 2)
    cached = context * shape.kv_bytes_per_token(row.tensor_parallel, _CACHE_BYTES) / row.ranks
    if shape.has_windows:
        cached = 0.0
    return computing + cached / (sheet.memory_gb_per_s * 1e6)


def computes_its_prompts(row: SampleRow) -> bool:
    """Whether the row can be what it says."""
    return row.tpot_ms >= least_tpot_ms(row)
