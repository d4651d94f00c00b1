"""Which rows of the silicon sample are compared, and what run stands for a row."""

import importlib
import importlib.util
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from dynosim.config import run_config_from_dict
from dynosim.config.workload import WorkloadConfig
from dynosim.silicon.catalogue import core_folder

HEADER = (
    "silicon_data_source,backend,backend_version,model_path,system,precision,mode,isl,osl,"
    "batch_size,tp_size,attention_dp_size,moe_tp_size,moe_ep_size,silicon_ttft_ms,silicon_tpot_ms"
)
OF_ITS_DAY = "2026.csv; silicon_concurrency=4; measured=2025-10-29T00:00:00.000Z"


@pytest.fixture(scope="module")
def rows() -> ModuleType:
    return module("silicon_rows")


@pytest.fixture(scope="module")
def setup(rows: ModuleType) -> ModuleType:
    return module("silicon_setup")


def module(name: str) -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[name] = loaded
    spec.loader.exec_module(loaded)
    return loaded


def read(rows: ModuleType, tmp_path: Path, *lines: str) -> list:
    path = tmp_path / "sample.csv"
    path.write_text("\n".join((HEADER, *lines)) + "\n")
    return rows.read_sample(path)


def line(**fields: object) -> str:
    """A row of MiniMax on 4 H200, changed as told."""
    plain = {
        "silicon_data_source": OF_ITS_DAY,
        "backend": "vllm",
        "backend_version": "0.16.0",
        "model_path": "MiniMaxAI/MiniMax-M2.5",
        "system": "h200_sxm",
        "precision": "fp8",
        "mode": "agg",
        "isl": 1024,
        "osl": 1024,
        "batch_size": 8.0,
        "tp_size": 4.0,
        "attention_dp_size": 1.0,
        "moe_tp_size": 4.0,
        "moe_ep_size": 1.0,
        "silicon_ttft_ms": 100.0,
        "silicon_tpot_ms": 12.0,
    }
    return ",".join(str((plain | fields)[name]) for name in HEADER.split(","))


def test_other_engines_systems_and_modes_are_no_rows(rows: ModuleType, tmp_path: Path) -> None:
    others = [line(backend="sglang"), line(system="b200_sxm"), line(mode="disagg")]
    assert len(read(rows, tmp_path, line(), *others)) == 1


def test_a_loop_measured_repeatedly_is_one_row_of_its_medians(
    rows: ModuleType, tmp_path: Path
) -> None:
    times = [line(silicon_tpot_ms=tpot) for tpot in (16.0, 64.0, 16.2)]
    (row,) = read(rows, tmp_path, *times)
    assert (row.tpot_ms, row.measured) == (16.2, 3)


def test_a_row_without_a_version_ran_the_newest_of_its_day(
    rows: ModuleType, tmp_path: Path
) -> None:
    (row,) = read(rows, tmp_path, line(backend_version=""))
    assert row.version == "0.11.0"


def test_ranks_are_stated_or_follow_from_the_experts(rows: ModuleType, tmp_path: Path) -> None:
    stated, found = read(
        rows,
        tmp_path,
        line(attention_dp_size=4.0, moe_tp_size=1.0, moe_ep_size=16.0, batch_size=2.0),
        line(attention_dp_size="", tp_size=1.0, moe_tp_size=2.0, batch_size=9.0),
    )
    assert (stated.ranks, stated.concurrency) == (4, 8)  # a batch of each rank
    assert (found.ranks, found.concurrency) == (2, 9)  # one of both together


def test_a_queue_shows_in_the_first_token_alone(rows: ModuleType, tmp_path: Path) -> None:
    long, short = read(
        rows,
        tmp_path,
        line(silicon_ttft_ms=30_000.0, silicon_tpot_ms=30.0, batch_size=64.0),
        line(silicon_ttft_ms=1_250.0, silicon_tpot_ms=45.0, batch_size=32.0),
    )
    assert long.has_queue and not short.has_queue


def test_calibration_queued_and_ranks_are_not_scored(rows: ModuleType, tmp_path: Path) -> None:
    of_ranks = line(attention_dp_size=4.0, moe_ep_size=4.0, batch_size=16.0)
    queued = line(silicon_ttft_ms=30_000.0, batch_size=64.0)
    calibration = line(model_path="Qwen/Qwen3-32B", precision="", moe_tp_size=1.0)
    found = rows.select(read(rows, tmp_path, line(), of_ranks, queued, calibration), 0)
    assert [row.concurrency for row in found.scored] == [8]
    assert len(found.calibration) == len(found.queued) == 1
    assert found.left_out == {"several data-parallel ranks": 1}


