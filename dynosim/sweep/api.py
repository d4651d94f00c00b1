"""Sweeps from Python, without a folder: `dynosim.sweep(...)` and `dynosim.capacity(...)`."""

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynosim.config.loading import load_run, written_out
from dynosim.config.schema import RunConfig
from dynosim.config.sweep_loading import SweepConfig, load_sweep, sweep_config
from dynosim.config.yaml_source import Document
from dynosim.errors import ConfigError
from dynosim.experiment.card import card_html, line
from dynosim.sweep.executor import LocalExecutor, num_cores
from dynosim.sweep.outcome import SweepOutcome
from dynosim.sweep.run import run_sweep
from dynosim.sweep.status import OK

if TYPE_CHECKING:
    import polars as pl


def sweep(
    spec: SweepConfig | str | Path,
    overrides: Sequence[str] = (),
    *,
    out: str | Path | None = None,
    jobs: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    intervals: int | None = None,
) -> SweepOutcome:
    """Run a sweep; `.trials`, `.probes` and `.answer` of what it returns are in memory.

    `spec` is a sweep file or what `load_sweep` gives, `overrides` are as for `--set`. Without `out`
    no file is left. `jobs` worker processes, by default one per core; the rest as `run_sweep` says.
    Raises: ConfigError, TraceError, SweepInterruptedError.
    """
    if isinstance(spec, SweepConfig):
        if overrides:
            raise ConfigError("sweep: overrides are for a file (give them to load_sweep)")
        config = spec
    else:
        config = load_sweep(spec, overrides)
    if out is None and (resume or overwrite):
        raise ConfigError("sweep: resume and overwrite need out, the folder that is meant")
    place = tempfile.TemporaryDirectory(prefix="dynosim-") if out is None else nullcontext(str(out))
    with place as folder, LocalExecutor(jobs or num_cores()) as executor:
        return run_sweep(
            config,
            Path(folder),
            executor,
            resume=resume,
            overwrite=overwrite,
            intervals=intervals,
        )


@dataclass(frozen=True, slots=True, repr=False)
class CapacityOutcome:
    """How much one layout carries within an SLA; `None` where no load is carried.

    Loads are multiples of the workload's own, or requests in flight (`vary="concurrency"`).
    """

    config: RunConfig
    load: float | None  # the largest that is carried
    failed_load: float | None  # the smallest that was not; None: all of the range is carried
    interval: tuple[float, float] | None  # of the capacity: 95 % of draws of other sessions
    rps: float | None  # requests a second at `load`
    reason: str | None  # why `failed_load` is not carried
    report: Mapping[str, Any]  # at `load`
    probes: "pl.DataFrame"  # a row for every load that was tried

    def _facts(self) -> dict[str, str]:
        if self.load is None:
            return {"carries": "no load of the range", "because": str(self.reason)}
        end = "the end of the range" if self.failed_load is None else f"{self.failed_load:.3g}"
        facts = {"carries": f"{self.load:.3g} (not {end})"}
        if self.rps is not None:
            facts["requests/s"] = f"{self.rps:.3g}"
        if self.interval is not None:
            facts["95 %"] = f"{self.interval[0]:.3g} to {self.interval[1]:.3g}"
        facts["tok/s/GPU"] = f"{self.report['output_tok_s_per_gpu']:.4g}"
        return facts

    def __repr__(self) -> str:
        return line("CapacityOutcome", self.config.name, self._facts())

    def _repr_html_(self) -> str:
        return card_html(self.config.name or "capacity", self._facts())


def capacity(
    config: RunConfig | str | Path,
    *,
    ttft_ms: float | None = None,
    itl_ms: float | None = None,
    e2e_ms: float | None = None,
    attainment: float | None = None,
    load: Mapping[str, Any] | None = None,
) -> CapacityOutcome:
    """Seek how much load the layout of a run file carries within an SLA.

    The bounds are for each request, `attainment` is the share of requests that must keep them all;
    without any bound the file's `sla` holds. `load` are keys of that section of sweep files, as in
    `{"tolerance": 0.01}`.
    Raises: ConfigError, also for a layout that cannot be run; TraceError.
    """
    run_config = config if isinstance(config, RunConfig) else load_run(config)
    bounds = {"ttft_ms": ttft_ms, "itl_ms": itl_ms, "e2e_ms": e2e_ms}
    given = {name: bound for name, bound in bounds.items() if bound is not None}
    if not given and run_config.sla is not None:
        given = run_config.sla.model_dump(mode="json", exclude_none=True)
    if not given:
        raise ConfigError("capacity: no bound is given (like ttft_ms=2000; the file has no sla)")
    sla = given if attainment is None else {**given, "attainment": attainment}
    data = written_out(run_config)
    data.pop("sla", None)
    data |= {
        "space": {"seed": [run_config.seed]},
        "constraints": {"sla": sla},
        "load": {"search": "capacity", **(load or {})},
    }
    outcome = sweep(sweep_config(Document(data, "capacity", run_config.base_dir)), jobs=1)
    row = outcome.rows[0]
    if row.status != OK:
        raise ConfigError(f"capacity: {row.reason}")
    return _capacity_outcome(run_config, outcome, row.report)


def _capacity_outcome(
    config: RunConfig, outcome: SweepOutcome, report: Mapping[str, Any]
) -> CapacityOutcome:
    low, high = report["capacity_load_low"], report["capacity_load_high"]
    assert outcome.probes is not None
    return CapacityOutcome(
        config=config,
        load=report["capacity_load"],
        failed_load=report["capacity_load_failed"],
        interval=None if low is None else (low, high),
        rps=report["capacity_rps"],
        reason=report["capacity_reason"],
        report=report,
        probes=outcome.probes,
    )
