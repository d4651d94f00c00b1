"""A mock worker on loopback: streams, ends, aborts, events, many clients, draining."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import zmq
import zmq.asyncio
from openai import AsyncOpenAI
from waiting import PATIENCE_S

from dynosim.config import RunConfig, load_run
from dynosim.errors import ConfigError, InfeasibleError
from dynosim.indexer.wire import decode_replay, replay_request
from dynosim_runtime.errors import LiveError
from dynosim_runtime.mock.worker import MockEndpoint, MockWorker

SLOW = 0.02  # times real time: what is under way stays so
PLAN = """
workload: {{synthetic: {{requests: 1, isl: 10, osl: 10, rate_rps: 1}}}}
engine:
  block_size: 16
  num_gpu_blocks: {blocks}
  max_model_len: 2048
  max_num_seqs: 128
  max_num_batched_tokens: 2048
  policy: priority
  async_scheduling: {is_async}
timing: {{kind: polynomial}}
live: {{served_model_name: tiny, max_body_bytes: 100000}}
"""


def plan(tmp_path: Path, *, blocks: int = 4000, is_async: bool = False) -> RunConfig:
    file = tmp_path / "run.yaml"
    file.write_text(PLAN.format(blocks=blocks, is_async=str(is_async).lower()))
    return load_run(file, [])


class Client:
    """A started worker and a session to talk to it."""

    def __init__(self, worker: MockWorker, endpoint: MockEndpoint) -> None:
        self.worker = worker
        self.endpoint = endpoint
        connector = aiohttp.TCPConnector(limit=0)
        self.session = aiohttp.ClientSession(endpoint.url, connector=connector)

    def post(self, prompt: Any, max_tokens: int, **options: Any) -> Any:
        body = {"model": "tiny", "prompt": prompt, "max_tokens": max_tokens, **options}
        return self.session.post("/v1/completions", json=body)

    async def stream(self, prompt: list[int], max_tokens: int, **options: Any) -> list[Any]:
        """All events of a streamed completion but the end mark."""
        options = {"stream": True, "return_token_ids": True, **options}
        async with self.post(prompt, max_tokens, **options) as response:
            assert response.status == 200
            text = (await response.read()).decode()
        *events, last, nothing = text.split("\n\n")
        assert (last, nothing) == ("data: [DONE]", "")
        return [json.loads(event.removeprefix("data: ")) for event in events]

    async def metric(self, name: str) -> float:
        async with self.session.get("/metrics") as response:
            lines = (await response.text()).splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name + "{"))

    async def until(self, name: str, value: float) -> None:
        """Wait for a metric to have a value."""
        async with asyncio.timeout(PATIENCE_S):
            while await self.metric(name) != value:
                await asyncio.sleep(0.01)


async def started(config: RunConfig, speedup: float) -> Client:
    worker = MockWorker(config, speedup=speedup)
    return Client(worker, await worker.start())


@pytest.fixture(params=[False, True], ids=["sync", "async"])
async def client(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Client]:
    made = await started(plan(tmp_path, is_async=request.param), speedup=20.0)
    yield made
    await made.session.close()
    await made.worker.stop(0.0)


def tokens_in(events: list[Any]) -> list[int]:
    return [token for e in events for choice in e["choices"] for token in choice["token_ids"]]


async def test_a_stream_has_vllms_events(client: Client) -> None:
    prompt = list(range(100, 140))
    usage = {"include_usage": True}
    events = await client.stream(prompt, 6, stream_options=usage)
    assert len(tokens_in(events)) == 6
    first, last, end = events[0], events[-2], events[-1]
    assert first["choices"][0] == {
        "index": 0,
        "text": f" {first['choices'][0]['token_ids'][0]}",
        "logprobs": None,
        "finish_reason": None,
        "stop_reason": None,
        "prompt_token_ids": prompt,
        "token_ids": first["choices"][0]["token_ids"],
    }
    assert all(e["choices"][0]["prompt_token_ids"] is None for e in events[1:-1])
    assert last["choices"][0]["finish_reason"] == "length"
    assert {e["id"] for e in events} == {first["id"]} and first["id"].startswith("cmpl-")
    assert (end["choices"], end["usage"]["completion_tokens"]) == ([], 6)

    again = await client.stream(prompt, 6, stream_options=usage)
    assert tokens_in(again) == tokens_in(events)
    assert again[-1]["usage"]["prompt_tokens_details"] == {"cached_tokens": 32}


async def test_whole_answers_and_continued_ones_have_the_streams_tokens(client: Client) -> None:
    prompt = [5, 6, 7]
    tokens = tokens_in(await client.stream(prompt, 20))
    async with client.post([prompt], 20, return_token_ids=True) as response:
        choice = (await response.json())["choices"][0]
    assert (choice["token_ids"], choice["prompt_token_ids"]) == (tokens, prompt)
    assert tokens_in(await client.stream(prompt + tokens[:8], 12)) == tokens[8:]


async def test_a_pinned_prompt_outlives_what_would_evict_it(tmp_path: Path) -> None:
    client = await started(plan(tmp_path, blocks=140), speedup=20.0)
    try:
        usage = {"include_usage": True}
        kept, other = list(range(100, 740)), list(range(2000, 2640))
        for prompt, pin in ((kept, {"pin_ttl_s": 3600}), (other, {})):
            await client.stream(prompt, 2, **pin)
        await client.stream(list(range(5000, 6580)), 2)
        found = [
            (await client.stream([*prompt, 1], 2, stream_options=usage))[-1]["usage"]
            for prompt in (kept, other)
        ]
        assert [one["prompt_tokens_details"]["cached_tokens"] for one in found] == [640, 0]
        async with client.post(kept, 2, pin_ttl_s=-1) as response:
            assert response.status == 400
            assert (await response.json())["error"]["param"] == "pin_ttl_s"
    finally:
        await client.session.close()
        await client.worker.stop(0.0)


async def test_the_official_client_understands_it(client: Client) -> None:
    async with AsyncOpenAI(base_url=f"{client.endpoint.url}/v1", api_key="none") as openai:
        assert [model.id async for model in openai.models.list()] == ["tiny"]
        stream = await openai.completions.create(
            model="tiny", prompt=[1, 2, 3], max_tokens=4, stream=True
        )
        texts = [chunk.choices[0].text async for chunk in stream]
    assert len(texts) == 4 and all(texts)


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
async def test_a_client_that_leaves_frees_blocks_and_seat(tmp_path: Path, is_async: bool) -> None:
    client = await started(plan(tmp_path, is_async=is_async), speedup=SLOW)
    async with client.post(list(range(200)), 1800, stream=True) as response:
        await response.content.readline()
        assert await client.metric("vllm:kv_cache_usage_perc") > 0
        response.close()
    whole = asyncio.create_task(client.post(list(range(300)), 1700).__aenter__())
    await client.until("vllm:num_requests_running", 1)
    whole.cancel()
    await client.until("vllm:num_requests_running", 0)
    assert await client.metric("vllm:kv_cache_usage_perc") == 0
    assert await client.metric("vllm:num_requests_waiting") == 0
    await client.until("vllm:request_success_total", 2)
    assert client.worker.engine.stats.num_aborted == 2
    await client.session.close()
    await client.worker.stop(0.0)


async def test_300_streams_at_once_all_get_all_tokens(client: Client) -> None:
    prompts = [[*range(500, 560), index] for index in range(300)]
    answers = await asyncio.gather(*(client.stream(prompt, 30) for prompt in prompts))
    assert all(len(tokens_in(events)) == 30 for events in answers)
    assert len({tuple(tokens_in(events)) for events in answers}) == 300
    assert await client.metric("vllm:generation_tokens_total") == 9000
    assert await client.metric("vllm:kv_cache_usage_perc") == 0


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b'{"prompt": [1', 400, "truncated"),
        (b'{"prompt": [1, "a"]}', 400, "$.prompt[1]"),
        (b'{"prompt": [1, -1]}', 400, "$.prompt[1]"),
        (b'{"prompt": [1.5]}', 400, "$.prompt[0]"),
        (b'{"prompt": []}', 400, "at least one prompt"),
        (b'{"prompt": [[]]}', 400, "at least one prompt"),
        (b'{"prompt": [[1], [2]]}', 400, "one prompt at a time"),
        (b'{"prompt": [1, [2]]}', 400, "one list of token ids"),
        (b'{"prompt": "hello"}', 400, "not as text"),
        (b'{"prompt": [9999999999999]}', 400, "out of vocabulary"),
        (b'{"prompt": [1], "model": "other"}', 404, "The model `other` does not exist"),
        (b'{"prompt": [1], "max_tokens": 0}', 400, "at least 1, got 0"),
        (b'{"prompt": [1], "max_tokens": -3}', 400, "at least 1, got -3"),
        (b'{"prompt": [1], "max_tokens": 2049}', 400, "cannot be greater than max_model_len"),
        (b'{"prompt": [1], "max_tokens": 2, "min_tokens": 3}', 400, "min_tokens"),
        (b'{"prompt": [1], "n": 2}', 400, "do not support n"),
        (b'{"prompt": [1], "stop": ["."]}', 400, "do not support stop"),
        (b'{"prompt": [' + b"1," * 2047 + b"1]}", 400, "maximum context length is 2048"),
        (b'{"prompt": [' + b"1," * 60_000 + b"1]}", 413, "Request Entity Too Large"),
    ],
)
async def test_bad_requests_are_refused_in_vllms_form(
    tmp_path: Path, body: bytes, status: int, message: str
) -> None:
    client = await started(plan(tmp_path), speedup=100.0)
    async with client.session.post("/v1/completions", data=body) as response:
        error = (await response.json())["error"]
        assert (response.status, error["code"]) == (status, status)
        assert message in error["message"]
    assert len(await client.stream([1], 2)) == 2
    await client.session.close()
    await client.worker.stop(0.0)


async def test_small_routes_answer(client: Client) -> None:
    for path in ("/health", "/version"):
        async with client.session.get(path) as response:
            assert response.status == 200
    async with client.session.get("/v1/models") as response:
        model = (await response.json())["data"][0]
        assert (model["id"], model["max_model_len"]) == ("tiny", 2048)
    async with client.session.get("/nowhere") as response:
        assert response.status == 404
        assert (await response.json())["error"]["code"] == 404


async def test_replayed_events_tell_the_resident_blocks(tmp_path: Path) -> None:
    client = await started(plan(tmp_path, blocks=140), speedup=50.0)
    prompts = [[*range(400, 464), *range(index, index + 300)] for index in range(20)]
    await asyncio.gather(*(client.stream(prompt, 40) for prompt in prompts))
    held: Counter[int] = Counter()
    kinds: Counter[str] = Counter()
    (source,) = client.endpoint.events
    assert source.replay_endpoint is not None
    context = zmq.asyncio.Context()
    socket = context.socket(zmq.DEALER)
    socket.connect(source.replay_endpoint)
    await socket.send_multipart(replay_request(0))
    sequence = 0
    while batch := decode_replay(await asyncio.wait_for(socket.recv_multipart(), PATIENCE_S)):
        assert batch.sequence == sequence
        sequence += 1
        for event in batch.events:
            kinds[event.kind] += 1
            hashes = event.fields["block_hashes"]
            held.update(hashes) if event.kind == "BlockStored" else held.subtract(hashes)
    socket.close(linger=0)
    context.term()
    assert kinds["BlockStored"] > 0 and kinds["BlockRemoved"] > 0
    assert min(held.values()) >= 0
    assert set(+held) == set(client.worker.engine.core.pool.resident_blocks)
    await client.session.close()
    await client.worker.stop(0.0)


async def test_a_draining_worker_finishes_what_it_has_and_takes_nothing_new(
    tmp_path: Path,
) -> None:
    client = await started(plan(tmp_path), speedup=SLOW)
    under_way = asyncio.create_task(client.stream([1, 2, 3], 400))
    await client.until("vllm:num_requests_running", 1)
    stopping = asyncio.create_task(client.worker.stop(PATIENCE_S))
    await asyncio.sleep(0)
    async with client.post([1], 1) as response:
        assert response.status == 503
        assert (await response.json())["error"]["type"] == "ServiceUnavailableError"
    async with client.session.get("/health") as response:
        assert response.status == 503
    assert not under_way.done()
    client.worker._clock.speedup = 1e4  # from here on at once
    assert len(tokens_in(await under_way)) == 400
    assert await stopping
    with pytest.raises(aiohttp.ClientConnectorError):
        await client.post([1], 1)
    await client.session.close()


async def test_what_outlasts_the_drain_is_cut_off(tmp_path: Path) -> None:
    client = await started(plan(tmp_path), speedup=SLOW)
    under_way = asyncio.create_task(client.stream([1, 2, 3], 2000))
    await client.until("vllm:num_requests_running", 1)
    assert not await client.worker.stop(0.0)
    with pytest.raises(aiohttp.ClientError):
        await under_way
    assert len(client.worker.engine) == 0
    await client.session.close()


async def test_a_port_in_use_and_a_small_cache_are_one_message(tmp_path: Path) -> None:
    client = await started(plan(tmp_path), speedup=1.0)
    port = int(client.endpoint.url.rsplit(":", 1)[1])
    with pytest.raises(LiveError, match="the port is in use"):
        await MockWorker(plan(tmp_path), port=port).start()
    with pytest.raises(InfeasibleError, match=r"464 tokens, fewer than one request"):
        MockWorker(plan(tmp_path, blocks=30))
    modelled = plan(tmp_path).model_dump(exclude_unset=True)
    modelled |= {"model": "Qwen/Qwen3-32B", "engine": {"num_gpu_blocks": 101}}
    with pytest.raises(
        InfeasibleError, match=r"hold 1,600 tokens, fewer than one request of max_model_len"
    ):
        MockWorker(RunConfig.model_validate(modelled))
    with pytest.raises(ConfigError, match="speedup"):
        MockWorker(plan(tmp_path), speedup=0.0)
    await client.session.close()
    await client.worker.stop(0.0)
