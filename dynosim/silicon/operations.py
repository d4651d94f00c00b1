"""The kernels of a model's steps as aiconfigurator-core describes them: kinds, widths, formats.

What the library answers to `evaluate_context_ops` is by position; this is what stands there.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dynosim.silicon.table_versions import TableName
from dynosim.timing.operation_bounds import Operation

_CUSTOM_ALL_REDUCE: TableName = ("comm", "custom_allreduce_perf.parquet")
_TABLES: dict[str, tuple[TableName, ...]] = {
    "Gemm": (("gemm", "gemm_perf.parquet"),),
    "ContextAttention": (("attention", "context_attention_perf.parquet"),),
    "GenerationAttention": (("attention", "generation_attention_perf.parquet"),),
    "CustomAllReduce": (_CUSTOM_ALL_REDUCE,),
    "MoeDispatch": (_CUSTOM_ALL_REDUCE,),
    "Moe": (("moe", "moe_perf.parquet"),),
    "MlaModuleContext": (("mla", "mla_context_module_perf.parquet"),),
    "MlaModuleGeneration": (("mla", "mla_generation_module_perf.parquet"),),
}
"""Of the kinds whose measurements are known: where they lie."""

_LABELS = {
    "gemm": "gemm",
    "attention": "attention",
    "comm": "all-reduce",
    "moe": "experts",
    "mla": "latent attention",
}
"""What reports call the families."""

_HALF_BYTES = {"half": 2, "fp8": 1, "int8": 1}


@dataclass(frozen=True, slots=True)
class Collective:
    """An all-reduce of a step."""

    launches: float
    bytes_per_token: float
    ranks: int


def model_operations(
    folder: str, backend: str, tensor_parallel: int, options: Mapping[str, Any]
) -> tuple[list[Operation], list[Operation]] | None:
    """The kernels of a prefill and of a decode step, in the library's order; None where the library
    does not tell (one of another version)."""
    try:
        from aiconfigurator_core.sdk.config_builders import build_model_config
        from aiconfigurator_core.sdk.engine import build_ops_json
        from aiconfigurator_core.sdk.models import get_model
    except ImportError:
        return None
    settings = {"attention_dp_size": 1, "moe_tp_size": 1, "moe_ep_size": 1, **options}
    config = build_model_config(tp_size=tensor_parallel, pp_size=1, **settings)
    model = get_model(folder, config, backend)
    context, generation = (
        [_operation(one) for one in json.loads(build_ops_json(operations))]
        for operations in (model.context_ops, model.generation_ops)
    )
    return context, generation


def _operation(spec: dict[str, Any]) -> Operation:
    ((kind, fields),) = spec.items()
    return Operation(str(fields["name"]), kind, float(fields.get("scale_factor", 1.0)), fields)


def collective_of(operation: Operation) -> Collective | None:
    """What the operation moves between GPUs, if it is an all-reduce."""
    fields = operation.fields
    if operation.kind == "CustomAllReduce":
        ranks, width = fields["tp_size"], _HALF_BYTES.get(fields["quant"], 2)
    elif operation.kind == "MoeDispatch" and fields.get("flavor") == "CustomAllReduce":
        ranks = fields["moe_tp_size"] * fields["moe_ep_size"]
        width = _HALF_BYTES.get(fields["comm_quant"], 2)
    else:
        return None
    return Collective(operation.launches, float(fields["hidden_size"] * width), int(ranks))


def tables_of(operation: Operation) -> Iterator[TableName]:
    """Where an operation's measurements lie, as far as that is known."""
    if operation.launches > 0:
        yield from _TABLES.get(operation.kind, ())
        for part in (operation.fields.get("primary"), *operation.fields.get("fallback", ())):
            if isinstance(part, dict):
                yield from tables_of(_operation(part))


def sources_of(operations: list[Operation], versions: Mapping[TableName, str]) -> dict[str, str]:
    """By family of kernels, in words, the version that its times are of."""
    used = {table for operation in operations for table in tables_of(operation)}
    return {
        _LABELS[table[0]]: versions[table]
        for table in sorted(used)
        if table in versions and not (table == _CUSTOM_ALL_REDUCE and _is_alone(operations))
    }


def _is_alone(operations: list[Operation]) -> bool:
    """Whether no operation reduces over more than one GPU."""
    found = [collective_of(operation) for operation in operations]
    return not any(one is not None and one.ranks > 1 for one in found)
