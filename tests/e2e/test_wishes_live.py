"""What clients ask of their placement, of a deployment of mock workers on this machine."""

import asyncio
import importlib.util
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from waiting import PATIENCE_S

from dynosim.config import RunConfig
from dynosim.config.loading import run_config_from_dict
from dynosim.errors import ConfigError
from dynosim.records import Trace, Wishes
from dynosim.routerlog.replay import replay_log
from dynosim_runtime.card import worker_id_of
from dynosim_runtime.errors import ApiError, LiveError
from dynosim_runtime.launch.deployment import LocalDeployment
from dynosim_runtime.launch.specs import DeployOptions
from dynosim_runtime.measure.client import CompletionsClient
from dynosim_runtime.measure.load import drive
from dynosim_runtime.measure.prompts import UNKNOWN_VOCABULARY, PromptMaker
from dynosim_runtime.serving.router_client import RouterClient

W = [worker_id_of(f"worker-{i}") for i in range(3)]
ZONE_B = "dynamo.topology/zone=b"


def plan(**sections: Any) -> RunConfig:
    return run_config_from_dict(
        {
            "workload": {"synthetic": {"requests": 1, "isl": 1, "osl": 1, "rate_rps": 1}},
            "timing": {"kind": "fixed", "prefill_ms": 1, "decode_ms": 1},
            "engine": {"num_gpu_blocks": 500, "max_model_len": 1024, "block_size": 16},
            "cluster": {"workers": 3, "taints": ["x"], "topology": {"zone": ["a", "b"]}},
            "router": {"mode": "kv"},
            "live": {"ready_timeout_s": PATIENCE_S, "taints": ["own"], "topology": {"row": "1"}},
            **sections,
        }
    )


async def placed_on(client: httpx.AsyncClient, nvext: dict[str, Any]) -> Any:
    body = {"model": "mock", "prompt": list(range(40)), "max_tokens": 2, "nvext": nvext}
    answer = await client.post("/v1/completions", json=body)
    if answer.status_code != 200:
        error = answer.json()["error"]
        return answer.status_code, error["param"], error["message"]
    return answer.json()["nvext"]["worker_id"]["decode_worker_id"]


@pytest.fixture
async def deployed(tmp_path: Path) -> AsyncIterator[LocalDeployment]:
    options = DeployOptions(out=tmp_path / "out", engine="mock", port=0)
    async with LocalDeployment(plan(), options) as deployment:
        yield deployment


async def test_wishes_are_obeyed_and_what_cannot_be_is_told(
    deployed: LocalDeployment,
) -> None:
    async with httpx.AsyncClient(base_url=deployed.url, timeout=PATIENCE_S) as client:
        rows = (await client.get("/workers")).json()["workers"]
        assert {row["name"]: row["taints"] for row in rows} == {
            f"worker-{i}": sorted(
                ["x", "own", "dynamo.topology/row=1", f"dynamo.topology/zone={zone}"]
            )
            for i, zone in enumerate("aba")
        }
        required = {"routing_constraints": {"required_taints": ["x", ZONE_B]}}
        assert [await placed_on(client, required) for _ in range(4)] == [W[1]] * 4
        assert await placed_on(client, {"worker_id": W[2]}) == W[2]
        repelled = {"routing_constraints": {"preferred_taints": {"dynamo.topology/zone=a": -9}}}
        assert await placed_on(client, repelled) == W[1]
        status, _, message = await placed_on(
            client, {"routing_constraints": {"required_taints": ["tpu"]}}
        )
        assert status == 503 and "no worker has the required taint 'tpu'" in message
        bad = {"router_config_override": {"temprature": 1}}
        status, param, _ = await placed_on(client, bad)
        assert (status, param) == (400, "nvext.router_config_override.temprature")
        blind = {"router_config_override": {"router_temperature": 1e6}}
        found = [await placed_on(client, blind) for _ in range(40)]
        assert set(found) == set(W)

    # The same wishes as rows of a trace have them, sent by the load generator.
    wishes = (Wishes(worker_id=2), Wishes(required_taints=(ZONE_B,)), None)
    trace = Trace(
        np.zeros(3), np.full(3, 20), np.full(3, 2), np.zeros(0, np.int64), np.zeros(4, np.int64),
        16, wishes=wishes,
    )  # fmt: skip
    async with CompletionsClient(deployed.url) as loadgen:
        run = await drive(trace, loadgen, PromptMaker(UNKNOWN_VOCABULARY))
    assert [record.status for record in run.records] == ["completed"] * 3
    assert [record.decode_worker_id for record in run.records[:2]] == [W[2], W[1]]

    await asyncio.sleep(0)
    await deployed.stop()
    log = deployed.out / "router"
    verdict = replay_log(log)
    assert verdict.is_equal and verdict.num_decisions >= 40
    lines = [json.loads(line) for file in sorted(log.iterdir()) for line in file.open()]
    asked = [line[2] for line in lines if isinstance(line, list) and line[0] == "arrive"]
    temperatures = [one["overrides"]["temperature"] for one in asked if "overrides" in one]
    assert temperatures == [1e6] * 40


