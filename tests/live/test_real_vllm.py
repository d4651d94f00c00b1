"""Two real vLLM engines behind the router: what it believes of them is what they report."""

import asyncio
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from cluster import EXACT, VLLM_PYTHON, Cluster, wait_until, write_plan
from streams import Stream, prompt, stream_all

BLOCK = 32
NUM_SESSIONS = 6
NUM_TURNS = 3


def vllm_plan(folder: Path, model: Path, *, workers: int) -> Path:
    return write_plan(
        folder,
        name="vllm-cpu",
        model=model,
        workload={"synthetic": {"requests": 10, "isl": 100, "osl": 10, "rate_rps": 10}},
        engine={
            "block_size": BLOCK,
            "num_gpu_blocks": 600,
            "max_num_seqs": 32,
            "max_num_batched_tokens": 1024,
            "max_model_len": 4096,
        },
        timing={"kind": "linear", "base_ms": 10.0},
        cluster={"workers": workers},
        router={"mode": "kv"},
        live={"engine_args": EXACT},
    )


@pytest.fixture(scope="module")
def two_engines(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path):  # type: ignore[no-untyped-def]
    folder = tmp_path_factory.mktemp("vllm")
    plan = vllm_plan(folder, tiny_model, workers=2)
    engine = ("--real", "--engine", "vllm-cpu", "--engine-python", VLLM_PYTHON)
    with Cluster(plan, folder / "out", *engine) as cluster:
        yield cluster
    assert cluster.replay()["num_decisions"] > 0


def worker_of(stream: Stream) -> int:
    return int(stream.nvext["worker_id"]["decode_worker_id"])


def indexed_blocks(cluster: Cluster) -> float:
    """Those that the router knows of, by the events that have arrived."""
    return cluster.metric("dynosim_router_index_blocks")


def blocks_of(texts: Sequence[Sequence[int]]) -> int:
    """The full ones of prompts with their answers; the last token's KV is not computed."""
    return sum((len(tokens) - 1) // BLOCK for tokens in texts)


def test_turns_return_to_the_worker_that_holds_them(two_engines: Cluster) -> None:
    prompts = [prompt(100 + session, 330) for session in range(NUM_SESSIONS)]
    homes: list[set[int]] = [set() for _ in prompts]
    for turn in range(NUM_TURNS):
        bodies = [{"prompt": tokens, "max_tokens": 40} for tokens in prompts]
        streams = asyncio.run(stream_all(two_engines.url, bodies))
        for session, stream in enumerate(streams):
            assert stream.is_done, stream.error
            homes[session].add(worker_of(stream))
            reported = stream.usage["prompt_tokens_details"]["cached_tokens"]
            believed = stream.nvext["timing"]["kv_hit_rate"] * stream.usage["prompt_tokens"]
            assert round(believed) == reported
            assert (reported > 0) == (turn > 0)
            prompts[session] += stream.token_ids
        wait_until(lambda: indexed_blocks(two_engines) == blocks_of(prompts))
        for session, tokens in enumerate(prompts):
            tokens += prompt(session * 10 + turn, 45)
    assert all(len(home) == 1 for home in homes)
    assert len(set.union(*homes)) == 2  # and not all on one
    assert two_engines.metric("dynosim_kv_malformed") == 0
    assert two_engines.metric("dynosim_kv_events") > NUM_SESSIONS
    believed = two_engines.metric("dynosim_router_cached_tokens_total")
    assert believed == two_engines.metric("dynosim_engine_cached_tokens_total") > 0


def test_a_killed_engine_costs_no_token(two_engines: Cluster) -> None:
    bodies = [{"prompt": prompt(200 + i, 150 + i), "max_tokens": 500} for i in range(10)]
    undisturbed = asyncio.run(stream_all(two_engines.url, bodies))

    async def under_fire() -> list[Any]:
        running = asyncio.create_task(stream_all(two_engines.url, bodies))
        while not all(row["active_requests"] for row in two_engines.workers().values()):
            await asyncio.sleep(0.01)
        os.kill(two_engines.pid_of("worker-1"), signal.SIGKILL)
        return await running

    disturbed = asyncio.run(under_fire())
    assert all(stream.is_done and stream.error is None for stream in undisturbed + disturbed)
    assert two_engines.metric("dynosim_frontend_migrations_total") > 0
    assert [s.token_ids for s in disturbed] == [s.token_ids for s in undisturbed]
    wait_until(lambda: len(two_engines.workers()) == 2, timeout_s=300)  # restarted by deploy
