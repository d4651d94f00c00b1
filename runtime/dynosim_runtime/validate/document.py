"""validation.json: predicted and measured, metric by metric, and what must be said beside it."""

from dataclasses import asdict
from typing import Any

from dynosim.config.formats import VALIDATION_SCHEMA
from dynosim.config.loading import written_out
from dynosim.experiment.run import RunOutcome
from dynosim.metrics.in_range import inside_shares
from dynosim.metrics.saturation import load_of
from dynosim.records import RequestStatus
from dynosim_runtime.measure.deployment import Measured
from dynosim_runtime.measure.load import LoadRun
from dynosim_runtime.measure.measured import request_log
from dynosim_runtime.validate.compare import (
    TOLERANCE,
    Comparison,
    compare_reports,
    compare_requests,
)
from dynosim_runtime.validate.judge import Column, Judgement

MAX_FAILURES_LISTED = 20
_PREDICTED_KEYS = (
    "predicted",
    "difference",
    "is_within_tolerance",
    "interval",
    "is_inside_interval",
)


def validation_document(
    judgement: Judgement, measured: Measured, *, speedup: float
) -> dict[str, Any]:
    """All of it, ready for JSON. What is not named otherwise is of the blind prediction."""
    blind, given = judgement.blind, judgement.given
    predicted = blind.outcome
    config, told = predicted.config, measured.capacity
    document: dict[str, Any] = {
        "schema": VALIDATION_SCHEMA,
        "name": config.name,
        "measured_at": measured.source,
        "workload": predicted.trace.source,
        "concurrency": config.workload.concurrency,
        "num_requests": len(predicted.trace),
        "tolerance": TOLERANCE,
        "speedup": speedup,
        "prompt_seed": measured.prompt_seed,
        "metrics": _metrics(judgement, measured),
        "requests": {},
        "notes": [*_notes(predicted, measured, speedup), *judgement.notes],
        "num_unserved": 0,
        "failures": [],
        "was_interrupted": False,
        "lateness_ms": None,
        "measured": measured.report,
        "predicted": predicted.report,
        "steps_in_range": inside_shares(predicted.timing, predicted.result.steps),
        "load": load_of(predicted.result).to_dict(),
        "num_gpu_blocks_given": None if told is None else told.num_gpu_blocks,
        "predictions": {
            "blind": blind.to_dict(),
            "capacity_given": None if given is None else given.to_dict(),
        },
        "attribution": None if judgement.attribution is None else judgement.attribution.to_dict(),
        "config": written_out(config),
    }
    if measured.transfers is not None:
        document["handoff"] = measured.transfers | {
            f"predicted_{name}_ms_mean": predicted.report.get(f"mean_{name}_ms")
            for name in ("transfer", "handoff")
        }
    if measured.run is not None:
        document |= _request_keys(predicted, measured.run)
    return document


def _metrics(judgement: Judgement, measured: Measured) -> list[dict[str, Any]]:
    """One row per metric: the blind prediction, and under `capacity_given` the other one."""
    rows = [row.as_dict() for row in _comparisons(judgement.blind, measured)]
    if judgement.given is None:
        return [{**row, "capacity_given": None} for row in rows]
    others = [row.as_dict() for row in _comparisons(judgement.given, measured)]
    return [
        {**row, "capacity_given": {key: other[key] for key in _PREDICTED_KEYS}}
        for row, other in zip(rows, others, strict=True)
    ]


def _comparisons(column: Column, measured: Measured) -> list[Comparison]:
    metrics = None if column.intervals is None else column.intervals.metrics
    return compare_reports(column.outcome.report, measured.report, metrics)


def _request_keys(predicted: RunOutcome, run: LoadRun) -> dict[str, Any]:
    """What can be said only with a record of every request."""
    records = run.records
    is_same = (
        len(records) == len(predicted.trace)
        and [record.input_tokens for record in records] == predicted.trace.input_tokens.tolist()
    )
    unserved = [record for record in records if record.status != "completed"]
    if is_same:
        expected = predicted.result.requests.status == RequestStatus.COMPLETED
        unserved = [
            record
            for record, is_expected in zip(records, expected.tolist(), strict=True)
            if is_expected and record.status != "completed"
        ]
    errors = compare_requests(predicted.result.requests, request_log(run)) if is_same else {}
    lateness = run.lateness()
    return {
        "requests": {name: asdict(value) for name, value in errors.items()},
        "num_unserved": len(unserved),
        "failures": [
            {"request_id": record.request_id, "status": record.status, "error": record.error}
            for record in unserved[:MAX_FAILURES_LISTED]
        ],
        "was_interrupted": run.was_interrupted,
        "lateness_ms": lateness.statistics if lateness.count else None,
    }


def _notes(predicted: RunOutcome, measured: Measured, speedup: float) -> list[str]:
    notes = list(predicted.timing.notes)
    if predicted.report.get("saturated"):
        notes.append(
            f"the twin is saturated by this load{_sustained(predicted)}: a small error of step "
            "times becomes a large one of waiting times"
        )
    shares = inside_shares(predicted.timing, predicted.result.steps)
    outside = {name: share for name, share in shares.items() if share < 1}
    if outside:
        said = ", ".join(f"{name} {100 * share:.1f} %" for name, share in outside.items())
        notes.append(f"steps inside the range that their times were measured on: {said}")
    if speedup != 1:
        notes.append(
            f"the deployment runs {speedup:g} times faster than its step times say: the load was "
            "offered as much faster, and measured times are multiplied by that; so is what HTTP "
            "and the host add"
        )
    if measured.run is None:
        notes.append("only summaries were measured: no ITL, no comparison request by request")
    elif len(measured.run.records) != len(predicted.trace):
        notes.append(
            f"{len(measured.run.records):,} requests were measured, {len(predicted.trace):,} "
            "predicted: are these the same workload?"
        )
    return notes


def _sustained(predicted: RunOutcome) -> str:
    """What the twin's engines sustain, for a sentence; empty where that is not known."""
    load = load_of(predicted.result)
    if load.sustained_tok_s is None:
        return ""
    said = f" (it sustains {load.sustained_tok_s:.0f} output tokens/s"
    if load.collapse_ms is not None:
        said += f", and collapses after {load.collapse_ms / 1e3:.1f} s"
    return said + ")"
