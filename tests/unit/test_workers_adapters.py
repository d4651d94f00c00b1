"""Command lines of real engines, and what is read from their pages.

The vLLM page is an excerpt of what vLLM 0.32 answered; the others are made by hand from
documentation.
"""

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web
from aiohttp.test_utils import TestServer

from dynosim.config import RunConfig, run_config_from_dict
from dynosim.config.live import LiveConfig
from dynosim.indexer.wire import to_block_event
from dynosim_runtime.adapters.base import EngineAdapter, EngineFacts, LaunchSpec
from dynosim_runtime.adapters.engine_http import EngineCallError, EngineHttp
from dynosim_runtime.adapters.metrics import EngineLoad, parse_load
from dynosim_runtime.adapters.sglang import SglangAdapter
from dynosim_runtime.adapters.trtllm import TrtllmAdapter
from dynosim_runtime.adapters.trtllm_events import TrtllmEvents
from dynosim_runtime.adapters.vllm import VllmAdapter, cpu_dtype
from dynosim_runtime.card import EventSource
from dynosim_runtime.worker.served import start_of

VLLM_PAGE = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="tiny"} 3.0
# HELP vllm:num_requests_waiting Number of requests waiting to be processed.
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="tiny"} 2.0
# TYPE vllm:num_requests_waiting_by_reason gauge
vllm:num_requests_waiting_by_reason{engine="0",model_name="tiny",reason="capacity"} 2.0
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="tiny"} 0.25
# TYPE vllm:prefix_cache_queries_total counter
vllm:prefix_cache_queries_total{engine="0",model_name="tiny"} 420.0
# TYPE vllm:prefix_cache_queries_created gauge
vllm:prefix_cache_queries_created{engine="0",model_name="tiny"} 1.7956294609218488e+09
# TYPE vllm:prefix_cache_hits_total counter
vllm:prefix_cache_hits_total{engine="0",model_name="tiny"} 96.0
# TYPE vllm:num_preemptions_total counter
vllm:num_preemptions_total{engine="0",model_name="tiny"} 1.0
# TYPE vllm:cache_config_info gauge
vllm:cache_config_info{block_size="32",engine="0",num_cpu_blocks="None",num_gpu_blocks="65"} 1.0
"""
SGLANG_PAGE = """\
# TYPE sglang:num_running_reqs gauge
sglang:num_running_reqs{model_name="m"} 7.0
# TYPE sglang:num_queue_reqs gauge
sglang:num_queue_reqs{model_name="m"} 1.0
# TYPE sglang:token_usage gauge
sglang:token_usage{model_name="m"} 0.5
# TYPE sglang:prompt_tokens_total counter
sglang:prompt_tokens_total{model_name="m"} 8000.0
# TYPE sglang:cached_tokens_total counter
sglang:cached_tokens_total{model_name="m"} 2000.0
"""
TRTLLM_PAGE = """\
# TYPE trtllm_num_requests_running gauge
trtllm_num_requests_running{model_name="m"} 4.0
# TYPE trtllm_num_requests_waiting gauge
trtllm_num_requests_waiting{model_name="m"} 0.0
# TYPE trtllm_kv_cache_utilization gauge
trtllm_kv_cache_utilization{model_name="m"} 0.125
"""


def plan(**engine: Any) -> RunConfig:
    """A plan with these engine settings."""
    values = {"num_gpu_blocks": 101, "max_model_len": 1000, **engine}
    return run_config_from_dict(
        {
            "workload": {"synthetic": {"requests": 1, "isl": 8, "osl": 1, "rate_rps": 1.0}},
            "model": "Qwen/Qwen3-32B",
            "hardware": "h200_sxm",
            "engine": values,
            "timing": {"kind": "polynomial"},
        }
    )


def settings_of(scratch: Path, run: RunConfig) -> LaunchSpec:
    events = EventSource(endpoint="ipc:///s/events", replay_endpoint="ipc:///s/replay")
    return LaunchSpec(
        plan=run,
        model="/models/m",
        served_model_name="org/m",
        host="127.0.0.1",
        port=8123,
        python=Path("/env/bin/python"),
        event_sources=(events,),
        scratch=scratch,
    )


def options_of(adapter: EngineAdapter, scratch: Path, **engine: Any) -> dict[str, str]:
    """The command line's options; "" for switches."""
    settings = settings_of(scratch, plan(**engine))
    words = adapter.command(settings)
    assert words[:2] == ["/env/bin/python", "-m"]
    options: dict[str, str] = {}
    for word, following in zip(words[3:], [*words[4:], "--"], strict=True):
        if word.startswith("--"):
            options[word] = "" if following.startswith("--") else following
    return options


