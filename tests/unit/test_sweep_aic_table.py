"""Trials under AIConfigurator's names: a row is a replica."""

from pathlib import Path

import pytest

from dynosim.config import load_sweep
from dynosim.config.sweep_loading import SweepConfig
from dynosim.sweep.aic_table import AIC_COLUMNS, AIC_DISAGG_COLUMNS, aic_cells, aic_table
from dynosim.sweep.results import Row, trials_table
from dynosim.sweep.space import trials_of

FILE = """\
name: s
model: Qwen/Qwen3-32B
hardware: h200_sxm
workload: {synthetic: {requests: 10, isl: 100, osl: 10, rate_rps: 5}}
engine: {tensor_parallel: 4, quantization: fp8}
timing: {kind: aiconfigurator, backend: sglang}
space: {cluster.workers: [2, 300]}
constraints: {gpu_budget: 8}
"""
REPORT = {
    "completed_requests": 10, "total_input_tokens": 1000, "total_output_tokens": 100,
    "request_throughput_rps": 6.0, "mean_e2e_latency_ms": 500.0, "mean_ttft_ms": 80.0,
    "mean_tpot_ms": 9.0, "output_throughput_tok_s": 60.0, "output_tok_s_per_gpu": 7.5,
    "mean_output_token_throughput_per_user": 111.0, "prefix_cache_reused_ratio": 0.25,
}  # fmt: skip


@pytest.fixture
def sweep(tmp_path: Path) -> SweepConfig:
    path = tmp_path / "sweep.yaml"
    path.write_text(FILE)
    return load_sweep(path)


def rows_of(sweep: SweepConfig) -> list[Row]:
    first, second = trials_of(sweep)
    return [Row(first, "ok", "", REPORT, True), Row(second, "infeasible", "large", {}, None)]


def test_rates_and_tokens_are_those_of_a_replica(sweep: SweepConfig) -> None:
    cells = aic_cells(rows_of(sweep)[0])
    assert cells == {
        "model": "Qwen/Qwen3-32B", "isl": 100.0, "osl": 10.0, "prefix": 25.0,
        "concurrency": 1.5, "request_rate": 3.0, "bs": 1.5, "global_bs": 1.5,
        "ttft": 80.0, "tpot": 9.0, "request_latency": 500.0,
        "seq/s": 3.0, "seq/s/gpu": 0.75, "tokens/s": 30.0, "tokens/s/gpu": 7.5,
        "tokens/s/user": 111.0, "num_total_gpus": 4, "tp": 4, "pp": 1, "dp": 1,
        "parallel": "tp4pp1", "gemm": "fp8", "kvcache": "auto", "backend": "sglang",
        "version": None, "system": "h200_sxm", "tokens/s/gpu_cluster": 7.5, "replicas": 2,
        "total_gpus_used": 8,
    }  # fmt: skip
    assert set(cells) < set(AIC_COLUMNS)
    assert cells["concurrency"] * cells["replicas"] == 6.0 * 0.5  # Little's law


def test_its_columns_come_first_and_ours_stand_beside_them(sweep: SweepConfig) -> None:
    rows = rows_of(sweep)
    table, own = aic_table(sweep, rows), trials_table(sweep, rows)
    assert table.columns == [*AIC_COLUMNS, *own.columns]
    assert table.select(own.columns).equals(own)
    assert table["ttft"].to_list() == [80.0, None]


def test_what_is_not_known_is_empty_and_no_zero(sweep: SweepConfig) -> None:
    text = aic_table(sweep, rows_of(sweep)).write_csv().splitlines()
    cells = dict(zip(text[0].split(","), text[1].split(","), strict=True))
    for name in ("power_w", "moe_ep", "memory", "balance_score"):
        assert cells[name] == ""


SPLIT = FILE.replace(
    "space: {cluster.workers: [2, 300]}",
    "cluster: {mode: disagg, transfer: {preset: ib}, prefill: {engine: {tensor_parallel: 2}}}\n"
    "space: {cluster.prefill.workers: [2], cluster.decode.workers: [1]}",
)


def test_a_disaggregated_cluster_has_the_columns_of_both_pools(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(SPLIT)
    split = load_sweep(path)
    (trial,) = trials_of(split)
    row = Row(trial, "ok", "", REPORT, True)
    cells = aic_cells(row)
    pools = {
        f"({role}){name}": value
        for role, tp in (("p", 2), ("d", 4))
        for name, value in {
            "tp": tp, "pp": 1, "dp": 1, "parallel": f"tp{tp}pp1", "gemm": "fp8",
            "kvcache": "auto", "backend": "sglang", "version": None, "system": "h200_sxm",
        }.items()
    }  # fmt: skip
    assert cells == pools | {
        "model": "Qwen/Qwen3-32B", "isl": 100.0, "osl": 10.0, "prefix": 25.0,
        "concurrency": 3.0, "request_rate": 6.0, "ttft": 80.0, "tpot": 9.0,
        "request_latency": 500.0, "seq/s": 6.0, "seq/s/gpu": 0.75, "tokens/s": 60.0,
        "tokens/s/gpu": 7.5, "tokens/s/user": 111.0, "num_total_gpus": 8,
        "tokens/s/gpu_cluster": 7.5, "replicas": 1, "total_gpus_used": 8,
        "(p)workers": 2, "(p)bs": pytest.approx(0.24), "(p)global_bs": pytest.approx(0.24),
        "(p)seq/s/worker": 3.0, "(d)workers": 1, "(d)bs": pytest.approx(2.52),
        "(d)global_bs": pytest.approx(2.52), "(d)seq/s/worker": 6.0,
    }  # fmt: skip
    table = aic_table(split, [row])
    assert table.columns[: len(AIC_DISAGG_COLUMNS)] == list(AIC_DISAGG_COLUMNS)


def test_a_table_of_both_modes_has_the_columns_of_both(sweep: SweepConfig, tmp_path: Path) -> None:
    path = tmp_path / "split.yaml"
    path.write_text(SPLIT)
    split = load_sweep(path)
    rows = [rows_of(sweep)[0], Row(trials_of(split)[0], "ok", "", REPORT, True)]
    table = aic_table(sweep, rows)
    assert table["tp"].to_list() == [4, None] and table["(d)tp"].to_list() == [None, 4]
    assert [name for name in table.columns if name == "ttft"] == ["ttft"]


def test_the_columns_are_those_of_its_own_tables() -> None:
    common = pytest.importorskip("aiconfigurator_core.sdk.common")
    ours = ("tokens/s/gpu_cluster", "replicas", "total_gpus_used")
    assert (*common.ColumnsDisagg, *ours) == AIC_DISAGG_COLUMNS
