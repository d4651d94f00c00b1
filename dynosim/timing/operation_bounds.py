"""How long one kernel may credibly take: what its bytes and operations need on a data sheet.

`floor_ms` is what physics allows: bytes over bandwidth or operations over peak, whichever takes
longer. `usual_ms` is what good kernels reach of that, with the time that a launch takes: a matrix
product of one token moves next to nothing and still takes some microseconds.

The shares were chosen on bf16 tables of H100 and H200 (vllm 0.24.0), where products of dense models
take 1.1 to 1.5 times the floor, expert kernels 1.0 to 1.5 times while they read weights and 2 to 3
times while they compute, decode attention 1.2 to 1.3 times for many tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dynosim.records import FloatArray
from dynosim.timing.sheets import HardwareSheet

_ACTIVATION_BYTES = 2


@dataclass(frozen=True, slots=True)
class Operation:
    """One kind of kernel of a model's step, as the tables' library describes it."""

    name: str
    kind: str  # Gemm, Moe, ContextAttention, GenerationAttention, ...
    launches: float  # of it in a step, one a layer as a rule
    fields: Mapping[str, Any]  # widths, formats: what the kind has

    @property
    def family(self) -> str | None:
        """What it shares its measurements with; None for what no roofline is known of."""
        return _FAMILIES.get(self.kind)


@dataclass(frozen=True, slots=True)
class KernelBounds:
    """Of one operation with all its launches, at each size asked for; ms."""

    floor_ms: FloatArray
    usual_ms: FloatArray

    def __add__(self, other: "KernelBounds") -> "KernelBounds":
        return KernelBounds(self.floor_ms + other.floor_ms, self.usual_ms + other.usual_ms)


@dataclass(frozen=True, slots=True)
class _Reach:
    """What a family's kernels reach of peak and bandwidth, and what a launch takes."""

    compute: float
    memory: float
    launch_us: float
    sequence_us: float = 0.0  # for each sequence and KV head: a block of threads of its own


_REACH = {
    "gemm": _Reach(0.78, 0.85, 8.0),
    "experts": _Reach(0.50, 0.80, 40.0),  # sorting, two products, activation, sum
    # With rotation, norms and writing the cache.
    "prefill attention": _Reach(0.60, 0.80, 40.0, 0.05),
    "decode attention": _Reach(0.60, 0.85, 15.0, 0.025),
}
_DISPATCH_US = 8.0  # of an all-reduce at its shortest, in the tables of 8 H100
_FAMILIES = {
    "Gemm": "gemm",
    "Moe": "experts",
    "Overlap": "experts",  # experts beside shared ones, on streams of their own
    "ContextAttention": "prefill attention",
    "GenerationAttention": "decode attention",
}


def weight_bytes(quantisation: str) -> float:
    """Bytes of a number in one of the library's formats, scales included."""
    if quantisation.startswith("bf"):
        return 2.0
    return 0.5625 if "4" in quantisation else 1.0


def peak_tflops(quantisation: str, sheet: HardwareSheet) -> float:
    """The rate of products in a format: where only the weights are in few bits, that of bf16."""
    is_weight_only = quantisation.endswith("_wo") or "a16" in quantisation
    if is_weight_only or quantisation.startswith("bf"):
        return sheet.bf16_tflops
    is_fp4 = "fp4" in quantisation and "a8" not in quantisation
    return sheet.fp8_tflops * (2.0 if is_fp4 else 1.0)


def token_bounds(
    operation: Operation, tokens: FloatArray, sheet: HardwareSheet
) -> KernelBounds | None:
    """Of an operation whose time depends on the tokens of a step alone; None: not known."""
    fields = operation.fields
    if operation.kind == "Gemm":
        inner, outer, kind = fields["k"], fields["n"], fields["quant_mode"]
        flops = 2.0 * tokens * inner * outer
        weights = np.full(len(tokens), inner * outer * weight_bytes(kind))
        moved = tokens * (inner + outer) * _ACTIVATION_BYTES
        return _bounds(operation, flops, weights, moved, peak_tflops(kind, sheet), sheet)
    if operation.kind == "Moe":
        return _expert_bounds(operation, tokens, sheet)
    if operation.kind == "Overlap":
        return _overlap_bounds(operation, tokens, sheet)
    return None


