"""The scripts in a winner's folder, with the real things: vLLM's own parser and engine, AIPerf."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from cluster import AIPERF, ROOT, VLLM_PYTHON, Cluster, dynosim
from ports import free_ports

from dynosim.build.engine_command import vllm_flags, vllm_gpu_flags
from dynosim.config import run_config_from_dict
from dynosim.config.cluster import POOL_ROLES
from dynosim.config.engine import EngineConfig
from dynosim.sweep.engine_script import engine_flags
from dynosim.sweep.pool_files import POOL_FILES, pool_files

READY_S = 600.0
PARSE = """
import json, sys
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = make_arg_parser(FlexibleArgumentParser())
for flags in json.load(sys.stdin):
    found = vars(parser.parse_args(["--model", "m", *flags]))
    print(json.dumps({key: found[key] for key in json.loads(sys.argv[1])}, default=str))
"""
OTHER: dict[str, Any] = {  # than vLLM's defaults, and ours
    "tensor_parallel": 4, "block_size": 32, "num_gpu_blocks": 777, "max_num_seqs": 33,
    "max_num_batched_tokens": 4444, "max_model_len": 4096, "enable_prefix_caching": False,
    "enable_chunked_prefill": False, "long_prefill_token_threshold": 512,
    "long_prefill_token_threshold_adaptive": True, "policy": "priority", "watermark": 0.05,
    "scheduler_reserve_full_isl": False, "max_num_active_seqs": 22, "async_scheduling": True,
    "gpu_memory_utilization": 0.8, "quantization": "fp8", "kv_cache_dtype": "fp8",
}  # fmt: skip
VLLM_NAMES = {"tensor_parallel": "tensor_parallel_size", "policy": "scheduling_policy",
              "num_gpu_blocks": "num_gpu_blocks_override"}  # fmt: skip
SWEEP: dict[str, Any] = {
    "name": "live",
    "workload": {"synthetic": {"requests": 60, "isl": 200, "osl": 8, "rate_rps": 4, "turns": 2,
                               "think_time_ms": 1000}},
    "engine": {"num_gpu_blocks": 4000, "max_model_len": 1024, "max_num_seqs": 8, "block_size": 32},
    "timing": {"kind": "fixed", "prefill_ms": 30, "decode_ms": 10},
    "space": {"router.mode": ["kv"]},
    "constraints": {"sla": {"ttft_ms": 400, "itl_ms": 60}},
    "load": {"search": "capacity", "min_requests": 60, "tolerance": 0.5, "range": [0.5, 4]},
}  # fmt: skip

pytestmark = pytest.mark.timeout(1500)


def test_vllm_understands_every_flag_as_it_is_meant() -> None:
    engine = EngineConfig.of(OTHER)
    assert {name for name in OTHER if getattr(engine, name) == EngineConfig().model_dump()[name]} \
        == set()  # fmt: skip
    names = {name: VLLM_NAMES.get(name, name) for name in OTHER}
    asked = [
        [*vllm_flags(each, served_model_name="m"), *vllm_gpu_flags(each)]
        for each in (engine, EngineConfig())
    ]
    done = subprocess.run(
        [str(VLLM_PYTHON), "-c", PARSE, json.dumps(list(names.values()))],
        input=json.dumps(asked), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    others, defaults = lines[-2:]
    assert {name: others[names[name]] for name in OTHER} == OTHER
    assert (defaults["max_num_seqs"], defaults["enable_prefix_caching"]) == (
        EngineConfig().max_num_seqs,
        True,
    )


def test_vllm_understands_the_engines_of_both_pools(tmp_path: Path) -> None:
    """By the flags of run_0.sh, and by the files for --config: the same."""
    data = {
        "model": "Qwen/Qwen3-32B", "hardware": "h200_sxm",
        "workload": {"synthetic": {"requests": 10, "isl": 100, "osl": 10, "rate_rps": 5}},
        "timing": {"kind": "aiconfigurator"},
        "cluster": {
            "mode": "disagg", "transfer": {"preset": "ib"},
            "handoff": {"load_failure_policy": "recompute"},
            "prefill": {"engine": {"tensor_parallel": 2, "max_num_seqs": 4}},
            "decode": {"engine": {"max_num_seqs": 99, "enable_prefix_caching": False}},
        },
    }  # fmt: skip
    plan = run_config_from_dict(data)
    asked = [engine_flags(plan, plan.for_pool(role), tmp_path, role=role) for role in POOL_ROLES]
    texts = pool_files(plan, tmp_path)
    for role in POOL_ROLES:
        (tmp_path / f"{role}.yaml").write_text(texts[POOL_FILES[role]])
        asked.append(["--config", str(tmp_path / f"{role}.yaml")])
    names = ["tensor_parallel_size", "max_num_seqs", "enable_prefix_caching", "max_model_len",
             "async_scheduling", "kv_transfer_config"]  # fmt: skip
    done = subprocess.run(
        [str(VLLM_PYTHON), "-c", PARSE, json.dumps(names)],
        input=json.dumps(asked), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    transfers = [line.pop("kv_transfer_config") for line in lines]
    assert lines[:2] == lines[2:]
    assert [list(line.values())[:3] for line in lines[:2]] == [[2, 4, True], [1, 99, False]]
    for transfer, role in zip(transfers, ["kv_producer", "kv_consumer"] * 2, strict=True):
        assert "kv_connector='NixlConnector'" in transfer and f"kv_role='{role}'" in transfer
        assert "kv_load_failure_policy='recompute'" in transfer


@pytest.fixture(scope="module")
def winner(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """The folder of a sweep's winner, its model beside the results."""
    folder = tmp_path_factory.mktemp("sweep")
    shutil.copytree(tiny_model, folder / "tiny")
    (folder / "sweep.yaml").write_text(yaml.safe_dump({**SWEEP, "model": "./tiny"}))
    done = dynosim("sweep", folder / "sweep.yaml", "--out", folder / "out", "--jobs", "1")
    assert done.returncode == 0, done.stderr
    return folder / "out" / "agg" / "top1"


