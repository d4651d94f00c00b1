"""`dynosim serve worker` in front of real vLLM: its capacity, its events, and its ends."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import zmq
import zmq.asyncio
from cluster import PATIENCE_S, ROOT, VLLM_PYTHON, write_plan

from dynosim.indexer.wire import KvBatch, decode_batch, decode_replay, replay_request
from dynosim_runtime.card import LiveCard
from dynosim_runtime.clients.base import EngineRequest
from dynosim_runtime.clients.connections import Connections
from dynosim_runtime.clients.openai import OpenAiEngineClient
from dynosim_runtime.discovery.file import FileDiscovery
from dynosim_runtime.requests import Sampling
from dynosim_runtime.testing.discovery import Watcher

BLOCK_SIZES = {"small-blocks": 32, "large-blocks": 64}
NUM_BLOCKS = 130
READY_S = 600.0
LEASE_S = 2.0
PROMPT = list(range(10, 210))


class Workers:
    """Two workers, each with blocks of a size of its own."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.discovery = folder / "workers"
        self.folder = folder
        self.model = model
        self.processes: dict[str, asyncio.subprocess.Process] = {}
        self.watcher = Watcher(FileDiscovery(self.discovery, LEASE_S).watch())
        self.cards: dict[str, LiveCard] = {}

    async def start(self) -> None:
        for name, block_size in BLOCK_SIZES.items():
            folder = self.folder / name
            folder.mkdir()
            plan = write_plan(
                folder,
                model=self.model,
                workload={"synthetic": {"requests": 1, "isl": 10, "osl": 1, "rate_rps": 1}},
                engine={"block_size": block_size, "num_gpu_blocks": NUM_BLOCKS,
                        "max_model_len": 2000, "max_num_batched_tokens": 512},
                timing={"kind": "polynomial"},
                live={"lease_s": LEASE_S, "ready_timeout_s": READY_S},
            )  # fmt: skip
            with (folder / "log").open("wb") as log:
                self.processes[name] = await asyncio.create_subprocess_exec(
                    sys.executable, "-m", "dynosim", "serve", "worker", str(plan),
                    "--name", name, "--engine", "vllm-cpu", "--engine-python", str(VLLM_PYTHON),
                    "--discovery", f"file:{self.discovery}",
                    cwd=ROOT, stdout=log, stderr=log,
                )  # fmt: skip
        cards = await self.watcher.until(lambda cards: len(cards) == 2, READY_S)
        self.cards = {card.name: card for card in cards.values()}


@pytest.fixture
async def workers(tmp_path: Path, tiny_model: Path) -> AsyncIterator[Workers]:
    workers = Workers(tmp_path, tiny_model)
    await workers.start()
    yield workers
    for process in workers.processes.values():
        if process.returncode is None:
            process.kill()
            await process.wait()
    await workers.watcher.close()


async def generated(
    card: LiveCard,
    num_tokens: int,
    prompt: list[int] = PROMPT,
    is_under_way: asyncio.Event | None = None,
) -> tuple[list[int], int | None]:
    """The tokens of an answer, and how many of the prompt's were cached."""
    sampling = Sampling(max_tokens=num_tokens, temperature=0.0, ignore_eos=True)
    request = EngineRequest(request_id="r", token_ids=prompt, sampling=sampling)
    token_ids: list[int] = []
    cached_tokens: int | None = None
    async for delta in OpenAiEngineClient(Connections()).stream(card, request):
        token_ids += delta.token_ids
        if token_ids and is_under_way is not None:
            is_under_way.set()
        cached_tokens = delta.cached_tokens if delta.cached_tokens is not None else cached_tokens
    return token_ids, cached_tokens


async def events_of_prompt(card: LiveCard) -> tuple[KvBatch, KvBatch | None]:
    """What an engine tells of `PROMPT`, as it was published and as it is replayed."""
    (source,) = card.events
    assert source.replay_endpoint is not None
    with zmq.asyncio.Context() as context:
        context.setsockopt(zmq.LINGER, 0)
        subscriber = context.socket(zmq.SUB)
        subscriber.connect(source.endpoint)
        subscriber.subscribe(b"")
        first = 1000
        while not await subscriber.poll(500):  # what comes before a subscription is lost
            await generated(card, 1, list(range(first, first + 70)))
            first += 1
        await generated(card, 4)
        published = decode_batch(await subscriber.recv_multipart())
        while published.events[0].fields["token_ids"][0] != PROMPT[0]:
            published = decode_batch(await subscriber.recv_multipart())
        asking = context.socket(zmq.DEALER)
        asking.connect(source.replay_endpoint)
        await asking.send_multipart(replay_request(published.sequence))
        return published, decode_replay(await asking.recv_multipart())


def pids_of(card: LiveCard) -> set[int]:
    """The processes below a worker."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        fields = stat.read_text().rpartition(")")[2].split()
        children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    assert card.pid is not None
    below, waiting = set(), [card.pid]
    while waiting:
        found = children.get(waiting.pop(), [])
        below.update(found)
        waiting += found
    return below


async def test_a_real_engine_is_what_the_plan_says_and_ends_with_its_worker(
    workers: Workers,
) -> None:
    for name, block_size in BLOCK_SIZES.items():
        card = workers.cards[name]
        capacity = (card.block_size, card.total_kv_blocks, card.max_model_len, card.device)
        assert capacity == (block_size, NUM_BLOCKS - 1, 2000, "cpu")
        published, replayed = await events_of_prompt(card)
        assert published == replayed
        (event,) = published.events
        num_blocks = len(PROMPT) // block_size
        assert event.fields["token_ids"] == PROMPT[: num_blocks * block_size]
        _, cached_tokens = await generated(card, 4)
        assert cached_tokens == num_blocks * block_size

    await drains(workers, "small-blocks")
    await is_killed(workers, "large-blocks")


async def drains(workers: Workers, name: str) -> None:
    """SIGTERM: what is under way ends, then the worker."""
    card, process = workers.cards[name], workers.processes[name]
    processes = pids_of(card)
    is_under_way = asyncio.Event()
    under_way = asyncio.create_task(generated(card, 400, is_under_way=is_under_way))
    await is_under_way.wait()
    process.send_signal(signal.SIGTERM)
    await workers.watcher.until(lambda cards: any(c.is_draining for c in cards.values()))
    assert len((await under_way)[0]) == 400
    assert await process.wait() == 0
    await workers.watcher.until(lambda cards: card.worker_id not in cards)
    assert not any(Path(f"/proc/{pid}").exists() for pid in processes)


async def is_killed(workers: Workers, name: str) -> None:
    """SIGKILL: the card goes, and so does all of the engine."""
    card, process = workers.cards[name], workers.processes[name]
    processes = pids_of(card)
    assert len(processes) >= 3  # the guard, the server and at least one process of its engine
    process.kill()
    await workers.watcher.until(lambda cards: cards == {})
    async with asyncio.timeout(PATIENCE_S):
        while any(Path(f"/proc/{pid}").exists() for pid in processes):
            await asyncio.sleep(0.1)
