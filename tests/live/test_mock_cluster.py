"""Whole deployments with simulated engines: losses, crowds, a foreign client."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

from cluster import AIPERF, Cluster, metric_of, resident_mib, wait_until, write_plan
from streams import prompt, stream_all

ENGINE = {
    "block_size": 16,
    "num_gpu_blocks": 8000,
    "max_num_seqs": 64,
    "max_num_batched_tokens": 4096,
    "max_model_len": 4096,
}


def plan(folder: Path, model: Path, *, workers: int, base_ms: float, **engine: int) -> Path:
    return write_plan(
        folder,
        name="live",
        model=model,
        workload={"synthetic": {"requests": 10, "isl": 100, "osl": 10, "rate_rps": 10}},
        engine=ENGINE | engine,
        timing={"kind": "linear", "base_ms": base_ms, "per_prefill_token_ms": 0.01},
        cluster={"workers": workers},
        router={"mode": "kv"},
    )


def bodies(count: int, max_tokens: int) -> list[dict[str, Any]]:
    return [
        {"prompt": prompt(i, 100 + i, shared=64), "max_tokens": max_tokens} for i in range(count)
    ]


def test_a_killed_worker_costs_no_token(tmp_path: Path, tiny_model: Path) -> None:
    async def under_fire(cluster: Cluster) -> list[Any]:
        engine = cluster.workers()["worker-1"]["url"]
        before = metric_of(engine, "vllm:generation_tokens_total")
        running = asyncio.create_task(stream_all(cluster.url, bodies(90, 120)))
        # It is amid the answers of those that it has: at most a third of their tokens are there.
        while metric_of(engine, "vllm:generation_tokens_total") < before + 90 / 3 * 120 / 3:
            assert not running.done()
            await asyncio.sleep(0.05)
        os.kill(cluster.pid_of("worker-1"), signal.SIGKILL)
        return await running

    with Cluster(
        plan(tmp_path, tiny_model, workers=3, base_ms=40.0), tmp_path / "out", "--mock"
    ) as cluster:
        undisturbed = asyncio.run(stream_all(cluster.url, bodies(90, 120)))
        disturbed = asyncio.run(under_fire(cluster))
        assert all(stream.is_done and stream.error is None for stream in undisturbed + disturbed)
        assert [s.token_ids for s in disturbed] == [s.token_ids for s in undisturbed]
        assert all(len(stream.token_ids) == 120 for stream in disturbed)
        assert cluster.metric("dynosim_frontend_migrations_total") > 0
        wait_until(lambda: len(cluster.workers()) == 3)  # restarted, and taken in again
        again = asyncio.run(stream_all(cluster.url, bodies(30, 10)))
        assert all(stream.is_done for stream in again)
    moved = [record for record in cluster.records() if record["migrations"]]
    assert moved and all(record["status"] == "completed" for record in moved)
    assert cluster.replay()["num_decisions"] >= 210 + len(moved)


def test_a_thousand_streams_at_once(tmp_path: Path, tiny_model: Path) -> None:
    crowd = plan(tmp_path, tiny_model, workers=2, base_ms=600.0, max_num_seqs=600)
    with Cluster(crowd, tmp_path / "out", "--mock") as cluster:
        pid = cluster.pid_of("frontend")
        asyncio.run(stream_all(cluster.url, bodies(50, 4)))
        sizes = []
        for _ in range(2):
            streams = asyncio.run(stream_all(cluster.url, bodies(1000, 16)))
            assert [stream.error for stream in streams if stream.error] == []
            assert all(stream.is_done for stream in streams)
            assert all(len(stream.token_ids) == 16 for stream in streams)
            sizes.append(resident_mib(pid))
        assert sizes[0] < 700
        assert sizes[1] < sizes[0] + 50  # a second crowd leaves nothing more behind
        assert cluster.metric("dynamo_frontend_active_requests") == 0
    assert cluster.replay()["num_decisions"] >= 2050


def test_aiperf_sees_no_error(tmp_path: Path, tiny_model: Path) -> None:
    home = tmp_path / "hf"
    revision = "0" * 40
    repository = home / "hub" / "models--local--tiny"
    shutil.copytree(tiny_model, repository / "snapshots" / revision)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(revision)
    with Cluster(
        plan(tmp_path, tiny_model, workers=2, base_ms=5.0), tmp_path / "out", "--mock"
    ) as cluster:
        for endpoint in ("completions", "chat"):
            command = [
                str(AIPERF), "profile", "-m", "tiny", "--tokenizer", "local/tiny",
                "--endpoint-type", endpoint, "-u", cluster.url, "--streaming", "--isl", "200",
                "--osl", "20", "--num-requests", "40", "--concurrency", "4",
                "--extra-inputs", "ignore_eos:true", "--use-server-token-count",
                "--ui-type", "simple", "--artifact-dir", str(tmp_path / endpoint),
            ]  # fmt: skip
            environment = os.environ | {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
            result = subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=600
            )
            assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
            lines = (tmp_path / endpoint / "profile_export.jsonl").read_text().splitlines()
            rows = [json.loads(line) for line in lines]
            assert len(rows) == 40
            assert [row["error"] for row in rows if row.get("error")] == []
        assert cluster.metric("dynamo_frontend_requests_total") >= 80
    assert cluster.replay()["num_decisions"] >= 80