def environment(folder: Path, **more: str) -> dict[str, str]:
    """With `dynosim` as a command, and a `vllm serve` of a build whose own command is missing."""
    commands = {
        "dynosim": f'exec {sys.executable} -m dynosim "$@"',
        "vllm": f'shift; model=$1; shift; exec {VLLM_PYTHON} -m vllm.entrypoints.openai.api_server'
        ' --model "$model" "$@" --enforce-eager --dtype bfloat16',
    }  # fmt: skip
    for name, line in commands.items():
        (folder / name).write_text(f"#!/usr/bin/env bash\n{line}\n")
        (folder / name).chmod(0o755)
    path = f"{folder}:{os.environ['PATH']}"
    python = os.pathsep.join([str(ROOT), str(ROOT / "runtime")])
    return {**os.environ, "PATH": path, "PYTHONPATH": python, "HF_HUB_OFFLINE": "1", **more}


def test_engine_sh_starts_real_vllm_behind_the_router(winner: Path, tmp_path: Path) -> None:
    cpu = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
           "OMP_NUM_THREADS": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}  # fmt: skip
    (port,) = free_ports(1)
    variables = environment(tmp_path, PORT=str(port), RUN=str(tmp_path / "run"), **cpu)
    url = f"http://127.0.0.1:{port}"
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([str(winner / "engine.sh")], env=variables, stdout=log,
                                   stderr=log)  # fmt: skip
    try:
        deadline = time.monotonic() + READY_S
        while not _served(url):
            assert process.poll() is None and time.monotonic() < deadline, _end(tmp_path / "log")
            time.sleep(1)
        body = {"model": "tiny", "prompt": [5, 6, 7, 8], "max_tokens": 4, "ignore_eos": True}
        answer = httpx.post(f"{url}/v1/completions", json=body, timeout=120).json()
        assert answer["usage"]["completion_tokens"] == 4
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=120)
    text = (tmp_path / "log").read_text()
    assert "3999 KV blocks of 32 tokens, with KV events" in text


def test_bench_sh_measures_with_aiperf_and_validate_reads_it(
    winner: Path, tmp_path: Path, tiny_model: Path
) -> None:
    home, revision = tmp_path / "hf", "0" * 40
    repository = home / "hub" / "models--local--tiny"
    shutil.copytree(tiny_model, repository / "snapshots" / revision)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(revision)
    variables = environment(
        tmp_path, AIPERF=str(AIPERF), TOKENIZER="local/tiny", HF_HOME=str(home),
        OUT=str(tmp_path / "bench"),
    )  # fmt: skip
    with Cluster(winner, tmp_path / "out", "--mock") as cluster:
        done = subprocess.run(
            [str(winner / "bench.sh"), cluster.url], env=variables, capture_output=True, text=True,
            timeout=900,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    result = dynosim("validate", winner, "--aiperf", tmp_path / "bench" / "load-1", "--json",
                     "--intervals", "0")  # fmt: skip
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["prediction"]["is_used"] is True
    metrics = {row["key"]: row for row in document["metrics"]}
    reuse = metrics["prefix_cache_reused_ratio"]
    assert reuse["predicted"] > 0.1
    assert abs(reuse["measured"] - reuse["predicted"]) < 0.05  # the rows share what prompts share


def _served(url: str) -> bool:
    try:
        return bool(httpx.get(f"{url}/v1/models", timeout=5).json().get("data"))
    except (httpx.HTTPError, ValueError):
        return False


def _end(log: Path) -> str:
    return log.read_text()[-3000:]
