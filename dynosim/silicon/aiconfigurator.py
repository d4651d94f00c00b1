"""Step times from aiconfigurator's silicon tables, through a compact table that is made once.

Source: aiconfigurator-core 0.12 (measured kernels of model, hardware, engine and parallelism),
asked by `extract`, kept by `cache`. The package is imported only when the cache has no
table. Accuracy against direct queries is measured when a table is made and stands in its notes;
for Qwen3-32B and Llama-3.1-8B on H100 and H200 the mean error is below 0.1 %.

Not in the tables, and so not here: scheduler and sampling time on the host (`step_overhead_ms` adds
a constant to every step), padding to CUDA graph sizes, variance. A step with several prompts is
one batched attention launch of their mean lengths, a decode batch that of its mean context, as in
aiconfigurator itself. Kernel times jump between token counts (2049 tokens may cost 2 to 30 % more
than 2048); the table keeps the jumps.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from dynosim.errors import ConfigError
from dynosim.silicon.cache import cache_folder, cache_key, load_or_build
from dynosim.silicon.catalogue import core_folder, core_version, model_entry, model_fingerprint
from dynosim.silicon.hardware import hardware_sheet
from dynosim.silicon.sharding import expert_sharding
from dynosim.silicon.table_file import TABLE_FORMAT, load_table, save_table
from dynosim.timing.architecture import ModelEntry, ModelShape, model_shape, require_divisible
from dynosim.timing.experts import ExpertCurve, ExpertTimes
from dynosim.timing.model import DERIVED, MEASURED
from dynosim.timing.protocols import SiliconSpec, TimedEngine
from dynosim.timing.silicon_model import SiliconModel
from dynosim.timing.silicon_table import SiliconTable

_MEASURED_SHARE = 0.9
"""Least share of a step's time in measured kernels that lets the table call itself measured. The
library never measures norms, activations and embeddings (4 to 8 % of a step)."""

_MAX_TABLE_TOKENS = 65_536


def aiconfigurator_model(
    spec: SiliconSpec,
    *,
    model: str,
    hardware: str,
    engine: TimedEngine,
    cache_dir: Path | str | None = None,
) -> SiliconModel:
    """The silicon tables' model of one engine, from the cache or made now (1 to 2.5 s).

    Raises: ConfigError for what the tables do not cover.
    """
    entry = model_entry(model)
    shape = model_shape(entry)
    _require_measurements(hardware)
    require_divisible(shape, engine.tensor_parallel)
    attempts = expert_sharding(shape, engine)
    overhead_ms = spec.step_overhead_ms or 0.0
    for position, sharding in enumerate(attempts):
        try:
            table = _table(spec, entry, shape, hardware, engine, sharding, cache_dir)
        except ConfigError:
            if position == len(attempts) - 1:
                raise
            continue
        notes = _notes(table, entry, shape, engine, position)
        times = SiliconModel(
            table,
            step_overhead_ms=overhead_ms,
            source=_source(table, engine, position),
            description=(
                f"aiconfigurator-core {core_version()}: {entry.name} on {hardware},"
                f" {spec.backend or 'vllm'} {spec.backend_version or 'current'},"
                f" tensor_parallel {engine.tensor_parallel}"
                + _ranks_text(engine, sharding)
                + (f", plus {overhead_ms} ms per step" if overhead_ms else "")
            ),
            notes=notes,
        )
        times.experts = _experts(table, engine)
        return times
    raise AssertionError("unreachable: there is at least one sharding")


def _require_measurements(hardware: str) -> None:
    """Raises ConfigError for hardware that has no tables, before anything slow is imported."""
    folder = core_folder()
    if folder is None:
        raise ConfigError(
            "timing.kind aiconfigurator needs the package aiconfigurator-core:"
            " install it, or use `timing: {kind: roofline}`"
        )
    tables = folder / "systems" / "data" / hardware
    if "/" in hardware or not tables.is_dir() or not any(tables.iterdir()):
        name = hardware_sheet(hardware).name  # an unknown name is told its nearest
        raise ConfigError(
            f"timing.kind aiconfigurator: no measurements on {name};"
            " use `timing: {kind: roofline}` for an estimate"
        )


def quantisation_options(shape: ModelShape, engine: TimedEngine) -> dict[str, str]:
    """Keyword arguments that state weights' and cache's number formats.

    The cache is bf16 unless fp8 is asked for: the library would give FP8 checkpoints an fp8 cache,
    the engine does not.
    """
    wants_fp8_cache = (engine.kv_cache_dtype or "auto").startswith("fp8")
    options = {"kvcache_quant_mode": "fp8" if wants_fp8_cache else "bfloat16"}
    if engine.quantization:
        options["gemm_quant_mode"] = engine.quantization
        if shape.experts:
            options["moe_quant_mode"] = engine.quantization
    return options


def _power_of_two_from(at_least: int, smallest: int) -> int:
    size = smallest
    while size < at_least:
        size *= 2
    return size


def _table(
    spec: SiliconSpec,
    entry: ModelEntry,
    shape: ModelShape,
    hardware: str,
    engine: TimedEngine,
    sharding: dict[str, int],
    cache_dir: Path | str | None,
) -> SiliconTable:
    parts: dict[str, Any] = {
        "system": hardware,
        "backend": spec.backend or "vllm",
        "backend_version": spec.backend_version or "current",
        "tensor_parallel": engine.tensor_parallel,
        "options": quantisation_options(shape, engine) | sharding,
        "max_tokens": min(
            _MAX_TABLE_TOKENS, _power_of_two_from(engine.max_num_batched_tokens, 16_384)
        ),
        "max_context": _power_of_two_from(engine.max_model_len or 0, 131_072),
        "max_batch": min(4096, _power_of_two_from(engine.max_num_seqs, 1024)),
        "kv_heads_per_rank": max(1, shape.kv_heads // engine.tensor_parallel),
        "is_latent_attention": shape.latent_width > 0,
    }
    identity = {
        **parts,
        "model": model_fingerprint(entry),
        "core": core_version(),
        "format": TABLE_FORMAT,
    }
    path = cache_folder(cache_dir) / f"silicon-{cache_key(identity)}.npz"
    return load_or_build(path, load=load_table, build=_builder(entry, parts), save=save_table)


def _builder(entry: ModelEntry, parts: dict[str, Any]) -> Callable[[], SiliconTable]:
    def build() -> SiliconTable:
        from dynosim.silicon.extract import SiliconQuery, extract_table

        return extract_table(SiliconQuery(model=entry, **parts))

    return build


def _ranks_text(engine: TimedEngine, sharding: dict[str, int]) -> str:
    if engine.data_parallel == 1 and not engine.expert_parallel:
        return ""
    kept = "whole experts" if sharding.get("moe_tp_size") == 1 else "a part of each expert"
    return f", data_parallel {engine.data_parallel} ({kept} on each GPU)"


def _experts(table: SiliconTable, engine: TimedEngine) -> ExpertTimes | None:
    """The part of a step that ranks do together, if there are several and they have one."""
    curve = table.meta.get("experts")
    return ExpertCurve(*curve) if curve and engine.data_parallel > 1 else None


def _source(table: SiliconTable, engine: TimedEngine, position: int) -> str:
    shares = (table.meta["prefill_measured_share"], table.meta["decode_measured_share"])
    is_substituted = bool(engine.quantization) or position > 0
    return DERIVED if is_substituted or min(shares) < _MEASURED_SHARE else MEASURED


def _notes(
    table: SiliconTable,
    entry: ModelEntry,
    shape: ModelShape,
    engine: TimedEngine,
    position: int,
) -> tuple[str, ...]:
    meta = table.meta
    decode, prefill = meta["decode_error"], meta["prefill_error"]
    notes = [
        f"measured kernels make {meta['prefill_measured_share']:.0%} of a 2048-token prefill and"
        f" {meta['decode_measured_share']:.0%} of a 64-sequence decode step; norms, activations and"
        " embeddings are the tables' own estimates",
        f"table against direct queries: decode mean {decode['mean']:.2%}, p99 {decode['p99']:.2%},"
        f" max {decode['max']:.2%}; prefill mean {prefill['mean']:.2%}, p99 {prefill['p99']:.2%},"
        f" max {prefill['max']:.2%}",
    ]
    if len(table.measured_batches) == 0:
        notes.append("extent of the attention measurements unknown: the table's own is used")
    if shape.quantisation == "fp8_block" or engine.quantization == "fp8_block":
        notes.append(
            "the tables' block-wise FP8 matrix products on vllm are suspect (slower than bf16, no"
            " gain from tensor parallelism); quantization: fp8 on the bf16 model is more credible"
        )
    if engine.quantization:
        notes.append(f"{engine.quantization} weights put in place of the checkpoint's own format")
    if position > 0:
        notes.append("no measurements of experts split over all GPUs: each GPU holds whole experts")
    if entry.is_packaged is False:
        notes.append(f"model read from {entry.path}")
    return tuple(notes)
