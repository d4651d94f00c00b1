"""Benchmarks' workloads as users run them: stages, pools, clients that give up, warm-up."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from shared_data import ROOT, shared_path

from dynosim.cli import main
from dynosim.cli.run_text import print_parts
from dynosim.config.sweep_loading import load_sweep

sys.path.insert(0, str(ROOT / "benchmarks"))

import experiments

RUN_FILE = """\
name: staged
workload:
  pool: {system_prompts: 3, users_per_prompt: 2, system_tokens: 100, question_tokens: 400,
         output_tokens: 50}
  template_tokens: 27
  stages:
    - {rate_rps: 2, duration_s: 30}
    - {rate_rps: 40, duration_s: 10}
    - {rate_rps: 2, duration_s: 30, start_s: 60}
  client_timeout_ms: 4000
engine: {num_gpu_blocks: 2000, max_num_seqs: 16}
timing: {kind: polynomial}
sla: {ttft_ms: 500}
"""


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(RUN_FILE)
    return path


def report_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main(["run", *arguments, "--check", "--json"]) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


def test_each_stage_has_its_results_and_an_overloaded_one_is_told_from_the_others(
    run_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = report_of(capsys, str(run_file))
    stages = report["stages"]
    assert [row["num_requests"] for row in stages] == [60, 400, 60]
    assert [row["saturated"] for row in stages] == [False, True, False]
    assert [row["start_s"] for row in stages] == [0, 30, 60]
    assert sum(row["completed_requests"] for row in stages) == report["completed_requests"]
    given_up = [row["timed_out_requests"] for row in stages]
    assert given_up[0] == given_up[2] == 0
    assert sum(given_up) == report["timed_out_requests"] > 100
    assert report["completed_requests"] + report["timed_out_requests"] == 520
    assert stages[0]["sla_attainment"] == 1.0 > stages[1]["sla_attainment"]
    assert stages[1]["served_rps"] < 20 < stages[1]["offered_rps"]


def test_terminal_page_and_windows_show_the_parts(
    run_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["run", str(run_file), "--windows", "20", "--out", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    heads = [index for index, line in enumerate(lines) if line.startswith(("stages", "windows"))]
    assert len(heads) == 2 and lines[heads[0] + 2].endswith("saturated")
    assert len(lines) - heads[1] - 1 == 5  # the last request is sent before 100 s
    page = (out / "report.html").read_text()
    assert "By load stage" in page and "By window of time" in page
    document = json.loads((out / "report.json").read_text())
    assert sum(row["num_requests"] for row in document["windows"]) == 520


def test_warm_up_is_served_and_left_out(run_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = report_of(capsys, str(run_file))
    for change in ("workload.warm_up_s=30", "workload.warm_up_requests=60"):
        report = report_of(capsys, str(run_file), "--set", change)
        assert report["num_requests"] == 460
        assert [row["num_requests"] for row in report["stages"]] == [0, 400, 60]
        assert report["timed_out_requests"] == whole["timed_out_requests"]
        assert report["duration_ms"] <= whole["duration_ms"] - 29_000
        last, last_of_whole = report["stages"][2], whole["stages"][2]
        assert last["mean_ttft_ms"] == pytest.approx(last_of_whole["mean_ttft_ms"])
        assert report["prefix_cache_reused_ratio"] > whole["prefix_cache_reused_ratio"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["workload.stages=[{rate_rps: 1, duration_s: 9},{rate_rps: 1, duration_s: 2,start_s: 5}]"],
         "workload.stages[1].start_s: starts at 5 s, before stage 0 ends at 9 s"),
        (["workload.stages=[{rate_rps: 0, duration_s: 9}]"], "rate_rps: must be > 0, got 0"),
        (["workload.stages=[]"], "workload.stages"),
        (["workload.stages=null"], "workload.stages: a pool needs them"),
        (["workload.client_timeout_ms=0"], "client_timeout_ms: must be > 0, got 0"),
        (["workload.trace=t.jsonl"], "trace and pool exclude each other"),
        (["workload.concurrency=3"], "a closed loop has no load stages"),
        (["workload.pool.requests=3"], "the load stages say it"),
        (["workload.repeat=2"], "load stages come once"),
        (["workload.pool=null", "workload.synthetic={isl: 9, osl: 9, requests: 3}"],
         "workload.synthetic.requests: the load stages say it"),
        (["workload.warm_up_requests=520"], "workload.warm_up_requests: 520 leaves none of the"),
        (["workload.warm_up_requests=5", "workload.warm_up_s=5"], "excludes warm_up_requests"),
    ],
)  # fmt: skip
def test_senseless_workloads_are_refused(
    run_file: Path, capsys: pytest.CaptureFixture[str], changes: list[str], message: str
) -> None:
    arguments = [word for change in changes for word in ("--set", change)]
    assert main(["run", str(run_file), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_a_sweep_tries_its_layouts_at_the_stages_as_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = tmp_path / "sweep.yaml"
    spec.write_text(RUN_FILE + "space: {cluster.workers: [1, 2]}\n")
    assert load_sweep(spec).load.search == "fixed"
    assert main(["sweep", str(spec), "--set", "load.search=curve"]) == 2
    assert "workload.stages are loads of their own" in capsys.readouterr().err


def test_no_parts_no_lines(capsys: pytest.CaptureFixture[str]) -> None:
    print_parts("stages", None)
    assert capsys.readouterr().out == ""


# ---- the published experiments ---------------------------------------------------------------


def made_up(tmp_path: Path) -> Path:
    """What might have been measured of one experiment."""
    values = {"e2e_mean": 1500.0, "e2e_p90": 1600.0, "e2e_p99": 1700.0, "ttft_mean": 20.0,
              "ttft_p90": 25.0, "ttft_p99": 30.0, "itl_mean": 6.0}  # fmt: skip
    row = {"id": "64", "model": "Qwen/Qwen2.5-7B-Instruct", "kv_blocks_of_16": 65352,
           "measured_ms": values, "unfit": None, "model_config": {}}  # fmt: skip
    path = tmp_path / "measured.json"
    path.write_text(json.dumps([row]))
    return path


FAST = ["--set", "timing.kind=roofline", "--set", "workload.stages=[{rate_rps: 6, duration_s: 20}]"]


def test_an_experiment_is_run_from_its_file_and_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = ["--file", str(made_up(tmp_path))]
    assert experiments.main([*file, *FAST, "--capacity", "given", "--json"]) == 0
    (one,) = json.loads(capsys.readouterr().out)["experiments"]
    assert one["figures"]["blocks"]["error"] == 0
    ttft = one["figures"]["ttft_mean"]
    assert ttft["error"] == pytest.approx(ttft["predicted"] / 20.0 - 1)
    assert experiments.main([*file, *FAST]) == 0
    text = capsys.readouterr().out
    assert "Qwen2.5-7B-Instruct" in text and "median |error|" in text
    assert experiments.main([*file, "--only", "65"]) == 2
    assert "--only 65: no such experiment" in capsys.readouterr().err


def test_every_run_file_says_what_was_published() -> None:
    """Names, sizes and workloads are those of the developers' list, and every experiment is run."""
    published = json.loads(shared_path("ground_truth/h100_experiments.json").read_text())
    assert {path.stem for path in experiments.RUN_FILES.iterdir()} == {e["id"] for e in published}
    for one in published:
        config = experiments.load_run(experiments.run_file(one["id"]))
        asked, pool, engine = one["workload"], config.workload.pool, config.engine
        assert (config.name, config.model) == (one["id"], one["model"])
        for key in ("tensor_parallel", "max_num_seqs", "max_num_batched_tokens"):
            assert getattr(engine, key) == one[key]
        assert pool is not None and config.workload.stages is not None
        for key in ("system_prompts", "users_per_prompt", "system_tokens", "output_tokens"):
            assert getattr(pool, key) == asked[key]
        assert pool.question_tokens == asked["question_tokens"]
        assert config.workload.template_tokens == asked["template_tokens"]
        stages = [[stage.rate_rps, stage.duration_s] for stage in config.workload.stages]
        assert stages == asked["stages_rps_s"]
