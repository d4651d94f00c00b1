"""`dynosim sweep` over requests in flight, as its users call it."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from dynosim.cli import main

SERVICE_MS = 100
SWEEP_FILE = f"""\
name: closed
workload:
  synthetic: {{requests: 200, isl: 100, osl: 1, rate_rps: 10}}
engine: {{num_gpu_blocks: 1000, max_num_seqs: 1, max_model_len: 512}}
timing: {{kind: fixed, prefill_ms: {SERVICE_MS}, decode_ms: 1}}
router: {{mode: least-loaded}}
space: {{cluster.workers: [1, 2]}}
constraints: {{sla: {{ttft_ms: 450}}}}
load: {{search: capacity, vary: concurrency, min_requests: 0}}
"""

pytestmark = pytest.mark.usefixtures("inline_workers", "no_pictures")


@pytest.fixture
def sweep_file(tmp_path: Path) -> Path:
    path = tmp_path / "sweep.yaml"
    path.write_text(SWEEP_FILE)
    return path


def sweep(*arguments: object) -> int:
    return main(["sweep", *map(str, arguments)])


def trials_of(folder: Path) -> pl.DataFrame:
    return pl.read_parquet(folder / "trials.parquet")


def summary_of(folder: Path) -> Any:
    return json.loads((folder / "summary.json").read_text())


def test_a_server_holds_as_many_as_it_serves_within_the_bound(
    sweep_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One at a time, 100 ms each: the n-th in flight waits for n - 1 others, so four fit into 450
    ms; two servers hold eight."""
    assert sweep(sweep_file, "--out", tmp_path / "out") == 0
    trials = trials_of(tmp_path / "out")
    assert trials["capacity_load"].to_list() == [4.0, 8.0]
    assert trials["capacity_rps"].to_list() == pytest.approx([10.0, 20.0], rel=0.02)
    assert trials["capacity_in_flight"].to_list() == pytest.approx([4.0, 8.0], rel=0.02)
    per_worker = trials["capacity_in_flight_per_worker"]
    assert per_worker.to_list() == pytest.approx([4.0] * 2, rel=0.02)
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split()[:5] == ["layout", "GPUs", "in", "flight", "/worker"]
    (two,) = [line.split() for line in lines if " 2x " in line]
    assert two[1:5] == ["2x", "2", "8", "4"] and max(map(len, lines[:5])) <= 80


def test_each_slot_serves_forty_requests(sweep_file: Path, tmp_path: Path) -> None:
    assert sweep(sweep_file, "--out", tmp_path / "out") == 0
    assert (trials_of(tmp_path / "out")["capacity_requests_per_slot"] >= 40).all()
    assert "warnings" not in summary_of(tmp_path / "out")


