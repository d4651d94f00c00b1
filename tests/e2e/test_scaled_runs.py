"""`dynosim run` where a planner or an HPA decides how many workers there are."""

import json
from pathlib import Path

import polars as pl
import pytest

from dynosim.cli import main

RUN = """\
workload: {synthetic: {requests: 300, isl: 600, osl: 40, rate_rps: 10}}
engine: {num_gpu_blocks: 400, block_size: 16, max_num_seqs: 16, max_num_batched_tokens: 2048}
timing: {kind: fixed, prefill_ms: 100, decode_ms: 20}
cluster: {workers: 1}
sla: {ttft_ms: 2000}
"""
PLANNER = """\
planner: {optimization_target: sla, ttft_ms: 500, throughput_adjustment_interval_ms: 5000}
scaling: {scrape_interval_ms: 1000, actuation_delay_ms: 500}
"""
HPA = """\
hpa: {metric: pending_requests, target: 4, max_replicas: 6, sync_ms: 2000}
scaling: {scrape_interval_ms: 1000}
"""
KEDA = """\
keda:
  triggers: [{metric: waiting_requests, target: 2}, {metric: pending_requests, target: 4}]
  max_replicas: 6
  poll_ms: 1000
  sync_ms: 2000
  scale_down: {window_ms: 5000, policies: [{kind: pods, value: 1, period_ms: 2000}]}
scaling: {scrape_interval_ms: 1000}
"""
CONCURRENCY = """\
concurrency: {target: 8, max_replicas: 6, stable_ms: 6000}
scaling: {scrape_interval_ms: 1000}
"""
LOAD = "planner: {optimization_target: latency, load_adjustment_interval_ms: 2000}\n"


def run(folder: Path, *more: str, out: str = "out", workers: int = 1) -> Path:
    path = folder / "run.yaml"
    path.write_text(RUN.replace("workers: 1", f"workers: {workers}") + "".join(more))
    assert main(["run", str(path), "--out", str(folder / out), "--overwrite", "--check"]) == 0
    return folder / out


@pytest.mark.parametrize(
    ("section", "name"),
    [
        (PLANNER, "planner"),
        (LOAD, "planner"),
        (HPA, "hpa"),
        (KEDA, "keda"),
        (CONCURRENCY, "concurrency"),
    ],
)
def test_results_tell_of_every_change(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], section: str, name: str
) -> None:
    out = run(tmp_path, section)
    report = json.loads((out / "report.json").read_text())
    assert report["num_scale_ups"] > 0 and report["num_workers"] > 1
    assert 1 < report["mean_workers"] < report["num_workers"]
    assert report["completed_requests"] == 300
    decisions = [json.loads(line) for line in (out / "decisions.jsonl").read_text().splitlines()]
    assert {one["controller"] for one in decisions} == {name}
    assert all(one["pools"][0]["reasons"] for one in decisions)
    replicas = pl.read_parquet(out / "replicas.parquet")
    held = replicas.select(pl.sum_horizontal("starting", "ready", "draining")).to_series()
    assert held.max() == report["num_workers"]
    assert "scaling " in capsys.readouterr().out


@pytest.mark.parametrize("section", [KEDA, CONCURRENCY, PLANNER])
def test_the_first_request_wakes_a_service_without_workers(tmp_path: Path, section: str) -> None:
    out = run(tmp_path, section, "name: empty\n", workers=0)
    report = json.loads((out / "report.json").read_text())
    assert report["completed_requests"] == 300
    decisions = [json.loads(line) for line in (out / "decisions.jsonl").read_text().splitlines()]
    pools = [one["pools"][0] for one in decisions]
    first = next(pool for pool in pools if pool["target"] > 0)
    assert first["current"] == 0 and first["reasons"]


