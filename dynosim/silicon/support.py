"""What can be timed how: for each model, hardware and engine the best step-time model there is.

Read from the support matrix that aiconfigurator-core ships, from which tables there are, and from
the models' configs; nothing heavy is imported and nothing is computed. The matrix lists
checkpoints; a model that it lacks has the kernels of its architecture, and of experts those of its
widths. `support_probe` asks the library itself.
"""

import csv
from dataclasses import dataclass
from functools import cache

from dynosim.errors import ConfigError
from dynosim.silicon.catalogue import core_folder, known_models, model_entry
from dynosim.silicon.hardware import hardware_sheet, known_hardware
from dynosim.silicon.measured_range import expert_widths, measured_experts
from dynosim.silicon.same_kernels import equivalent_architecture
from dynosim.silicon.table_versions import newest_version, table_versions
from dynosim.timing.architecture import ModelEntry, ModelShape, model_shape
from dynosim.timing.model import DERIVED, ESTIMATED, MEASURED

ENGINES = ("vllm", "sglang", "trtllm")
NONE = "none"
SIMULATED = "vllm"
"""The engine whose scheduler is simulated; the tables of others time its steps on request."""


@dataclass(frozen=True, slots=True)
class SupportRow:
    """The best way to time one combination."""

    model: str
    hardware: str
    engine: str
    source: str  # measured | derived | estimated | none
    kind: str | None  # the `timing.kind` to write; None if there is no way
    engine_version: str  # what the measurements were made with; "" without measurements
    note: str


def support(
    model: str | None = None, hardware: str | None = None, engine: str | None = None
) -> list[SupportRow]:
    """One row per combination, every known one where an argument is None.

    Raises: ConfigError for an unknown model, hardware or engine, with the nearest names.
    """
    if engine is not None and engine not in ENGINES:
        raise ConfigError(f"engine: unknown {engine!r}; known: {', '.join(ENGINES)}")
    models = [model_entry(name) for name in ([model] if model is not None else known_models())]
    systems = [hardware_sheet(hardware).name] if hardware is not None else known_hardware()
    engines = (engine,) if engine is not None else ENGINES
    return [
        _row(entry, shape, system, kind)
        for entry, shape in [(entry, model_shape(entry)) for entry in models]
        for system in systems
        for kind in engines
    ]


def _row(entry: ModelEntry, shape: ModelShape, system: str, engine: str) -> SupportRow:
    status, version, reason = _matrix(system).get((entry.name, engine), ("", "", ""))
    if status == "PASS":
        return SupportRow(
            entry.name, system, engine, MEASURED, "aiconfigurator", version, "silicon tables"
        )
    if status == "HYBRID_PASS":
        note = "silicon tables, gaps filled from other profiles"
        return SupportRow(entry.name, system, engine, DERIVED, "aiconfigurator", version, note)
    if status == "HW_INCOMPATIBLE":
        return SupportRow(entry.name, system, engine, NONE, None, "", reason)
    architecture = _measured_architecture(entry, shape, system, engine)
    if architecture is not None:
        note = f"silicon tables, kernels of {architecture}"
        version = newest_version(system, engine) or ""
        return SupportRow(entry.name, system, engine, MEASURED, "aiconfigurator", version, note)
    return _formulas_row(entry.name, shape, system, engine)


def formulas_row(model: str, system: str, engine: str) -> SupportRow:
    """What there is without measurements. Raises: ConfigError for an unknown model."""
    return _formulas_row(model, model_shape(model_entry(model)), system, engine)


def _formulas_row(model: str, shape: ModelShape, system: str, engine: str) -> SupportRow:
    obstacle = shape.obstacle
    if obstacle is not None:
        note = f"no measurements, and the formulas do not cover it: {obstacle}"
        return SupportRow(model, system, engine, NONE, None, "", note)
    note = "no measurements; formulas from the model's shape and a data sheet"
    return SupportRow(model, system, engine, ESTIMATED, "roofline", "", note)


def _measured_architecture(
    entry: ModelEntry, shape: ModelShape, system: str, engine: str
) -> str | None:
    """The architecture whose tables time the model although no matrix has it; None: none do."""
    names = entry.config.get("architectures") or [""]
    architecture = equivalent_architecture(entry) or str(names[0])
    if architecture not in _COVERED or shape.quantisation is not None:
        return None
    tables = table_versions(system, engine)
    if any(table not in tables for table in _NEEDED):
        return None
    if shape.experts and expert_widths(shape) not in measured_experts(system, engine):
        return None
    return architecture


_NEEDED = (
    ("gemm", "gemm_perf.parquet"),
    ("attention", "context_attention_perf.parquet"),
    ("attention", "generation_attention_perf.parquet"),
)
_COVERED = (
    "LlamaForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "MixtralForCausalLM",
    "Qwen2MoeForCausalLM",
    "Qwen3MoeForCausalLM",
)
"""Architectures of plain layers, whose kernels the library has for any widths."""


@cache
def _matrix(system: str) -> dict[tuple[str, str], tuple[str, str, str]]:
    """(model, engine) -> status, engine version, reason; the oldest version listed is "current"."""
    folder = core_folder()
    if folder is None:
        return {}
    path = folder / "systems" / "support_matrix" / f"{system}.csv"
    if not path.is_file():
        return {}
    found: dict[tuple[str, str], tuple[str, str, str]] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            key = (row["HuggingFaceID"], row["Backend"])
            if row["Mode"] == "agg" and key not in found:
                reason = (row["ErrMsg"].strip().splitlines() or [""])[-1]
                found[key] = (row["Status"], row["Version"], reason)
    return found