def test_too_few_requests_for_a_slot_are_told_everywhere(
    sweep_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--set", "load.requests_per_slot=5", "--set", "workload.synthetic.requests=60"]
    assert sweep(sweep_file, "--out", tmp_path / "out", *options) == 0
    (warning,) = summary_of(tmp_path / "out")["warnings"]
    assert "2 of 2 layouts was judged by few requests, down to 7.5" in warning
    assert "set load.requests_per_slot to 40" in warning
    assert warning in (tmp_path / "out" / "report.html").read_text()
    assert f"warning: {warning}" in " ".join(capsys.readouterr().out.split())


def test_a_closed_loop_as_it_is_may_be_too_short_as_well(
    sweep_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--set", "load={search: fixed}", "--set", "workload.concurrency=8"]
    assert sweep(sweep_file, "--out", tmp_path / "out", *options) == 0
    (warning,) = summary_of(tmp_path / "out")["warnings"]
    assert "200 requests are 25 for each of 8 in flight; 40 each (320)" in warning
    assert warning in capsys.readouterr().out
    run_file = tmp_path / "run.yaml"
    run_file.write_text(SWEEP_FILE[: SWEEP_FILE.index("space:")])
    assert main(["run", str(run_file), "--set", "workload.concurrency=8"]) == 0
    assert "warning: 200 requests are 25 for each" in capsys.readouterr().out


def test_a_curve_has_the_ladder_of_the_field(sweep_file: Path, tmp_path: Path) -> None:
    assert sweep(sweep_file, "--out", tmp_path / "out", "--set", "load.search=curve") == 0
    probes = pl.read_parquet(tmp_path / "out" / "probes.parquet")
    for index in (0, 1):
        loads = probes.filter(pl.col("trial_id") == index)["load"].to_list()
        assert {1, 2, 8, 16, 32, 64, 128} <= set(loads)
    assert trials_of(tmp_path / "out")["capacity_load"].to_list() == [4.0, 8.0]


def test_without_an_sla_the_ladder_is_all(sweep_file: Path, tmp_path: Path) -> None:
    options = ["constraints={}", "load={search: curve, vary: concurrency, concurrencies: [3, 1]}"]
    sets = [word for option in options for word in ("--set", option)]
    assert sweep(sweep_file, "--out", tmp_path / "out", *sets) == 0
    probes = pl.read_parquet(tmp_path / "out" / "probes.parquet")
    assert probes["load"].to_list() == [1.0, 3.0, 1.0, 3.0]
    assert probes["is_carried"].all() and not probes["is_stopped"].any()


def test_the_workload_s_own_concurrency_is_tried(sweep_file: Path, tmp_path: Path) -> None:
    assert sweep(sweep_file, "--out", tmp_path / "out", "--set", "workload.concurrency=6") == 0
    assert trials_of(tmp_path / "out")["own_load_carried"].to_list() == [False, True]


def test_a_trace_without_timestamps_is_a_closed_loop(
    sweep_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"input_length": 100, "output_length": 1, "hash_ids": [1]}
    trace = tmp_path / "trace.jsonl"
    trace.write_text("".join(json.dumps(row | {"hash_ids": [n]}) + "\n" for n in range(100)))
    options = ["--set", f"workload={{trace: {trace}, format: mooncake}}"]
    assert sweep(sweep_file, "--out", tmp_path / "a", *options) == 0
    assert trials_of(tmp_path / "a")["capacity_load"].to_list() == [4.0, 8.0]
    capsys.readouterr()
    by_rate = [*options, "--set", "load.vary=rate"]
    assert sweep(sweep_file, "--out", tmp_path / "b", *by_rate) == 2
    errors = capsys.readouterr().err
    assert "timestamp: missing field (a closed loop needs none" in errors
    assert "load.vary: concurrency" in errors and not (tmp_path / "b" / "ledger.jsonl").exists()


def test_a_closed_loop_has_no_rate(
    sweep_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--set", "workload.concurrency=8", "--set", "load.vary=rate"]
    assert sweep(sweep_file, "--out", tmp_path / "out", *options) == 2
    errors = capsys.readouterr().err
    assert "a closed loop has no rate" in errors and "load.vary: concurrency" in errors


def test_sessions_that_start_together_have_no_rate(
    sweep_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"timestamp": 0, "input_length": 100, "output_length": 1, "hash_ids": [1]}
    trace = tmp_path / "trace.jsonl"
    trace.write_text((json.dumps(row) + "\n") * 9)
    options = ["--set", f"workload={{trace: {trace}, format: mooncake}}"]
    for load in ("load.vary=rate", "load={search: capacity, need: {rps: 5}}"):
        budget = ["--set", "constraints.gpu_budget=4"]
        assert sweep(sweep_file, "--out", tmp_path / "o", *options, *budget, "--set", load) == 2
        errors = capsys.readouterr().err
        assert "all sessions start at once" in errors and "load.vary: concurrency" in errors
        assert "Traceback" not in errors and not (tmp_path / "o" / "ledger.jsonl").exists()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("constraints={}", "without an SLA any concurrency is carried"),
        ("load={search: capacity, concurrencies: [4]}", "are loads of a closed loop's curve"),
        ("load={search: capacity, requests_per_slot: 9}", "only a closed loop has slots"),
        ("load={search: curve, vary: concurrency, concurrencies: []}", "at least 1"),
        ("load.range=[1.5, 3]", "concurrency is counted in whole requests"),
    ],
)
def test_bad_loads_are_one_message(
    sweep_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    override: str,
    words: str,
) -> None:
    assert sweep(sweep_file, "--out", tmp_path / "out", "--set", override) == 2
    errors = capsys.readouterr().err
    assert words in errors and "Traceback" not in errors
    assert not (tmp_path / "out").exists()


def test_a_search_begins_within_its_range(sweep_file: Path, tmp_path: Path) -> None:
    assert sweep(sweep_file, "--out", tmp_path / "out", "--set", "load.range=[1, 3]") == 0
    probes = pl.read_parquet(tmp_path / "out" / "probes.parquet")
    assert probes["load"].max() == 3.0 and probes["is_carried"].all()
