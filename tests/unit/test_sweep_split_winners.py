"""Winners of a sweep over both modes: folders, roles, and what is in a disaggregated one."""

import json
import subprocess
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from dynosim.build.engine_command import vllm_flags, vllm_gpu_flags
from dynosim.config import load_run, load_sweep
from dynosim.config.file_keys import file_keys
from dynosim.config.loading import check_run
from dynosim.config.minimal import minimal
from dynosim.config.schema import RunConfig
from dynosim.sweep.aic_table import AIC_COLUMNS, AIC_DISAGG_COLUMNS
from dynosim.sweep.artifacts import write_artifacts
from dynosim.sweep.engine_script import engine_script
from dynosim.sweep.pool_files import engine_config
from dynosim.sweep.results import judge
from dynosim.sweep.space import trials_of

FILE = """\
name: both
model: Qwen/Qwen3-32B
hardware: h200_sxm
workload: {synthetic: {requests: 10, isl: 4000, osl: 500, rate_rps: 5}}
timing: {kind: aiconfigurator}
cluster:
  transfer: {preset: ib}
  handoff: {load_failure_policy: recompute}
  prefill: {workers: 2, engine: {tensor_parallel: 2, max_num_seqs: 4}}
  decode: {engine: {max_num_seqs: 99, enable_prefix_caching: false}}
space:
  cluster.mode: [agg, disagg]
  engine.tensor_parallel: [2, 4]
sla: {ttft_ms: 600, itl_ms: 25}
load: {search: fixed}
top: 2
"""
PER_GPU, PER_USER = "output_tok_s_per_gpu", "median_output_token_throughput_per_user"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Trials 0 and 1 are aggregated, 2 and 3 disaggregated; best to worst: 3, 1, 2, 0."""
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "sweep.yaml").write_text(FILE)
    sweep = load_sweep(folder / "sweep.yaml")
    values = [(1.0, 9.0), (3.0, 7.0), (2.0, 8.0), (4.0, 6.0)]
    records = {
        index: {
            "status": "ok", "reason": "",
            "report": {
                "completed_requests": 3, "num_gpus": 8, PER_GPU: y, PER_USER: x, "num_requests": 10,
                "request_throughput_rps": 4.0, "mean_e2e_latency_ms": 2000.0, "mean_ttft_ms": 100.0,
            },
        }
        for index, (y, x) in enumerate(values)
    }  # fmt: skip
    out = folder / "out"
    (out / "disagg" / "top3").mkdir(parents=True)
    (out / "disagg" / "top3" / "run_0.sh").write_text("old")
    (out / "disagg" / "top3" / "decode_config.yaml").write_text("old")
    (out / "disagg" / "top3" / "config.yaml").write_text("old")
    rows = judge(sweep, trials_of(sweep), records)
    return out, write_artifacts(out, sweep, rows, sweep_hash="a", sweep_yaml=FILE)


def test_each_mode_has_its_own_ranking_and_one_is_the_best_of_all(written: Any) -> None:
    out, summary = written
    top = [(entry["trial_id"], entry["config"], entry["roles"]) for entry in summary["top"]]
    assert top == [
        (3, "disagg/top1/config.yaml", ["best", "best of disagg", "cheapest of disagg"]),
        (1, "agg/top1/config.yaml", ["best of agg", "cheapest of agg"]),
        (2, "disagg/top2/config.yaml", ["best of disagg TP2+TP2", "fastest for users of disagg"]),
        (0, "agg/top2/config.yaml", ["best of agg TP2", "fastest for users of agg"]),
    ]
    assert not (out / "disagg" / "top3").exists()
    for _, file, _ in top:
        mode = file.partition("/")[0]
        assert load_run(out / file).cluster.mode == mode


def test_a_disaggregated_winner_has_its_files(written: Any) -> None:
    out, _ = written
    split, agg = out / "disagg" / "top1", out / "agg" / "top1"
    common = {"config.yaml", "config.full.yaml", "bench.sh", "prediction.json", "README.md"}
    assert {path.name for path in agg.iterdir()} == common | {"engine.sh"}
    assert {path.name for path in split.iterdir()} == common | {
        "run_0.sh", "prefill_config.yaml", "decode_config.yaml", "generator_config.yaml",
    }  # fmt: skip
    assert (split / "run_0.sh").stat().st_mode & 0o111
    readme = (split / "README.md").read_text()
    assert "on 8 GPUs (prefill 2 x TP2 and decode 1 x TP4)" in readme
    assert "disagg TP2+TP4" in readme and "`./run_0.sh`" in readme and "engine.sh" not in readme
    assert "(1 x TP4)" in (agg / "README.md").read_text()


def test_engines_of_both_pools_have_their_own_flags_ports_and_gpus(written: Any) -> None:
    out, _ = written
    script = out / "disagg" / "top1" / "run_0.sh"
    assert subprocess.run(["bash", "-n", str(script)]).returncode == 0
    text = script.read_text()
    parts = {name: text.partition(f"\n{name}() {{\n")[2].partition("\n}\n")[0]
             for name in ("prefill_0", "prefill_1", "decode_0", "attach_decode_0")}  # fmt: skip
    for name, gpus, side, port, seqs, tp in (
        ("prefill_0", "0,1", 5600, 8100, 4, 2),
        ("prefill_1", "2,3", 5601, 8101, 4, 2),
        ("decode_0", "4,5,6,7", 5602, 8102, 99, 4),
    ):
        part = parts[name]
        assert f"CUDA_VISIBLE_DEVICES=${{GPUS:-{gpus}}} exec" in part
        assert f"VLLM_NIXL_SIDE_CHANNEL_PORT={side} " in part
        assert f"--port {port} " in part and f"--max-num-seqs {seqs} " in part
        assert f"--tensor-parallel-size {tp} " in part
        line = next(line for line in part.splitlines() if "--kv-transfer-config" in line)
        settings = json.loads(line.split("'")[1])
        assert settings["kv_connector"] == "NixlConnector"
        role = "kv_producer" if "prefill" in name else "kv_consumer"
        assert settings["kv_role"] == role
        assert settings["kv_load_failure_policy"] == "recompute"
    assert "--kv-events-config" in parts["prefill_0"] and "kv-events" not in parts["decode_0"]
    assert "--name decode-0 --role decode --engine vllm" in parts["attach_decode_0"]
    assert '--attach "http://127.0.0.1:8102"' in parts["attach_decode_0"]
    named = "prefill_0 prefill_1 decode_0 attach_prefill_0 attach_prefill_1 attach_decode_0 router"
    assert f"for part in {named};" in text


def test_ranks_of_a_worker_have_side_ports_of_their_own() -> None:
    plan = split_plan(
        prefill={"workers": 2, "engine": {"data_parallel": 3, "tensor_parallel": 1}},
        decode={"engine": {"tensor_parallel": 1}},
    )
    text = engine_script(plan, title="t", folder=Path("/tmp"))
    for name, side in (("prefill_1", 5603), ("decode_0", 5606)):
        part = text.partition(f"\n{name}() {{\n")[2].partition("\n}\n")[0]
        assert f"VLLM_NIXL_SIDE_CHANNEL_PORT={side} " in part


def test_files_of_pools_say_what_the_script_says(written: Any) -> None:
    out, _ = written
    folder = out / "disagg" / "top1"
    plan = load_run(folder / "config.yaml")
    for role, seqs in (("prefill", 4), ("decode", 99)):
        told = yaml.safe_load((folder / f"{role}_config.yaml").read_text())
        engine = plan.for_pool(role).engine
        flags = [*vllm_flags(engine, served_model_name="Qwen/Qwen3-32B"), *vllm_gpu_flags(engine)]
        transfer = json.loads(told.pop("kv-transfer-config"))
        assert told == engine_config(flags) and told["max-num-seqs"] == seqs
        assert transfer["kv_role"] == ("kv_producer" if role == "prefill" else "kv_consumer")
    assert engine_config(["--a", "1", "--b", "--c", "0.5", "--d", "x", "--e", "-1"]) == {
        "a": 1, "b": True, "c": 0.5, "d": "x", "e": -1,
    }  # fmt: skip
    told = yaml.safe_load((folder / "generator_config.yaml").read_text())
    assert told["WorkerConfig"] == {
        "prefill_workers": 2, "decode_workers": 1, "prefill_gpus_per_worker": 2,
        "decode_gpus_per_worker": 4,
    }  # fmt: skip
    assert told["SlaConfig"] == {"isl": 4000, "osl": 500, "ttft": 600, "tpot": 25}
    sizes = {role: params["max_batch_size"] for role, params in told["params"].items()}
    assert sizes == {"prefill": 4, "decode": 99}


def test_tables_have_the_columns_of_their_mode(written: Any) -> None:
    out, _ = written
    for mode, columns in (("agg", AIC_COLUMNS), ("disagg", AIC_DISAGG_COLUMNS)):
        top = pl.read_csv(out / mode / "best_config_topn.csv")
        front = pl.read_csv(out / mode / "pareto.csv")
        assert top.columns[: len(columns)] == front.columns[: len(columns)] == list(columns)
        assert len(top) == 2 and set(top["cluster.mode"]) == {mode}
        assert len(front) == 2  # each is the faster one or the one that makes more
    both = pl.read_csv(out / "best_config_topn.csv")
    assert both["(p)workers"].to_list() == [2, None, 2, None]
    assert both["(d)tp"].to_list() == [4, None, 2, None]
    assert both["tp"].to_list() == [None, 4, None, 2]


def split_plan(**cluster: Any) -> RunConfig:
    data = {
        "model": "Qwen/Qwen3-32B", "hardware": "h200_sxm",
        "workload": {"synthetic": {"requests": 10, "isl": 100, "osl": 10, "rate_rps": 5}},
        "timing": {"kind": "aiconfigurator"},
        "cluster": {"mode": "disagg", "transfer": {"preset": "ib"}, **cluster},
    }  # fmt: skip
    checked = check_run(data, Path())
    assert isinstance(checked, RunConfig), checked
    return checked


def test_files_that_pools_name_are_known_and_a_small_run_file_is_the_plan() -> None:
    plan = split_plan(
        prefill={"hardware": "mine.yaml", "engine": {"tensor_parallel": 2}},
        decode={"timing": {"kind": "profile", "file": "a.json"}, "hardware": "h100_sxm"},
    )
    assert file_keys(minimal(plan)) == {
        ("cluster", "prefill", "hardware"): "mine.yaml",
        ("cluster", "decode", "timing", "file"): "a.json",
    }
    again = check_run(minimal(plan), Path())
    assert isinstance(again, RunConfig) and again.model_dump() == plan.model_dump()
