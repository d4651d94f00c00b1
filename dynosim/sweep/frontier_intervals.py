"""How sure the frontier is: intervals of the trials on it, made by the sweep's workers.

A trial's replays depend on its configuration alone: they are those that `dynosim run` makes of it.
So trials that share their seed share the draws of every replay, and can be compared one by one.
"""

import traceback
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

from dynosim.config.schema import RunConfig
from dynosim.config.sweep_loading import SweepConfig
from dynosim.config.timing import FittedTiming
from dynosim.sweep.certainty import verdict_shares
from dynosim.sweep.executor import Executor
from dynosim.sweep.ledger import Ledger
from dynosim.sweep.progress import Progress
from dynosim.sweep.results import THROUGHPUT_PER_GPU, Row
from dynosim.sweep.status import FAILED, OK
from dynosim.sweep.trial import cached_prepared, cached_trace, config_of, request_for

FUNCTION = "dynosim.sweep.frontier_intervals:run_intervals"


def wanted_replays(rows: Sequence[Row], num_replays: int | None) -> dict[int, int]:
    """How often to replay which trials: those on a frontier, with or without the SLA.

    None: as often as the step times of each deserve.
    """
    on_front = [row.trial for row in rows if row.is_pareto or row.is_sla_pareto]
    counts = {
        trial.index: _default_replays(trial.config) if num_replays is None else num_replays
        for trial in on_front
        if trial.config is not None
    }
    return {index: count for index, count in counts.items() if count}


def _default_replays(config: RunConfig) -> int:
    if not isinstance(config.timing, FittedTiming):
        return 0
    from dynosim.experiment.intervals import default_replays
    from dynosim.silicon.fitted_file import load_fitted

    return default_replays(load_fitted(config.resolve(config.timing.file)))


def known_intervals(ledger: Ledger, wanted: Mapping[int, int]) -> dict[int, dict[str, Any]]:
    """The wanted intervals that the ledger has, by trial."""
    return {
        index: ledger.intervals[index]
        for index, count in wanted.items()
        if ledger.intervals.get(index, {}).get("replays") == count
    }


def make_intervals(
    rows: Sequence[Row],
    wanted: Mapping[int, int],
    ledger: Ledger,
    executor: Executor,
    *,
    configs: Mapping[int, RunConfig] | None = None,
) -> dict[int, str]:
    """Put into the ledger what it lacks of the `wanted` intervals; returns why some failed.

    `configs` are run in place of the trials' own.
    """
    known = known_intervals(ledger, wanted)
    todo = {
        row.trial.index: row.trial
        for row in rows
        if row.trial.index in wanted and row.trial.index not in known
    }
    requests = [
        (index, {**request_for((configs or {}).get(index, trial.config)), "replays": wanted[index]})
        for index, trial in todo.items()
        if trial.config is not None
    ]
    failures: dict[int, str] = {}
    if not requests:
        return failures
    progress = Progress(
        total=len(wanted), done=len(known), objective=THROUGHPUT_PER_GPU, is_max=True,
        unit="intervals",
    )  # fmt: skip
    with progress, closing(executor.run(FUNCTION, requests)) as answers:
        for index, answer in answers:
            if answer["status"] == OK:
                ledger.append_intervals(todo[index], answer["intervals"])
            else:
                failures[index] = answer["reason"]
            progress.advance({}, {})
    return dict(sorted(failures.items()))


def run_intervals(request: dict[str, Any]) -> dict[str, Any]:
    """`status`, `reason` and `intervals` of one trial, in any process."""
    from dynosim.experiment.intervals import prediction_intervals

    try:
        config = config_of(request)
        intervals = prediction_intervals(
            config,
            cached_trace(config),
            cached_prepared(config).timing,
            num_replays=request["replays"],
            seed=config.seed,
        )
    except Exception as error:  # the other trials' intervals must not be lost
        traceback.print_exc()
        reason = f"{type(error).__name__}: {error}"
        return {"status": FAILED, "reason": reason, "intervals": None}
    found = {**intervals.to_dict(), "samples": intervals.samples}
    return {"status": OK, "reason": "", "intervals": found}


def with_intervals(
    sweep: SweepConfig, rows: Sequence[Row], known: Mapping[int, dict[str, Any]]
) -> list[Row]:
    """The rows with the intervals that are known, and how often the verdicts on them hold."""
    samples = {index: found["samples"] for index, found in known.items()}
    num_replays = min((found["replays"] for found in known.values()), default=0)
    shares = verdict_shares(sweep, rows, samples, num_replays=num_replays)
    plain = {
        index: {name: value for name, value in found.items() if name != "samples"}
        for index, found in known.items()
    }
    return [
        replace(row, intervals=plain.get(row.trial.index), shares=shares.get(row.trial.index, {}))
        for row in rows
    ]
