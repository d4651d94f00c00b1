"""Discovery in a folder that others fill: pipes, forged cards, a lock that nobody gives back.

And on disks that are full or have become read-only.
"""

import asyncio
import fcntl
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from disk_support import needs_mount, no_room, small_disk
from waiting import PATIENCE_S

from dynosim_runtime.card import EventSource, LiveCard, worker_id_of
from dynosim_runtime.discovery import file as file_discovery
from dynosim_runtime.discovery.file import MAX_CARD_BYTES, FileDiscovery, Lease
from dynosim_runtime.errors import LiveError
from dynosim_runtime.testing.discovery import Watcher, card_of

LEASE_S = 30.0
NO_PROCESS = (1 << 22) + 1  # beyond the greatest process id of Linux


def lease_of(card: LiveCard, changes: dict[str, Any]) -> dict[str, Any]:
    lease = Lease(card, LEASE_S, "someone", socket.gethostname(), os.getpid())
    return {**msgspec.to_builtins(lease), **changes}


def forge(folder: Path, fields: dict[str, Any]) -> Path:
    """A lease that is right except for some fields of its card."""
    card = {**msgspec.to_builtins(card_of("forged")), **fields}
    path = folder / f"{card['worker_id']}.json"
    path.write_bytes(msgspec.json.encode(lease_of(card_of("forged"), {"card": card})))
    return path


async def seen(folder: Path) -> set[str]:
    """Names of the workers that a new reader finds."""
    async with asyncio.timeout(PATIENCE_S):
        cards = await anext(aiter(FileDiscovery(folder, LEASE_S).watch()))
    return {card.name for card in cards.values()}


@pytest.fixture
async def honest(tmp_path: Path) -> AsyncIterator[str]:
    """A worker that must be seen whatever else is there."""
    registration = await FileDiscovery(tmp_path, LEASE_S).register(card_of("honest"))
    yield "honest"
    await registration.close()


async def test_files_that_would_be_waited_for_are_passed_over(tmp_path: Path, honest: str) -> None:
    os.mkfifo(tmp_path / "45.json")
    os.mkfifo(tmp_path / f"{worker_id_of('x')}.tmp")
    (tmp_path / "46.json").symlink_to("/dev/zero")
    (tmp_path / "47.json").symlink_to(tmp_path / "45.json")
    (tmp_path / "48.json").mkdir()
    (tmp_path / "49.json").write_bytes(b" " * (MAX_CARD_BYTES + 1))
    (tmp_path / "50.json").write_bytes(b"[" * 100_000)
    registration = await FileDiscovery(tmp_path, LEASE_S).register(card_of("x"))
    assert await seen(tmp_path) == {honest, "x"}
    await registration.close()


@pytest.mark.parametrize(
    "fields",
    [
        {"max_model_len": 0},
        {"max_model_len": -5},
        {"block_size": 0},
        {"dp_size": 0},
        {"dp_size": 1 << 30},
        {"speedup": 0.0},
        {"speedup": -1.0},
        {"total_kv_blocks": -1},
        {"max_num_seqs": 0},
        {"name": ""},
        {"name": "two\nlines"},
        {"name": "a line\n"},
        {"name": "x" * 2000},
        {"worker_id": -1},
        {"worker_id": 1 << 53},
        {"url": "http://h:99999"},
        {"url": "http://h:0"},
        {"url": "http://"},
        {"url": "http://[::1"},
        {"url": "ftp://h:80"},
        {"url": "http://h:80/ HTTP/1.1"},
        {"url": f"http://{'x' * 100}.local:80"},
        {"events": [{"endpoint": "tcp://h:1"}] * 2},
    ],
    ids=lambda fields: f"{next(iter(fields))}={str(next(iter(fields.values())))[:24]!r}",
)
async def test_cards_that_no_worker_can_have_are_refused(
    tmp_path: Path, honest: str, fields: dict[str, Any]
) -> None:
    forge(tmp_path, fields)
    assert await seen(tmp_path) == {honest}


@pytest.mark.parametrize(
    "changes",
    [{"pid": 0}, {"pid": -1}, {"pid": 1 << 40}, {"lease_s": 0.0}, {"lease_s": -1.0}],
    ids=str,
)
async def test_leases_that_no_worker_can_have_are_refused(
    tmp_path: Path, honest: str, changes: dict[str, Any]
) -> None:
    card = card_of("forged")
    path = tmp_path / f"{card.worker_id}.json"
    path.write_bytes(msgspec.json.encode(lease_of(card, changes)))
    assert await seen(tmp_path) == {honest}


EDGES: tuple[dict[str, Any], ...] = (
    {"max_model_len": 1, "block_size": 1, "total_kv_blocks": 0},
    {"dp_size": 2, "events": [{"endpoint": "no address"}] * 2},
    {"url": "https://user:secret@[::1]:65535/base"},
    {"worker_id": 0},
)


async def test_cards_at_the_edge_of_what_can_be_are_seen(tmp_path: Path) -> None:
    for number, fields in enumerate(EDGES):
        name = f"w{number}"
        forge(tmp_path, {"name": name, "worker_id": worker_id_of(name), **fields})
    assert await seen(tmp_path) == {"w0", "w1", "w2", "w3"}
    with pytest.raises(ValueError, match="3 event sources for 2 ranks"):
        card_of("x", dp_size=2, events=(EventSource(endpoint="e"),) * 3)


