"""What the twin says of a measured run: blind and with the capacity given, each with intervals."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from dynosim.config import RunConfig
from dynosim.errors import DynosimError
from dynosim.experiment.intervals import Intervals, default_replays, prediction_intervals
from dynosim.experiment.run import RunOutcome
from dynosim.experiment.run import run as simulate
from dynosim.metrics.in_range import inside_shares
from dynosim.metrics.saturation import load_of
from dynosim_runtime.measure.deployment import Measured
from dynosim_runtime.validate.attribution import Attribution, attribute
from dynosim_runtime.validate.saved import PredictedSide

Progress = Callable[[int, int], None]


@dataclass(slots=True)
class Column:
    """One prediction and how sure it is."""

    outcome: RunOutcome
    intervals: Intervals | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        outcome = self.outcome
        return {
            "num_gpu_blocks": outcome.capacity.num_gpu_blocks,
            **outcome.capacity.report_keys(),
            "report": outcome.report,
            "intervals": None if self.intervals is None else self.intervals.to_dict(),
            "steps_in_range": inside_shares(outcome.timing, outcome.result.steps),
            "load": load_of(outcome.result).to_dict(),
        }


@dataclass(slots=True)
class Judgement:
    """All that is said of a measured run."""

    blind: Column  # engine arguments and hardware only
    given: Column | None = None  # None: the same as blind, or not known
    attribution: Attribution | None = None
    notes: list[str] = field(default_factory=list)
    was_interrupted: bool = False


def judge(
    side: PredictedSide, measured: Measured, *, num_replays: int, progress: Progress | None = None
) -> Judgement:
    """Predict again with what was learned, and say how sure and why not right.

    Ctrl-C ends it early with what there is. A measurement that was interrupted is not judged.
    """
    blind = side.outcome
    judgement = Judgement(Column(blind, side.intervals), notes=[*side.notes])
    if measured.run is not None and measured.run.was_interrupted:
        return judgement
    try:
        _predict_given(judgement, measured)
        if num_replays:
            _add_intervals(judgement, num_replays, progress)
        given = None if judgement.given is None else judgement.given.outcome
        judgement.attribution = attribute(blind, given, measured)
    except KeyboardInterrupt:
        judgement.was_interrupted = True
        judgement.notes.append("interrupted after the measurement: not all is said of its errors")
    return judgement


def _predict_given(judgement: Judgement, measured: Measured) -> None:
    """The second column, where the capacity is known and another one."""
    told, blind = measured.capacity, judgement.blind.outcome
    if told is None:
        judgement.notes.append(
            "capacity given: what was measured does not tell its KV blocks (an engine's /metrics "
            "or a dynosim frontend does), so there is only the blind prediction"
        )
        return
    judgement.notes += told.notes
    blocks = blind.capacity.num_gpu_blocks
    if told.num_gpu_blocks == blocks:
        judgement.notes.append(
            f"capacity given: {told.reported_by} tell {blocks:,} KV blocks, as the blind "
            "prediction takes it: both are the same"
        )
        return
    try:
        outcome = simulate(with_capacity(blind.config, told.num_gpu_blocks), trace=blind.trace)
    except DynosimError as error:
        judgement.notes.append(f"capacity given: {told.num_gpu_blocks:,} KV blocks: {error}")
        return
    judgement.given = Column(outcome)
    judgement.notes.append(
        f"capacity given: {told.reported_by} tell {told.num_gpu_blocks:,} KV blocks, blind are "
        f"{blocks:,} ({blind.capacity.source})"
    )


def with_capacity(config: RunConfig, num_gpu_blocks: int) -> RunConfig:
    """The plan with so many KV blocks."""
    engine = config.engine.model_copy(update={"num_gpu_blocks": num_gpu_blocks})
    return config.model_copy(update={"engine": engine})


def _add_intervals(judgement: Judgement, num_replays: int, progress: Progress | None) -> None:
    for column in (judgement.blind, judgement.given):
        if column is None or column.intervals is not None:
            continue
        outcome = column.outcome
        column.intervals = prediction_intervals(
            outcome.config,
            outcome.trace,
            outcome.timing,
            num_replays=num_replays,
            seed=outcome.config.seed,
            is_workload_known=True,
            progress=progress,
        )
    if not default_replays(judgement.blind.outcome.timing):
        judgement.notes.append(
            "intervals: the step times tell no draws of their constants (`dynosim calibrate` "
            "writes some), so only arrivals and the router's choices were varied: what step "
            "times get wrong is not in them"
        )