def test_vllm_is_told_all_that_the_twin_assumes(tmp_path: Path) -> None:
    options = options_of(VllmAdapter(), tmp_path, tensor_parallel=2, kv_cache_dtype="fp8")
    events = json.loads(options.pop("--kv-events-config"))
    assert (events["endpoint"], events["replay_endpoint"]) == ("ipc:///s/events", "ipc:///s/replay")
    assert events["enable_kv_cache_events"] is True
    assert options == {
        "--host": "127.0.0.1",
        "--port": "8123",
        "--model": "/models/m",
        "--served-model-name": "org/m",
        "--max-model-len": "1000",
        "--generation-config": "vllm",
        "--enable-prompt-tokens-details": "",
        "--disable-uvicorn-access-log": "",
        "--max-num-seqs": "256",
        "--max-num-batched-tokens": "8192",
        "--scheduling-policy": "fcfs",
        "--enable-chunked-prefill": "",
        "--async-scheduling": "",
        "--block-size": "16",
        "--enable-prefix-caching": "",
        "--num-gpu-blocks-override": "101",
        "--kv-cache-dtype": "fp8",
        "--tensor-parallel-size": "2",
        "--gpu-memory-utilization": "0.92",
    }


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ({"num_gpu_blocks": "auto"}, {"--num-gpu-blocks-override": None}),
        ({"enable_prefix_caching": False}, {"--no-enable-prefix-caching": ""}),
        ({"enable_chunked_prefill": False}, {"--no-enable-chunked-prefill": ""}),
        ({"policy": "priority"}, {"--scheduling-policy": "priority"}),
        ({"async_scheduling": False}, {"--async-scheduling": None, "--no-async-scheduling": ""}),
        ({"long_prefill_token_threshold": 64}, {"--long-prefill-token-threshold": "64"}),
        ({"watermark": 0.01}, {"--watermark": "0.01"}),
        ({"scheduler_reserve_full_isl": False}, {"--no-scheduler-reserve-full-isl": ""}),
        ({"max_num_active_seqs": 8}, {"--max-num-active-seqs": "8"}),
        ({"quantization": "fp8"}, {"--quantization": "fp8"}),
    ],
)
def test_a_setting_of_the_plan_is_a_flag_of_vllm(
    tmp_path: Path, setting: dict[str, Any], expected: dict[str, str | None]
) -> None:
    options = options_of(VllmAdapter(), tmp_path, **setting)
    assert {name: options.get(name) for name in expected} == expected


def test_vllm_on_a_cpu_runs_eagerly_and_needs_no_gpu_flags(tmp_path: Path) -> None:
    options = options_of(VllmAdapter(on_cpu=True), tmp_path, block_size=32)
    assert options["--enforce-eager"] == ""
    assert options["--distributed-executor-backend"] == "uni"
    assert not {"--tensor-parallel-size", "--gpu-memory-utilization"} & set(options)


@pytest.mark.parametrize(
    ("flags", "dtype"), [("fpu avx2", "float32"), ("avx2 avx512_bf16", "bfloat16")]
)
def test_a_cpu_computes_in_what_it_has_instructions_for(
    tmp_path: Path, flags: str, dtype: str
) -> None:
    cpu_info = tmp_path / "cpuinfo"
    cpu_info.write_text(f"processor: 0\nflags : {flags}\n")
    assert cpu_dtype(cpu_info) == dtype
    assert cpu_dtype(tmp_path / "nothing") == "bfloat16"


def test_words_and_variables_of_the_plan_come_last(tmp_path: Path) -> None:
    live = LiveConfig(engine_args=("--dtype", "half"), engine_env={"OMP_NUM_THREADS": "7"})
    run = plan(block_size=32).model_copy(update={"live": live})
    command, environment = start_of(VllmAdapter(on_cpu=True), settings_of(tmp_path, run))
    assert command[-2:] == ["--dtype", "half"]
    assert environment["OMP_NUM_THREADS"] == "7"


