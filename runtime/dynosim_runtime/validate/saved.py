"""The predicted side of a plan whose folder has a prediction: what was said then is what counts.

It is held against the measurement as long as it is of this plan. Today's twin runs beside it, for
what needs every request; where it says something else now, that is noted.
"""

from dataclasses import dataclass, field, replace
from typing import Any

from dynosim.config import RunConfig
from dynosim.experiment.intervals import Intervals
from dynosim.experiment.prediction import SavedPrediction
from dynosim.experiment.run import RunOutcome
from dynosim_runtime.validate.compare import METRICS

SAME_WITHIN = 1e-6
SHOWN_CHANGES = 5


@dataclass(slots=True)
class PredictedSide:
    """What is set against a measurement, and where it comes from."""

    outcome: RunOutcome
    intervals: Intervals | None = None  # as they were saved; None: to be made
    source: dict[str, Any] | None = None  # for validation.json; None: predicted now
    notes: list[str] = field(default_factory=list)


def predicted_side(
    saved: SavedPrediction | None, config: RunConfig, today: RunOutcome
) -> PredictedSide:
    """The saved prediction if it is of `config`; else what the twin says today."""
    if saved is None:
        return PredictedSide(today)
    changes = saved.changes(config)
    source = {
        "file": saved.path.name,
        "is_used": not changes,
        "changes": changes,
        "versions": dict(saved.versions),
        "load": dict(saved.load),
    }
    if changes:
        shown = "; ".join(changes[:SHOWN_CHANGES])
        more = len(changes) - SHOWN_CHANGES
        others = f"; and {more} more" if more > 0 else ""
        note = f"{saved.path.name} is of another plan ({shown}{others}): predicted anew"
        return PredictedSide(today, source=source, notes=[note])
    outcome = replace(today, report={**today.report, **saved.report})
    notes = [f"predicted is what {saved.path.name} says (made with {_made_with(saved)})"]
    return PredictedSide(outcome, saved.intervals, source, notes + _drift(saved, today))


def _made_with(saved: SavedPrediction) -> str:
    return ", ".join(f"{name} {number}" for name, number in saved.versions.items())


def _drift(saved: SavedPrediction, today: RunOutcome) -> list[str]:
    """In which compared metric today's twin says something else than was saved."""
    for name, key, unit in METRICS:
        then, now = saved.report.get(key), today.report.get(key)
        if then is None or now is None:
            continue
        if abs(now - then) > SAME_WITHIN * max(abs(then), abs(now)):
            return [
                f"{saved.path.name} says {name} {then:.6g} {unit}, this version of the twin "
                f"{now:.6g}: what was saved is compared"
            ]
    return []