def test_rows_that_cannot_be_or_do_not_say_enough_are_left_out(
    rows: ModuleType, tmp_path: Path
) -> None:
    silent = line(silicon_data_source="2026.csv; measured=2026-01-23", batch_size=16.0)
    sample = read(rows, tmp_path, line(), line(batch_size=32.0), silent)
    found = rows.select(sample, 0, is_possible=lambda row: row.concurrency != 32)
    assert [row.concurrency for row in found.scored] == [8]
    assert found.left_out == {
        "requests in flight not stated": 1,
        "prompts found in the cache": 1,
    }


def test_more_prompts_than_a_gpu_computes_were_cached(rows: ModuleType, tmp_path: Path) -> None:
    """8B parameters, 118,000 prompt tokens a second: 1.9e15 operations a second on one H200."""
    module("silicon_setup")
    bounds = module("silicon_bounds")
    llama = {
        "model_path": "nvidia/Llama-3.1-8B-Instruct-FP8",
        "tp_size": 1.0,
        "moe_tp_size": 1.0,
        "batch_size": 64.0,
        "isl": 2000,
        "osl": 100,
        "silicon_ttft_ms": 122.0,
    }
    fast, slow = read(
        rows,
        tmp_path,
        line(**llama, silicon_tpot_ms=9.7),
        line(**(llama | {"osl": 101}), silicon_tpot_ms=30.0),
    )
    assert not bounds.computes_its_prompts(fast) and bounds.computes_its_prompts(slow)


def test_every_deployment_has_an_equal_share_spread_over_its_loads(
    rows: ModuleType, tmp_path: Path
) -> None:
    batches = (4, 8, 16, 32, 64)
    lines = [line(batch_size=n) for n in batches]
    lines += [line(batch_size=n, tp_size=8.0, moe_tp_size=8.0) for n in batches[:2]]
    found = rows.select(read(rows, tmp_path, *lines), 5).scored
    by_ranks = {4: [], 8: []}
    for row in found:
        by_ranks[row.tensor_parallel].append(row.concurrency)
    assert by_ranks == {4: [4, 16, 64], 8: [4, 8]}


def test_the_run_of_a_row_has_its_engine_and_its_load(
    rows: ModuleType, setup: ModuleType, tmp_path: Path
) -> None:
    (row,) = read(rows, tmp_path, line(moe_tp_size=1.0, moe_ep_size=4.0))
    config = run_config_from_dict(
        setup.run_data(row, has_sampling="sampling" in WorkloadConfig.model_fields)
    )
    engine, workload = config.engine, config.workload
    assert (engine.version, engine.tensor_parallel, engine.expert_parallel) == ("0.16.0", 4, True)
    assert (engine.quantization, engine.kv_cache_dtype) == (None, "auto")
    assert workload.concurrency == 8 and workload.synthetic.requests == 80
    assert (workload.synthetic.isl.min, workload.synthetic.isl.max) == (819, 1024)


def test_published_flags_of_a_server_are_its_engines_keys(
    rows: ModuleType, setup: ModuleType, tmp_path: Path
) -> None:
    (row,) = read(rows, tmp_path, line(model_path="meta-llama/Llama-3.1-70B"))
    engine = setup.run_data(row)["engine"]
    assert (engine["kv_cache_dtype"], engine["async_scheduling"]) == ("fp8", True)
    assert engine["max_num_seqs"] == 8
    plain = replace(row, source="source_file=/of/its/authors.csv", model="Qwen/Qwen3-32B")
    engine = setup.run_data(plain)["engine"]
    assert "kv_cache_dtype" not in engine and engine["quantization"] == "fp8"
    assert setup.run_data(plain)["workload"]["synthetic"]["isl"] == 1024
    assert setup.mean_lengths(plain) == (1024, 1024)
    assert setup.mean_lengths(row) == (922, 922)


def test_the_sample_itself_has_enough_rows_of_every_kind(rows: ModuleType) -> None:
    folder = core_folder()
    if folder is None:
        pytest.skip("the silicon sample ships with aiconfigurator-core, which is not installed")
    module("silicon_setup")
    found = rows.select(
        rows.read_sample(folder / "systems" / "silicon_sample.csv"),
        96,
        is_possible=module("silicon_bounds").computes_its_prompts,
    )
    models = Counter(row.model for row in found.scored)
    assert len(found.scored) == 96 and len(found.calibration) == 90
    assert len(models) >= 6 and min(models.values()) >= 3
    assert {row.system for row in found.scored} == set(rows.SYSTEMS)
    assert not any(row.is_calibration or row.has_queue for row in found.scored)
