"""`dynosim diff`, as its users call it."""

import atexit
import json
import shutil
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import polars as pl
import pytest

from dynosim.cli import main

RUN_FILE = """\
name: small
workload:
  synthetic: {requests: 120, isl: 300, osl: 20, rate_rps: 20}
engine: {num_gpu_blocks: 300, max_num_seqs: 8}
timing: {kind: fixed, prefill_ms: 30, decode_ms: 10}
cluster: {workers: 2}
sla: {ttft_ms: 45}
"""
SWEEP_FILE = """\
name: small
workload:
  synthetic: {requests: 200, isl: 300, osl: 20, rate_rps: 20}
engine: {num_gpu_blocks: 200, max_model_len: 512, max_num_seqs: 8}
timing: {kind: fixed, prefill_ms: 30, decode_ms: 10}
space:
  cluster.workers: [1, 2]
constraints: {gpu_budget: 2, sla: {ttft_ms: 150, itl_ms: 30}}
load: {search: capacity, min_requests: 0}
"""
SLOWER = "timing.prefill_ms=36"

pytestmark = pytest.mark.usefixtures("inline_workers", "no_pictures")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "run.yaml").write_text(RUN_FILE)
    (tmp_path / "sweep.yaml").write_text(SWEEP_FILE)
    return tmp_path


def make(folder: Path, kind: str, name: str, *overrides: str) -> Path:
    """The results of a run or sweep with these changes: a copy of what was made once."""
    return shutil.copytree(made(kind, *overrides), folder / name)


@cache
def made(kind: str, *overrides: str) -> Path:
    folder = Path(mkdtemp())
    atexit.register(shutil.rmtree, folder)
    (folder / f"{kind}.yaml").write_text({"run": RUN_FILE, "sweep": SWEEP_FILE}[kind])
    sets = [word for override in overrides for word in ("--set", override)]
    assert main([kind, str(folder / f"{kind}.yaml"), "--out", str(folder / "out"), *sets]) == 0
    return folder / "out"


def diff(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    assert main(["diff", *map(str, arguments)]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines()), default=0) <= 80 or "--json" in arguments
    return text


