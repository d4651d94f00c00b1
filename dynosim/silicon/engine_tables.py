"""Which silicon table stands for an engine: of which version, with which experts; and its cache."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dynosim.errors import ConfigError
from dynosim.silicon.cache import cache_folder, cache_key, load_or_build
from dynosim.silicon.catalogue import core_version, model_fingerprint
from dynosim.silicon.hardware import sheet_or_none
from dynosim.silicon.table_file import TABLE_FORMAT, load_table, save_table
from dynosim.silicon.table_versions import (
    TableChoice,
    TableName,
    choose,
    others_by_distance,
    version_in_use,
)
from dynosim.timing.architecture import ModelEntry, ModelShape
from dynosim.timing.protocols import SiliconSpec, TimedEngine
from dynosim.timing.silicon_table import SiliconTable

_EXPERTS: TableName = ("moe", "moe_perf.parquet")
_QUICKER = 0.97
"""So much of another version's time is quicker, and no noise of measuring."""

_MAX_TABLE_TOKENS = 65_536

_OTHER_EXPERTS = "fp8_block"
"""What stands in for FP8 experts whose own table is not credible."""


@dataclass(frozen=True, slots=True)
class EngineTables:
    """The measurements that there are of one engine."""

    spec: SiliconSpec
    entry: ModelEntry
    shape: ModelShape
    hardware: str
    engine: TimedEngine
    cache_dir: Path | str | None

    @property
    def backend(self) -> str:
        return self.spec.backend or "vllm"

    def choice(self) -> TableChoice:
        """Which version's measurements: the timing section's, else the engine's, else the newest.

        Raises: ConfigError for a version that cannot be.
        """
        stated, key = self.spec.backend_version, "timing.backend_version"
        if stated is None and self.backend == "vllm":
            stated, key = self.engine.version, "engine.version"
        wanted = version_in_use(self.hardware, self.backend, stated, key=key)
        return choose(self.hardware, self.backend, wanted)

    def with_quicker_experts(
        self, table: SiliconTable, sharding: dict[str, int], choice: TableChoice
    ) -> SiliconTable:
        """The table with experts of another version's measurements where the version in use was
        not measured and those are quicker: a measurement can be too slow for many reasons (kernels
        not tuned, launches in it) and too fast for none."""
        if not self.shape.experts or choice.versions.get(_EXPERTS) in (None, choice.wanted):
            return table
        quickest, chosen = table, choice.versions[_EXPERTS]
        for version in others_by_distance(self.hardware, self.backend, _EXPERTS, chosen):
            try:
                other = self.table(sharding, choice.changed(_EXPERTS, version))
            except ConfigError:
                continue
            if _typical_ms(other) < _QUICKER * _typical_ms(quickest):
                quickest = other
        return quickest

    def with_credible_experts(
        self, table: SiliconTable, sharding: dict[str, int], choice: TableChoice
    ) -> SiliconTable:
        """The table with experts timed in another format of the same width, where theirs are not
        credible and those are: FP8 with a scale a tensor and with one a block read the same
        weights."""
        own = self.engine.quantization or self.shape.quantisation or ""
        if not own.startswith("fp8") or not _refuses_experts(table):
            return table
        try:
            other = self.table({**sharding, "moe_quant_mode": _OTHER_EXPERTS}, choice)
        except ConfigError:
            return table
        if _refuses_experts(other):
            return table
        stands_in = {"stands_in": f"experts by the times of {_OTHER_EXPERTS}, of the same width"}
        return replace(other, meta=other.meta | stands_in)

    def table(self, sharding: dict[str, Any], choice: TableChoice) -> SiliconTable:
        """The table, from the cache or made now. Raises: ConfigError for what is not covered."""
        engine, shape = self.engine, self.shape
        sheet = sheet_or_none(self.hardware)
        plain: dict[str, Any] = {
            "system": self.hardware,
            "backend": self.backend,
            "tensor_parallel": engine.tensor_parallel,
            "options": quantisation_options(shape, engine) | sharding,
            "max_tokens": min(
                _MAX_TABLE_TOKENS, _power_of_two_from(engine.max_num_batched_tokens, 16_384)
            ),
            "max_context": _power_of_two_from(engine.max_model_len or 0, 131_072),
            "max_batch": min(4096, _power_of_two_from(engine.max_num_seqs, 1024)),
            "kv_heads_per_rank": max(1, shape.kv_heads // engine.tensor_parallel),
            "is_latent_attention": shape.latent_width > 0,
            "trust_tables": self.spec.trust_tables,
        }
        identity = {
            **plain,
            "versions": {"/".join(name): version for name, version in choice.versions.items()},
            "sheet": None if sheet is None else asdict(sheet),
            "model": model_fingerprint(self.entry),
            "core": core_version(),
            "format": TABLE_FORMAT,
        }
        path = cache_folder(self.cache_dir) / f"silicon-{cache_key(identity)}.npz"

        def build() -> SiliconTable:
            from dynosim.silicon.extract import SiliconQuery, extract_table

            return extract_table(
                SiliconQuery(model=self.entry, choice=choice, sheet=sheet, **plain)
            )

        return load_or_build(path, load=load_table, build=build, save=save_table)


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


def _typical_ms(table: SiliconTable) -> float:
    """Of a step of decodes, all but attention; by the geometric mean of batches."""
    steps = [float(table.linear_ms[n] + table.head_ms[n]) for n in (4, 16, 64)]
    return float(np.exp(np.log(steps).mean()))


def _refuses_experts(table: SiliconTable) -> bool:
    """Whether most times of FP8 experts are not credible."""
    found = [one for one in table.meta.get("guard", ()) if one["family"] == "experts"]
    return any(2 * one["refused"] > one["entries"] for one in found)
