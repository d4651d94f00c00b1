"""`dynosim serve worker` as users run it, in front of a stand-in for vLLM's server."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import fake_engine
import pytest
from waiting import PATIENCE_S, is_running, until

from dynosim_runtime.discovery.file import FileDiscovery
from dynosim_runtime.testing.discovery import Watcher

PLAN = """
name: worker-test
model: {model}
workload: {{synthetic: {{requests: 2, isl: 32, osl: 4, rate_rps: 1}}}}
engine: {{block_size: 16, num_gpu_blocks: 101, max_model_len: 1600, max_num_seqs: 8}}
timing: {{kind: polynomial}}
live: {{lease_s: 30.0, drain_timeout_s: 120, ready_timeout_s: 120, served_model_name: tiny}}
"""


class Site:
    """A plan, a model folder, a stand-in engine, a discovery folder, and the workers started."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.engine = folder / "engine"
        self.engine.mkdir()
        self.workers = folder / "workers"
        model = folder / "model"
        model.mkdir()
        (model / "config.json").write_text(
            json.dumps(
                {
                    "architectures": ["Qwen3ForCausalLM"],
                    "model_type": "qwen3",
                    "hidden_size": 256,
                    "intermediate_size": 768,
                    "num_hidden_layers": 4,
                    "num_attention_heads": 8,
                    "num_key_value_heads": 2,
                    "head_dim": 32,
                    "vocab_size": 2048,
                    "max_position_embeddings": 8192,
                    "torch_dtype": "bfloat16",
                }
            )
        )
        self.plan = folder / "plan.yaml"
        self.plan.write_text(PLAN.format(model=model / "config.json"))
        self._environment = {**os.environ, **fake_engine.install(self.engine)}
        self._environment["PYTHONPATH"] += os.pathsep + os.pathsep.join(sys.path)
        self.processes: list[asyncio.subprocess.Process] = []
        self.watcher = Watcher(FileDiscovery(self.workers, 1.0, poll_interval_s=0.02).watch())

    async def start(self, *options: str) -> asyncio.subprocess.Process:
        """A worker in its own process."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "dynosim", "serve", "worker", str(self.plan),
            "--discovery", f"file:{self.workers}", *options,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=self._environment,
        )  # fmt: skip
        self.processes.append(process)
        return process

    async def ended(self, process: asyncio.subprocess.Process) -> tuple[int | None, str]:
        """Exit code and output of a worker that ends."""
        output, _ = await asyncio.wait_for(process.communicate(), PATIENCE_S)
        return process.returncode, output.decode()

    def engine_pids(self) -> list[int]:
        """The engine's process and its helper's, once it runs."""
        pids = self.engine / "pids"
        return [int(pid) for pid in pids.read_text().split()] if pids.exists() else []

    async def no_engine_is_left(self) -> None:
        await until(lambda: not any(map(is_running, self.engine_pids())))


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    site = Site(tmp_path)
    yield site
    for process in site.processes:
        if process.returncode is None:
            process.kill()
            await process.wait()
    await site.watcher.close()


async def test_the_card_tells_what_the_engine_is(site: Site) -> None:
    worker = await site.start("--engine", "vllm", "--name", "w1")
    (card,) = (await site.watcher.until(bool)).values()
    facts = (card.name, card.engine, card.model, card.block_size, card.total_kv_blocks)
    assert facts == ("w1", "vllm", "tiny", 16, 100)
    assert (card.max_model_len, card.max_num_seqs, card.pid) == (1600, 8, worker.pid)
    assert card.model_path == str(site.folder / "model")
    (events,) = card.events
    arguments = json.loads((site.engine / "argv").read_text())
    config = json.loads(arguments[arguments.index("--kv-events-config") + 1])
    assert (config["endpoint"], config["replay_endpoint"]) == (
        events.endpoint,
        events.replay_endpoint,
    )
    assert card.url.endswith(arguments[arguments.index("--port") + 1])


@pytest.mark.live
async def test_a_stopped_worker_waits_for_what_is_under_way(site: Site) -> None:
    worker = await site.start("--engine", "vllm")
    await site.watcher.until(bool)
    (site.engine / "busy").touch()
    worker.send_signal(signal.SIGTERM)
    await site.watcher.until(lambda cards: any(card.is_draining for card in cards.values()))
    with pytest.raises(TimeoutError):  # its request is still under way
        await asyncio.wait_for(worker.wait(), 1.5)
    (site.engine / "busy").unlink()
    code, output = await site.ended(worker)
    assert code == 0, output
    await site.watcher.until(lambda cards: cards == {})
    await site.no_engine_is_left()


async def test_a_second_signal_ends_the_wait(site: Site) -> None:
    worker = await site.start("--engine", "vllm")
    await site.watcher.until(bool)
    (site.engine / "busy").touch()
    worker.send_signal(signal.SIGINT)
    await site.watcher.until(lambda cards: any(card.is_draining for card in cards.values()))
    worker.send_signal(signal.SIGINT)
    assert (await site.ended(worker))[0] == 0
    await site.no_engine_is_left()


async def test_a_killed_worker_takes_its_engine_along(site: Site) -> None:
    worker = await site.start("--engine", "vllm")
    (card,) = (await site.watcher.until(bool)).values()
    (events,) = card.events
    assert Path(events.endpoint.removeprefix("ipc://")).parent.is_dir()
    worker.kill()
    await site.watcher.until(lambda cards: cards == {})
    await site.no_engine_is_left()
    await until(lambda: not Path(events.endpoint.removeprefix("ipc://")).parent.exists())


async def test_a_worker_follows_its_engine(site: Site) -> None:
    worker = await site.start("--engine", "vllm")
    await site.watcher.until(bool)
    os.kill(site.engine_pids()[0], signal.SIGKILL)
    code, output = await site.ended(worker)
    assert code == 1
    assert "error: worker-0: the engine ended while it was serving with exit status 137" in output
    await site.watcher.until(lambda cards: cards == {})
    await site.no_engine_is_left()


async def test_an_engine_that_crashes_is_told_with_its_last_words(site: Site) -> None:
    (site.engine / "crash").touch()
    code, output = await site.ended(await site.start("--engine", "vllm"))
    assert code == 1
    message = output[output.index("error: ") :]
    assert "ended before it was ready with exit status 3" in message
    assert "RuntimeError: no such kernel" in message
    assert "Traceback" not in output


@pytest.mark.live
async def test_an_engine_that_is_never_ready_is_given_up(site: Site) -> None:
    (site.engine / "hang").touch()
    worker = await site.start("--engine", "vllm", "--set", "live.ready_timeout_s=2.0")
    code, output = await site.ended(worker)
    assert code == 1
    assert "is not ready after 2 s (live.ready_timeout_s)" in output
    await site.no_engine_is_left()


async def test_a_worker_told_to_stop_while_its_engine_starts_stops_it(site: Site) -> None:
    (site.engine / "hang").touch()
    worker = await site.start("--engine", "vllm")
    await until(lambda: (site.engine / "pids").exists())
    worker.send_signal(signal.SIGTERM)
    assert (await site.ended(worker))[0] == 0
    await site.no_engine_is_left()


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ('block_size="32",num_gpu_blocks="101"', "hold 32 tokens, but the plan says"),
        ('block_size="16",num_gpu_blocks="77"', "set engine.num_gpu_blocks=77"),
    ],
)
async def test_an_engine_other_than_planned_is_refused(site: Site, page: str, message: str) -> None:
    (site.engine / "page").write_text(page)
    code, output = await site.ended(await site.start("--engine", "vllm"))
    assert (code, message in output) == (2, True), output
    await site.no_engine_is_left()


@pytest.mark.live
async def test_an_attached_engine_is_published_watched_and_not_stopped(site: Site) -> None:
    first = await site.start("--engine", "vllm", "--name", "first")
    (card,) = (await site.watcher.until(bool)).values()
    second = await site.start(
        "--engine", "vllm", "--name", "second",
        "--attach", f"{card.url}?events=tcp://127.0.0.1:5557&replay=tcp://127.0.0.1:5558",
    )  # fmt: skip
    cards = await site.watcher.until(lambda cards: len(cards) == 2)
    attached = next(card for card in cards.values() if card.name == "second")
    assert (attached.url, attached.total_kv_blocks) == (card.url, 100)
    assert [(e.endpoint, e.replay_endpoint) for e in attached.events] == [
        ("tcp://127.0.0.1:5557", "tcp://127.0.0.1:5558")
    ]
    second.send_signal(signal.SIGTERM)
    assert (await site.ended(second))[0] == 0
    assert is_running(site.engine_pids()[0])
    third = await site.start("--engine", "vllm", "--name", "third", "--attach", card.url)
    await site.watcher.until(lambda cards: "third" in {card.name for card in cards.values()})
    first.kill()
    assert_refused(await site.ended(third), 1, "answers no more")


async def test_a_mock_worker_serves_until_it_is_stopped(site: Site) -> None:
    worker = await site.start("--engine", "mock", "--speedup", "10")
    (card,) = (await site.watcher.until(bool)).values()
    assert_refused(await site.ended(await site.start("--engine", "mock")), 1, "already has worker")
    assert (card.engine, card.block_size, card.total_kv_blocks) == ("mock", 16, 100)
    body: dict[str, Any] = {"model": card.model, "prompt": [5, 6, 7], "max_tokens": 4}
    async with aiohttp.ClientSession() as session:
        async with session.post(f"{card.url}/v1/completions", json=body) as response:
            answer = await response.json()
    assert answer["usage"]["completion_tokens"] == 4
    worker.send_signal(signal.SIGTERM)
    code, output = await site.ended(worker)
    assert code == 0, output
    await site.watcher.until(lambda cards: cards == {})


def assert_refused(result: tuple[int | None, str], code: int, message: str) -> None:
    assert result[0] == code, result[1]
    assert message in result[1]
    assert "Traceback" not in result[1]