def _overlap_bounds(
    operation: Operation, tokens: FloatArray, sheet: HardwareSheet
) -> KernelBounds | None:
    """Experts with their router, beside shared experts that are ready before them.

    What moves tokens between GPUs counts as its shortest time.
    """
    total: KernelBounds | None = None
    for spec in operation.fields["group_a"]:
        ((kind, fields),) = spec.items()
        part = Operation(str(fields["name"]), kind, float(fields.get("scale_factor", 1.0)), fields)
        bounds = token_bounds(part, tokens, sheet)
        if bounds is None and kind == "MoeDispatch" and not fields["pre_dispatch"]:
            usual = np.full(len(tokens), part.launches * _DISPATCH_US / 1e3)
            bounds = KernelBounds(np.zeros(len(tokens)), usual)
        if bounds is not None:
            total = bounds if total is None else total + bounds
    return total


def _expert_bounds(operation: Operation, tokens: FloatArray, sheet: HardwareSheet) -> KernelBounds:
    """Experts are taken to be chosen evenly; each chosen one's weights are read once."""
    fields = operation.fields
    hidden, experts, chosen = fields["hidden_size"], fields["num_experts"], fields["topk"]
    inner = fields["inter_size"] / fields["moe_tp_size"]
    ranks = fields["moe_ep_size"]
    matrices = 3 if fields.get("is_gated", True) else 2
    of_all_ranks = tokens * fields.get("attention_dp_size", 1)
    pairs = of_all_ranks * chosen / ranks
    touched = experts / ranks * (1.0 - (1.0 - chosen / experts) ** of_all_ranks)
    size = matrices * hidden * inner
    flops = 2.0 * pairs * size
    weights = touched * size * weight_bytes(fields["quant_mode"])
    # Read and written: the sorted copies, both products' results and what the sum reads.
    moved = (pairs * (3 * hidden + 3 * inner) + of_all_ranks * hidden) * _ACTIVATION_BYTES
    return _bounds(
        operation, flops, weights, moved, peak_tflops(fields["quant_mode"], sheet), sheet
    )


def prefill_bounds(
    operation: Operation,
    prompts: FloatArray,
    new: FloatArray,
    cached: FloatArray,
    sheet: HardwareSheet,
) -> KernelBounds | None:
    """Attention of prompts with so many new and cached tokens each; arrays that broadcast."""
    if operation.kind != "ContextAttention":
        return None
    fields = operation.fields
    seen = cached + (new + 1.0) / 2.0
    window = fields.get("window_size") or 0
    if window > 0:
        seen = np.minimum(seen, window)
    width = fields["n"] * fields["head_size"]
    flops = 4.0 * prompts * new * seen * width
    pair = 2.0 * fields["n_kv"] * fields["head_size"] * weight_bytes(fields["kv_cache_dtype"])
    length = cached + new if window <= 0 else np.minimum(cached + new, window + new)
    read = prompts * length * pair
    moved = prompts * new * (2.0 * width * _ACTIVATION_BYTES + pair)
    return _bounds(operation, flops, read, moved, sheet.bf16_tflops, sheet, prompts)


def decode_bounds(
    operation: Operation, batch: FloatArray, context: FloatArray, sheet: HardwareSheet
) -> KernelBounds | None:
    """Attention of a batch of sequences with such a context each; arrays that broadcast."""
    if operation.kind != "GenerationAttention":
        return None
    fields = operation.fields
    window = fields.get("window_size") or 0
    length = np.minimum(context, window) if window > 0 else context
    pair = 2.0 * fields["n_kv"] * fields["head_size"] * weight_bytes(fields["kv_cache_dtype"])
    width = fields["n"] * fields["head_size"]
    read = batch * length * pair
    flops = 4.0 * batch * length * width
    moved = batch * 2.0 * width * _ACTIVATION_BYTES + 0.0 * context
    return _bounds(operation, flops, read, moved, sheet.bf16_tflops, sheet, batch)


def _bounds(
    operation: Operation,
    flops: FloatArray,
    read_bytes: FloatArray,
    moved_bytes: FloatArray,
    peak_tflops: float,
    sheet: HardwareSheet,
    sequences: FloatArray | float = 0.0,
) -> KernelBounds:
    """Weights or cache are read while products run; activations come on top in good kernels."""
    reach = _REACH[_FAMILIES[operation.kind]]
    computing = flops / (peak_tflops * 1e9)
    reading = read_bytes / (sheet.memory_gb_per_s * 1e6)
    moving = moved_bytes / (sheet.memory_gb_per_s * 1e6)
    floor = np.maximum(computing, reading)
    usual = np.maximum(computing / reach.compute, reading / reach.memory)
    usual = usual + moving / reach.memory + reach.launch_us / 1e3
    usual = usual + sequences * operation.fields.get("n_kv", 0) * reach.sequence_us / 1e3
    return KernelBounds(operation.launches * floor, operation.launches * usual)
