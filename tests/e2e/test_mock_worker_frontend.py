"""A mock worker seen by a frontend's own parts: its engine client, its event subscriber."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from waiting import until

from dynosim.blocks.hashing import local_hashes
from dynosim.config import load_run
from dynosim.indexer.base import BlockEvent
from dynosim.indexer.make import make_indexer
from dynosim_runtime.card import LiveCard, worker_id_of
from dynosim_runtime.clients.base import EngineDelta, EngineRefusedError, EngineRequest
from dynosim_runtime.clients.connections import Connections
from dynosim_runtime.clients.openai import OpenAiEngineClient
from dynosim_runtime.kv_events.subscriber import EventSubscriber
from dynosim_runtime.mock.worker import MockEndpoint, MockWorker
from dynosim_runtime.requests import Sampling

BLOCK = 16
PLAN = f"""
workload: {{synthetic: {{requests: 1, isl: 10, osl: 10, rate_rps: 1}}}}
engine:
  block_size: {BLOCK}
  num_gpu_blocks: 200
  max_model_len: 1024
  max_num_seqs: 32
  max_num_batched_tokens: 2048
timing: {{kind: polynomial}}
"""


@pytest.fixture
async def served(
    tmp_path: Path, request: pytest.FixtureRequest
) -> AsyncIterator[tuple[MockWorker, LiveCard]]:
    file = tmp_path / "run.yaml"
    file.write_text(PLAN)
    worker = MockWorker(load_run(file, []), speedup=getattr(request, "param", 50.0))
    yield worker, card_of(await worker.start())
    await worker.stop(0.0)


def card_of(endpoint: MockEndpoint) -> LiveCard:
    return LiveCard(
        worker_id=worker_id_of("mock"),
        name="mock",
        engine="mock",
        url=endpoint.url,
        model=endpoint.model,
        block_size=endpoint.block_size,
        total_kv_blocks=endpoint.total_kv_blocks,
        max_num_batched_tokens=endpoint.max_num_batched_tokens,
        max_num_seqs=endpoint.max_num_seqs,
        max_model_len=endpoint.max_model_len,
        events=endpoint.events,
    )


def asked(token_ids: list[int], max_tokens: int) -> EngineRequest:
    sampling = Sampling(max_tokens=max_tokens, temperature=0.5, top_k=3, seed=1, ignore_eos=True)
    return EngineRequest(request_id="r", token_ids=token_ids, sampling=sampling)


async def test_the_engine_client_gets_tokens_reason_and_cache_hits(
    served: tuple[MockWorker, LiveCard],
) -> None:
    _, card = served
    client = OpenAiEngineClient(Connections())
    request = asked(list(range(100)), 25)
    answers: list[list[EngineDelta]] = []
    for _ in range(2):
        answers.append([delta async for delta in client.stream(card, request)])
    tokens = [[token for delta in answer for token in delta.token_ids] for answer in answers]
    assert len(tokens[0]) == 25 and tokens[0] == tokens[1]
    assert [d.finish_reason for a in answers for d in a if d.finish_reason] == ["length"] * 2
    hits = [d.cached_tokens for answer in answers for d in answer if d.cached_tokens is not None]
    assert hits == [0, 96]
    with pytest.raises(EngineRefusedError, match="maximum context length"):
        _ = [delta async for delta in client.stream(card, asked([1] * 1024, 1))]
    await client.close()


@pytest.mark.parametrize("served", [0.02], indirect=True)  # so slow that it is under way
async def test_a_client_that_stops_iterating_aborts_in_the_engine(
    served: tuple[MockWorker, LiveCard],
) -> None:
    worker, card = served
    client = OpenAiEngineClient(Connections())
    stream = client.stream(card, asked([1, 2, 3], 1000))
    await anext(stream)
    await stream.aclose()  # type: ignore[attr-defined]
    await until(lambda: len(worker.engine) == 0)
    assert worker.engine.stats.num_aborted == 1
    assert worker.engine.core.pool.free_blocks == card.total_kv_blocks
    await client.close()


async def test_an_index_fed_by_the_events_knows_what_the_worker_holds(
    served: tuple[MockWorker, LiveCard],
) -> None:
    worker, card = served
    client = OpenAiEngineClient(Connections())
    index = make_indexer("positional")

    def deliver(events: list[BlockEvent]) -> None:
        for event in events:
            index.apply(0, event)

    subscriber = EventSubscriber(card.events[0], BLOCK, deliver)
    prompts = [[*range(40, 88), *range(index, index + 200)] for index in range(20)]
    first, rest = prompts[:4], prompts[4:]

    async def serve(prompt: list[int]) -> None:
        _ = [delta async for delta in client.stream(card, asked(prompt, 10))]

    await asyncio.gather(*map(serve, first))  # before anybody listens
    task = asyncio.create_task(subscriber.run())
    await asyncio.gather(*map(serve, rest))
    pool = worker.engine.core.pool

    def held(prompt: list[int]) -> int:
        names = worker.engine.ledger.open(np.array(prompt), "")
        found = pool.lookup(names, len(names))[1]
        worker.engine.ledger.close(names)
        return found

    # Not its size alone: that may be right between an eviction and what took the place.
    expected = (len(pool.resident_blocks), [held(prompt) for prompt in prompts])
    hashes = [local_hashes(prompt, BLOCK) for prompt in prompts]
    await until(
        lambda: (index.size, [index.find_matches(h).depth_of(0) for h in hashes]) == expected
    )
    assert index.counters.unknown_parents == subscriber.counters.malformed == 0
    task.cancel()
    await client.close()
