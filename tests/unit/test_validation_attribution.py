"""Where a prediction's error comes from, of runs measured in virtual time: nothing else disturbs.

The engines that are measured differ from the plan in one part at a time; what replaces that part
must then bring the prediction to what was measured.
"""

import asyncio
from array import array
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recorded_runs import TRUE
from virtual_engine import VirtualEngine, use_virtual_clock
from virtual_time import VirtualTimeLoop

from dynosim.build.engine import prepare
from dynosim.build.workload import load_trace
from dynosim.config import RunConfig
from dynosim.config.loading import run_config_from_dict
from dynosim.experiment.run import RunOutcome
from dynosim.experiment.run import run as simulate
from dynosim.records import Trace
from dynosim.silicon.fitted_file import write_fit
from dynosim.timing.fitted import Fit, FittedParameters
from dynosim_runtime.measure.capacity import ReportedCapacity
from dynosim_runtime.measure.deployment import Measured
from dynosim_runtime.measure.load import LoadRun, drive
from dynosim_runtime.measure.measured import measured_report
from dynosim_runtime.measure.prompts import UNKNOWN_VOCABULARY, PromptMaker
from dynosim_runtime.requests import RequestRecord
from dynosim_runtime.validate.attribution import as_sent, attribute, report_as_sent
from dynosim_runtime.validate.compare import METRICS, compare_reports
from dynosim_runtime.validate.judge import Judgement, judge
from dynosim_runtime.validate.saved import PredictedSide

CONSTANTS = replace(TRUE, ingress_ms=1.5, egress_ms=0.5)
SYNTHETIC = {
    "requests": 32,
    "isl": {"dist": "lognormal", "mean": 200, "std": 100, "max": 600},
    "osl": {"dist": "lognormal", "mean": 20, "std": 10, "min": 2, "max": 60},
    "rate_rps": 12,
}
EXACT = 1e-9  # what is left of rounding: times are multiplied by 1000 and back
FITTED = 0.02  # a fit to 32 requests does not find the constants, but what they come to


def plan(folder: Path, constants: FittedParameters | dict[str, Any], **sections: Any) -> RunConfig:
    timing = constants
    if isinstance(constants, FittedParameters):
        file = folder / "timing.json"
        write_fit(Fit(parameters=constants, knee=2.5), file)
        timing = {"kind": "fitted", "file": str(file)}
    engine = {
        "num_gpu_blocks": 500,
        "max_num_seqs": 16,
        "max_num_batched_tokens": 1024,
        "max_model_len": 1024,
    }
    given: dict[str, Any] = {
        "workload": {"synthetic": SYNTHETIC},
        "engine": engine | sections.pop("engine", {}),
        "timing": timing,
    }
    return run_config_from_dict(given | sections)


def measured(config: RunConfig) -> Measured:
    """The engine of a plan, driven with its workload."""
    trace, prepared = load_trace(config), prepare(config)

    async def run() -> LoadRun:
        async with VirtualEngine(prepared.engine, prepared.timing) as engine:
            prompts = PromptMaker(UNKNOWN_VOCABULARY)
            concurrency = config.workload.concurrency
            return await drive(trace, engine, prompts, concurrency=concurrency)  # type: ignore[arg-type]

    with (
        pytest.MonkeyPatch.context() as patch,
        asyncio.Runner(loop_factory=VirtualTimeLoop) as loop,
    ):
        use_virtual_clock(patch)
        load = loop.run(run())
    told = ReportedCapacity(prepared.engine.num_gpu_blocks, "the engine's /metrics")
    return Measured(measured_report(load), "virtual", load, None, told)


@cache
def served(folder: Path) -> Measured:
    return measured(plan(folder, CONSTANTS))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("served")


def judged(config: RunConfig, run: Measured) -> Judgement:
    return judge(PredictedSide(simulate(config)), run, num_replays=0)


def errors_of(judgement: Judgement) -> dict[str, float]:
    assert judgement.attribution is not None
    assert judgement.attribution.num_metrics == len(METRICS)
    return judgement.attribution.mean_abs_error


def small(**sections: Any) -> dict[str, Any]:
    """Too few requests for a fit, which takes its time."""
    return {"workload": {"synthetic": SYNTHETIC | {"requests": 12, "rate_rps": 40}}, **sections}


def test_the_same_engine_is_predicted_to_the_last_digit(folder: Path) -> None:
    config = plan(folder, CONSTANTS, **small())
    run = measured(config)
    judgement = judged(config, run)
    rows = compare_reports(judgement.blind.outcome.report, run.report)
    assert [row.difference for row in rows] == pytest.approx([0.0] * len(METRICS), abs=EXACT)
    errors = errors_of(judgement)
    assert errors["none"] < EXACT and errors["arrival jitter"] < EXACT
    assert errors["scheduling"] > 0.01
    assert set(errors) == {"none", "arrival jitter", "scheduling"}
    assert judgement.attribution is not None and judgement.attribution.not_swapped == {
        "KV capacity": "the blind prediction has the deployment's capacity already",
        "host overhead": "12 requests are too few to fit (30 are needed)",
        "step time": "12 requests are too few to fit (30 are needed)",
    }
    assert judgement.given is None
    assert "tell 500 KV blocks, as the blind prediction takes it" in judgement.notes[0]


