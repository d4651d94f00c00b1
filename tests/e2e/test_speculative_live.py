"""Speculative prefill of a deployment of mock workers: next turns find more of their prompts."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
from exposition import samples
from waiting import PATIENCE_S, POLL_S

from dynosim.config.loading import run_config_from_dict
from dynosim_runtime.launch.deployment import LocalDeployment
from dynosim_runtime.launch.specs import DeployOptions

BLOCK = 16
AGG = {"workers": 2}
DISAGG = {"mode": "disagg", "prefill": {"workers": 2}, "decode": {"workers": 1},
          "transfer": {"preset": "tcp", "kv_bytes_per_token": 100}}  # fmt: skip


def deployment(out: Path, cluster: dict[str, Any]) -> LocalDeployment:
    plan = {
        "workload": {"synthetic": {"requests": 1, "isl": 1, "osl": 1, "rate_rps": 1}},
        "timing": {"kind": "fixed", "prefill_ms": 1, "decode_ms": 1},
        "engine": {"num_gpu_blocks": 2000, "max_model_len": 8192, "block_size": BLOCK},
        "cluster": cluster,
        "router": {"mode": "kv"},
        "live": {"ready_timeout_s": PATIENCE_S, "metrics_namespace": "fleet"},
    }
    return LocalDeployment(
        run_config_from_dict(plan), DeployOptions(out=out, engine="mock", port=0)
    )


class Talk:
    """A session of chat turns; `cached` are the cached tokens of each prompt."""

    def __init__(self, client: httpx.AsyncClient, *, is_ahead: bool) -> None:
        self._client = client
        self._nvext = {"agent_hints": {"speculative_prefill": is_ahead}}
        self._is_ahead = is_ahead
        first = f"{'Ahead' if is_ahead else 'Plain'}: " + "tell me of the sea. " * 20
        self._messages: list[dict[str, Any]] = [{"role": "user", "content": first}]
        self.cached: list[int] = []
        self.known: list[int] = []  # how long each prompt's beginning is that the last turn left

    async def turn(self) -> None:
        body = {"model": "mock", "messages": self._messages, "max_tokens": 200,
                "nvext": self._nvext}  # fmt: skip
        answer = (await self._client.post("/v1/chat/completions", json=body)).json()
        usage = answer["usage"]
        self.cached.append(usage["prompt_tokens_details"]["cached_tokens"])
        text = answer["choices"][0]["message"]["content"]
        self.known.append(usage["prompt_tokens"] + len(text.encode()))
        self._messages += [{"role": "assistant", "content": text},
                           {"role": "user", "content": "And what else?"}]  # fmt: skip


@pytest.mark.parametrize("cluster", [AGG, pytest.param(DISAGG, marks=pytest.mark.live)])
async def test_the_next_turn_finds_the_answer_cached(
    cluster: dict[str, Any], tmp_path: Path
) -> None:
    completed = "dynosim_frontend_speculative_prefills_total{outcome=completed}"
    async with (
        deployment(tmp_path / "out", cluster) as deployed,
        httpx.AsyncClient(base_url=deployed.url, timeout=PATIENCE_S) as client,
    ):
        plain, ahead = (Talk(client, is_ahead=one) for one in (False, True))
        for number in range(3):
            await plain.turn()
            await ahead.turn()
            await _until_page_says(client, completed, number + 1)
        for number in (1, 2):
            assert plain.cached[number] < plain.known[number - 1] - BLOCK  # its prompt alone
            assert ahead.known[number - 1] - BLOCK <= ahead.cached[number]
        text = (await client.get("/metrics")).content
        assert b'dynamo_namespace="fleet"' in text and b'dynamo_namespace="dynosim"' not in text
        page = samples(text)
        assert page["dynamo_frontend_time_to_first_token_seconds_count"] == 6
        assert page["dynosim_frontend_speculative_tokens_total"] > 3 * 200 - 3 * BLOCK


async def _until_page_says(client: httpx.AsyncClient, name: str, value: float) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while samples((await client.get("/metrics")).content).get(name) != value:
            await asyncio.sleep(POLL_S)