# ---- the lock ------------------------------------------------------------------------------------


async def test_a_lock_that_is_not_given_back_holds_up_no_reader_and_no_start(
    tmp_path: Path, honest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_discovery, "LOCK_TIMEOUT_S", 10 * PATIENCE_S)
    monkeypatch.setattr(file_discovery, "RETRY_S", 0.01)
    gone = card_of("gone")
    stale = tmp_path / f"{gone.worker_id}.json"
    stale.write_bytes(msgspec.json.encode(lease_of(gone, {"pid": NO_PROCESS})))
    with (tmp_path / ".lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert await seen(tmp_path) == {honest}
        assert stale.exists()
        monkeypatch.setattr(file_discovery, "LOCK_TIMEOUT_S", 0.02)
        registering = asyncio.create_task(
            FileDiscovery(tmp_path, LEASE_S).register(card_of("waits"))
        )
        await asyncio.sleep(0.1)
        assert not registering.done()
    async with asyncio.timeout(PATIENCE_S):
        registration = await registering
    assert await seen(tmp_path) == {honest, "waits"}
    assert not stale.exists()
    await registration.close()


async def test_a_pipe_in_place_of_the_lock_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / ".lock")
    async with asyncio.timeout(PATIENCE_S):
        registration = await FileDiscovery(tmp_path, LEASE_S).register(card_of("a"))
    assert await seen(tmp_path) == {"a"}
    await registration.close()


# ---- full disks ----------------------------------------------------------------------------------


async def test_a_card_is_published_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(file_discovery, "RETRY_S", 0.01)
    with no_room():
        discovery = FileDiscovery(tmp_path, LEASE_S)
        registering = asyncio.create_task(discovery.register(card_of("a")))
        await asyncio.sleep(0.2)
        assert not registering.done()
        assert not [path for path in tmp_path.iterdir() if path.name != ".lock"]
    async with asyncio.timeout(PATIENCE_S):
        registration = await registering
    assert await seen(tmp_path) == {"a"}
    told = [r.getMessage() for r in caplog.records if "cannot publish" in r.getMessage()]
    assert len(told) == 2  # its begin and its end
    await registration.close()


async def test_a_change_that_had_to_wait_is_published_with_the_next_renewal(
    tmp_path: Path,
) -> None:
    discovery = FileDiscovery(tmp_path, 3.0, poll_interval_s=0.01)
    registration = await discovery.register(card_of("a"))
    watcher = Watcher(discovery.watch())
    await watcher.until(bool)
    for spare in tmp_path.glob(".spare*"):
        spare.unlink()
    with no_room(), pytest.raises(LiveError, match="File too large"):
        await registration.update(card_of("a", is_draining=True))
    await watcher.until(lambda cards: any(card.is_draining for card in cards.values()))
    await watcher.close()
    await registration.close()


@needs_mount
async def test_workers_come_and_go_on_a_full_disk(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 64) as disk:
        folder = disk.folder / "workers"
        for number in range(4):
            registration = await FileDiscovery(folder, LEASE_S).register(card_of("a"))
            await registration.update(card_of("a", total_kv_blocks=number))
            disk.fill()
            assert await seen(folder) == {"a"}
            if number % 2:
                await registration.close()  # it says goodbye
                continue
            registration._heartbeat.cancel()  # it is killed
            card = card_of("a")
            path = folder / f"{card.worker_id}.json"
            lease = msgspec.json.decode(path.read_bytes(), type=Lease)
            path.write_bytes(msgspec.json.encode(msgspec.structs.replace(lease, pid=NO_PROCESS)))
            assert await seen(folder) == set()
            disk.fill()


@needs_mount
async def test_where_nothing_can_be_written_a_worker_lives_as_long_as_its_process(
    tmp_path: Path,
) -> None:
    with small_disk(tmp_path / "disk", 64) as disk:
        for name, pid in (("alive", os.getpid()), ("dead", NO_PROCESS)):
            card = card_of(name)
            path = disk.folder / f"{card.worker_id}.json"
            path.write_bytes(msgspec.json.encode(lease_of(card, {"pid": pid})))
            os.utime(path, (1.0, 1.0))  # long run out
        disk.make_read_only()
        assert await seen(disk.folder) == {"alive"}
        disk.make_writable()
        assert await seen(disk.folder) == set()


async def test_a_folder_that_cannot_be_read_keeps_the_workers_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    discovery = FileDiscovery(tmp_path, LEASE_S, poll_interval_s=0.01)
    registration = await discovery.register(card_of("a"))
    watching = aiter(discovery.watch())
    assert len(await anext(watching)) == 1

    def fail(folder: Path) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "scandir", fail)
    following = asyncio.ensure_future(anext(watching))
    await asyncio.sleep(0.1)
    assert not following.done()
    monkeypatch.undo()
    await registration.update(card_of("a", is_draining=True))
    async with asyncio.timeout(PATIENCE_S):
        (card,) = (await following).values()
    assert card.is_draining
    told = [r.getMessage() for r in caplog.records if "Input/output" in r.getMessage()]
    assert len(told) == 1
    await registration.close()
