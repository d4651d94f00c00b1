"""In what share of their replays a sweep's trials keep its verdicts."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dynosim.config.sweep_loading import SweepConfig
from dynosim.sweep.results import Row, front_of, meets

Samples = Mapping[str, Sequence[float | None]]
"""Values of all replays, by key of the report."""


def verdict_shares(
    sweep: SweepConfig, rows: Sequence[Row], samples: Mapping[int, Samples], *, num_replays: int
) -> dict[int, dict[str, float | None]]:
    """By trial, the shares of replays that put it on the frontiers it is on, and within the SLA.

    Null for a frontier that the trial is not on. Replays of the same number are compared, which
    share their draws if the trials share their seed. Trials without `samples` take no part: those
    off the frontiers, of which one may beat another in some replay, so that shares are upper
    bounds.
    """
    shown = [row for row in rows if row.trial.index in samples]
    if not shown:
        return {}
    kept = [
        _verdicts(sweep, shown, [_replayed(row, samples[row.trial.index], k) for row in shown])
        for k in range(num_replays)
    ]
    pareto, sla_pareto, meeting = np.mean(kept, axis=0).tolist()
    shares: dict[int, dict[str, float | None]] = {}
    for place, row in enumerate(shown):
        found = {"is_pareto_share": pareto[place] if row.is_pareto else None}
        if sweep.constraints.sla is not None:
            found["is_sla_pareto_share"] = sla_pareto[place] if row.is_sla_pareto else None
            found["meets_sla_share"] = meeting[place]
        shares[row.trial.index] = found
    return shares


def _replayed(row: Row, samples: Samples, replay: int) -> dict[str, Any]:
    """The report of one replay; what has no samples is as in the trial's own."""
    return {**row.report, **{key: values[replay] for key, values in samples.items()}}


def _verdicts(
    sweep: SweepConfig, rows: Sequence[Row], reports: Sequence[Mapping[str, Any]]
) -> list[list[bool]]:
    """Of each row: on the frontier, on that of the SLA, within the SLA."""
    meeting = [meets(sweep.constraints.sla, report) for report in reports]
    allowed = [row.is_sla_pareto and met for row, met in zip(rows, meeting, strict=True)]
    return [
        front_of(sweep, reports, [row.is_pareto for row in rows]),
        front_of(sweep, reports, allowed),
        meeting,
    ]