def test_sglang_gets_the_plan_in_its_words(tmp_path: Path) -> None:
    options = options_of(
        SglangAdapter(), tmp_path, policy="priority", enable_prefix_caching=True, block_size=64
    )
    assert json.loads(options["--kv-events-config"]) == {
        "publisher": "zmq",
        "endpoint": "ipc:///s/events",
        "replay_endpoint": "ipc:///s/replay",
        "topic": "",
    }
    expected = {
        "--model-path": "/models/m",
        "--page-size": "64",
        "--max-total-tokens": "6400",
        "--max-running-requests": "256",
        "--chunked-prefill-size": "8192",
        "--context-length": "1000",
        "--enable-priority-scheduling": "",
        "--schedule-low-priority-values-first": "",
        "--enable-metrics": "",
    }
    assert {name: options.get(name) for name in expected} == expected
    assert "--disable-overlap-schedule" not in options
    options = options_of(SglangAdapter(), tmp_path, async_scheduling=False)
    assert options["--disable-overlap-schedule"] == ""


def test_trtllm_gets_the_plan_in_its_words(tmp_path: Path) -> None:
    options = options_of(TrtllmAdapter(), tmp_path, tensor_parallel=4, block_size=32)
    assert (options["--tp_size"], options["--max_batch_size"]) == ("4", "256")
    assert (options["--max_num_tokens"], options["--max_seq_len"]) == ("8192", "1000")
    told = yaml.safe_load(Path(options["--extra_llm_api_options"]).read_text())
    cache = told["kv_cache_config"]
    assert (cache["tokens_per_block"], cache["max_tokens"]) == (32, 3200)
    assert cache["enable_block_reuse"] and cache["event_buffer_max_size"] > 0
    assert told["disable_overlap_scheduler"] is False
    options = options_of(TrtllmAdapter(), tmp_path, async_scheduling=False)
    told = yaml.safe_load(Path(options["--extra_llm_api_options"]).read_text())
    assert told["disable_overlap_scheduler"] is True


@pytest.mark.parametrize(
    ("kind", "page", "expected"),
    [
        (
            "vllm",
            VLLM_PAGE,
            EngineLoad(
                num_running=3,
                num_waiting=2,
                kv_usage=0.25,
                prefix_hit_tokens=96,
                prefix_query_tokens=420,
                preemptions=1,
            ),
        ),
        (
            "sglang",
            SGLANG_PAGE,
            EngineLoad(
                num_running=7,
                num_waiting=1,
                kv_usage=0.5,
                prefix_hit_tokens=2000,
                prefix_query_tokens=8000,
            ),
        ),
        ("trtllm", TRTLLM_PAGE, EngineLoad(num_running=4, num_waiting=0, kv_usage=0.125)),
        ("vllm", "", EngineLoad()),
    ],
)
def test_load_is_read_from_metrics(kind: Any, page: str, expected: EngineLoad) -> None:
    assert parse_load(kind, page) == expected


def test_load_is_over_all_ranks() -> None:
    page = "\n".join(
        f'vllm:{name}{{engine="{rank}"}} {value}'
        for rank, value in ((0, 1.0), (1, 0.5))
        for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
    )
    load = parse_load("vllm", page)
    assert (load.num_running, load.num_requests, load.kv_usage) == (1, 2, 0.75)


Pages = dict[str, Any]


async def facts_of(adapter: EngineAdapter, pages: Pages, **engine: Any) -> EngineFacts:
    """What the adapter reads from a server with these pages; others are 404."""

    def answer(page: Any) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def handle(request: web.Request) -> web.Response:
            return web.Response(text=page if isinstance(page, str) else json.dumps(page))

        return handle

    app = web.Application()
    for path, page in pages.items():
        app.router.add_get(path, answer(page))
    async with TestServer(app) as server:
        http = EngineHttp(str(server.make_url("")).rstrip("/"))
        try:
            return await adapter.facts(http, plan(**engine))
        finally:
            await http.close()


MODELS = {"object": "list", "data": [{"id": "m", "max_model_len": 2048}]}


async def test_vllm_tells_its_blocks_but_one_is_a_placeholder() -> None:
    pages = {"/metrics": VLLM_PAGE, "/v1/models": MODELS}
    facts = EngineFacts(block_size=32, total_kv_blocks=64, max_model_len=2048)
    assert await facts_of(VllmAdapter(), pages) == facts


@pytest.mark.parametrize("path", ["/server_info", "/get_server_info"])
async def test_sglang_tells_its_tokens(path: str) -> None:
    pages = {path: {"page_size": 64, "max_total_num_tokens": 6430, "status": "ready"},
             "/v1/models": MODELS}  # fmt: skip
    facts = EngineFacts(block_size=64, total_kv_blocks=100, max_model_len=2048)
    assert await facts_of(SglangAdapter(), pages) == facts


