"""Calibration and the fidelity harness, on logs with known constants and on a recorded engine."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from recorded_runs import SETUP, TRUE, rows, workload, write
from shared_data import shared_path

from dynosim.cli import main
from dynosim.compare.fidelity import judge_file
from dynosim.fit.calibration import Calibration, calibrate_log
from dynosim.fit.log_file import read_measurements
from dynosim.fit.scores import METRICS, worst
from dynosim.silicon.fitted_file import read_fit
from dynosim.timing.fitted import FittedModel

RECORDED = "ground_truth/vllm019_rtxpro6000_llama31_8b_tp1.jsonl.gz"


@pytest.mark.parametrize("is_async", [pytest.param(False, marks=pytest.mark.live), True])
def test_known_constants_are_found_from_requests_alone(tmp_path: Path, is_async: bool) -> None:
    setup = SETUP | ({"vllm_version": "0.19.0"} if is_async else {})
    log = write(tmp_path / "log.jsonl.gz", rows(workload(80), is_async=is_async), setup)
    calibration = calibrate_log(log)
    found = calibration.fit.parameters
    assert calibration.is_async is is_async
    assert found.per_decode_ms == pytest.approx(TRUE.per_decode_ms, rel=0.2)
    assert found.per_context_token_ms == pytest.approx(TRUE.per_context_token_ms, rel=0.1)
    # Only their sum shows while decoding.
    floor_ms = TRUE.overhead_ms + TRUE.weights_ms
    assert found.overhead_ms + found.weights_ms == pytest.approx(floor_ms, rel=0.03)
    for metric in ("tpot_ms", "latency_ms"):
        assert worst(calibration.held_out, metric) < 0.02
    # One request of 24 that just misses a step moves the upper percentiles of first tokens.
    first_tokens = {one.metric: one for one in calibration.apart}["ttft_ms"]
    assert first_tokens.median_ape < 0.02
    assert set(calibration.fit.unidentified) >= {"ingress_ms", "egress_ms"}
    check_held_out(calibration)


def check_held_out(calibration: Calibration) -> None:
    """The last 24 of 80 requests are judged, and the file tells how well they were predicted."""
    measured, predicted = calibration.measured, calibration.fitted.predicted
    assert (calibration.count, len(measured)) == (56, 80)
    errors = {score.name: score.error for score in calibration.held_out}
    means = {
        "mean_ttft_ms": predicted.ttft_ms[56:].mean() / measured.ttft_ms[56:].mean() - 1,
        "mean_latency_ms": predicted.latency_ms[56:].mean() / measured.latency_ms[56:].mean() - 1,
    }
    assert {name: errors[name] for name in means} == pytest.approx(means)
    assert calibration.fit.errors == {**errors, "drift": calibration.fit.errors["drift"]}
    apart = {one.metric: one for one in calibration.apart}
    off = np.abs(predicted.ttft_ms[56:] / measured.ttft_ms[56:] - 1)
    assert apart["ttft_ms"].mean_ape == pytest.approx(off.mean())
    costs = calibration.recorded.loop_costs
    assert min(costs, key=costs.__getitem__) == ("async" if calibration.is_async else "sync")
    assert calibration.fitted.cost == min(costs.values())
    # The version's loop explains the log; both are tried where no version is stated.
    assert len(costs) == (1 if calibration.is_async else 2)
    own = {score.name: score.error for score in calibration.own.scores}
    assert own["mean_ttft_ms"] == pytest.approx(
        predicted.ttft_ms[:56].mean() / measured.ttft_ms[:56].mean() - 1
    )
    assert calibration.own.misfits == () and calibration.refusal is None
    kept = tuple(draw.parameters for draw in calibration.fitted.draws[:32])
    assert calibration.fit.draws == kept and len(kept) == 32
    assert calibration.fit.source == "log.jsonl.gz, 56 of 80 requests"
    replays = calibration.fitted.num_replays
    assert calibration.fit.method == (
        f"simulation in the loop, {replays} replays; prior: the log's own extremes"
    )
    told = "KV capacity: not told by this log: at least about"
    assert any(note.startswith(told) for note in calibration.notes)


@pytest.mark.live
def test_clients_see_the_way_in_and_out(tmp_path: Path) -> None:
    true = replace(TRUE, ingress_ms=12.0, egress_ms=3.0)
    log = write(tmp_path / "log.jsonl", rows(workload(45), true, clock="clients"))
    calibration = calibrate_log(log)
    assert calibration.fit.parameters.ingress_ms == pytest.approx(15.0, abs=1.0)


@pytest.mark.live
def test_calibrate_writes_a_model_that_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = write(tmp_path / "log.jsonl", rows(workload(60)))
    out = tmp_path / "out" / "timing.json"
    assert main(["calibrate", "--measurements", str(log), "--out", str(out), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["fitted_requests"] == 42
    assert read_fit(out).parameters.weights_ms > 0
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    run = tmp_path / "run.yaml"
    run.write_text(
        "workload: {synthetic: {requests: 20, isl: 200, osl: 20, rate_rps: 5}}\n"
        "engine: {num_gpu_blocks: 2000}\n"
        f"timing: {{kind: fitted, file: {out}}}\n"
    )
    assert main(["run", str(run), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["completed_requests"] == 20
    assert report["timing_source"] == "derived"
    assert report["timing_in_range_share"] == 1.0


def test_bad_log_is_refused_with_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = rows(workload(40))
    log[7]["ttft_ms"] = -3.0
    path = write(tmp_path / "log.jsonl", log)
    out = str(tmp_path / "timing.json")
    assert main(["calibrate", "--measurements", str(path), "--out", out]) == 2
    assert "log.jsonl:9:first token: 3 ms before" in capsys.readouterr().err


def _benchmark(root: Path) -> ModuleType:
    path = root / "benchmarks" / "fidelity.py"
    spec = importlib.util.spec_from_file_location("fidelity_benchmark", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.live
def test_a_fit_that_fails_is_refused_unless_forced_and_then_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """First tokens that no engine explains: half of the requests waited for something unknown."""
    log = rows(workload(50))
    for row in log[::2]:
        row["ttft_ms"] += 20_000.0
    setup = SETUP | {"vllm_version": "0.11.0"}
    setup["engine_kwargs"] = setup["engine_kwargs"] | {"async_scheduling": False}
    path = write(tmp_path / "log.jsonl", log, setup)
    out = tmp_path / "timing.json"
    arguments = ["calibrate", "--measurements", str(path), "--out", str(out)]
    assert main(arguments) == 1
    told = capsys.readouterr()
    assert list(tmp_path.iterdir()) == [path]
    assert "does not explain the requests it was fitted to: mean_ttft_ms -" in told.err
    assert "the KV capacity: started from the" in told.err and "Nothing is written" in told.err
    assert "fitted part" in told.out and "NOT EXPLAINED: mean_ttft_ms" in told.out
    assert main([*arguments, "--force"]) == 0
    fit = read_fit(out)
    assert any(misfit.startswith("mean_ttft_ms -") for misfit in fit.misfits)
    assert "DOES NOT EXPLAIN" in " ".join(FittedModel(fit).notes)
    assert "written as forced" in capsys.readouterr().err


@pytest.mark.parametrize("level", ["apriori", "capacity"])
def test_levels_without_a_fit_are_computed_alone(
    tmp_path: Path, root: Path, capsys: pytest.CaptureFixture[str], level: str
) -> None:
    setup = {"model": "Qwen/Qwen3-8B", "vllm_version": "0.19.0", "engine_kwargs": {}}
    path = write(tmp_path / "log.jsonl", rows(workload(20)), setup)  # too few to fit
    arguments = [str(path), "--hardware", "rtx_4090", "--num-gpu-blocks", "3000", "--json"]
    assert _benchmark(root).main([*arguments, "--level", level]) == 0
    document = json.loads(capsys.readouterr().out)
    column = {"apriori": "blind", "capacity": "capacity given"}[level]
    (found,) = document["levels"]
    assert (found["level"], found["column"]) == ("a priori", column)
    assert (found["num_gpu_blocks"] == 3000) is (level == "capacity")
    assert document["fitted_parameters"] == {} and document["attribution_mean_abs_error"] == {}


@pytest.mark.live
def test_harness_compares_levels_with_intervals_and_ranges(
    tmp_path: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "log.jsonl.gz", rows(workload(110)))
    other = write(tmp_path / "other.jsonl", rows(workload(40, seed=5, rate_rps=3.0)))
    arguments = [str(path), "--num-gpu-blocks", "20000", "--other", str(other), "--json"]
    assert _benchmark(root).main(arguments) == 0
    document = json.loads(capsys.readouterr().out)
    levels: dict[tuple[str, str], Any] = {
        (level["level"], level["column"]): level for level in document["levels"]
    }
    first = levels["fitted on the first 33 requests", "capacity given"]
    elsewhere = levels["fitted on other.jsonl", "capacity given"]
    assert [key for key in levels if key[1] == "capacity given"] == [
        ("fitted on the first 33 requests", "capacity given"),
        ("fitted on other.jsonl", "capacity given"),
    ]
    log = read_measurements(path)
    for level, seen in ((first, 33), (elsewhere, 0)):
        assert len(level["scores"]) == len(level["held_out_scores"]) == 16
        for scored, begin in (("scores", 0), ("held_out_scores", seen)):
            told = {name: level[scored][f"mean_{name}"]["measured"] for name in METRICS[::2]}
            assert told == pytest.approx(
                {"ttft_ms": log.ttft_ms[begin:].mean(), "latency_ms": log.latency_ms[begin:].mean()}
            )
        assert level["num_gpu_blocks"] == 20_000
    for level in (first, elsewhere):
        assert abs(level["scores"]["mean_latency_ms"]["error"]) < 0.02
        low, high = level["intervals"]["mean_tpot_ms"]
        assert low < level["scores"]["mean_tpot_ms"]["measured"] * 1.02 and low <= high
    assert set(first["steps_in_range"]) >= {"all", "num_decodes", "prefill_tokens"}
    assert document["attribution_mean_abs_error"] == {}  # nothing blind without tables
    assert any("no attribution" in note for note in document["notes"])


def test_harness_refuses_unknown_hardware(
    tmp_path: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "log.jsonl", rows(workload(110)), {"model": "Qwen/Qwen3-32B"})
    assert _benchmark(root).main([str(path), "--hardware", "h20O"]) == 2
    assert "h20O" in capsys.readouterr().err


@pytest.mark.live
def test_recorded_vllm_is_predicted_within_the_bounds_we_state() -> None:
    fidelity = judge_file(shared_path(RECORDED), hardware="rtx_pro_6000_server")
    levels = {level.name: level for level in fidelity.levels}
    fitted = levels["fitted on the first 90 requests"]
    assert (len(fitted.table), len(fitted.rest)) == (16, 16)
    for table in (fitted.table, fitted.rest):
        assert worst(table, "tpot_ms") < 0.01
        assert worst(table, "latency_ms") < 0.01
        assert worst(table, "ttft_ms") < 0.03
    errors = fidelity.attribution
    assert errors["step time and host overhead"] < 0.01 < errors["none"]
    inside = [
        low <= score.measured <= high
        for score in fitted.table
        for low, high in [fitted.detail["intervals"][score.name]]
    ]
    assert sum(inside) >= 14  # of 16
    a_priori = {score.name: score.error for score in levels["a priori"].table}
    assert abs(a_priori["mean_tpot_ms"]) < 0.10
    assert abs(a_priori["throughput_tok_s"]) < 0.10
