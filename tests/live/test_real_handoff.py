"""Real vLLM, prefill and decode workers apart, KV over real NIXL."""

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from cluster import EXACT, VLLM_PYTHON, Cluster, dynosim, metric_of, wait_until, write_plan
from streams import Stream, prompt, stream_all

from dynosim.memory.kv_transfer import HandoffCost, KvGeometry, SideLayout, moved_tokens
from dynosim.memory.links import link_spec

BLOCK = 32
LAYERS, KV_HEADS, HEAD_DIM = 4, 2, 32  # of the tiny model


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("handoff")
    plan = write_plan(
        folder,
        name="handoff",
        model=tiny_model,
        workload={"synthetic": {"requests": 10, "isl": 100, "osl": 10, "rate_rps": 10}},
        engine={
            "block_size": BLOCK,
            "num_gpu_blocks": 900,
            "max_num_seqs": 32,
            "max_num_batched_tokens": 1024,
            "max_model_len": 4096,
        },
        timing={"kind": "linear", "base_ms": 10.0},
        cluster={
            "mode": "disagg",
            "prefill": {"workers": 2},
            "decode": {"workers": 1},
            "transfer": {"preset": "tcp"},
        },
        router={"mode": "kv"},
        live={"engine_args": EXACT},
    )
    engine = ("--real", "--engine", "vllm-cpu", "--engine-python", VLLM_PYTHON)
    with Cluster(plan, folder / "out", *engine) as cluster:
        yield cluster
    for role in ("prefill", "decode"):
        done = dynosim("replay-log", folder / "out" / f"router-{role}", "--json")
        assert done.returncode == 0, done.stdout + done.stderr


def computed_by_one(cluster: Cluster, token_ids: list[int], max_tokens: int) -> list[int]:
    """What the decode worker's engine says if it does all by itself, with nothing cached."""
    body = {
        "model": "tiny",
        "prompt": token_ids,
        "max_tokens": max_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
        "cache_salt": "alone",
    }
    url = cluster.workers()["decode-0"]["url"]
    answer = httpx.post(f"{url}/v1/completions", json=body, timeout=300).json()
    return list(answer["choices"][0]["token_ids"])


def bodies(seed: int, count: int, length: int) -> list[dict[str, Any]]:
    return [
        {"prompt": prompt(seed + i, length + i), "max_tokens": 20, "temperature": 0}
        for i in range(count)
    ]


def ask(cluster: Cluster, asked: list[dict[str, Any]]) -> list[Stream]:
    streams = asyncio.run(stream_all(cluster.url, asked))
    assert all(stream.is_done and stream.error is None for stream in streams)
    return streams


def test_tokens_are_those_of_one_engine_and_bytes_those_predicted(cluster: Cluster) -> None:
    asked = bodies(300, 6, 250)
    names = {row["worker_id"]: name for name, row in cluster.workers().items()}
    decode = cluster.workers()["decode-0"]["url"]
    before = metric_of(decode, "vllm:nixl_bytes_transferred_sum")
    streams = ask(cluster, asked)
    for stream, body in zip(streams, asked, strict=True):
        assert stream.token_ids == computed_by_one(cluster, body["prompt"], 20)
        assert names[stream.nvext["worker_id"]["prefill_worker_id"]].startswith("prefill-")
        assert names[stream.nvext["worker_id"]["decode_worker_id"]] == "decode-0"
    geometry = KvGeometry(
        layers=LAYERS, kv_heads=KV_HEADS, head_dim=HEAD_DIM, element_bytes=element_bytes(cluster)
    )
    side = SideLayout(tensor_parallel=1, block_size=BLOCK)
    cost = HandoffCost(link=link_spec("tcp"), geometry=geometry, prefill=side, decode=side)
    wanted = sum(
        cost.wire_bytes(moved_tokens("destination_missing", len(body["prompt"]), 0, BLOCK))
        for body in asked
    )
    wait_until(lambda: metric_of(decode, "vllm:nixl_bytes_transferred_sum") - before == wanted)
    assert metric_of(decode, "vllm:nixl_xfer_time_seconds_sum") > 0
    assert all(record["handoff_ms"] > 0 for record in cluster.records()[-6:])


def element_bytes(cluster: Cluster) -> float:
    log = (cluster.out / "logs" / "decode-0.log").read_text()
    return 4.0 if "dtype=torch.float32" in log else 2.0


def test_a_killed_prefill_engine_costs_no_token(cluster: Cluster) -> None:
    asked = bodies(500, 6, 2500)
    undisturbed = ask(cluster, bodies(500, 6, 2500))
    for body in asked:
        body["cache_salt"] = "again"  # computed anew, and equal

    async def under_fire() -> list[Stream]:
        running = asyncio.create_task(stream_all(cluster.url, asked))
        while not cluster.workers()["prefill-0"]["active_requests"]:
            await asyncio.sleep(0.01)
        os.kill(cluster.pid_of("prefill-0"), signal.SIGKILL)
        return await running

    disturbed = asyncio.run(under_fire())
    assert all(stream.is_done and stream.error is None for stream in disturbed)
    assert [s.token_ids for s in disturbed] == [s.token_ids for s in undisturbed]
    assert cluster.metric("dynosim_frontend_migrations_total") > 0
    wait_until(lambda: len(cluster.workers()) == 3, timeout_s=300)  # restarted by deploy
