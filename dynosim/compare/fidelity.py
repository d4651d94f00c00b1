"""A recorded run of a real engine, held against predictions of three levels.

A priori: tables and the constants of `host_times`, nothing fitted. Fitted on the first part of the
run. Fitted on another workload of the same deployment. Each blind (capacity from model and
hardware) and with the capacity given, where it is known.
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from dynosim.compare.attribution import attribute, blind_fit
from dynosim.compare.prediction import intervals
from dynosim.experiment.intervals import form_error
from dynosim.fit.alternatives import fit_capacity, fit_loops
from dynosim.fit.deployment import (
    Deployment,
    balance_notes,
    capacity_note,
    deployment_of,
    hardware_notes,
)
from dynosim.fit.fitting import Fitted
from dynosim.fit.log_file import read_measurements
from dynosim.fit.measurements import Measurements
from dynosim.fit.prior import Prior, prior_of, table_timing
from dynosim.fit.replay import Engines, Predicted, replay
from dynosim.fit.scores import Score, distances, scores
from dynosim.metrics.in_range import inside_shares
from dynosim.metrics.saturation import load_of
from dynosim.records import Trace
from dynosim.timing.fitted import Fit
from dynosim.timing.model import StepTimeModel

NUM_DRAWS = 24
BLIND, GIVEN = "blind", "capacity given"

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

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "level": self.name,
            "column": self.column,
            "scores": {score.name: _score(score) for score in self.table},
            "held_out_scores": {score.name: _score(score) for score in self.rest},
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
    fit: Fit

    def to_dict(self) -> dict[str, Any]:
        """One JSON document."""
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
            "fitted_parameters": asdict(self.fit.parameters),
            "fitted_intervals": {key: list(pair) for key, pair in self.fit.intervals.items()},
            "unidentified": list(self.fit.unidentified),
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
) -> Fidelity:
    """All levels of the run in `path`; `other` is another run of the same deployment.

    Raises: TraceError for an unusable file, ConfigError for unknown names or too few requests.
    """
    measured = read_measurements(path)
    deployment = deployment_of(
        measured.setup, model=model, hardware=hardware, num_gpu_blocks=num_gpu_blocks
    )
    judge = _Judge(measured, deployment, measured.fit_count(fit_fraction), seed)
    judge.a_priori()
    fitted = judge.fitted_on_first_part()
    if other is not None:
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
        self._prior: Prior = prior_of(deployment, measured)
        self._blind: StepTimeModel | None = None
        if self._prior.fit.token_curve:
            self._blind = table_timing(deployment, measured.clock)
        self._levels: list[Level] = []
        self._notes: list[str] = [
            *_assumptions(deployment),
            *hardware_notes(deployment),
            *balance_notes(deployment),
        ]
        self._notes += self._prior.notes if not self._prior.fit.token_curve else ()
        self._engines = self._capacities()

    def _capacities(self) -> dict[str, Engines]:
        """Scheduler configurations by column."""
        deployment, trace = self._deployment, self._trace
        blind, said = deployment.assumed_blocks(self._measured)
        self._notes += said
        blocks = {BLIND: blind, GIVEN: deployment.given_blocks}
        if blocks[GIVEN] is None:
            self._notes.append(
                "capacity given: not known (state --num-gpu-blocks, as the engine prints it)"
            )
        return {
            column: deployment.engines(trace, number)
            for column, number in blocks.items()
            if number is not None
        }

    def a_priori(self) -> None:
        """Tables, and what the host of such a GPU usually takes."""
        timing = self._blind
        if timing is None:
            self._notes.append("a priori: needs a model and hardware that are known")
            return
        for column, engines in self._engines.items():
            predicted = replay(self._trace, engines, timing, self._measured.clock)
            self._add("a priori", column, predicted, timing, first_unseen=0)

    def fitted_on_first_part(self) -> Fitted:
        """Constants from the first requests; the scheduling loop, too, if the set-up is silent."""
        name = f"fitted on the first {self._count} requests"
        fits = self._fits_of_loops()
        for column, engines in self._engines.items():
            self._add_fitted(name, column, engines, fits[column], self._count)
        return list(fits.values())[-1]

    def _fits_of_loops(self) -> dict[str, Fitted]:
        """By column. The loop is chosen where most is known, and settles it for all columns."""
        loops = self._deployment.loops
        fits: dict[str, Fitted] = {}
        for column, engines in reversed(self._engines.items()):
            found = fit_loops(
                self._measured, self._prior, engines, loops, count=self._count, seed=self._seed
            )
            is_async, fits[column] = next(iter(found.items()))
            if column == BLIND and GIVEN not in self._engines:
                engines = engines.scheduling(is_async=is_async)
                fits[column] = self._with_fitted_capacity(engines, fits[column])
            if is_async != self._deployment.loops[0]:
                self._notes.append(
                    f"{column}: {'a' if is_async else ''}synchronous scheduling fits better than"
                    " the default of the set-up's version"
                )
            loops = (is_async,)
        for column, engines in self._engines.items():
            self._engines[column] = engines.scheduling(is_async=loops[0])
        return {column: fits[column] for column in self._engines}

    def _with_fitted_capacity(self, engines: Engines, fitted: Fitted) -> Fitted:
        """The blind fit, with the KV capacity that the log tells of if it tells one."""
        engines, fitted = fit_capacity(
            self._measured, self._prior, engines, fitted, count=self._count, seed=self._seed
        )
        guessed, found = self._engines[BLIND].engine, engines.engine
        if found.num_gpu_blocks != guessed.num_gpu_blocks:
            self._notes.append(capacity_note(guessed, found))
            self._engines[BLIND] = engines
        return fitted

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
            blocks = there.given_blocks or engines.engine.num_gpu_blocks
            recorded = there.engines(other.trace(), blocks)
            found = fit_loops(
                other, prior, recorded, there.loops, count=len(other), seed=self._seed
            )
            is_async, fitted = next(iter(found.items()))
            engines = engines.scheduling(is_async=is_async)
            predicted = replay(self._trace, engines, fitted.model(), self._measured.clock)
            here = replace(fitted, predicted=predicted)
            self._add_fitted(f"fitted on {Path(other.source).name}", column, engines, here, 0)

    def _add_fitted(
        self, name: str, column: str, engines: Engines, fitted: Fitted, first_unseen: int
    ) -> None:
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
        }
        self._add(name, column, fitted.predicted, fitted.model(), first_unseen, detail)

    def _add(
        self,
        name: str,
        column: str,
        predicted: Predicted,
        timing: StepTimeModel,
        first_unseen: int,
        detail: dict[str, Any] | None = None,
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
            )
        )

    def outcome(self, fitted: Fitted) -> Fidelity:
        """With the attribution of the blind prediction's error."""
        attribution: dict[str, float] = {}
        if self._blind is not None:
            attribution = attribute(
                self._measured,
                blind=blind_fit(self._prior.fit, self._blind),
                fitted=fitted.fit,
                blind_engines=self._engines[BLIND],
                given_engines=self._engines.get(GIVEN),
            )
        else:
            self._notes.append("no attribution: without tables there is no blind prediction")
        return Fidelity(
            self._measured,
            self._deployment,
            self._count,
            self._levels,
            attribution,
            self._notes,
            fitted.fit,
        )


def _assumptions(deployment: Deployment) -> list[str]:
    return [
        f"the set-up does not state {name}: vLLM's default is taken" for name in deployment.assumed
    ]
