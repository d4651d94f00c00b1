"""The contract of discovery, with each back end for real: a folder, an etcd server, an API server.

Workers that die are processes that are killed.
"""

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from ports import free_ports
from waiting import PATIENCE_S

from dynosim_runtime.card import LiveCard, worker_id_of
from dynosim_runtime.discovery.base import Discovery
from dynosim_runtime.discovery.make import make_discovery
from dynosim_runtime.errors import LiveError
from dynosim_runtime.testing.discovery import DiscoveryContract, DiscoveryPlace, Watcher, card_of

WORKER = """
import asyncio, sys
import msgspec
from dynosim_runtime.card import LiveCard
from dynosim_runtime.discovery.make import make_discovery
async def main():
    card = msgspec.json.decode(sys.argv[3], type=LiveCard)
    await make_discovery(sys.argv[1], float(sys.argv[2])).register(card)
    print("registered", flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""


class ProcessPlace(DiscoveryPlace):
    """A back end that processes reach by a specification."""

    def __init__(self, spec: str, lease_s: float) -> None:
        self.spec = spec
        self.lease_s = lease_s

    def discovery(self, name: str) -> Discovery:
        return make_discovery(self.spec, self.lease_s)

    async def start_worker(self, card: LiveCard) -> Callable[[], Awaitable[None]]:
        process = await self.start_process(card)

        async def kill() -> None:
            process.kill()
            await process.wait()

        return kill

    async def start_process(self, card: LiveCard) -> asyncio.subprocess.Process:
        """A process that publishes the card and then only lives."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", WORKER, self.spec, str(self.lease_s),
            msgspec.json.encode(card).decode(),
            stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )  # fmt: skip
        assert process.stdout is not None
        assert await asyncio.wait_for(process.stdout.readline(), PATIENCE_S) == b"registered\n"
        return process


class TestFileDiscovery(DiscoveryContract):
    @pytest.fixture
    def place(self, tmp_path: Path) -> ProcessPlace:
        return ProcessPlace(f"file:{tmp_path / 'workers'}", lease_s=2.0)

    async def test_a_frozen_workers_lease_runs_out_and_it_returns_when_it_thaws(
        self, place: ProcessPlace
    ) -> None:
        process = await place.start_process(card_of("a"))
        watcher = Watcher(place.discovery("frontend").watch())
        await watcher.until(bool)
        process.send_signal(signal.SIGSTOP)
        await watcher.until(lambda cards: cards == {})
        process.send_signal(signal.SIGCONT)
        await watcher.until(lambda cards: worker_id_of("a") in cards)
        process.kill()
        await process.wait()


@pytest.fixture(scope="module")
def etcd_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    binary = shutil.which("etcd")
    if binary is None:
        pytest.skip("no etcd here (Debian: apt-get install etcd-server)")
    ports = free_ports(2)
    process = start_etcd(binary, tmp_path_factory.mktemp("etcd"), ports)
    yield f"127.0.0.1:{ports[0]}"
    process.kill()
    process.wait()


class TestEtcdDiscovery(DiscoveryContract):
    @pytest.fixture
    def place(self, etcd_address: str) -> ProcessPlace:
        return ProcessPlace(f"etcd:{etcd_address}", lease_s=2.0)


@pytest.mark.live
async def test_a_watch_survives_a_restart_of_etcd(tmp_path: Path) -> None:
    binary = shutil.which("etcd")
    if binary is None:
        pytest.skip("no etcd here (Debian: apt-get install etcd-server)")
    ports = free_ports(2)
    etcd = start_etcd(binary, tmp_path, ports)
    place = ProcessPlace(f"etcd:127.0.0.1:{ports[0]}", lease_s=2.0)
    worker, frontend, late = (place.discovery(name) for name in ("a", "frontend", "b"))
    try:
        registration = await worker.register(card_of("a"))
        watcher = Watcher(frontend.watch())
        await watcher.until(bool)
        etcd.kill()
        etcd.wait()
        etcd = start_etcd(binary, tmp_path, ports)
        other = await late.register(card_of("b"))
        ids = {worker_id_of("a"), worker_id_of("b")}
        await watcher.until(lambda cards: set(cards) == ids)
        assert all(worker_id_of("a") in cards for cards in watcher.seen)
        await watcher.close()
        await registration.close()
        await other.close()
    finally:
        for discovery in (worker, frontend, late):
            await discovery.close()
        etcd.kill()
        etcd.wait()


async def test_an_etcd_that_is_not_there_is_told() -> None:
    with socket.socket() as taken:  # so that nobody else can listen there
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        discovery = make_discovery(f"etcd:127.0.0.1:{port}", 2.0)
        with pytest.raises(LiveError, match=f"127.0.0.1:{port} cannot be reached"):
            await discovery.register(card_of("a"))
        with pytest.raises(LiveError, match=f"127.0.0.1:{port} cannot be reached"):
            await anext(aiter(discovery.watch()))
        await discovery.close()


def start_etcd(binary: str, folder: Path, ports: list[int]) -> subprocess.Popen[bytes]:
    """A running etcd server of one member."""
    client, peer = (f"http://127.0.0.1:{port}" for port in ports)
    process = subprocess.Popen(
        [binary, "--data-dir", str(folder / "data"), "--listen-client-urls", client,
         "--advertise-client-urls", client, "--listen-peer-urls", peer,
         "--initial-advertise-peer-urls", peer, "--initial-cluster", f"default={peer}",
         "--log-level", "error"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    end_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < end_s:
        try:
            urllib.request.urlopen(f"{client}/version", timeout=5).close()
            return process
        except OSError:
            time.sleep(0.05)
    process.kill()
    raise AssertionError("etcd does not start")
