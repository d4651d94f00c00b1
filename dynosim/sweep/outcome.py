"""A finished sweep, as Python has it."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dynosim.config.sweep_loading import SweepConfig
from dynosim.errors import ConfigError
from dynosim.experiment.card import card_html, line, to_pandas
from dynosim.plots.trials import short_names
from dynosim.sweep.answer import Answer, answer_of
from dynosim.sweep.results import Row, trials_table
from dynosim.sweep.status import FAILED

if TYPE_CHECKING:
    import polars as pl


@dataclass(frozen=True, slots=True, repr=False)
class SweepOutcome:
    """A finished sweep."""

    sweep: SweepConfig
    rows: list[Row]
    summary: dict[str, Any]  # as in summary.json
    folder: Path
    num_resumed: int  # trials that an earlier call had finished
    probes: "pl.DataFrame | None" = None  # as in probes.parquet; None: loads were not searched

    @property
    def num_failed(self) -> int:
        """Trials that crashed."""
        return sum(row.status == FAILED for row in self.rows)

    @property
    def trials(self) -> "pl.DataFrame":
        """A row per trial, as in trials.parquet."""
        return trials_table(self.sweep, self.rows)

    @property
    def answer(self) -> Answer | None:
        """What to deploy, what ties with it; None where loads were not searched."""
        return None if self.sweep.load.search == "fixed" else answer_of(self.rows)

    def to_pandas(self, table: Literal["trials", "probes"] = "trials") -> Any:
        """One of the tables for pandas. Raises: ConfigError if there is none, or no pandas."""
        found = self.probes if table == "probes" else self.trials
        if found is None:
            raise ConfigError(
                "to_pandas: no probes (loads were not searched: load.search is fixed)"
            )
        return to_pandas(found)

    def _facts(self) -> dict[str, str]:
        counts = self.summary["counts"]
        facts = {"trials": ", ".join(f"{n} {status}" for status, n in counts.items() if n)}
        if self.summary["top"]:
            values = self.summary["top"][0]["values"]
            names = short_names(list(values))
            facts["best"] = " ".join(f"{names[key]}={value}" for key, value in values.items())
        best = None if self.answer is None else self.answer.best
        if best is not None:
            facts["carries"] = f"{best.report['capacity_rps']:.3g} requests/s"
        return facts

    def __repr__(self) -> str:
        return line("SweepOutcome", self.sweep.name, self._facts())

    def _repr_html_(self) -> str:
        return card_html(self.sweep.name, self._facts())
