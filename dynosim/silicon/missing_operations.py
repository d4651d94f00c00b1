"""Kernels that a model has and the tables' library leaves out of its steps.

The library's mixture-of-experts models follow a few families; a config's shared experts are counted
in some of them only (DeepSeek's and Qwen's) and forgotten in others (Llama 4's).
"""

from collections.abc import Sequence

from dynosim.timing.architecture import ModelShape
from dynosim.timing.operation_bounds import Operation


def missing_operations(
    shape: ModelShape, operations: Sequence[Operation], *, tensor_parallel: int, quant_mode: str
) -> list[Operation]:
    """The products of shared experts, where none of the operations is one of theirs.

    `quant_mode` is the number format of the experts.
    """
    if not shape.shared_intermediate or any("shared" in one.name for one in operations):
        return []
    inner = shape.shared_intermediate // tensor_parallel
    widths = {"gate_up": (2 * inner, shape.hidden), "down": (shape.hidden, inner)}
    return [
        Operation(
            f"shared_expert_{name}_gemm",
            "Gemm",
            float(shape.expert_layers),
            {"n": outer, "k": width, "quant_mode": quant_mode},
        )
        for name, (outer, width) in widths.items()
    ]
