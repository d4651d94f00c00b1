"""`dynosim plan` by the real command: the comparison, its files, and what it refuses."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from dynosim.cli import main
from dynosim.planning import study
from dynosim.planning.study import CONTESTANTS

FILE = """\
workload:
  synthetic: {isl: 600, osl: 20}
  stages:
    - {rate_rps: 4, duration_s: 60}
    - {rate_rps: 16, duration_s: 60}
    - {rate_rps: 4, duration_s: 90}
engine: {num_gpu_blocks: 600, block_size: 16, max_num_seqs: 16, max_num_batched_tokens: 2048}
timing: {kind: fixed, prefill_ms: 100, decode_ms: 10}
cluster: {workers: 2, startup: {boot_s: 15}}
router: {mode: least-loaded}
sla: {ttft_ms: 1000}
"""
HPA = "hpa: {metric: pending_requests, target: 2, max_replicas: 5, sync_ms: 5000}\n"
PLANNER = "planner: {optimization_target: latency, max_gpu_budget: 6}\n"
DISAGG = (
    "{mode: disagg, prefill: {workers: 1}, decode: {workers: 1},"
    " transfer: {preset: ib, kv_bytes_per_token: 1000}}"
)


def write(folder: Path, text: str = FILE) -> str:
    path = folder / "plan.yaml"
    path.write_text(text)
    return str(path)


def planned(folder: Path, text: str, *more: str, capsys: Any) -> dict[str, Any]:
    assert main(["plan", write(folder, text), "--json", *more]) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


def rows_of(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in document["contestants"]}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All contestants on the small load, with all files."""
    folder = tmp_path_factory.mktemp("plan")
    assert main(["plan", write(folder, FILE + HPA), "--out", str(folder / "out")]) == 0
    return folder / "out"


def test_all_are_compared_and_the_bound_is_the_cheapest_that_keeps_the_sla(out: Path) -> None:
    document = json.loads((out / "report.json").read_text())
    rows = rows_of(document)
    assert tuple(rows) == CONTESTANTS
    target = document["attainment_target"]
    assert rows["static-peak"]["sla_attainment"] >= target
    assert rows["perfect"]["sla_attainment"] >= target
    assert rows["perfect"]["gpu_hours"] < rows["static-peak"]["gpu_hours"]
    assert rows["perfect"]["gpu_hours_by_perfect"] == 1.0
    kept = [row for row in rows.values() if row["sla_attainment"] >= target]
    assert min(row["gpu_hours"] for row in kept) == rows["perfect"]["gpu_hours"]
    for row in rows.values():
        share = 1 - row["missed_requests"] / row["num_requests"]
        assert share == pytest.approx(row["sla_attainment"])
    assert rows["hpa"]["goes_by"] == "as the file says" and rows["hpa"]["section"] is None
    assert "derived: " in rows["keda"]["goes_by"] and rows["keda"]["section"]["max_replicas"] > 1


