"""Kernels that a model has and the tables' library leaves out."""

from dataclasses import replace

from dynosim.silicon.catalogue import model_entry
from dynosim.silicon.missing_operations import missing_operations
from dynosim.timing.architecture import ModelShape, model_shape
from dynosim.timing.operation_bounds import Operation

EXPERTS = Operation("generation_moe", "Moe", 48.0, {"quant_mode": "fp8"})


def shape(shared: int) -> ModelShape:
    return replace(model_shape(model_entry("Qwen/Qwen3-30B-A3B")), shared_intermediate=shared)


def test_shared_experts_that_are_nowhere_are_added() -> None:
    with_shared = shape(8192)
    gate, down = missing_operations(with_shared, [EXPERTS], tensor_parallel=2, quant_mode="fp8")
    assert gate.launches == down.launches == with_shared.expert_layers
    assert gate.fields == {"n": 8192, "k": with_shared.hidden, "quant_mode": "fp8"}
    assert down.fields == {"n": with_shared.hidden, "k": 4096, "quant_mode": "fp8"}


def test_shared_experts_that_are_there_are_not_added_again() -> None:
    theirs = Operation("generation_shared_gate_up_gemm", "Gemm", 48.0, {})
    found = missing_operations(shape(8192), [EXPERTS, theirs], tensor_parallel=1, quant_mode="fp8")
    assert found == []


def test_a_model_without_shared_experts_lacks_nothing() -> None:
    assert missing_operations(shape(0), [EXPERTS], tensor_parallel=1, quant_mode="fp8") == []