def strategy(root: Path) -> Any:
    spec = importlib.util.spec_from_file_location("own", root / "examples" / "own_strategy.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


async def test_a_strategy_of_ones_own_routes_over_a_live_deployment(
    deployed: LocalDeployment, root: Path, tmp_path: Path
) -> None:
    own = strategy(root)
    discovery = f"file:{deployed.out / 'discovery'}"
    log = tmp_path / "mine"
    async with RouterClient(plan(), discovery=discovery, out=log) as router:
        await router.wait_for_workers(3, PATIENCE_S)
        assert sorted(router.worker_ids) == sorted(W)
        prompt = list(range(100))

        # Served where it is asked for; the router learns from the worker's events what it has.
        tokens = []
        async for delta in router.generate(prompt, "mock", worker_id=W[2], max_tokens=5):
            tokens += delta.token_ids
        assert len(tokens) == 5
        loop = asyncio.get_running_loop()
        deadline = loop.time() + PATIENCE_S
        while (await router.best_worker(prompt))[2] < 6 and loop.time() < deadline:
            await asyncio.sleep(0.05)
        assert await router.best_worker(prompt) == (W[2], 0, 6)
        assert await own.choose(router, prompt) == W[2]
        assert len(await own.answer(router, prompt)) == 8

        # A question books nothing, a named one does until it is freed.
        before = await router.get_potential_loads(prompt)
        await router.best_worker(prompt, request_id="asked", update_states=False)
        assert await router.get_potential_loads(prompt) == before
        assert (await router.best_worker(prompt, request_id="mine"))[0] == W[2]
        held = {row["worker_id"]: row for row in await router.get_potential_loads(prompt)}
        was = {row["worker_id"]: row for row in before}
        more = "potential_prefill_tokens"
        assert held[W[2]][more] > was[W[2]][more] and held[W[0]] == was[W[0]]
        await router.mark_prefill_complete("mine")
        done = {row["worker_id"]: row for row in await router.get_potential_loads(prompt)}
        assert done[W[2]][more] == was[W[2]][more]
        await router.free("mine")
        assert await router.get_potential_loads(prompt) == before

        # What cannot be is told, and nothing is left behind.
        with pytest.raises(ConfigError, match=r"override\.temprature: unknown key"):
            await router.best_worker(prompt, {"temprature": 1})
        with pytest.raises(ConfigError, match="the workers serve 'mock'"):
            [delta async for delta in router.generate(prompt, "other")]
        with pytest.raises(ConfigError, match="unknown field 'temperature'"):
            [delta async for delta in router.generate(prompt, temperature=1.0)]
        with pytest.raises(ApiError, match="there is no worker 7"):
            [delta async for delta in router.generate(prompt, worker_id=7)]
        required = {"required_taints": (ZONE_B,)}
        unknown = list(range(500, 600))  # whatever is served: nobody has any of it
        idle = await router.get_potential_loads(unknown)
        picked = router.generate(prompt, max_tokens=200, request_id="cut", **required)
        assert (await anext(picked)).token_ids
        assert await router.get_potential_loads(unknown) != idle
        await picked.aclose()  # cancelled
        assert await router.get_potential_loads(unknown) == idle
    with pytest.raises(LiveError, match="not open"):
        await router.best_worker(prompt)
    assert replay_log(log / "router").is_equal
