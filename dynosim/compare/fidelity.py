"""A recorded run of a real engine, held against predictions of three levels, each on its own.

A priori: tables and the constants of `host_times`, nothing fitted, and the capacity that follows from
model and hardware. Capacity: the same with the capacity that was given. Fitted: on the first part
of the run, blind and with the capacity given, and on another workload of the same deployment.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from dynosim.compare.attribution import attribute, blind_fit
from dynosim.compare.prediction import intervals
from dynosim.experiment.intervals import form_error
from dynosim.fit.alternatives import Recorded, fit_recorded
from dynosim.fit.capacity import Start, start_of
from dynosim.fit.deployment import Deployment, balance_notes, deployment_of, hardware_notes
from dynosim.fit.fitting import Fitted
from dynosim.fit.log_file import read_measurements
from dynosim.fit.measurements import Measurements
from dynosim.fit.other_gpu import gpu_warning
from dynosim.fit.own_part import OwnPart
from dynosim.fit.prior import Prior, prior_of, table_timing
from dynosim.fit.replay import Predicted, replay
from dynosim.fit.scores import Score, distances, scores
from dynosim.metrics.in_range import inside_shares
from dynosim.metrics.saturation import load_of
from dynosim.records import Trace
from dynosim.timing.fitted import Fit
from dynosim.timing.model import StepTimeModel

NUM_DRAWS = 24
BLIND, GIVEN = "blind", "capacity given"
LEVELS = ("apriori", "capacity", "fitted")

PEERS: tuple[tuple[dict[str, str], dict[str, Any]], ...] = (
    (
        {"vllm_version": "0.19.0", "model": "meta-llama/Llama-3.1-8B"},
        {
            "peer": "LLMServingSim 2.0, on one RTX PRO 6000, as published with the recording",
            "errors": {
                "mean_ttft_ms": -0.040,
                "median_ttft_ms": -0.086,
                "p90_ttft_ms": -0.044,
                "p95_ttft_ms": -0.024,
                "p99_ttft_ms": -0.020,
            },
            "note": "TPOT and latency within 1 to 2 %",
        },
    ),
)
"""Published errors by the set-up that they belong to."""


@dataclass(frozen=True, slots=True)
class Level:
    """One prediction and its scores."""

    name: str
    column: str
    table: list[Score]
    rest: list[Score]  # over requests whose times no fit has seen; empty if there are none
    detail: dict[str, Any]
    own: OwnPart | None = None  # over the requests that were fitted; None where nothing was

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "level": self.name,
            "column": self.column,
            "scores": {score.name: _score(score) for score in self.table},
            "held_out_scores": {score.name: _score(score) for score in self.rest},
            **({"fitted_part": self.own.to_dict()} if self.own else {}),
            **self.detail,
        }


@dataclass(frozen=True, slots=True)
class Fidelity:
    """All levels of one file."""

    measured: Measurements
    deployment: Deployment
    fit_count: int
    levels: list[Level]
    attribution: dict[str, float]
    notes: list[str]
    fit: Fit | None  # None if nothing was fitted
    gpu_warning: str | None = None  # step times that are not those of the GPU that was named

    @property
    def failures(self) -> list[str]:
        """What fits do not explain of the requests that they were fitted to."""
        return [
            f"{level.name}, {level.column}: {'; '.join(level.own.misfits)}"
            for level in self.levels
            if level.own is not None and level.own.misfits
        ]

    def to_dict(self) -> dict[str, Any]:
        """One JSON document."""
        fit = self.fit
        return {
            "file": self.measured.source,
            "setup": self.measured.setup,
            "clock": self.measured.clock,
            "num_requests": len(self.measured),
            "fitted_requests": self.fit_count,
            "hardware": self.deployment.hardware,
            "model": self.deployment.model,
            "num_gpu_blocks_given": self.deployment.given_blocks,
            "levels": [level.to_dict() for level in self.levels],
            "attribution_mean_abs_error": self.attribution,
            "peers": peers_of(self.measured.setup),
            "notes": self.notes,
            "failures": self.failures,
            "gpu_warning": self.gpu_warning,
            "fitted_parameters": asdict(fit.parameters) if fit else {},
            "fitted_intervals": {key: list(pair) for key, pair in fit.intervals.items()}
            if fit
            else {},
            "unidentified": list(fit.unidentified) if fit else [],
        }


def _score(score: Score) -> dict[str, float]:
    return {"measured": score.measured, "predicted": score.predicted, "error": score.error}


def peers_of(setup: dict[str, Any]) -> list[dict[str, Any]]:
    """What others have published of a run with this set-up."""
    return [
        published
        for wanted, published in PEERS
        if all(str(setup.get(key)) == value for key, value in wanted.items())
    ]


def judge_file(
    path: Path,
    *,
    hardware: str | None,
    model: str | None = None,
    fit_fraction: float = 0.3,
    num_gpu_blocks: int | None = None,
    other: Path | None = None,
    seed: int = 0,
    levels: Sequence[str] = LEVELS,
) -> Fidelity:
    """Some `LEVELS` of the run in `path`; `other` is another run of the same deployment.

    Raises: TraceError for an unusable file, ConfigError for unknown names or too few requests.
    """
    measured = read_measurements(path)
    deployment = deployment_of(
        measured.setup, model=model, hardware=hardware, num_gpu_blocks=num_gpu_blocks
    )
    is_fitted = "fitted" in levels
    count = measured.fit_count(fit_fraction) if is_fitted else 0
    judge = _Judge(measured, deployment, count, seed)
    columns = {BLIND: "apriori" in levels, GIVEN: "capacity" in levels}
    judge.a_priori([column for column, is_wanted in columns.items() if is_wanted])
    fitted = judge.fitted_on_first_part() if is_fitted else None
    if other is not None and is_fitted:
        judge.fitted_elsewhere(read_measurements(other))
    return judge.outcome(fitted)


class _Judge:
    """Collects levels."""

    def __init__(
        self, measured: Measurements, deployment: Deployment, count: int, seed: int
    ) -> None:
        self._measured = measured
        self._deployment = deployment
        self._count = count
        self._seed = seed
        self._trace: Trace = measured.trace()
        self._levels: list[Level] = []
        self._notes: list[str] = [
            *_assumptions(deployment),
            *hardware_notes(deployment),
            *balance_notes(deployment),
        ]
        self._prior: Prior = prior_of(deployment, measured)
        self._notes += self._prior.notes if not self._prior.fit.token_curve else ()
        self._timing: StepTimeModel | None = None
        if self._prior.fit.token_curve:
            self._timing = table_timing(deployment, measured.clock)
        self._starts = self._capacities()
        self._engines = {
            column: deployment.engines(self._trace, start.blocks)
            for column, start in self._starts.items()
        }

    def _capacities(self) -> dict[str, Start]:
        """Where the capacity of a column starts from."""
        unknown = self._deployment.engine.model_copy(update={"num_gpu_blocks": "auto"})
        seen = self._measured.first(self._count) if self._count else self._measured
        starts = {BLIND: start_of(replace(self._deployment, engine=unknown), seen)}
        if starts[BLIND].warning is not None:
            self._notes.append(f"blind: {starts[BLIND].warning}")
        if self._deployment.given_blocks is not None:
            starts[GIVEN] = start_of(self._deployment, seen)
        else:
            self._notes.append(
                "capacity given: not known (state --num-gpu-blocks, as the engine prints it)"
            )
        return starts

    def a_priori(self, columns: Sequence[str]) -> None:
        """Tables, and what the host of such a GPU usually takes."""
        if self._timing is None:
            if columns:
                self._notes.append("a priori: needs a model and hardware that are known")
            return
        for column in columns:
            engines = self._engines.get(column)
            if engines is None:
                continue
            predicted = replay(self._trace, engines, self._timing, self._measured.clock)
            self._add("a priori", column, predicted, self._timing, first_unseen=0)

    def fitted_on_first_part(self) -> Fitted:
        """Constants from the first requests; loop and capacity, too, if the set-up is silent."""
        name = f"fitted on the first {self._count} requests"
        fits = self._fits_of_columns()
        for column, recorded in fits.items():
            self._add_fitted(name, column, recorded, self._count)
        return fits[GIVEN if GIVEN in fits else BLIND].chosen.fitted

    def _fits_of_columns(self) -> dict[str, Recorded]:
        """By column. The loop is chosen where most is known, and settles it for all columns."""
        loops = self._deployment.loops
        fits: dict[str, Recorded] = {}
        for column in reversed(self._starts):
            fits[column] = fit_recorded(
                self._measured,
                self._prior,
                self._deployment,
                self._starts[column],
                count=self._count,
                loops=loops,
                seed=self._seed,
            )
            loops = (fits[column].chosen.is_async,)
            notes = fits[column].notes if len(fits) == 1 else [fits[column].chosen.capacity.note]
            self._notes += [f"{column}: {note}" for note in notes]
        for column, recorded in fits.items():
            # The loop holds for what is blind, too; a capacity that the log told does not.
            self._engines[column] = self._engines[column].scheduling(
                is_async=recorded.chosen.is_async
            )
        return {column: fits[column] for column in self._starts}

    def fitted_elsewhere(self, other: Measurements) -> None:
        """Constants, and the scheduling loop, from another workload of the same deployment.

        Its set-up may differ in what is no matter of step times: limits of a step, KV capacity.
        """
        prior = prior_of(self._deployment, other)
        there = deployment_of(
            other.setup or self._measured.setup,
            model=self._deployment.model,
            hardware=self._deployment.hardware,
        )
        for column, engines in self._engines.items():
            blocks = engines.engine.num_gpu_blocks
            known = start_of(there, other) if there.given_blocks else Start(blocks, "blind")
            recorded = fit_recorded(other, prior, there, known, count=len(other), seed=self._seed)
            chosen = recorded.chosen
            engines = engines.scheduling(is_async=chosen.is_async)
            timing = chosen.fitted.model()
            predicted = replay(self._trace, engines, timing, self._measured.clock)
            here = replace(
                chosen, engines=engines, fitted=replace(chosen.fitted, predicted=predicted)
            )
            name = f"fitted on {Path(other.source).name}"
            self._add_fitted(name, column, replace(recorded, chosen=here), 0)

    def _add_fitted(self, name: str, column: str, recorded: Recorded, first_unseen: int) -> None:
        chosen = recorded.chosen
        engines, fitted = chosen.engines, chosen.fitted
        ranges, unseen_ranges = intervals(
            self._measured,
            engines,
            fitted.draws,
            common_error=form_error(fitted.fit),
            count=NUM_DRAWS,
            seed=self._seed,
            first_unseen=min(first_unseen, len(self._measured) - 1),
        )
        detail = {
            "intervals": {key: list(pair) for key, pair in ranges.items()},
            "held_out_intervals": {key: list(pair) for key, pair in unseen_ranges.items()},
            "capacity": chosen.capacity.to_dict(),
            "scheduling": recorded.reason,
        }
        self._add(name, column, fitted.predicted, fitted.model(), first_unseen, detail, chosen.own)

    def _add(
        self,
        name: str,
        column: str,
        predicted: Predicted,
        timing: StepTimeModel,
        first_unseen: int,
        detail: dict[str, Any] | None = None,
        own: OwnPart | None = None,
    ) -> None:
        rows = slice(first_unseen, None)
        has_rest = first_unseen < len(self._measured)
        result = predicted.result
        self._levels.append(
            Level(
                name,
                column,
                scores(self._measured, predicted),
                scores(self._measured, predicted, rows) if has_rest else [],
                {
                    "timing": timing.description,
                    "num_gpu_blocks": int(result.workers.usable_blocks[0]) + 1,
                    "preemptions": result.num_preemptions,
                    "distances": [asdict(one) for one in distances(self._measured, predicted)],
                    "held_out_distances": [
                        asdict(one)
                        for one in (distances(self._measured, predicted, rows) if has_rest else ())
                    ],
                    "steps_in_range": inside_shares(timing, result.steps),
                    "load": load_of(result).to_dict(),
                    **(detail or {}),
                },
                own,
            )
        )

    def outcome(self, fitted: Fitted | None) -> Fidelity:
        """With the attribution of the blind prediction's error, if something was fitted."""
        attribution: dict[str, float] = {}
        if fitted is not None and self._timing is not None:
            attribution = attribute(
                self._measured,
                blind=blind_fit(self._prior.fit, self._timing),
                fitted=fitted.fit,
                blind_engines=self._engines[BLIND],
                given_engines=self._engines.get(GIVEN),
            )
        elif fitted is not None:
            self._notes.append("no attribution: without tables there is no blind prediction")
        warning = None
        if self._timing is not None:
            warning = gpu_warning(self._measured, self._deployment, self._timing)
        return Fidelity(
            self._measured,
            self._deployment,
            self._count,
            self._levels,
            attribution,
            self._notes,
            fitted.fit if fitted is not None else None,
            warning,
        )


def _assumptions(deployment: Deployment) -> list[str]:
    return [
        f"the set-up does not state {name}: vLLM's default is taken" for name in deployment.assumed
    ]