def test_one_worker_less_would_not_keep_the_sla(
    out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    peak = rows_of(json.loads((out / "report.json").read_text()))["static-peak"]["peak_workers"]
    text = FILE.replace(", startup: {boot_s: 15}", "").replace("workers: 2", f"workers: {peak - 1}")
    assert main(["run", write(tmp_path, text), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["sla_attainment"] < 0.95


def test_files_tell_the_same_as_the_table(out: Path) -> None:
    rows = rows_of(json.loads((out / "report.json").read_text()))
    timeline = pl.read_parquet(out / "timeline.parquet")
    for name, row in rows.items():
        mine = timeline.filter(pl.col("contestant") == name)
        assert mine["gpu_hours"].sum() == pytest.approx(row["gpu_hours"])
        assert mine["num_requests"].sum() == row["num_requests"]
        good = (mine["sla_attainment"].fill_null(0.0) * mine["num_requests"]).sum()
        assert good == pytest.approx(row["num_requests"] - row["missed_requests"])
        assert (mine["ready"] + mine["starting"] + mine["draining"]).max() <= row["peak_workers"]
    replicas = pl.read_parquet(out / "replicas.parquet")
    assert set(replicas["contestant"]) == set(CONTESTANTS)
    decided = {path.stem for path in (out / "decisions").iterdir()}
    assert decided == {"planner", "hpa", "keda", "concurrency", "perfect"}
    for change in rows["hpa"]["changes"]:
        assert change["reasons"] and change["before"] != change["after"]
    assert rows["hpa"]["changes"]


def test_each_run_file_runs_its_contestant_alone(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = rows_of(json.loads((out / "report.json").read_text()))
    names = {path.stem for path in (out / "runs").iterdir()}
    assert names == set(CONTESTANTS) - {"perfect"}
    for name in ("planner", "hpa", "concurrency", "static-mean"):
        assert main(["run", str(out / "runs" / f"{name}.yaml"), "--json"]) == 0
        report = json.loads(capsys.readouterr().out)
        assert report["gpu_hours"] == rows[name]["gpu_hours"]
        assert report["sla_attainment"] == rows[name]["sla_attainment"]


def test_the_same_bytes_twice(out: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    assert main(["plan", write(tmp_path, FILE + HPA), "--out", str(again)]) == 0
    names = ["report.json", "report.html", "timeline.parquet", "decisions/perfect.jsonl"]
    for name in names:
        assert (again / name).read_bytes() == (out / name).read_bytes(), name


def test_results_are_replaced_only_if_asked_and_whole(out: Path, tmp_path: Path) -> None:
    path, folder = write(tmp_path), tmp_path / "out"
    few = ["plan", path, "--out", str(folder), "--against"]
    assert main([*few, "hpa,static-peak"]) == 0
    assert main([*few, "static-mean"]) == 2
    assert (folder / "decisions" / "hpa.jsonl").exists()
    assert main([*few, "static-mean", "--overwrite"]) == 0
    assert not (folder / "decisions" / "hpa.jsonl").exists()
    assert {path.name for path in (folder / "runs").iterdir()} == {"static-mean.yaml"}
    assert main(["run", path, "--out", str(folder), "--overwrite"]) == 2  # not a run's folder


def test_several_seeds_are_told_one_by_one_and_as_means(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("--seeds", "2", "--against", "hpa,static-peak", "--out", str(tmp_path / "out"))
    document = planned(tmp_path, FILE + HPA, *more, capsys=capsys)
    row = rows_of(document)["hpa"]
    assert document["seeds"] == [0, 1] and [one["seed"] for one in row["by_seed"]] == [0, 1]
    hours = [one["gpu_hours"] for one in row["by_seed"]]
    assert hours[0] != hours[1] and row["gpu_hours"] == pytest.approx(sum(hours) / 2)
    names = {path.name for path in (tmp_path / "out" / "decisions").iterdir()}
    assert names == {"hpa-seed0.jsonl", "hpa-seed1.jsonl"}


def test_two_pools_are_scaled_by_the_planner_and_others_say_that_they_cannot(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = FILE.replace("{workers: 2, startup: {boot_s: 15}}", DISAGG) + PLANNER
    rows = rows_of(planned(tmp_path, text, capsys=capsys))
    for name in ("hpa", "keda", "concurrency"):
        assert rows[name]["gpu_hours"] is None and "two" in rows[name]["why_not"]
    assert rows["static-peak"]["sla_attainment"] >= 0.95 and "P" in rows["static-peak"]["goes_by"]
    assert {one["pool"] for one in rows["planner"]["changes"]} <= {"prefill", "decode"}
    assert rows["planner"]["changes"] and rows["static-mean"]["peak_workers"] >= 2


def test_the_bound_of_two_pools_has_more_of_each_for_the_burst_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = FILE.replace("{workers: 2,", DISAGG.rstrip("}") + "}, ")
    text = text.replace("prefill_ms: 100, decode_ms: 10", "prefill_ms: 400, decode_ms: 60")
    text = text.replace("boot_s: 15", "boot_s: 5").replace("ttft_ms: 1000", "ttft_ms: 4000")
    for long, short in ((60, 20), (90, 30)):
        text = text.replace(f"duration_s: {long}", f"duration_s: {short}")
    document = planned(tmp_path, text, "--against", "perfect,static-peak", capsys=capsys)
    peak, bound = (rows_of(document)[name] for name in ("static-peak", "perfect"))
    assert "P" in peak["goes_by"] and bound["sla_attainment"] >= 0.95
    assert bound["gpu_hours"] < 0.8 * peak["gpu_hours"]
    grown = {one["pool"] for one in bound["changes"] if one["after"] > one["before"]}
    assert grown == {"prefill", "decode"}


def test_an_hpa_may_scale_one_of_two_pools(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = FILE.replace("{workers: 2, startup: {boot_s: 15}}", DISAGG)
    text += HPA.replace("target: 2", "target: 2, pool: prefill")
    row = rows_of(planned(tmp_path, text, "--against", "hpa", capsys=capsys))["hpa"]
    assert row["goes_by"] == "as the file says; the other pool stays as it is"
    assert {one["pool"] for one in row["changes"]} == {"prefill"}


def test_the_terminal_shows_the_table_and_reasons(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", write(tmp_path, FILE + HPA), "--against", "hpa,static-peak"]) == 0
    told = capsys.readouterr()
    assert "fixed at" in told.err and "GPU h" in told.out
    assert "pending_requests" in told.out and "scale_up" in told.out
    assert max(map(len, told.out.splitlines())) <= 80


def test_interrupted_it_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(study._Study, "_controlled", interrupted)
    folder = tmp_path / "out"
    assert main(["plan", write(tmp_path), "--out", str(folder), "--against", "hpa"]) == 130
    assert not folder.exists()


def test_a_planners_targets_stand_for_an_sla(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = FILE.replace("sla: {ttft_ms: 1000}\n", "")
    text += "planner: {optimization_target: sla, ttft_ms: 900}\n"
    document = planned(tmp_path, text, "--against", "static-mean", capsys=capsys)
    assert document["sla"] == {"ttft_ms": 900.0} and "planner's targets" in document["notes"][0]


STAGES = FILE[FILE.index("  stages") : FILE.index("engine:")]
CLOSED = FILE.replace(STAGES, "  concurrency: 4\n").replace(
    "osl: 20", "osl: 20, requests: 50, arrival: closed"
)
BAD: list[tuple[str, tuple[str, ...], str]] = [
    (FILE.replace("sla: {ttft_ms: 1000}", ""), (), "sla: missing"),
    (FILE + "keda: {triggers: []}\n", (), "keda.triggers"),
    (FILE + HPA.replace("max_replicas: 5", "max_replicas: 5, min_replicas: 6"), (), "hpa.min_rep"),
    (FILE + "scaling: {scrape_interval_ms: 0}\n", (), "plan.yaml:"),
    (FILE, ("--against", "hpa,vpa"), "--against vpa: not known (choose from planner"),
    (FILE, ("--attainment", "0"), "--attainment 0"),
    (FILE, ("--bin", "-1"), "--bin -1"),
    (CLOSED, (), "workload.concurrency"),
    (FILE, ("--set", "workload.warm_up_s=5"), "warm_up"),
    (FILE, ("--set", "cluster.cpu_workers=1"), "cluster.cpu_workers"),
    (FILE, ("--set", "sla.ttft_ms=50"), "a worker reaches is TTFT 110 ms (asked: 50)"),
    (FILE, ("--most-workers", "1"), "up to 1 worker no cluster keeps it"),
]


@pytest.mark.parametrize(("text", "more", "message"), BAD, ids=[message for *_, message in BAD])
def test_what_makes_no_sense_is_refused(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    text: str,
    more: tuple[str, ...],
    message: str,
) -> None:
    out = tmp_path / "out"
    assert main(["plan", write(tmp_path, text), "--out", str(out), *more]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize(
    ("events", "message"),
    [
        ("{at_s: 30, fail: workers/7}", "12: scenario[0].fail: there is never a worker workers/7"),
        (
            "{at_s: 30, fail: workers/0}, {at_s: 9, drain: workers/1}",
            "12: scenario[1].at_s: 9, but the event before it is at 30",
        ),
    ],
)
def test_events_that_cannot_be_are_one_message_before_anything_runs(
    events: str, message: str, tmp_path: Path, capsys: Any
) -> None:
    path = write(tmp_path, f"{FILE}scenario: [{events}]\n")
    assert main(["plan", path, "--out", str(tmp_path / "out")]) == 2
    told = capsys.readouterr()
    assert told.out == "" and told.err.startswith(f"error: {path}:{message}")
    assert told.err.count("\n") == 1 and not (tmp_path / "out").exists()


def test_a_crash_hits_whoever_has_that_worker(tmp_path: Path, capsys: Any) -> None:
    """A fixed cluster of one has no second worker: nothing happens there."""
    text = f"{FILE}scenario: [{{at_s: 70, fail: workers/1, replace: none}}]\n"
    rows = rows_of(
        planned(tmp_path, text, "--against", "static-mean,static-peak,perfect", capsys=capsys)
    )
    assert rows["static-peak"]["sla_attainment"] >= 0.95
    assert rows["perfect"]["sla_attainment"] >= 0.95
