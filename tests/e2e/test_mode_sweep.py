"""`dynosim sweep` over aggregated and disaggregated clusters, as its users call it."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from dynosim.cli import main

FILE = """\
name: modes
workload: {{synthetic: {{requests: 120, isl: {isl}, osl: {osl}, arrival: poisson, rate_rps: 6}}}}
timing: {{kind: linear, base_ms: 5, per_prefill_token_ms: 0.05, per_decode_ms: 0.2}}
engine: {{num_gpu_blocks: 4000, enable_prefix_caching: false}}
cluster: {{transfer: {{preset: ib, kv_bytes_per_token: 100000, handshake_ms: 0}}}}
space:
  cluster.mode: [agg, disagg]
  cluster.workers: [1, 2, 3]
  cluster.prefill.workers: [1, 2]
  cluster.decode.workers: [1, 2]
constraints: {{gpu_budget: 4, sla: {{ttft_ms: {ttft_ms}, itl_ms: 10}}}}
load: {{min_requests: 120, tolerance: 0.1, curve: [1.0], exhaustive: true}}
top: 1
"""
WORKLOADS = {
    "prompts": {"isl": 2000, "osl": 10, "ttft_ms": 800},
    "answers": {"isl": 200, "osl": 80, "ttft_ms": 300},
    "both": {"isl": 1000, "osl": 40, "ttft_ms": 500},
}
MADE = "output_tok_s_per_gpu"

pytestmark = pytest.mark.usefixtures("inline_workers", "no_pictures")


def swept(folder: Path, name: str, *arguments: str) -> tuple[dict[str, Any], pl.DataFrame]:
    path = folder / f"{name}.yaml"
    path.write_text(FILE.format(**WORKLOADS[name]))
    out = folder / f"out-{name}{len(arguments)}"
    code = main(["sweep", str(path), "--out", str(out), "--intervals", "0", *arguments])
    assert code == 0
    summary = json.loads((out / "summary.json").read_text())
    return summary, pl.read_parquet(out / "trials.parquet")


def test_one_sweep_answers_for_both_modes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary, trials = swept(tmp_path, "both")
    assert summary["num_trials"] == 3 + 4 and summary["counts"]["ok"] == 7
    assert summary["num_same_points"] == 2 * 3 * 2 * 2 - 7
    assert trials["layout"].to_list() == ["1x", "2x", "3x", "1P1D", "1P2D", "2P1D", "2P2D"]
    assert trials["num_gpus"].to_list() == [1, 2, 3, 2, 3, 3, 4]
    folders = {entry["config"].partition("/")[0] for entry in summary["top"]}
    assert folders == {"agg", "disagg"}
    split = tmp_path / "out-both0" / "disagg" / "top1"
    assert (split / "run_0.sh").is_file() and not (split / "engine.sh").exists()
    best = next(entry for entry in summary["top"] if entry["config"].startswith("disagg"))
    lines = capsys.readouterr().out
    assert " 2P1D " in lines and " 3x " in lines and "come to the same layouts" in lines
    assert main(["run", str(split / "config.yaml"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report[MADE] == best[MADE]  # the run file is the row again
    assert report["layout"] == trials["layout"][best["trial_id"]]


@pytest.mark.parametrize("name", WORKLOADS)
def test_the_screen_keeps_what_trying_every_layout_finds_best(tmp_path: Path, name: str) -> None:
    """Two of seven are asked for; equals of the last and the best of the other mode come along."""
    _, every = swept(tmp_path, name)
    screen = ["--set", "search.screen=meanfield", "--set", "search.keep=2"]
    summary, some = swept(tmp_path, name, *screen)
    told = summary["screen"]
    tried = some.filter(pl.col("status") == "ok")
    assert told["num_ranked"] == 7 and told["num_tried"] == len(tried) <= 4
    assert summary["counts"]["screened"] == 7 - len(tried)
    made = {row["trial_id"]: row[MADE] for row in every.iter_rows(named=True)}
    best = max(made, key=lambda trial: made[trial])
    assert best in tried["trial_id"].to_list()
    for row in tried.iter_rows(named=True):
        assert row[MADE] == made[row["trial_id"]]  # it changes nothing of what is tried
        said = row["screen_tpot_ms"]  # nothing, where no batch keeps the SLA
        assert said is None or abs(said / row["mean_tpot_ms"] - 1) < 0.6
    assert abs(told["errors"]["request_throughput_rps"]["median"]) < 0.6
    out = some.filter(pl.col("status") == "screened")
    assert out["reason"].str.contains("by the mean field").all()
    listed = [entry for entry in summary["not_run"] if entry["status"] == "screened"]
    assert len(listed) == len(out)


def test_a_need_is_answered_by_both_modes(tmp_path: Path) -> None:
    """The fewest GPUs that hold 10 requests a second, be they of one kind or of two."""
    path = tmp_path / "need.yaml"
    text = FILE.format(**WORKLOADS["both"]).replace("  cluster.workers: [1, 2, 3]\n", "")
    text = text.replace("  cluster.decode.workers: [1, 2]\n", "")
    text = text.replace("gpu_budget: 4", "gpu_budget: 5")
    path.write_text(text.replace("exhaustive: true", "need: {rps: 10}"))
    out = tmp_path / "out"
    assert main(["sweep", str(path), "--out", str(out), "--intervals", "0"]) == 0
    summary = json.loads((out / "summary.json").read_text())
    trials = pl.read_parquet(out / "trials.parquet")
    held = trials.filter(pl.col("need_is_held"))
    assert set(held["cluster.mode"]) == {"agg", "disagg"}
    assert summary["need"]["fewest_gpus"] == held["num_gpus"].min()
    sizes = pl.read_parquet(out / "sizing.parquet")
    split = sizes.filter(pl.col("cluster.decode.workers").is_not_null())
    assert split["cluster.workers"].null_count() == len(split) > 0
    for row in held.iter_rows(named=True):
        key = "cluster.workers" if row["cluster.mode"] == "agg" else "cluster.decode.workers"
        tried = sizes.filter(pl.col("trial_id") == row["trial_id"])
        assert tried.filter(pl.col("is_held"))[key].min() == row[key]
        below = tried.filter(pl.col(key) == row[key] - 1)
        assert row[key] == 1 or below["is_held"].to_list() == [False]