def test_another_loop_is_told_by_swapping_it(folder: Path, tmp_path: Path) -> None:
    other = plan(tmp_path, CONSTANTS, **small(engine={"async_scheduling": False}))
    errors = errors_of(judged(other, measured(plan(folder, CONSTANTS, **small()))))
    assert errors["scheduling"] < EXACT < 0.01 < errors["none"]


def test_another_capacity_is_all_that_is_wrong(tmp_path: Path) -> None:
    config = plan(tmp_path, CONSTANTS, **small(engine={"num_gpu_blocks": 5000}))
    run = measured(plan(tmp_path, CONSTANTS, **small(engine={"num_gpu_blocks": 66})))
    judgement = judged(config, run)
    assert judgement.given is not None
    assert judgement.given.outcome.result.workers.usable_blocks.tolist() == [
        65
    ]  # without the placeholder
    assert judgement.blind.to_dict()["num_gpu_blocks"] == 5000
    assert judgement.given.to_dict()["num_gpu_blocks"] == 66
    errors = errors_of(judgement)
    assert errors["KV capacity"] < EXACT < 0.01 < errors["none"]
    given = compare_reports(judgement.given.outcome.report, run.report)
    assert [row.difference for row in given] == pytest.approx([0.0] * len(METRICS), abs=EXACT)
    assert "tell 66 KV blocks, blind are 5,000" in judgement.notes[0]


@pytest.mark.parametrize("wrong", [{"weights_ms": 4.0}, {"overhead_ms": 6.0}])
def test_measured_step_times_mend_what_the_plan_has_wrong(
    folder: Path, tmp_path: Path, wrong: dict[str, float]
) -> None:
    judgement = judged(plan(tmp_path, replace(CONSTANTS, **wrong)), served(folder))
    errors = errors_of(judgement)
    assert errors["none"] > 0.1
    # Requests tell the whole step only: the host's share stays as planned and shows in the other.
    assert errors["step time"] < FITTED
    assert errors["host overhead"] == pytest.approx(errors["none"], abs=FITTED)
    assert judgement.attribution is not None
    untold = judgement.attribution.not_swapped["constants that the run does not tell"]
    assert "overhead_ms" in untold and "weights_ms" not in untold and "ingress_ms" not in untold
    assert errors["step time and host overhead"] < FITTED
    assert errors["step time and host overhead, arrival jitter"] < FITTED
    # The plan's arrivals were kept: sending adds nothing to them here.
    assert errors["arrival jitter"] == pytest.approx(errors["none"], abs=EXACT)


def test_times_without_a_host_part_are_swapped_together(folder: Path, tmp_path: Path) -> None:
    linear = {"kind": "linear", "base_ms": 6, "per_prefill_token_ms": 0.02}
    judgement = judged(plan(tmp_path, linear), served(folder))
    errors = errors_of(judgement)
    assert errors["none"] > 0.1
    assert errors["step time and host overhead"] < FITTED
    assert judgement.attribution is not None
    skipped = judgement.attribution.not_swapped
    assert "of kind linear do not tell the host's share" in skipped["step time"]
    assert skipped["step time"] == skipped["host overhead"]


def test_a_closed_loop_takes_the_measured_times_of_sending(tmp_path: Path) -> None:
    """What the twin's own loop gets wrong of arrivals, the measured ones put right."""
    synthetic = {key: value for key, value in SYNTHETIC.items() if key != "rate_rps"}
    workload = {"synthetic": synthetic | {"arrival": "closed"}, "concurrency": 6}
    (tmp_path / "true").mkdir()
    run = measured(plan(tmp_path / "true", CONSTANTS, workload=workload))
    guess = replace(CONSTANTS, weights_ms=4.0)
    errors = errors_of(judged(plan(tmp_path, guess, workload=workload), run))
    assert errors["none"] > 0.1
    assert errors["arrival jitter"] != pytest.approx(errors["none"], rel=1e-3)
    assert errors["step time and host overhead, arrival jitter"] < FITTED


@pytest.mark.parametrize("has_draws", [True, False])
def test_intervals_without_draws_of_the_constants_say_what_they_leave_out(
    folder: Path, tmp_path: Path, has_draws: bool
) -> None:
    config = plan(tmp_path, CONSTANTS, **small())
    draws = tuple(replace(CONSTANTS, weights_ms=8.0 + step) for step in (-1, 0, 1))
    write_fit(
        Fit(parameters=CONSTANTS, knee=2.5, draws=draws if has_draws else ()),
        tmp_path / "timing.json",
    )
    judgement = judge(PredictedSide(simulate(config)), measured(config), num_replays=3)
    assert judgement.blind.intervals is not None
    assert judgement.blind.intervals.to_dict()["replays"] == 3
    said = [note for note in judgement.notes if note.startswith("intervals: ")]
    assert len(said) == (0 if has_draws else 1)
    assert all("only arrivals and the router's choices were varied" in note for note in said)


