"""A controller and real mock workers: up and down under load, a crash, a silent frontend."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from deploy_support import Scaled, busy_until, complete, scaled
from live_scaling_support import PLANNER
from waiting import PATIENCE_S, is_running, until, wait_until

from dynosim.decisionlog.replay import replay_decisions

STEADY = {**PLANNER, "decode_scale_down_kv_rate": 15, "decode_scale_up_kv_rate": 40}


def _assert_replays(out: Path) -> None:
    verdict = replay_decisions(out / "decisions")
    assert verdict.is_equal and verdict.num_decisions > 3


async def _trickle(client: httpx.AsyncClient, is_over: asyncio.Event) -> set[int]:
    """Two requests at any time, which whoever is drained has some of: one worker's work."""

    async def ask(number: int) -> set[int]:
        statuses = set()
        while not is_over.is_set():
            statuses.add(await complete(client, number, 60))
        return statuses

    return set().union(*await asyncio.gather(ask(50), ask(51)))


def test_a_load_step_goes_up_to_three_and_back_under_traffic_without_a_failure(
    tmp_path: Path,
) -> None:
    async def load(deployed: Scaled) -> set[int]:
        is_over = asyncio.Event()
        async with httpx.AsyncClient(base_url=deployed.url, timeout=PATIENCE_S) as client:
            trickle = asyncio.create_task(_trickle(client, is_over))
            statuses = await busy_until(
                deployed, lambda: len(deployed.ready()) == 3, num_clients=40, max_tokens=300
            )
            await until(lambda: len(deployed.pids()) == 2, poll_s=0.1)
            is_over.set()
            return statuses | await trickle

    with scaled(tmp_path, planner=STEADY) as deployed:
        assert asyncio.run(load(deployed)) == {200}
        wait_until(lambda: deployed.sizes()[-1] == 1)
        sizes = deployed.sizes()
        assert sizes[0] == 1 and max(sizes) == 3
        assert all(abs(now - before) == 1 for before, now in pairwise(sizes))
        pids = deployed.pids()
    assert not [name for name, pid in pids.items() if is_running(pid)]
    _assert_replays(tmp_path / "out")


def test_a_crash_is_neither_scaled_nor_fought_over(tmp_path: Path) -> None:
    """The worker comes back by its supervision; meanwhile the planner sees it start, and holds."""
    calm = {**PLANNER, "min_endpoint": 2}
    with scaled(tmp_path, planner=calm, cluster={"workers": 2}) as deployed:
        wait_until(lambda: len(deployed.looks()) > 3)
        os.kill(deployed.pids()["worker-1"], signal.SIGKILL)
        wait_until(lambda: _restarts(deployed, "worker-1") == 1)
        wait_until(lambda: len(deployed.ready()) == 2)
        seen = len(deployed.looks())
        wait_until(lambda: len(deployed.looks()) > seen + 3)
        assert sorted(deployed.pids()) == ["frontend", "worker-0", "worker-1"]
        assert set(deployed.sizes()) == {2}
        pools = [look["seen"]["pools"][0] for look in deployed.looks()]
        verdicts = [look["decision"]["pools"][0]["verdict"] for look in deployed.looks()]
        phases = [[(one["worker_id"], one["phase"]) for one in pool["workers"]] for pool in pools]
        assert [(0, "ready"), (2, "starting")] in phases, "the second life of worker-1"
        assert phases[-1] == [(0, "ready"), (2, "ready")]
        assert "scaling_in_progress" in verdicts
    _assert_replays(tmp_path / "out")


def test_a_silent_frontend_makes_the_planner_hold(tmp_path: Path) -> None:
    sla: dict[str, Any] = {
        "optimization_target": "sla", "ttft_ms": 2000, "itl_ms": 60, "max_endpoint": 3,
        "throughput_adjustment_interval_ms": 1000, "max_metric_age_ms": 2000,
    }  # fmt: skip
    with scaled(tmp_path, planner=sla) as deployed:
        frontend = deployed.pids()["frontend"]
        wait_until(
            lambda: len(_verdicts(deployed)) > 2 and _verdicts(deployed)[-1] != "metrics_stale"
        )
        os.kill(frontend, signal.SIGSTOP)
        try:
            wait_until(lambda: _verdicts(deployed)[-1] == "metrics_stale")
        finally:
            os.kill(frontend, signal.SIGCONT)
        assert set(deployed.sizes()) == {1}
        wait_until(lambda: _verdicts(deployed)[-1] != "metrics_stale")
    _assert_replays(tmp_path / "out")


