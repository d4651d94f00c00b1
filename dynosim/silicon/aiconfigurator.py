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

from dataclasses import dataclass
from pathlib import Path

from dynosim.errors import ConfigError
from dynosim.silicon.catalogue import core_folder, core_version, model_entry
from dynosim.silicon.engine_tables import EngineTables
from dynosim.silicon.hardware import hardware_sheet, sheet_or_none
from dynosim.silicon.linked import over_link, with_link
from dynosim.silicon.sharding import expert_sharding
from dynosim.silicon.silicon_notes import Facts, notes_of
from dynosim.silicon.surroundings import Surroundings, surroundings_of
from dynosim.silicon.table_versions import (
    TableChoice,
    neighbours_of,
)
from dynosim.timing.architecture import model_shape, require_divisible
from dynosim.timing.cold_cache import with_cold_cache
from dynosim.timing.experts import ExpertCurve, ExpertTimes
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
    tables = EngineTables(spec, entry, shape, hardware, engine, cache_dir)
    deployment = _Deployment(
        tables=tables,
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
    )
    choice = tables.choice()
    attempts = expert_sharding(shape, engine)
    for position, sharding in enumerate(attempts):
        try:
            table = tables.table(sharding, choice)
        except ConfigError:
            if position == len(attempts) - 1:
                raise
            continue
        table = tables.with_quicker_experts(table, sharding, choice)
        table = tables.with_credible_experts(table, sharding, choice)
        notes = notes_of(table, deployment.facts(table, choice, position))
        other = neighbours_of(choice, hardware, tables.backend)
        alternatives = () if other is None else deployment.alternative(sharding, other, table)
        return deployment.model(table, choice, sharding, position, notes, alternatives)
    raise AssertionError("unreachable: there is at least one sharding")


@dataclass(frozen=True, slots=True)
class _Deployment:
    """What is to be timed: tables, and what the engine and its machine make of them."""

    tables: EngineTables
    link_gb_per_s: float | None
    around: Surroundings

    def facts(self, table: SiliconTable, choice: TableChoice, position: int) -> Facts:
        return Facts(
            entry=self.tables.entry,
            backend=self.tables.backend,
            wanted=choice.wanted,
            quantization=self.tables.engine.quantization,
            holds_whole_experts=position > 0,
            link_gb_per_s=self.link_gb_per_s,
            over_link=over_link(table, sheet_or_none(self.tables.hardware)),
            is_trusted=self.tables.spec.trust_tables,
        )

    def model(
        self,
        table: SiliconTable,
        choice: TableChoice,
        sharding: dict[str, int],
        position: int,
        notes: tuple[str, ...],
        alternatives: tuple[SiliconModel, ...],
    ) -> SiliconModel:
        around, tables = self.around, self.tables
        name, ranks = tables.entry.name, tables.engine.tensor_parallel
        times = SiliconModel(
            self.served(with_link(table, self.link_gb_per_s)),
            host=around.host,
            mixed_context_ms=RooflineFactors().mixed_context_ms(
                self.tables.shape,
                around.kernel,
                hardware_sheet(self.tables.hardware),
                self.tables.engine.tensor_parallel,
            ),
            graph_sizes=around.graph_sizes,
            per_sequence_ms=around.sampling_ms,
            source=self.source(table, choice, position),
            description=(
                f"aiconfigurator-core {core_version()}: {name} on {tables.hardware},"
                f" {tables.backend} {choice.wanted}{_other_versions(table, choice)},"
                f" tensor_parallel {ranks}" + _ranks_text(self.tables.engine, sharding)
            ),
            notes=notes,
            alternatives=alternatives,
        )
        times.experts = _experts(table, self.tables.engine)
        self.around.describe(times)
        return times

    def served(self, table: SiliconTable) -> SiliconTable:
        """The table as a serving engine meets it: clocks that last, caches that others fill."""
        sustained = at_sustained_clocks(table)
        return sustained if self.tables.shape.has_windows else with_cold_cache(sustained)

    def source(self, table: SiliconTable, choice: TableChoice, position: int) -> str:
        """Measured, or derived where something stands in for what was asked."""
        shares = (table.meta["prefill_measured_share"], table.meta["decode_measured_share"])
        stands_in = (
            position > 0 or bool(self.tables.engine.quantization) or "stands_in" in table.meta
        )
        stands_in = stands_in or bool(_other_versions(table, choice))
        return DERIVED if stands_in or min(shares) < _MEASURED_SHARE else MEASURED

    def alternative(
        self, sharding: dict[str, int], choice: TableChoice, table: SiliconTable
    ) -> tuple[SiliconModel, ...]:
        """The model of the versions on the other side, if this engine's times differ by them."""
        try:
            other = self.tables.table(sharding, choice)
        except ConfigError:
            return ()
        if other.meta.get("sources") == table.meta.get("sources"):
            return ()
        return (self.model(other, choice, sharding, 0, (), ()),)


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


def _other_versions(table: SiliconTable, choice: TableChoice) -> str:
    """The families that another version's measurements stand in for, in brackets."""
    others = {
        family: version
        for family, version in table.meta.get("sources", {}).items()
        if version != choice.wanted
    }
    words = ", ".join(f"{family} {version}" for family, version in others.items())
    return f" ({words})" if words else ""


def _ranks_text(engine: TimedEngine, sharding: dict[str, int]) -> str:
    if engine.data_parallel == 1 and not engine.expert_parallel:
        return ""
    kept = "whole experts" if sharding.get("moe_tp_size") == 1 else "a part of each expert"
    return f", data_parallel {engine.data_parallel} ({kept} on each GPU)"


def _experts(table: SiliconTable, engine: TimedEngine) -> ExpertTimes | None:
    """The part of a step that ranks do together, if there are several and they have one."""
    curve = table.meta.get("experts")
    return ExpertCurve(*curve) if curve and engine.data_parallel > 1 else None