# ---- what cannot be judged or swapped ------------------------------------------------------------


def blind_and_run(folder: Path) -> tuple[RunOutcome, Measured]:
    config = plan(folder, CONSTANTS, **small())
    return simulate(config), measured(config)


def test_a_measurement_that_was_interrupted_is_not_judged(folder: Path) -> None:
    blind, run = blind_and_run(folder)
    assert run.run is not None
    run.run.was_interrupted = True
    judgement = judge(PredictedSide(blind), run, num_replays=4)
    assert (judgement.given, judgement.attribution, judgement.notes) == (None, None, [])
    assert judgement.blind.intervals is None


def test_nothing_in_common_is_nothing_to_attribute(folder: Path) -> None:
    blind, _ = blind_and_run(folder)
    assert attribute(blind, None, Measured({}, "nowhere")) is None


def test_summaries_alone_leave_arrivals_and_step_times_out(folder: Path) -> None:
    blind, _ = blind_and_run(folder)
    found = attribute(blind, None, Measured({"mean_ttft_ms": 100.0}, "aiperf"))
    assert found is not None
    assert found.num_metrics == 1
    assert found.mean_abs_error["none"] == abs(blind.report["mean_ttft_ms"] / 100 - 1)
    assert found.not_swapped == {
        "arrival jitter": "only summaries were measured: when requests were sent is not known",
        "KV capacity": "the deployment does not tell its KV blocks",
        "host overhead": "only summaries were measured",
        "step time": "only summaries were measured",
    }


def test_requests_that_are_others_or_were_not_sent_leave_arrivals_out(folder: Path) -> None:
    blind, run = blind_and_run(folder)
    assert run.run is not None
    fewer = LoadRun(run.run.records[1:], run.run.token_ms[1:], run.run.lateness_ms[1:])
    found = attribute(blind, None, replace(run, run=fewer))
    assert found is not None
    assert found.not_swapped["arrival jitter"].startswith("the measured requests are not those")
    run.run.records[3].dispatch_ms = None
    found = attribute(blind, None, run)
    assert found is not None
    assert found.not_swapped["arrival jitter"] == "some requests were never sent"


def test_several_workers_are_not_fitted(folder: Path) -> None:
    config = plan(folder, CONSTANTS, cluster={"workers": 2}, **small())
    found = attribute(simulate(config), None, measured(plan(folder, CONSTANTS, **small())))
    assert found is not None
    assert "the log of one engine, and several were measured" in found.not_swapped["step time"]


def test_sent_requests_come_in_the_order_of_sending() -> None:
    trace = Trace(
        arrival_ms=np.array([0.0, 5.0, 9.0]),
        input_tokens=np.array([20, 33, 7]),
        output_tokens=np.array([1, 2, 3]),
        hash_ids=np.array([1, 2, 1, 3, 4, 5]),
        hash_offsets=np.array([0, 2, 5, 6]),
        trace_block_size=16,
        previous_turn=np.array([-1, -1, 0]),
        delay_ms=np.array([0.0, 0.0, 4.0]),
        priority=np.array([7, 8, 9]),
        session_ids=("a", "b", "a"),
        request_ids=("x", "y", "z"),
    )
    sent_ms = np.array([6.0, 1.0, 40.0])
    found = as_sent(trace, sent_ms, np.argsort(sent_ms))
    assert found.arrival_ms.tolist() == [1.0, 6.0, 40.0]
    assert found.input_tokens.tolist() == [33, 20, 7]
    assert found.output_tokens.tolist() == [2, 1, 3]
    assert found.hash_ids.tolist() == [1, 3, 4, 1, 2, 5]
    assert found.hash_offsets.tolist() == [0, 3, 5, 6]
    assert found.priority is not None and found.priority.tolist() == [8, 7, 9]
    assert (found.session_ids, found.request_ids) == (("b", "a", "a"), ("y", "x", "z"))
    assert (found.previous_turn, found.delay_ms, found.trace_block_size) == (None, None, 16)


def test_waits_count_from_when_a_request_was_due(folder: Path) -> None:
    """Sent a second late, each: the twin serves it then, and its wait holds the second."""
    config = plan(folder, CONSTANTS, **small())
    outcome = simulate(config)
    log = outcome.result.requests
    records = [
        RequestRecord(
            request_id=str(row), arrival_ms=at_ms, dispatch_ms=at_ms + 1000.0, input_tokens=1
        )
        for row, at_ms in enumerate(log.arrival_ms.tolist())
    ]
    late = report_as_sent(outcome, LoadRun(records, [array("d")] * len(records), np.zeros(0)))
    assert late["mean_ttft_ms"] == pytest.approx(outcome.report["mean_ttft_ms"] + 1000.0)
    assert late["mean_tpot_ms"] == pytest.approx(outcome.report["mean_tpot_ms"])