def test_an_adviser_sees_the_same_and_changes_nothing(tmp_path: Path) -> None:
    with scaled(tmp_path, planner={**PLANNER, "advisory": True}) as deployed:
        plan, out = deployed.out / "plan" / "config.yaml", tmp_path / "advice"
        adviser = subprocess.Popen(
            [sys.executable, "-m", "dynosim", "serve", "planner", str(plan), "--url", deployed.url,
             "--discovery", f"file:{deployed.out / 'discovery'}", "--out", str(out)],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        advice: list[str] = []
        reading = threading.Thread(target=lambda: advice.extend(adviser.stdout or ()))
        try:
            reading.start()
            both_say_two = busy_until(
                deployed,
                lambda: _advises(advice, "scale_up") and 2 in deployed.sizes(),
                num_clients=16,
                max_tokens=200,
            )
            assert asyncio.run(both_say_two) == {200}
        finally:
            adviser.terminate()
            reading.join()
            adviser.wait(PATIENCE_S)
        assert adviser.returncode == 0
        assert sorted(deployed.pids()) == ["frontend", "worker-0"]
    assert replay_decisions(out).is_equal
    _assert_replays(tmp_path / "out")


def test_prefill_and_decode_workers_are_scaled_each_by_itself(tmp_path: Path) -> None:
    planner = {
        **PLANNER, "prefill_scale_up_queue_tokens": 100, "prefill_scale_down_queue_tokens": 10,
    }  # fmt: skip
    cluster = {
        "mode": "disagg", "prefill": {"workers": 1}, "decode": {"workers": 1},
        "transfer": {"preset": "ib", "kv_bytes_per_token": 1000},
    }  # fmt: skip

    with scaled(tmp_path, planner=planner, cluster=cluster) as deployed:
        another_comes = busy_until(
            deployed, lambda: "decode-1" in deployed.ready(), num_clients=30, max_tokens=300
        )
        assert asyncio.run(another_comes) == {200}
        wait_until(lambda: len(deployed.pids()) == 3)
    _assert_replays(tmp_path / "out")


AUTOSCALERS: dict[str, dict[str, Any]] = {
    "hpa": {
        "metric": "pending_requests", "target": 4, "max_replicas": 3, "sync_ms": 500,
        "scale_down_window_ms": 1000,
    },
    "keda": {
        "triggers": [{"metric": "pending_requests", "target": 4}], "min_replicas": 1,
        "max_replicas": 3, "poll_ms": 500, "sync_ms": 500, "scale_down": {"window_ms": 1000},
    },
    "concurrency": {
        "target": 8, "min_replicas": 1, "max_replicas": 3, "tick_ms": 500, "stable_ms": 5000,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", AUTOSCALERS)
def test_an_autoscaler_scales_by_what_the_frontend_tells(name: str, tmp_path: Path) -> None:
    with scaled(tmp_path, planner=None, **{name: AUTOSCALERS[name]}) as deployed:
        two_come = busy_until(
            deployed, lambda: len(deployed.ready()) == 3, num_clients=40, max_tokens=200
        )
        assert asyncio.run(two_come) == {200}
        wait_until(lambda: len(deployed.pids()) == 2)
        assert deployed.status()["control"]["controller"] == name
    _assert_replays(tmp_path / "out")


def _advises(advice: list[str], verdict: str) -> bool:
    looks = [json.loads(line)["pools"] for line in advice]
    return any(pools and pools[0]["verdict"] == verdict for pools in looks)


def _verdicts(deployed: Scaled) -> list[str]:
    return [look["decision"]["pools"][0]["verdict"] for look in deployed.looks()]


def _restarts(deployed: Scaled, name: str) -> int:
    rows = deployed.status()["processes"]
    return next(int(row["restarts"]) for row in rows if row["name"] == name)