def test_the_same_twice_and_in_single_steps(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(RUN + PLANNER)
    logs = []
    for out, more in (("a", ()), ("b", ()), ("c", ("--exact-stepping",))):
        assert main(["run", str(path), "--out", str(tmp_path / out), *more]) == 0
        logs.append((tmp_path / out / "decisions.jsonl").read_text())
    assert logs[0] == logs[1] == logs[2]


def test_a_later_run_without_a_controller_leaves_no_decisions(tmp_path: Path) -> None:
    run(tmp_path, HPA)
    out = run(tmp_path)
    assert not (out / "decisions.jsonl").exists() and not (out / "replicas.parquet").exists()
    assert json.loads((out / "report.json").read_text())["num_scale_ups"] is None


def test_disaggregated_pools_are_scaled_both(tmp_path: Path) -> None:
    text = RUN.replace(
        "cluster: {workers: 1}",
        "cluster: {mode: disagg, prefill: {workers: 1}, decode: {workers: 1},"
        " transfer: {preset: ib, kv_bytes_per_token: 1000}}",
    )
    text = text.replace("max_num_batched_tokens: 2048", "max_num_batched_tokens: 640")
    path = tmp_path / "run.yaml"
    path.write_text(text + PLANNER)
    assert main(["run", str(path), "--out", str(tmp_path / "out"), "--check"]) == 0
    replicas = pl.read_parquet(tmp_path / "out" / "replicas.parquet")
    assert set(replicas["pool"]) == {"prefill", "decode"}
    prefill = replicas.filter(pl.col("pool") == "prefill")["wanted"]
    assert max(prefill.to_list()) > 1


NOBODY = [
    ("", "add planner:, keda: or concurrency:"),
    (HPA, "an HPA wakes nobody at 0"),
    (KEDA + "  wait_for_workers: false\n", "requests are refused where nobody serves"),
]


@pytest.mark.parametrize(("section", "message"), NOBODY, ids=[message for _, message in NOBODY])
def test_a_service_without_workers_that_nothing_wakes_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], section: str, message: str
) -> None:
    path = tmp_path / "run.yaml"
    section = section.replace("1000}\n  wait", "1000, wait").replace("false\n", "false}\n")
    path.write_text(RUN.replace("workers: 1", "workers: 0") + section)
    assert main(["run", str(path)]) == 2
    err = capsys.readouterr().err
    assert "cluster.workers: none at the start" in err and message in err


def test_targets_that_no_engine_meets_are_told_with_the_nearest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        RUN + "planner: {optimization_target: sla, ttft_ms: 1, itl_ms: 0.1,"
        " throughput_adjustment_interval_ms: 10000}\nscaling: {scrape_interval_ms: 1000}\n"
    )
    assert main(["run", str(path)]) == 0
    told = capsys.readouterr().out
    assert "warning: scaling of workers: no engine meets the targets; planned with TTFT " in told
    assert " ms (target 1) and ITL " in told and " ms (target 0.1) (the last of " in told


BAD = [
    (PLANNER + HPA.splitlines()[0] + "\n", "hpa: stated beside planner"),
    ("scaling: {metric_lag_ms: 5}\n", "scaling: stated, but nobody decides"),
    ("planner: {min_endpoint: 9}\n", "max_gpu_budget: 8, but the fewest workers have 9 GPUs"),
    (
        "planner: {min_endpoint: 3, max_endpoint: 2}\n",
        "max_endpoint: 2, expected at least 1 and min_endpoint, which is 3",
    ),
    ("planner: {mode: disagg}\n", "planner: mode disagg scales one prefill pool, there are 0"),
    ("hpa: {target: 1, max_replicas: 2, min_replicas: 3}\n", "hpa.min_replicas: more than"),
    ("hpa: {target: 1, max_replicas: 2, pool: decode}\n", "hpa.pool: there is no pool 'decode'"),
    ("hpa: {max_replicas: 2}\n", "hpa.target"),
    ("keda: {triggers: []}\n", "keda.triggers"),
    (KEDA.replace("pending", "waiting"), "keda.triggers: two on the same metric"),
    (
        KEDA.replace("max_replicas: 6", "min_replicas: 7\n  max_replicas: 6"),
        "keda.min_replicas: more than max_replicas, 6",
    ),
    (
        KEDA.replace("[{kind: pods, value: 1, period_ms: 2000}]", "[]"),
        "keda.scale_down.policies: none",
    ),
    (KEDA.replace("max_replicas: 6", "pool: decode"), "keda.pool: there is no pool 'decode'"),
    (CONCURRENCY + KEDA.partition("scaling")[0], "concurrency: stated beside keda"),
    ("concurrency: {max_replicas: 0}\n", "concurrency.max_replicas"),
    ("concurrency: {max_replicas: 2, min_replicas: 3}\n", "concurrency.min_replicas: more than"),
    (PLANNER.replace("1000", "0"), "scaling.scrape_interval_ms"),
    (HPA.replace("1000", "1000, outages: [{from_ms: 9, to_ms: 9}]"), "outages[0].to_ms: not after"),
]


@pytest.mark.parametrize(("section", "message"), BAD, ids=[message for _, message in BAD])
def test_what_makes_no_sense_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], section: str, message: str
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(RUN + section)
    assert main(["run", str(path)]) == 2
    assert message in capsys.readouterr().err
