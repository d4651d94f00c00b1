"""What choosing the next tokens costs: passes over one row of logits per sequence of a step.

Tables of kernels end with the logits. Then the engine turns them into 32-bit numbers and takes the
largest (greedy); at a temperature above 0 it divides by it, takes the softmax and draws; a request
with top-k or top-p has all but the likeliest tokens struck out before, which the engine's versions
do in different ways. Each way is a number of bytes that are moved for each logit, so that a GPU
takes time in proportion to its bandwidth. One rank samples for all.

Sources: for greedy and plain draws the passes themselves. For top-k and top-p the times published
with vLLM's changes of its sampler (pull requests 33538 and 40376 of vllm-project/vllm): of 128 rows
of 131,072 logits 2.3 ms by sorting, 0.53 ms by the Triton kernel and 0.14 ms by FlashInfer, taken
to have been measured at an H100's 3,350 GB/s.
"""

from collections.abc import Mapping
from typing import Literal

Sampling = Literal["greedy", "random", "truncated"]
"""`truncated`: with top-k, top-p or both."""

REQUEST_FIELDS: Mapping[Sampling, Mapping[str, float]] = {
    "greedy": {"temperature": 0.0},
    "random": {"temperature": 1.0},
    "truncated": {"temperature": 0.6, "top_p": 0.9},  # as Llama 3's generation config has it
}
"""What requests to an OpenAI-compatible server state for it."""

Version = tuple[int, ...]

_GREEDY_BYTES = 10.0  # bf16 read, fp32 written, fp32 read for the largest
_RANDOM_BYTES = 50.0  # more: division, softmax, random numbers, their quotient, the largest
_SORT_BYTES = 460.0
_TRITON_BYTES = 105.0
_FLASHINFER_BYTES = 28.0

_TRITON_SINCE = (0, 16)
_FLASHINFER_SINCE = (0, 21)


def sampling_ms(
    sampling: Sampling, *, vocabulary: int, memory_gb_per_s: float, version: Version
) -> float:
    """ms that sampling adds to a step for each of its sequences."""
    moved = _GREEDY_BYTES
    if sampling != "greedy":
        moved += _RANDOM_BYTES
    if sampling == "truncated":
        moved += _truncating_bytes(version)
    return vocabulary * moved / (memory_gb_per_s * 1e6)


def _truncating_bytes(version: Version) -> float:
    if version < _TRITON_SINCE:
        return _SORT_BYTES
    return _TRITON_BYTES if version < _FLASHINFER_SINCE else _FLASHINFER_BYTES
