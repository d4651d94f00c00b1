"""Discovery in a folder: leases, files that are none of ours, and specifications."""

import asyncio
import os
import time
from pathlib import Path

import msgspec
import pytest

from dynosim.config.live import LiveConfig
from dynosim.errors import ConfigError
from dynosim_runtime.card import worker_id_of
from dynosim_runtime.discovery.file import FileDiscovery, Lease
from dynosim_runtime.discovery.make import discovery_spec, etcd_url, make_discovery
from dynosim_runtime.errors import LiveError
from dynosim_runtime.testing.discovery import Watcher, card_of

LEASE_S = 30.0


@pytest.fixture
def discovery(tmp_path: Path) -> FileDiscovery:
    return FileDiscovery(tmp_path, LEASE_S, poll_interval_s=0.01)


def write_lease(folder: Path, name: str, *, age_s: float, host: str = "elsewhere") -> Path:
    """A worker's file as another host's process has left it."""
    card = card_of(name)
    path = folder / f"{card.worker_id}.json"
    path.write_bytes(msgspec.json.encode(Lease(card, LEASE_S, "someone", host, os.getpid())))
    os.utime(path, (time.time() - age_s,) * 2)
    return path


async def first(discovery: FileDiscovery) -> set[int]:
    return set(await anext(aiter(discovery.watch())))


async def test_a_lease_that_ran_out_is_gone_and_cleared_away(
    discovery: FileDiscovery, tmp_path: Path
) -> None:
    old = write_lease(tmp_path, "old", age_s=LEASE_S + 5)
    fresh = write_lease(tmp_path, "fresh", age_s=LEASE_S - 10)
    assert await first(discovery) == {worker_id_of("fresh")}
    assert not old.exists()
    assert fresh.exists()


async def test_a_worker_of_this_host_without_a_process_is_gone(
    discovery: FileDiscovery, tmp_path: Path
) -> None:
    registration = await discovery.register(card_of("a"))
    (path,) = tmp_path.glob("*.json")
    lease = msgspec.json.decode(path.read_bytes(), type=Lease)
    no_process = (1 << 22) + 1  # beyond the greatest process id of Linux
    path.write_bytes(msgspec.json.encode(msgspec.structs.replace(lease, pid=no_process)))
    assert await first(discovery) == set()
    await registration.close()


async def test_the_place_of_a_lease_that_ran_out_is_free(
    discovery: FileDiscovery, tmp_path: Path
) -> None:
    write_lease(tmp_path, "a", age_s=LEASE_S + 1)
    registration = await discovery.register(card_of("a"))
    assert await first(discovery) == {worker_id_of("a")}
    await registration.close()
    assert list(tmp_path.glob("*.json")) == []


async def test_an_update_after_another_has_taken_the_id_is_refused(
    discovery: FileDiscovery, tmp_path: Path
) -> None:
    registration = await discovery.register(card_of("a"))
    path = write_lease(tmp_path, "a", age_s=0)
    before = path.read_bytes()
    with pytest.raises(LiveError, match="another worker has taken its id"):
        await registration.update(card_of("a", is_draining=True))
    await registration.close()
    assert path.read_bytes() == before


async def test_files_that_are_no_cards_are_passed_over_and_reported_once(
    discovery: FileDiscovery, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "1.json").write_text("{")
    (tmp_path / "2.json").write_text('{"card": {"name": 3}}')
    (tmp_path / "3.json").write_bytes(b"\xff\xfe")
    (tmp_path / "notes.txt").write_text("not ours")
    (tmp_path / "4.json").mkdir()
    write_lease(tmp_path, "a", age_s=0).rename(tmp_path / "5.json")
    registration = await discovery.register(card_of("b"))
    watcher = Watcher(discovery.watch())
    assert set(await watcher.until(bool)) == {worker_id_of("b")}
    for number in range(3):  # further looks
        await registration.update(card_of("b", total_kv_blocks=number))
        await watcher.until(lambda cards: cards != {})
    reports = [r.args for r in caplog.records if "passed over" in r.getMessage()]
    assert sorted(Path(str(args[0])).name for args in reports if isinstance(args, tuple)) == [
        f"{number}.json" for number in range(1, 6)
    ]
    assert (tmp_path / "1.json").exists()
    await watcher.close()
    await registration.close()


async def test_a_removed_folder_is_an_empty_one_until_a_worker_renews(tmp_path: Path) -> None:
    folder = tmp_path / "workers"
    discovery = FileDiscovery(folder, 3.0, poll_interval_s=0.01)
    registration = await discovery.register(card_of("a"))
    watcher = Watcher(discovery.watch())
    await watcher.until(bool)
    for path in sorted(folder.iterdir(), reverse=True):
        path.unlink()
    folder.rmdir()
    await watcher.until(lambda cards: cards == {})
    await watcher.until(lambda cards: set(cards) == {worker_id_of("a")})
    await watcher.close()
    await registration.close()


async def test_readers_never_see_half_a_card(discovery: FileDiscovery, tmp_path: Path) -> None:
    registration = await discovery.register(card_of("a", taints=("x" * 4000,)))
    reader = FileDiscovery(tmp_path, LEASE_S)
    for number in range(200):
        await registration.update(card_of("a", total_kv_blocks=number, taints=("x" * number,)))
        (card,) = (await anext(aiter(reader.watch()))).values()
        assert card.total_kv_blocks == number
        await asyncio.sleep(0)
    await registration.close()


def test_a_place_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LiveError, match="discovery folder"):
        make_discovery(f"file:{tmp_path / 'file'}", 5.0)


@pytest.mark.parametrize(
    "spec", ["", "file", "file:", "etcd", "etcd:", "etcd:host", "etcd:host:x", "etcd::1", "zk:x"]
)
def test_other_specifications_are_refused(spec: str) -> None:
    with pytest.raises(ConfigError, match="etcd:HOST:PORT"):
        make_discovery(spec, 5.0)


@pytest.mark.parametrize(
    ("discovery", "endpoint", "expected"),
    [
        ("file", "/a/b", "file:/a/b"),
        ("etcd", None, "etcd:127.0.0.1:2379"),
        ("etcd", "etcd.local:2379", "etcd:etcd.local:2379"),
        ("kubernetes", "inference", "kubernetes:inference"),
        ("kubernetes", None, "kubernetes:"),
    ],
)
def test_a_plan_names_its_discovery(discovery: str, endpoint: str | None, expected: str) -> None:
    live = LiveConfig.model_validate({"discovery": discovery, "discovery_endpoint": endpoint})
    assert discovery_spec(live) == expected


def test_etcd_addresses_may_be_urls() -> None:
    assert etcd_url("http://10.0.0.1:2379/") == etcd_url("10.0.0.1:2379") == "http://10.0.0.1:2379"
