"""The shipped notebook goes through a finished sweep: its cells say what the sweep's files say."""

import json
import re
from pathlib import Path
from typing import Any

import nbformat
import polars as pl
import pytest
from inline_workers import InlineWorker
from nbclient import NotebookClient
from shared_data import ROOT

from dynosim.cli import main

SWEEP = """\
name: small
workload:
  synthetic: {requests: 400, isl: 300, osl: 20, rate_rps: 20}
engine: {num_gpu_blocks: 200, max_model_len: 512}
timing: {kind: fixed, prefill_ms: 30, decode_ms: 10}
space:
  cluster.workers: [1, 2, 3]
  engine.max_num_seqs: [4, 8]
constraints: {gpu_budget: 2, sla: {ttft_ms: 150, itl_ms: 30}}
load: {search: curve, min_requests: 0, curve: [0.5, 1.0]}
"""
SHOWN = ("answer", "brackets", "frontier", "reuse")
TELL = f"""
told = {{name: globals()[name].to_dicts() for name in {SHOWN}}}
told |= {{"load": load, "report": outcome.report, "requests": requests.to_dicts()}}
json.dump(told, open("told.json", "w"))
"""


def read() -> nbformat.NotebookNode:
    return nbformat.read(ROOT / "notebooks" / "pareto.ipynb", as_version=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished sweep."""
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "small.yaml").write_text(SWEEP)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dynosim.sweep.executor._Worker", InlineWorker)
        assert main(["sweep", str(folder / "small.yaml"), "--out", str(folder / "out")]) == 0
    return folder / "out"


@pytest.fixture(scope="module")
def executed(folder: Path) -> nbformat.NotebookNode:
    """The notebook, run on the sweep; a last cell has put what it found into told.json."""
    notebook = read()
    notebook.cells.append(nbformat.v4.new_code_cell(TELL))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DYNOSIM_SWEEP_DIR", str(folder))
        patch.setenv("PYTHONPATH", str(ROOT))
        resources = {"metadata": {"path": str(folder)}}
        NotebookClient(notebook, timeout=600, resources=resources).execute()
    return notebook


@pytest.fixture(scope="module")
def told(executed: nbformat.NotebookNode, folder: Path) -> dict[str, Any]:
    return json.loads((folder / "told.json").read_text())


@pytest.fixture(scope="module")
def trials(folder: Path) -> dict[int, dict[str, Any]]:
    return {row["trial_id"]: row for row in pl.read_parquet(folder / "trials.parquet").to_dicts()}


def displayed(notebook: nbformat.NotebookNode, last_line: str) -> str:
    """What the cell that ends so shows, as text."""
    (cell,) = (c for c in notebook.cells if c.source.splitlines()[-1] == last_line)
    return str(cell.outputs[-1]["data"]["text/plain"])


def test_it_stores_no_output() -> None:
    for cell in read().cells:
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None


def test_the_answer_is_that_of_the_summary(
    told: dict[str, Any], folder: Path, trials: dict[int, dict[str, Any]]
) -> None:
    answer = json.loads((folder / "summary.json").read_text())["answer"]
    assert len(answer["ranked"]) == 4 and answer["best"] == answer["ranked"][0]
    assert [row["trial_id"] for row in told["answer"]] == answer["ranked"]
    assert told["answer"][0][""] == "*"
    for row in told["answer"]:
        trial = trials[row["trial_id"]]
        assert (row[""] == "=") == (row["trial_id"] in answer["tied"])
        shape = (trial["cluster.workers"], trial["engine.max_num_seqs"])
        assert row["layout"] == "{}x max_num_seqs={}".format(*shape)
        assert (row["GPUs"], row["req/s"], row["x"]) == (
            trial["num_gpus"], trial["capacity_rps"], trial["capacity_load"],
        )  # fmt: skip
        assert row["tok/s/GPU"] == trial["output_tok_s_per_gpu"]
        assert row["tok/s/user"] == trial["median_output_token_throughput_per_user"]
        assert row["TTFT p95 ms"] == trial["p95_ttft_ms"]
        assert row["in SLA"] == trial["capacity_attainment"] >= 0.95
        assert row["GPU-h/M"] == trial["gpu_hours_per_m_good_output_tokens"]


def test_brackets_are_those_of_the_trials(
    told: dict[str, Any], trials: dict[int, dict[str, Any]]
) -> None:
    assert len(told["brackets"]) == 4
    for row in told["brackets"]:
        trial = trials[row["trial_id"]]
        assert row["carried"] == trial["capacity_load"] < row["failed"]
        assert row["failed"] == trial["capacity_load_failed"]
        assert (row["low"], row["high"]) == (
            trial["capacity_load_low"], trial["capacity_load_high"],
        )  # fmt: skip
        assert (row["probes"], row["why"]) == (trial["num_probes"], trial["capacity_reason"])


def test_the_frontier_is_that_of_the_sweep(told: dict[str, Any], folder: Path) -> None:
    front = pl.read_parquet(folder / "pareto.parquet")
    columns = list(told["frontier"][0])
    assert columns[:2] == ["trial_id", "output_tok_s_per_gpu"] and len(columns) == 8
    assert told["frontier"] == front.select(columns).to_dicts()


def test_cells_show_the_tables_with_all_their_columns(
    executed: nbformat.NotebookNode, told: dict[str, Any]
) -> None:
    for name in SHOWN:
        rows = told[name]
        assert displayed(executed, name).startswith(f"shape: ({len(rows)}, {len(rows[0])})"), name
        assert "list[" not in displayed(executed, name)
    pandas = displayed(executed, "answer.to_pandas().round(3)")
    best = told["answer"][0]
    assert f"{best['req/s']:.3f}".rstrip("0") in pandas and best["layout"] in pandas
    assert "rows" not in pandas or f"[{len(told['answer'])} rows" in pandas


def test_what_did_not_run_is_told(executed: nbformat.NotebookNode) -> None:
    (cell,) = (c for c in executed.cells if 'group_by("reason")' in c.source)
    text = cell.outputs[-1]["data"]["text/plain"]
    assert re.search(r"needs 3 GPUs.*┆ 2 ", text)


def test_the_best_layout_replayed_gives_its_row_again(
    told: dict[str, Any], trials: dict[int, dict[str, Any]]
) -> None:
    trial = trials[told["answer"][0]["trial_id"]]
    assert told["load"] == ["workload.arrival_scale", trial["capacity_load"]]
    for key in ("output_tok_s_per_gpu", "p95_ttft_ms", "mean_itl_ms", "num_requests"):
        assert told["report"][key] == trial[key], key
    assert len(told["requests"]) == 400
    waits = sorted(row["ttft_ms"] for row in told["requests"])
    assert waits[200] <= trial["p75_ttft_ms"] <= waits[-1]
    reuse = told["reuse"]
    assert sum(row["requests"] for row in reuse) == 400
    assert [row["reused"] for row in reuse] == [0.0]


def test_all_pictures_are_there(executed: nbformat.NotebookNode) -> None:
    outputs = [output for cell in executed.cells for output in cell.get("outputs", [])]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 4  # curves, attainment, latencies, timeline
