"""Requests of a trace that say which worker they want, through whole runs of the command."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from dynosim.cli import main

PLAN = """
workload: {trace: %s, format: jsonl}
engine: {num_gpu_blocks: 2000, block_size: 16, max_model_len: 4096}
timing: {kind: linear, base_ms: 5.0, per_prefill_token_ms: 0.1}
cluster: {workers: 4, taints: [gpu], topology: {zone: [a, b], rack: [r0, r1, r2]}}
router: {mode: %s}
"""


def plan(folder: Path, rows: list[dict[str, Any]], mode: str = "kv") -> Path:
    trace = folder / "trace.jsonl"
    body = [
        {"arrival_ms": 100 * i, "input_tokens": 100, "output_tokens": 3} | row
        for i, row in enumerate(rows)
    ]
    trace.write_text("".join(json.dumps(row) + "\n" for row in body))
    file = folder / "run.yaml"
    file.write_text(PLAN % (trace, mode))
    return file


def placed(folder: Path, file: Path, *more: str) -> list[int]:
    """The worker of each request of a run."""
    out = folder / "out"
    log = folder / "router.jsonl"
    asked = ["run", str(file), "--out", str(out), "--overwrite", "--check", "--json"]
    assert main([*asked, "--router-log", str(log), *more]) == 0
    assert main(["replay-log", str(log)]) == 0
    return pl.read_parquet(out / "requests.parquet")["decode_worker_id"].to_list()


@pytest.mark.parametrize("mode", ["kv", "round-robin", "least-loaded", "random"])
def test_pins_and_required_taints_are_obeyed_in_every_mode(tmp_path: Path, mode: str) -> None:
    rows: list[dict[str, Any]] = [
        {"worker_id": 3},
        {"worker_id": 0},
        {"required_taints": ["dynamo.topology/rack=r2"]},
        {"required_taints": ["gpu", "dynamo.topology/zone=b"]},
        *[{"required_taints": ["dynamo.topology/zone=a"]}] * 8,
        {},
    ]
    found = placed(tmp_path, plan(tmp_path, rows, mode))
    assert found[:3] == [3, 0, 2]
    assert found[3] in (1, 3) and set(found[4:12]) <= {0, 2}


def test_preferred_taints_draw_and_repel(tmp_path: Path) -> None:
    rows = [{"preferred_taints": {"dynamo.topology/rack=r1": 5.0}}] * 6
    assert set(placed(tmp_path, plan(tmp_path, rows))) == {1}
    rows = [{"preferred_taints": {"dynamo.topology/zone=a": -5.0}}] * 12
    assert set(placed(tmp_path, plan(tmp_path, rows))) == {1, 3}


def test_overrides_decide_by_other_weights_for_one_request(tmp_path: Path) -> None:
    """The same prompt again goes where it is cached, unless the request says caches are nothing."""
    prompt = {"prompt_hash_ids": [7], "input_tokens": 512}
    many = [{**prompt, "arrival_ms": 200.0 * i} for i in range(40)]
    assert len(set(placed(tmp_path, plan(tmp_path, many)))) == 1
    blind = {"router_config_override": {"overlap_score_credit": 0, "assume_kv_reuse": False}}
    assert len(set(placed(tmp_path, plan(tmp_path, [row | blind for row in many])))) == 4
    hot = {"router_config_override": {"router_temperature": 1e6}}
    assert len(set(placed(tmp_path, plan(tmp_path, [row | hot for row in many])))) == 4
    _, *lines = (tmp_path / "router.jsonl").read_text().splitlines()
    told = [entry[2] for entry in map(json.loads, lines) if entry[0] == "arrive"]
    assert {request["overrides"]["temperature"] for request in told} == {1e6}


def test_several_frontends_and_exact_steps_come_to_the_same(tmp_path: Path) -> None:
    rows = [{"worker_id": i % 4, "router_config_override": {"temperature": 0}} for i in range(9)]
    file = plan(tmp_path, rows)
    assert placed(tmp_path, file, "--exact-stepping") == [i % 4 for i in range(9)]
    out = tmp_path / "two"
    more = ["--set", "router.frontends=2", "--set", "router.replica_sync_delay_ms=1"]
    assert main(["run", str(file), "--out", str(out), "--json", *more]) == 0
    found = pl.read_parquet(out / "requests.parquet")["decode_worker_id"].to_list()
    assert found == [i % 4 for i in range(9)]


def test_direct_goes_where_each_request_says(tmp_path: Path) -> None:
    rows = [{"worker_id": worker} for worker in (2, 2, 0, 3, 1, 2)]
    assert placed(tmp_path, plan(tmp_path, rows, "direct")) == [2, 2, 0, 3, 1, 2]


@pytest.mark.parametrize("mode", ["direct", "kv", "round-robin"])
def test_the_hop_is_part_of_every_requests_ttft(
    tmp_path: Path, mode: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = plan(tmp_path, [{"worker_id": 1}, {"worker_id": 2}], mode)
    ttft_ms, finish_ms = [], []
    for hop_ms in (0, 7.5):
        capsys.readouterr()
        assert main(["run", str(file), "--json", "--set", f"router.hop_ms={hop_ms}"]) == 0
        report = json.loads(capsys.readouterr().out)
        ttft_ms.append(report["mean_ttft_ms"])
        finish_ms.append(report["mean_e2e_latency_ms"])
    assert ttft_ms[1] == pytest.approx(ttft_ms[0] + 7.5)
    assert finish_ms[1] == pytest.approx(finish_ms[0] + 7.5)


@pytest.mark.parametrize(
    ("mode", "rows", "said"),
    [
        ("direct", [{"worker_id": 0}, {}], "request 1 names no worker, but router.mode is direct"),
        ("direct", [{}], "request 0 names no worker"),
        ("direct", [{"worker_id": 0}, {"worker_id": 4}], "request 1 cannot be served: worker 4 is"),
        ("kv", [{}, {"worker_id": 9, "request_id": "x"}], "request 1 (x) cannot be served"),
        (
            "round-robin",
            [{}, {"required_taints": ["gpu"]}, {"required_taints": ["tpu"]}],
            "request 2 cannot be served: no worker has the required taint 'tpu'",
        ),
        (
            "kv",
            [{"worker_id": 1, "required_taints": ["dynamo.topology/zone=a"]}],
            "request 0 cannot be served: no worker is in zone 'a'",
        ),
    ],
)
def test_what_no_worker_can_do_is_told_before_the_run(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    mode: str,
    rows: list[dict[str, Any]],
    said: str,
) -> None:
    rows = [{"request_id": f"{i}"} | row for i, row in enumerate(rows)] if "(x)" in said else rows
    assert main(["run", str(plan(tmp_path, rows, mode))]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_cpu_workers_go_on_where_gpu_workers_end(tmp_path: Path) -> None:
    rows = [{"required_taints": ["dynamo.topology/rack=r0"]}] * 2
    more = ["--set", "cluster.cpu_workers=1", "--set", "cluster.topology={rack: [r1, r2, r3, r0]}"]
    assert placed(tmp_path, plan(tmp_path, rows), *more) == [3, 3]


def test_ranks_are_pinned_one_by_one_unless_engines_choose_among_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A worker of two ranks is two numbers, in one place."""
    zones = [{"required_taints": ["dynamo.topology/zone=b"]}] * 6
    rows = [{"worker_id": 5}, {"worker_id": 6}, *zones]
    dense = ["--set", "model=Qwen/Qwen3-32B", "--set", "engine.data_parallel=2"]
    found = placed(tmp_path, plan(tmp_path, rows), *dense)
    assert found[:2] == [5, 6] and set(found[2:]) <= {2, 3, 6, 7}
    capsys.readouterr()
    assert main(["run", str(plan(tmp_path, rows, "round-robin")), *dense]) == 2
    assert "set engine.rank_balancing: router" in capsys.readouterr().err


def test_a_sweep_lists_layouts_that_lack_the_named_worker(tmp_path: Path) -> None:
    file = plan(tmp_path, [{"worker_id": 2}])
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text(
        f"name: pins\n{file.read_text()}"
        "space: {cluster.workers: [2, 4]}\nload: {search: fixed}\n"
    )
    out = tmp_path / "swept"
    assert main(["sweep", str(sweep), "--out", str(out), "--jobs", "1", "--json"]) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["counts"]["ok"] == 1 and summary["counts"]["infeasible"] == 1
    assert "worker 2 is not here" in summary["not_run"][0]["reason"]