async def test_trtllm_tells_its_blocks_once_it_has_worked() -> None:
    stats = {"iter": 7, "kvCacheStats": {"maxNumBlocks": 50, "tokensPerBlock": 32, "reused": 1}}
    told = EngineFacts(block_size=32, total_kv_blocks=50, max_model_len=1000)
    assert await facts_of(TrtllmAdapter(), {"/metrics": [{"iter": 6}, stats]}) == told
    idle = EngineFacts(block_size=64, total_kv_blocks=None, max_model_len=1000)
    assert await facts_of(TrtllmAdapter(), {"/metrics": []}, block_size=64) == idle


@pytest.mark.parametrize(
    ("adapter", "pages"),
    [
        (VllmAdapter(), {"/metrics": "", "/v1/models": MODELS}),
        (VllmAdapter(), {"/metrics": VLLM_PAGE, "/v1/models": {"data": []}}),
        (VllmAdapter(), {"/metrics": VLLM_PAGE, "/v1/models": "<html>"}),
        (VllmAdapter(), {}),
        (SglangAdapter(), {"/server_info": {"page_size": "x"}, "/v1/models": MODELS}),
        (TrtllmAdapter(), {"/metrics": {"not": "a list"}}),
    ],
)
async def test_other_pages_are_an_error(adapter: EngineAdapter, pages: Pages) -> None:
    with pytest.raises(EngineCallError):
        await facts_of(adapter, pages)


def trtllm_event(event_id: int, data: dict[str, Any], window_size: int = 4096) -> dict[str, Any]:
    return {"event_id": event_id, "data": data, "window_size": window_size}


def trtllm_stored(parent: int | None, **blocks: list[int]) -> dict[str, Any]:
    """A stored event; blocks by `hNUMBER`."""
    return {
        "type": "stored",
        "parent_hash": parent,
        "blocks": [
            {
                "type": "stored_block",
                "block_hash": int(name[1:]),
                "tokens": [
                    {"type": "unique_token", "token_id": token, "token_extra_id": 0}
                    for token in tokens
                ],
                "cache_level": 0,
                "priority": 35,
            }
            for name, tokens in blocks.items()
        ],
    }


def converted(events: TrtllmEvents, *answer: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """Kind, block hashes and tokens of what comes out, which the router must understand."""
    result = events.convert(json.dumps(answer), block_size=2)
    for event in result:
        to_block_event(event, block_size=2)
    return [(e.kind, e.fields.get("block_hashes"), e.fields.get("token_ids")) for e in result]


def test_trtllms_events_become_vllms() -> None:
    events = TrtllmEvents()
    created = {"type": "created", "num_blocks_per_cache_level": [50, 0]}
    assert converted(events, trtllm_event(0, created)) == []
    assert converted(
        events, trtllm_event(1, trtllm_stored(None, h11=[1, 2], h12=[3, 4], h13=[5]))
    ) == [("BlockStored", [11, 12], [1, 2, 3, 4])]
    assert converted(
        events,
        trtllm_event(2, trtllm_stored(12, h14=[6, 7])),
        trtllm_event(3, {"type": "removed", "block_hashes": [13, 14]}),
        trtllm_event(4, {"type": "removed", "block_hashes": [13]}),
    ) == [
        ("BlockStored", [14], [6, 7]),
        ("BlockRemoved", [14], None),
        ("BlockRemoved", [13], None),  # full by now: its number is free for another block
    ]
    moved = {"type": "event_diff", "new_value": 1, "old_value": 0}
    updated = {"type": "updated", "block_hash": 11, "cache_level": moved, "priority": None}
    assert converted(events, trtllm_event(5, updated)) == [("BlockRemoved", [11], None)]


def test_trtllms_lost_events_clear_what_is_known() -> None:
    events = TrtllmEvents()
    converted(events, trtllm_event(0, trtllm_stored(None, h1=[1, 2])))
    assert converted(events, trtllm_event(5, trtllm_stored(None, h2=[3, 4]))) == [
        ("AllBlocksCleared", None, None),
        ("BlockStored", [2], [3, 4]),
    ]


def test_only_the_longest_attention_window_of_trtllm_is_followed() -> None:
    events = TrtllmEvents()
    created = {"type": "created", "num_blocks_per_cache_level": [50, 0]}
    short, long = trtllm_stored(None, h1=[1, 2]), trtllm_stored(None, h2=[1, 2])
    assert converted(
        events,
        trtllm_event(0, created, 128),
        trtllm_event(1, created, 4096),
        trtllm_event(2, short, 128),
        trtllm_event(3, long, 4096),
    ) == [("BlockStored", [2], [1, 2])]
