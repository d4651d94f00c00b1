"""validation.json: what is said of which prediction, and who was not served."""

from array import array
from dataclasses import replace
from math import nan
from typing import Any

import numpy as np
import pytest

from dynosim.config import RunConfig
from dynosim.config.loading import run_config_from_dict
from dynosim.experiment.intervals import Intervals
from dynosim.experiment.run import RunOutcome
from dynosim.experiment.run import run as simulate
from dynosim_runtime.measure.capacity import ReportedCapacity
from dynosim_runtime.measure.deployment import Measured
from dynosim_runtime.measure.load import LoadRun
from dynosim_runtime.measure.measured import measured_report
from dynosim_runtime.requests import RequestRecord
from dynosim_runtime.validate.attribution import Attribution
from dynosim_runtime.validate.compare import METRICS
from dynosim_runtime.validate.document import MAX_FAILURES_LISTED, validation_document
from dynosim_runtime.validate.judge import Column, Judgement

NUM_REQUESTS = 30


def plan(**engine: Any) -> RunConfig:
    return run_config_from_dict(
        {
            "name": "plan",
            "workload": {
                "synthetic": {"requests": NUM_REQUESTS, "isl": 40, "osl": 6, "rate_rps": 9}
            },
            "engine": {"num_gpu_blocks": 200, "max_model_len": 400, **engine},
            "timing": {"kind": "linear", "base_ms": 4.0},
        }
    )


@pytest.fixture(scope="module")
def outcome() -> RunOutcome:
    return simulate(plan())


def measured_like(outcome: RunOutcome, *, slower: float = 1.0) -> Measured:
    """The twin's own run, every time after the arrival so many times as long."""
    log = outcome.result.requests
    records, tokens = [], []
    for row in range(len(log.status)):
        arrival, first = float(log.arrival_ms[row]), float(log.first_token_ms[row])
        finish = float(log.finish_ms[row])
        begin_ms, end_ms = (arrival + slower * (at_ms - arrival) for at_ms in (first, finish))
        records.append(
            RequestRecord(
                request_id=f"r{row}",
                arrival_ms=arrival,
                dispatch_ms=arrival,
                first_token_ms=begin_ms,
                finish_ms=end_ms,
                input_tokens=int(log.input_tokens[row]),
                output_tokens=int(log.output_tokens[row]),
                status="completed",
            )
        )
        tokens.append(array("d", np.linspace(begin_ms, end_ms, int(log.output_tokens[row]))))
    run = LoadRun(records, tokens, np.full(len(records), 2.0))
    return Measured(measured_report(run), "http://x", run, 77)


def documented(outcome: RunOutcome, measured: Measured, **more: Any) -> dict[str, Any]:
    speedup = more.pop("speedup", 1.0)
    judgement = Judgement(Column(outcome), **more)
    return validation_document(judgement, measured, speedup=speedup)


def test_it_says_what_was_compared(outcome: RunOutcome) -> None:
    measured = measured_like(outcome, slower=1.25)
    document = documented(outcome, measured)
    assert document["schema"] == "dynosim.validation/1"
    assert (document["name"], document["measured_at"]) == ("plan", "http://x")
    assert (document["num_requests"], document["concurrency"]) == (NUM_REQUESTS, None)
    assert (document["tolerance"], document["speedup"], document["prompt_seed"]) == (0.1, 1.0, 77)
    assert (document["measured"], document["predicted"]) == (measured.report, outcome.report)
    assert document["num_gpu_blocks_given"] is None
    assert document["predictions"]["blind"]["num_gpu_blocks"] == 200
    assert document["predictions"]["capacity_given"] is None
    assert document["attribution"] is None
    assert document["config"]["engine"]["num_gpu_blocks"] == 200
    assert [row["metric"] for row in document["metrics"]] == [name for name, _, _ in METRICS]
    first = document["metrics"][0]
    assert first["difference"] == pytest.approx(-0.2)  # 1 / 1.25 - 1
    assert first["is_within_tolerance"] is False
    assert first["capacity_given"] is None
    for name in ("ttft_ms", "tpot_ms", "e2e_ms"):
        errors = document["requests"][name]
        assert errors["num_requests"] == NUM_REQUESTS
        assert errors["absolute_percentage_error"]["max"] == pytest.approx(0.2)
    assert document["lateness_ms"]["mean"] == 2.0
    assert (document["num_unserved"], document["failures"]) == (0, [])
    assert document["notes"] == list(outcome.timing.notes)


