"""What a frontend's pages say after a known exchange: every figure, worked out by hand."""

import asyncio
from typing import Any

import httpx
import pytest
from exposition import histogram, samples
from live_support import BLOCK, MODEL, Inside, ScriptedEngine, card, request
from virtual_time import in_virtual_time, let_others_run, loop_clock, now_ms, now_s

from dynosim.planner.frontend_metrics import (
    DURATION_BUCKETS,
    ITL_BUCKETS,
    TOKEN_BUCKETS,
    TTFT_BUCKETS,
)
from dynosim.router.classes import PolicyClass
from dynosim.router.knobs import RouterSpec
from dynosim_runtime.card import worker_id_of
from dynosim_runtime.http.app import create_app
from dynosim_runtime.http.registry import ModelRegistry
from dynosim_runtime.serving.gauges import observe_frontend, status_routes
from dynosim_runtime.tokenize.byte_tokenizer import ByteTokenizer

PROMPT = list(range(10, 20))
CHAT_TOKENS = (1 + 7 + 1 + 1) + (1 + 10)  # start, "user\nhi", end, "\n"; start, "assistant\n"
RESPONSE_TOKENS = CHAT_TOKENS + 1  # "hi!"


class Served:
    """The frontend of an `Inside`, in this process."""

    def __init__(self, inside: Inside) -> None:
        self.inside = inside
        dispatcher = inside.dispatcher
        models = ModelRegistry()
        models.add(MODEL, ByteTokenizer(), 4096)
        observe_frontend(inside.metrics, dispatcher, [inside.pool])
        app = create_app(
            dispatcher,
            models,
            metrics=inside.metrics,
            extra_routes=status_routes(inside.metrics, [inside.pool]),
        )
        transport = httpx.ASGITransport(app)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://x", timeout=None)

    async def ask(self, path: str, status: int = 200, **fields: Any) -> Any:
        body = {"model": MODEL, **fields}
        answer = await self.client.post(f"/v1/{path}", json=body)
        assert answer.status_code == status, answer.text
        return answer

    async def page(self) -> dict[str, float]:
        answer = await self.client.get("/metrics")
        assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert f'dynamo_namespace="test",model="{MODEL}"' in answer.text
        return samples(answer.content)

    async def workers(self) -> Any:
        return (await self.client.get("/workers")).json()


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("http.routes_generate", "serving.dispatcher"):
        monkeypatch.setattr(f"dynosim_runtime.{module}.time", loop_clock)


KV_GAUGES = ("events", "malformed", "gaps", "replays", "cleared", "failures", "streams_failing")


def idle_gauges(num_workers: int, index_blocks: int) -> dict[str, float]:
    stages = ("preprocess", "route", "dispatch")
    return {
        "dynamo_frontend_active_requests": 0,
        **{f"dynamo_frontend_stage_requests{{phase=,stage={stage}}}": 0 for stage in stages},
        "dynosim_workers": num_workers,
        "dynosim_workers_fenced": 0,
        "dynosim_router_queued_requests": 0,
        "dynosim_router_index_blocks": index_blocks,
        **{f"dynosim_kv_{name}": 0 for name in KV_GAUGES},
    }


@in_virtual_time
async def test_a_page_that_nobody_has_used_yet_is_all_zeros() -> None:
    page = await Served(Inside(ScriptedEngine(), now_ms=now_ms)).page()
    assert set(page.values()) == {0.0}


