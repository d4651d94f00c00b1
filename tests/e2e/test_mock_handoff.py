"""Mock prefill and decode workers: KV over modelled links, in real time and over HTTP."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from waiting import PATIENCE_S, until

from dynosim.config import RunConfig
from dynosim_runtime.card import LiveCard
from dynosim_runtime.clients.base import EngineFailedError, EngineRefusedError, EngineRequest
from dynosim_runtime.clients.connections import Connections
from dynosim_runtime.clients.openai import OpenAiEngineClient
from dynosim_runtime.mock.links import handoff_cost
from dynosim_runtime.mock.worker import MockWorker, mock_exchange
from dynosim_runtime.requests import Sampling
from dynosim_runtime.serving.handoff_stream import HOLD_KV

PROMPT = list(range(3, 203))
BYTES_PER_TOKEN = 100_000


def plan(**cluster: Any) -> RunConfig:
    return RunConfig.of(
        {
            "workload": {"synthetic": {"requests": 1, "isl": 100, "osl": 10, "rate_rps": 1}},
            "engine": {"block_size": 16, "num_gpu_blocks": 200, "max_model_len": 1024},
            "timing": {"kind": "linear", "base_ms": 5.0, "per_prefill_token_ms": 0.05},
            "cluster": {
                "mode": "disagg",
                "transfer": {
                    "bandwidth_gb_s": 0.1,
                    "handshake_ms": 50,
                    "kv_bytes_per_token": BYTES_PER_TOKEN,
                },
                **cluster,
            },
        }
    )


class Pair:
    """A prefill and a decode worker, and a client of both."""

    def __init__(self, config: RunConfig, speedup: float) -> None:
        self.prefill, self.decode = (
            MockWorker(config.for_pool(role), speedup=speedup, exchange=mock_exchange(config, role))
            for role in ("prefill", "decode")
        )
        self.client = OpenAiEngineClient(Connections())

    async def prefilled(self, name: str = "r", prompt: list[int] = PROMPT) -> dict[str, Any]:
        asked = request(name, prompt, 1, HOLD_KV)
        return (await self.client.prefill(self.prefill_card, asked)).kv_transfer_params

    async def answer(
        self, params: dict[str, Any] | None, name: str = "r", prompt: list[int] = PROMPT
    ) -> tuple[list[int], float | None]:
        """The tokens, and the time that the KV took."""
        tokens, transfer_ms = [], None
        async for delta in self.client.stream(self.decode_card, request(name, prompt, 8, params)):
            tokens += delta.token_ids
            transfer_ms = transfer_ms or delta.transfer_ms
        return tokens, transfer_ms

    async def source_is_idle(self) -> None:
        """Returns once the prefill worker holds nothing."""
        await until(lambda: not self.prefill.engine.core.used_blocks)


def request(
    name: str, prompt: list[int], max_tokens: int, params: dict[str, Any] | None
) -> EngineRequest:
    sampling = Sampling(max_tokens=max_tokens, temperature=0.0)
    return EngineRequest(
        request_id=name, token_ids=prompt, sampling=sampling, kv_transfer_params=params
    )


@asynccontextmanager
async def pair(*, speedup: float = 1.0, **cluster: Any) -> AsyncIterator[Pair]:
    workers = Pair(plan(**cluster), speedup)
    for role in ("prefill", "decode"):
        endpoint = await getattr(workers, role).start()
        card = LiveCard(
            worker_id=1, name=role, engine="mock", url=endpoint.url, model=endpoint.model,
            block_size=16, max_model_len=1024,
        )  # fmt: skip
        setattr(workers, f"{role}_card", card)
    try:
        async with asyncio.timeout(PATIENCE_S):
            yield workers
    finally:
        await workers.client.close()
        await workers.prefill.stop(0.0)
        await workers.decode.stop(0.0)


async def test_kv_comes_in_the_time_that_the_links_take() -> None:
    async with pair() as workers:
        params = await workers.prefilled()
        assert params["remote_num_tokens"] == len(PROMPT)
        assert workers.prefill.engine.core.used_blocks == 13
        tokens, transfer_ms = await workers.answer(params)
        await workers.source_is_idle()
        alone, _ = await workers.answer(None, "alone")
        assert tokens == alone
        cost = handoff_cost(plan())
        moved = 13 * 16
        assert transfer_ms == pytest.approx(cost.unloaded_ms(moved, is_first=True))
        assert transfer_ms == pytest.approx(50 + moved * BYTES_PER_TOKEN / 1e5, abs=0.5)
        sequence_hits = workers.decode.engine.stats.prefix_hits
        # the same again: what is cached here is not moved, and the pair has met
        _, again_ms = await workers.answer(await workers.prefilled("again"), "again")
        assert again_ms == pytest.approx(cost.unloaded_ms(16))
        assert workers.decode.engine.stats.prefix_hits > sequence_hits
        await workers.source_is_idle()


async def test_transfers_to_one_worker_share_its_link() -> None:
    async with pair() as workers:
        prompts = [[token + 1000 * i for token in PROMPT] for i in range(3)]
        warm = await workers.prefilled("warm", [7] * 16)
        await workers.answer(warm, "warm", [7] * 16)
        params = [await workers.prefilled(f"r{i}", prompts[i]) for i in range(3)]
        clock = workers.decode._clock
        with pytest.MonkeyPatch.context() as patch:
            now_ms = clock.now_ms()
            patch.setattr(clock, "now_ms", lambda: now_ms)  # nothing ends before all have begun
            answering = asyncio.gather(
                *(workers.answer(params[i], f"r{i}", prompts[i]) for i in range(3))
            )
            await until(lambda: len(workers.decode.engine.moving) == 3)
        alone_ms = handoff_cost(plan()).unloaded_ms(13 * 16)
        for _, transfer_ms in await answering:
            assert transfer_ms == pytest.approx(3 * alone_ms, rel=0.01)


@pytest.mark.parametrize("policy", ["fail", "recompute"])
async def test_a_source_that_is_lost_while_its_kv_moves(policy: str) -> None:
    slow = {"bandwidth_gb_s": 0.001, "kv_bytes_per_token": BYTES_PER_TOKEN}
    async with pair(transfer=slow, handoff={"load_failure_policy": policy}) as workers:
        params = await workers.prefilled()
        answering = asyncio.ensure_future(workers.answer(params))
        await until(lambda: bool(workers.decode.engine.moving))
        await workers.prefill.stop(0.0)
        if policy == "fail":
            with pytest.raises(EngineFailedError, match="the KV of this request was lost"):
                await answering
        else:
            assert (await answering)[0] == (await workers.answer(None, "alone"))[0]
        assert workers.decode.engine.stats.num_failed_transfers == 1
        assert workers.decode.engine.core.used_blocks == 0


async def test_kv_that_nobody_takes_goes_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dynosim_runtime.mock.held_kv.KV_LEASE_S", 0.05)
    async with pair() as workers:
        params = await workers.prefilled()
        await workers.source_is_idle()
        with pytest.raises(EngineFailedError):
            await workers.answer(params)


async def test_a_refused_decode_request_lets_go() -> None:
    async with pair() as workers:
        await workers.client.release(workers.decode_card, await workers.prefilled())
        await workers.source_is_idle()


async def test_a_client_that_leaves_lets_go() -> None:
    async with pair(transfer={"bandwidth_gb_s": 0.001, "kv_bytes_per_token": 1000}) as workers:
        answering = asyncio.ensure_future(workers.answer(await workers.prefilled()))
        await until(lambda: bool(workers.decode.engine.moving))
        answering.cancel()
        await workers.source_is_idle()
        await until(lambda: not workers.decode.engine.core.used_blocks)


async def test_workers_that_serve_whole_requests_hand_nothing_over() -> None:
    async with pair() as workers:
        params = await workers.prefilled()
        with pytest.raises(EngineRefusedError, match="takes no KV from others"):
            asked = request("x", PROMPT, 1, params)
            async for _ in workers.client.stream(workers.prefill_card, asked):
                pass
        with pytest.raises(EngineRefusedError, match="gives no KV to others"):
            await workers.client.prefill(workers.decode_card, request("y", PROMPT, 1, HOLD_KV))
