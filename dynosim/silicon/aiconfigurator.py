"""Step times from aiconfigurator's silicon tables, through a compact table that is made once.

Source: aiconfigurator-core 0.12 (measured kernels of model, hardware, engine and parallelism),
asked by `extract`, kept by `cache`. The package is imported only when the cache has no table. Which
engine version's measurements are taken is in `table_versions`, which of them are not, because they
cannot be, in `guard`. Accuracy against direct queries is measured when a table is made and stands
in its notes; for Qwen3-32B and Llama-3.1-8B on H100 and H200 the mean error is below 0.1 %.

Not in the tables: the host's time, sampling, padding to CUDA graph sizes, prompts and decodes in
one kernel, the way to the client (all from `surroundings`), variance. In them, but not as a serving
engine meets it: caches (see `cold_cache`) and clocks (see `sustained`). A step with several prompts
is one batched attention launch of their mean lengths, a decode batch that of its mean context, as
in aiconfigurator itself. Kernel times jump between token counts (2049 tokens may cost 2 to 30 %
more than 2048); the table keeps the jumps.
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from dynosim.errors import ConfigError
from dynosim.silicon.cache import cache_folder, cache_key, load_or_build
from dynosim.silicon.catalogue import core_folder, core_version, model_entry, model_fingerprint
from dynosim.silicon.hardware import hardware_sheet, sheet_or_none
from dynosim.silicon.linked import over_link, with_link
from dynosim.silicon.silicon_notes import Facts, notes_of
from dynosim.silicon.surroundings import Surroundings, surroundings_of
from dynosim.silicon.table_file import TABLE_FORMAT, load_table, save_table
from dynosim.silicon.table_versions import (
    TableChoice,
    choose,
    neighbours_of,
    version_in_use,
)
from dynosim.timing.architecture import ModelEntry, ModelShape, model_shape, require_divisible
from dynosim.timing.cold_cache import with_cold_cache
from dynosim.timing.model import DERIVED, MEASURED
from dynosim.timing.protocols import SiliconSpec, TimedEngine
from dynosim.timing.roofline_factors import RooflineFactors
from dynosim.timing.sampler import Sampling
from dynosim.timing.silicon_model import SiliconModel
from dynosim.timing.silicon_table import SiliconTable
from dynosim.timing.sustained import at_sustained_clocks

_MEASURED_SHARE = 0.9
"""Least share of a step's time in measured kernels that lets the table call itself measured. The
library never measures norms, activations and embeddings (4 to 8 % of a step)."""

_MAX_TABLE_TOKENS = 65_536

_OTHER_EXPERTS = "fp8_block"
"""What stands in for FP8 experts whose own table is not credible."""


def aiconfigurator_model(
    spec: SiliconSpec,
    *,
    model: str,
    hardware: str,
    engine: TimedEngine,
    graph_sizes: tuple[int, ...] | None = None,
    link_gb_per_s: float | None = None,
    sampling: Sampling = "greedy",
    cache_dir: Path | str | None = None,
) -> SiliconModel:
    """The silicon tables' model of one engine, from the cache or made now (1 to 3 s).

    `link_gb_per_s` is a link between the GPUs of a worker that the measurements' machines did not
    have; it prices all-reduces instead of the tables. Where another version's measurements stand in
    for the one in use and it has neighbours on both sides, the model's `alternatives` have the
    times of the other one.

    Raises: ConfigError for what the tables do not cover.
    """
    entry = model_entry(model)
    shape = model_shape(entry)
    _require_measurements(hardware)
    require_divisible(shape, engine.tensor_parallel)
    deployment = _Deployment(
        spec=spec,
        entry=entry,
        shape=shape,
        hardware=hardware,
        engine=engine,
        link_gb_per_s=link_gb_per_s,
        around=surroundings_of(
            hardware_sheet(hardware),
            shape,
            engine,
            spec,
            backend=spec.backend or "vllm",
            graph_sizes=graph_sizes,
            sampling=sampling,
        ),
        cache_dir=cache_dir,
    )
    choice = deployment.choice()
    attempts = expert_sharding(shape, engine.tensor_parallel)
    for position, sharding in enumerate(attempts):
        try:
            table = deployment.table(sharding, choice)
        except ConfigError:
            if position == len(attempts) - 1:
                raise
            continue
        table = deployment.with_credible_experts(table, sharding, choice)
        notes = notes_of(table, deployment.facts(table, choice, position))
        other = neighbours_of(choice, hardware, deployment.backend)
        alternatives = () if other is None else deployment.alternative(sharding, other, table)
        return deployment.model(table, choice, position, notes, alternatives)
    raise AssertionError("unreachable: there is at least one sharding")


@dataclass(frozen=True, slots=True)
class _Deployment:
    """What is to be timed."""

    spec: SiliconSpec
    entry: ModelEntry
    shape: ModelShape
    hardware: str
    engine: TimedEngine
    link_gb_per_s: float | None
    around: Surroundings
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

    def facts(self, table: SiliconTable, choice: TableChoice, position: int) -> Facts:
        return Facts(
            entry=self.entry,
            backend=self.backend,
            wanted=choice.wanted,
            quantization=self.engine.quantization,
            holds_whole_experts=position > 0,
            link_gb_per_s=self.link_gb_per_s,
            over_link=over_link(table, sheet_or_none(self.hardware)),
            is_trusted=self.spec.trust_tables,
        )

    def model(
        self,
        table: SiliconTable,
        choice: TableChoice,
        position: int,
        notes: tuple[str, ...],
        alternatives: tuple[SiliconModel, ...],
    ) -> SiliconModel:
        around = self.around
        times = SiliconModel(
            self.served(with_link(table, self.link_gb_per_s)),
            host=around.host,
            mixed_context_ms=RooflineFactors().mixed_context_ms(
                self.shape,
                around.kernel,
                hardware_sheet(self.hardware),
                self.engine.tensor_parallel,
            ),
            graph_sizes=around.graph_sizes,
            per_sequence_ms=around.sampling_ms,
            source=self.source(table, choice, position),
            description=(
                f"aiconfigurator-core {core_version()}: {self.entry.name} on {self.hardware},"
                f" {self.backend} {choice.wanted}{_other_versions(table, choice)},"
                f" tensor_parallel {self.engine.tensor_parallel}"
            ),
            notes=notes,
            alternatives=alternatives,
        )
        self.around.describe(times)
        return times

    def served(self, table: SiliconTable) -> SiliconTable:
        """The table as a serving engine meets it: clocks that last, caches that others fill."""
        sustained = at_sustained_clocks(table)
        return sustained if self.shape.has_windows else with_cold_cache(sustained)

    def source(self, table: SiliconTable, choice: TableChoice, position: int) -> str:
        """Measured, or derived where something stands in for what was asked."""
        shares = (table.meta["prefill_measured_share"], table.meta["decode_measured_share"])
        stands_in = position > 0 or bool(self.engine.quantization) or "stands_in" in table.meta
        stands_in = stands_in or bool(_other_versions(table, choice))
        return DERIVED if stands_in or min(shares) < _MEASURED_SHARE else MEASURED

    def with_credible_experts(
        self, table: SiliconTable, sharding: dict[str, int], choice: TableChoice
    ) -> SiliconTable:
        """The table with experts timed in another format of the same width, where theirs are not
        credible and those are: FP8 with a scale a tensor and with one a block read the same
        weights."""
        if not _refuses_experts(table):
            return table
        try:
            other = self.table({**sharding, "moe_quant_mode": _OTHER_EXPERTS}, choice)
        except ConfigError:
            return table
        if _refuses_experts(other):
            return table
        stands_in = {"stands_in": f"experts by the times of {_OTHER_EXPERTS}, of the same width"}
        return replace(other, meta=other.meta | stands_in)

    def alternative(
        self, sharding: dict[str, int], choice: TableChoice, table: SiliconTable
    ) -> tuple[SiliconModel, ...]:
        """The model of the versions on the other side, if this engine's times differ by them."""
        try:
            other = self.table(sharding, choice)
        except ConfigError:
            return ()
        if other.meta.get("sources") == table.meta.get("sources"):
            return ()
        return (self.model(other, choice, 0, (), ()),)

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


def expert_sharding(shape: ModelShape, tensor_parallel: int) -> list[dict[str, int]]:
    """How experts may be spread, the engine's default (within every expert) first."""
    if not shape.experts:
        return [{}]
    sharded = {"moe_tp_size": tensor_parallel, "moe_ep_size": 1}
    if tensor_parallel == 1:
        return [sharded]
    return [sharded, {"moe_tp_size": 1, "moe_ep_size": tensor_parallel}]


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


def _refuses_experts(table: SiliconTable) -> bool:
    """Whether most times of FP8 experts are not credible."""
    found = [one for one in table.meta.get("guard", ()) if one["family"] == "experts"]
    return any(2 * one["refused"] > one["entries"] for one in found)


def _other_versions(table: SiliconTable, choice: TableChoice) -> str:
    """The families that another version's measurements stand in for, in brackets."""
    others = {
        family: version
        for family, version in table.meta.get("sources", {}).items()
        if version != choice.wanted
    }
    words = ", ".join(f"{family} {version}" for family, version in others.items())
    return f" ({words})" if words else ""