def test_both_predictions_stand_in_a_row_with_their_own_intervals(outcome: RunOutcome) -> None:
    measured = measured_like(outcome)
    measured.capacity = ReportedCapacity(150, "the workers' cards")
    given = simulate(plan(num_gpu_blocks=150))
    key = "mean_ttft_ms"
    value = measured.report[key]
    spans = ((value - 2, value - 1), (value - 1, value + 1))
    blind, other = (Intervals(4, ("arrivals",), {key: span}) for span in spans)
    judgement = Judgement(
        Column(outcome, blind), Column(given, other), Attribution(3, {"none": 0.5}), ["judged"]
    )
    document = validation_document(judgement, measured, speedup=1.0)
    row = next(row for row in document["metrics"] if row["key"] == key)
    assert (row["interval"], row["is_inside_interval"]) == (spans[0], False)
    told = row["capacity_given"]
    assert told.keys() == {
        "predicted", "difference", "is_within_tolerance", "interval", "is_inside_interval",
    }  # fmt: skip
    assert (told["interval"], told["is_inside_interval"]) == (spans[1], True)
    assert told["predicted"] == given.report[key]
    assert document["num_gpu_blocks_given"] == 150
    assert document["predictions"]["capacity_given"]["num_gpu_blocks"] == 150
    assert document["attribution"] == {
        "num_metrics": 3, "mean_abs_error": {"none": 0.5}, "not_swapped": {},
    }  # fmt: skip
    assert document["notes"][-1] == "judged"


def fail(measured: Measured, *rows: int) -> None:
    assert measured.run is not None
    for row in rows:
        record = measured.run.records[row]
        record.status, record.error = "failed", f"error {row}"


def test_who_was_not_served_is_named_up_to_a_limit(outcome: RunOutcome) -> None:
    measured = measured_like(outcome)
    fail(measured, 3, *range(5, NUM_REQUESTS))
    document = documented(outcome, measured)
    assert document["num_unserved"] == 26
    assert MAX_FAILURES_LISTED == len(document["failures"]) == 20
    assert document["failures"][:2] == [
        {"request_id": "r3", "status": "failed", "error": "error 3"},
        {"request_id": "r5", "status": "failed", "error": "error 5"},
    ]
    assert document["requests"]["ttft_ms"]["num_requests"] == 4


def test_what_the_twin_does_not_serve_either_is_no_failure() -> None:
    config = plan(max_model_len=45)  # 40 and 6 tokens: the last one does not fit
    config = config.model_copy(
        update={"engine": config.engine.model_copy(update={"max_model_len": 40})}
    )
    refusing = simulate(config)
    assert refusing.report["completed_requests"] == 0
    measured = measured_like(simulate(plan()))
    fail(measured, *range(NUM_REQUESTS))
    assert documented(refusing, measured)["num_unserved"] == 0


def test_another_workload_is_compared_in_sum_only(outcome: RunOutcome) -> None:
    measured = measured_like(outcome)
    assert measured.run is not None
    measured.run.records[7].input_tokens += 1
    fail(measured, 2)
    document = documented(outcome, measured)
    assert (document["requests"], document["num_unserved"]) == ({}, 1)
    fewer = LoadRun(measured.run.records[:9], measured.run.token_ms[:9], np.zeros(9))
    document = documented(outcome, replace(measured, run=fewer))
    assert document["requests"] == {}
    assert document["notes"][-1] == (
        "9 requests were measured, 30 predicted: are these the same workload?"
    )


def test_summaries_have_no_requests(outcome: RunOutcome) -> None:
    document = documented(outcome, Measured({"mean_ttft_ms": 9.0}, "aiperf"))
    assert (document["requests"], document["lateness_ms"]) == ({}, None)
    assert (document["num_unserved"], document["was_interrupted"]) == (0, False)
    assert document["prompt_seed"] is None
    assert any("only summaries were measured" in note for note in document["notes"])


def test_an_interruption_and_unknown_lateness_are_told(outcome: RunOutcome) -> None:
    measured = measured_like(outcome)
    assert measured.run is not None
    measured.run.was_interrupted = True
    measured.run.lateness_ms[:] = nan
    document = documented(outcome, measured)
    assert (document["was_interrupted"], document["lateness_ms"]) == (True, None)


def test_what_makes_predictions_doubtful_is_said(outcome: RunOutcome) -> None:
    config = plan()
    load = config.workload.model_copy(
        update={"synthetic": config.workload.synthetic.model_copy(update={"rate_rps": 5000.0})}
    )
    crowded = simulate(config.model_copy(update={"workload": load}))
    saturated = dict(crowded.report, saturated=True)
    notes = documented(replace(crowded, report=saturated), measured_like(crowded), speedup=4.0)[
        "notes"
    ]
    assert any(note.startswith("the twin is saturated by this load") for note in notes)
    assert any(note.startswith("the deployment runs 4 times faster") for note in notes)
    quiet = documented(outcome, measured_like(outcome))["notes"]
    assert not any("saturated" in note or "faster" in note for note in quiet)