@in_virtual_time
async def test_every_figure_after_an_exchange() -> None:
    never = 99
    engine = ScriptedEngine(
        pieces=[(1.0, 1)], cached_tokens=4, deaths=[never, never, 1, never, never]
    )
    inside = Inside(engine, "a", "b", now_ms=now_ms)
    for name in ("a", "b"):
        inside.caches(name, PROMPT)  # 2 full blocks of 4 tokens
    served = Served(inside)
    await served.ask("completions", prompt=PROMPT, n=2, max_tokens=3)  # both at 1, 2, 3 s
    assert now_s() == 3.0
    hello = [{"role": "user", "content": "hi"}]
    # Moves after its token: at 1 and 2 s.
    await served.ask("chat/completions", messages=hello, max_tokens=2, stream=True)
    assert now_s() == 5.0
    await served.ask("completions", 400, prompt=PROMPT, max_tokens=2, min_tokens=3)
    await served.ask("completions", 404, prompt=PROMPT, model="other")  # no model's: not counted
    await served.ask("completions", 400, prompt=7)  # nor what is no request
    leaves = asyncio.create_task(served.ask("responses", input="hi!", max_output_tokens=9))
    await asyncio.sleep(2.5)
    leaves.cancel()  # after 2 tokens
    await asyncio.gather(leaves, return_exceptions=True)

    http = "dynamo_frontend_requests_total"
    ended = "dynosim_frontend_generations_total"
    prompts = [10, 10, CHAT_TOKENS, RESPONSE_TOKENS]
    expected = {
        f"{http}{{endpoint=completions,request_type=unary,status=success}}": 1,
        f"{http}{{endpoint=chat_completions,request_type=stream,status=success}}": 1,
        f"{http}{{endpoint=completions,request_type=unary,status=error}}": 1,
        f"{http}{{endpoint=responses,request_type=unary,status=cancelled}}": 1,
        f"{ended}{{outcome=completed}}": 3,
        f"{ended}{{outcome=cancelled}}": 1,
        **histogram("dynamo_frontend_time_to_first_token_seconds", TTFT_BUCKETS, [1.0] * 4),
        **histogram(
            "dynamo_frontend_inter_token_latency_seconds", ITL_BUCKETS, [1.0] * (2 + 2 + 1 + 1)
        ),
        **histogram(
            "dynamo_frontend_request_duration_seconds", DURATION_BUCKETS, [3.0, 2.0, 0.0, 2.5]
        ),
        **histogram("dynamo_frontend_input_sequence_tokens", TOKEN_BUCKETS, prompts),
        **histogram("dynamo_frontend_output_sequence_tokens", TOKEN_BUCKETS, [3, 3, 2, 2]),
        **histogram("dynosim_router_wait_seconds", TTFT_BUCKETS, [0.0] * 4),
        "dynosim_router_cached_tokens_total": 8 + 8,
        "dynosim_engine_cached_tokens_total": 4 + 4 + 4,  # told at the end only
        "dynosim_frontend_prompt_tokens_total": sum(prompts),
        "dynosim_frontend_migrations_total": 1,
        "dynosim_frontend_speculative_tokens_total": 0,
        **idle_gauges(num_workers=2, index_blocks=4),
    }
    assert await served.page() == expected


@in_virtual_time
async def test_what_is_under_way_shows_where_it_is() -> None:
    settings = RouterSpec(BLOCK, mode="kv", classes=(PolicyClass(prefill_busy_threshold=1),))
    engine = ScriptedEngine(hangs={"a"})
    inside = Inside(engine, "a", settings=settings, now_ms=now_ms)
    served = Served(inside)
    asking = [
        asyncio.create_task(served.ask("completions", prompt=PROMPT, max_tokens=3))
        for _ in range(3)
    ]
    await let_others_run(50)
    page = await served.page()
    shown = {
        name.removeprefix("dynamo_frontend_").removeprefix("dynosim_"): value
        for name, value in page.items()
        if name in idle_gauges(0, 0)
    }
    assert shown == {
        "active_requests": 3,
        "stage_requests{phase=,stage=preprocess}": 0,
        "stage_requests{phase=,stage=route}": 2,
        "stage_requests{phase=,stage=dispatch}": 1,
        "workers": 1,
        "workers_fenced": 0,
        "router_queued_requests": 2,
        "router_index_blocks": 0,
        **{f"kv_{name}": 0 for name in KV_GAUGES},
    }
    for task in asking:
        task.cancel()
    await asyncio.gather(*asking, return_exceptions=True)
    page = await served.page()
    assert {name: page[name] for name in idle_gauges(1, 0)} == idle_gauges(1, 0)


@in_virtual_time
async def test_workers_are_listed_with_what_they_have_in_hand() -> None:
    inside = Inside(ScriptedEngine(hangs={"a", "b"}), now_ms=now_ms)
    inside.show(
        card("a", dp_size=2, total_kv_blocks=700),
        card("b", engine="vllm", total_kv_blocks=None, url="http://h:1"),
    )
    started = [
        await inside.dispatcher.start(request(name, worker_id=worker_id_of("a"), dp_rank=rank))
        for name, rank in (("1", 0), ("2", 1), ("3", 1))
    ]
    served = Served(inside)
    page = await served.workers()
    idle = {
        "active_requests": 0,
        "active_blocks": 0,
        "is_draining": False,
        "block_size": BLOCK,
        "speedup": 1.0,
        "taints": [],
    }
    assert page == {
        "num_fenced": 0,
        "workers": [
            {
                **idle,
                "worker_id": worker_id_of("a"),
                "name": "a",
                "engine": "mock",
                "url": "http://a",
                "role": "agg",
                "total_kv_blocks": 700,
                "active_requests": 3,
                "active_blocks": 2 + 2,  # both of rank 1 have the same prompt of 2 full blocks
            },
            {
                **idle,
                "worker_id": worker_id_of("b"),
                "name": "b",
                "engine": "vllm",
                "url": "http://h:1",
                "role": "agg",
                "total_kv_blocks": None,
            },
        ],
    }
    inside.show(card("a", dp_size=2, total_kv_blocks=700, is_draining=True))
    [row] = (await served.workers())["workers"]
    assert (row["name"], row["is_draining"], row["active_requests"]) == ("a", True, 0)
    for stream in started:
        await stream.aclose()