def document(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(diff(capsys, *arguments, "--json"))
    assert found["schema"] == "dynosim.diff/1"
    return found


def by_key(changes: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {change["key"]: change for change in changes}


# ---- runs ----------------------------------------------------------------------------------------


def test_the_same_requests_are_compared_one_by_one(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = make(folder, "run", "a"), make(folder, "run", "b", SLOWER)
    found = document(capsys, a, b)
    assert found["configuration"] == [{"key": "timing.prefill_ms", "a": 30.0, "b": 36.0}]
    assert found["is_paired"] and found["same_arrivals"] and found["num_pairs"] == 120
    tables = [pl.read_parquet(one / "requests.parquet") for one in (a, b)]
    change_ms = (tables[1]["ttft_ms"] - tables[0]["ttft_ms"]).mean()
    ttft = by_key(found["results"])["mean_ttft_ms"]
    assert ttft["change"] == pytest.approx(change_ms)
    assert ttft["low"] < change_ms < ttft["high"] and ttft["can_be_told"] is True
    parts = by_key(found["parts"])
    summed = sum(parts[part]["change"] for part in ("router_ms", "queue_ms", "prefill_ms"))
    assert summed == pytest.approx(change_ms)
    worst = max(
        zip(tables[0]["request_id"], tables[1]["ttft_ms"] - tables[0]["ttft_ms"], strict=True),
        key=lambda pair: pair[1],
    )
    assert found["worst"][0]["request_id"] == worst[0]
    assert found["worst"][0]["b_ms"] - found["worst"][0]["a_ms"] == pytest.approx(worst[1])
    text = diff(capsys, a, b)
    assert "B is slower: TTFT +" in text and "timing.prefill_ms: 30.0 -> 36.0" in text
    assert "B is faster: TTFT -" in diff(capsys, b, a)


def test_a_run_does_not_differ_from_itself(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = make(folder, "run", "a"), make(folder, "run", "b")
    text = diff(capsys, a, b)
    assert "no difference in the results" in text and "configuration: the same" in text
    assert "TTFT mean" not in text


def test_other_requests_are_not_paired_and_that_is_said(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    requests = "workload.synthetic.requests=150"
    a, b = make(folder, "run", "a"), make(folder, "run", "b", "seed=7", requests)
    found = document(capsys, a, b)
    assert not found["is_paired"] and found["worst"] == [] and found["moved_share"] is None
    ttft = by_key(found["results"])["mean_ttft_ms"]
    assert ttft["can_be_told"] is False
    text = diff(capsys, a, b)
    assert "not paired" in text and "no difference in mean TTFT that can be told" in text


def test_requests_at_other_times_are_still_the_same(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = make(folder, "run", "a"), make(folder, "run", "b", "workload.speedup=1.5")
    found = document(capsys, a, b)
    assert found["is_paired"] and not found["same_arrivals"]
    assert "at other times" in diff(capsys, a, b)


def test_attainment_has_an_interval_only_under_one_sla(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b, c = (
        make(folder, "run", "a"),
        make(folder, "run", "b", SLOWER),
        make(folder, "run", "c", "sla.ttft_ms=40"),
    )
    same = by_key(document(capsys, a, b)["results"])["sla_attainment"]
    assert same["low"] <= same["change"] <= same["high"] and same["change"] < 0
    other = by_key(document(capsys, a, c)["results"])["sla_attainment"]
    assert other["low"] is None and other["change"] < 0


# ---- sweeps --------------------------------------------------------------------------------------


def test_sweeps_are_matched_by_what_they_varied(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = make(folder, "sweep", "a"), make(folder, "sweep", "b", SLOWER)
    found = document(capsys, a, b)
    assert found["kind"] == "sweep" and found["same_winner"]
    assert len(found["layouts"]) == 2 and not found["only_in_a"] and not found["only_in_b"]
    trials = [pl.read_parquet(one / "trials.parquet") for one in (a, b)]
    for layout in found["layouts"]:
        (change,) = layout["changes"]
        rows = [
            one.filter(pl.col("cluster.workers") == layout["values"]["cluster.workers"]).row(
                0, named=True
            )
            for one in trials
        ]
        assert (change["a"], change["b"]) == tuple(row["capacity_rps"] for row in rows)
        assert change["b"] < change["a"] and layout["can_be_told"]
        # The largest change that the brackets leave: from what A just failed to what B carries.
        failed = (
            rows[0]["capacity_rps"] / rows[0]["capacity_load"] * rows[0]["capacity_load_failed"]
        )
        assert change["low"] == pytest.approx(rows[1]["capacity_rps"] - failed)
    assert "the same winner" in diff(capsys, a, b)


def test_a_difference_within_the_brackets_cannot_be_told(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = make(folder, "sweep", "a")
    b = make(folder, "sweep", "b", "timing.prefill_ms=30.05")
    text = diff(capsys, a, b)
    assert "2 layouts in both: no difference that can be told" in text


def test_layouts_of_one_sweep_only_are_listed(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = make(folder, "sweep", "a")
    b = make(folder, "sweep", "b", "space={cluster.workers: [2]}")
    found = document(capsys, a, b)
    assert len(found["layouts"]) == 1 and len(found["only_in_a"]) == 1
    assert "only in A: 1x" in diff(capsys, a, b)


def test_a_key_that_only_one_sweep_varies_is_matched_by_what_the_other_sets(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = make(folder, "sweep", "a", "engine.max_num_seqs=4")
    space = "space={cluster.workers: [1, 2], engine.max_num_seqs: [4, 8]}"
    b = make(folder, "sweep", "b", space)
    found = document(capsys, a, b)
    assert len(found["layouts"]) == 2 and len(found["only_in_b"]) == 2
    assert not any(layout["can_be_told"] for layout in found["layouts"])


def test_fixed_loads_are_compared_by_objectives(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fixed = "load={search: fixed}"
    a, b = make(folder, "sweep", "a", fixed), make(folder, "sweep", "b", fixed, SLOWER)
    found = document(capsys, a, b)
    keys = [[change["key"] for change in layout["changes"]] for layout in found["layouts"]]
    assert keys[0] == list(json.loads((a / "summary.json").read_text())["objectives"])
    sought = make(folder, "sweep", "c")
    assert main(["diff", str(a), str(sought)]) == 2
    assert "they do not compare" in capsys.readouterr().err


# ---- conditions and bad input --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("condition", "code"),
    [
        ("capacity < -3 %", 3),
        ("best_capacity < -3 %", 3),
        ("capacity < -60 %", 0),
        ("mean_ttft_ms > 100000", 0),
    ],
)
def test_a_true_condition_ends_in_3(
    folder: Path, capsys: pytest.CaptureFixture[str], condition: str, code: int
) -> None:
    a, b = make(folder, "sweep", "a"), make(folder, "sweep", "b", SLOWER)
    assert main(["diff", str(a), str(b), "--fail-if", condition]) == code
    assert (f"failed: {condition}" in capsys.readouterr().err) is (code == 3)


def test_every_condition_is_looked_at(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = make(folder, "run", "a"), make(folder, "run", "b", SLOWER)
    conditions = ["--fail-if", "mean_ttft_ms < 0", "--fail-if", "mean_ttft_ms > 1 %"]
    capsys.readouterr()
    assert main(["diff", str(a), str(b), *conditions, "--json"]) == 3
    assert json.loads(capsys.readouterr().out)["failed_if"] == ["mean_ttft_ms > 1 %"]


def test_what_is_no_pair_of_results_is_one_message(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, sweep = make(folder, "run", "a"), make(folder, "sweep", "s")
    broken = make(folder, "run", "broken")
    (broken / "report.json").write_text("{")
    odd = make(folder, "sweep", "odd")
    (odd / "summary.json").write_text('{"top": [5]}')
    unfinished = folder / "unfinished"
    unfinished.mkdir()
    (unfinished / "ledger.jsonl").write_text("{}\n")
    cases = [
        ((run, sweep), "a is a run"),
        ((run, folder), "holds no results"),
        ((run, folder / "nowhere"), "not a folder"),
        ((run, sweep / "agg" / "top1"), "a configuration without results"),
        ((run, unfinished), "has not ended"),
        ((run, broken), "not readable JSON"),
        ((sweep, odd), "not the summary of a sweep"),
        ((run, run, "--fail-if", "nonsense"), "expected KEY < NUMBER"),
        ((run, run, "--fail-if", "nonsense < 3"), "no result 'nonsense'"),
    ]
    for arguments, words in cases:
        capsys.readouterr()
        assert main(["diff", *map(str, arguments)]) == 2, words
        told = capsys.readouterr()
        assert words in told.err and "Traceback" not in told.err and told.out == ""
