"""Discovery in a folder: a file per worker, whose time of change is its lease's last renewal.

Whoever reads compares that time with its own clock: processes of one host, or of hosts with one
clock and one file system. A worker of this host whose process is gone is gone at once; any other
when its lease has run out. A lock makes registering, updating and clearing away exclusive, so
that a card is never lost between two of them; reading takes no lock, since files appear whole.
"""

import asyncio
import contextlib
import fcntl
import logging
import os
import socket
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from dynosim_runtime.card import WorkerCard
from dynosim_runtime.errors import LiveError

POLL_INTERVAL_S = 0.25
LOCK_FILE = ".lock"

log = logging.getLogger(__name__)


class Lease(msgspec.Struct, frozen=True):
    """What a worker's file holds."""

    card: WorkerCard
    lease_s: float
    owner: str  # of the registration; another one after a restart
    host: str
    pid: int  # of the process that keeps the lease alive


class _Entry(NamedTuple):
    """A file as it was last read; `lease` is None for one that is none of ours."""

    version: tuple[int, int]  # time of change in ns, inode
    lease: Lease | None

    def is_alive(self, now_s: float) -> bool:
        lease = self.lease
        if lease is None or now_s - self.version[0] / 1e9 > lease.lease_s:
            return False
        return lease.host != socket.gethostname() or _process_exists(lease.pid)


class FileDiscovery:
    """Cards in a folder. Raises: LiveError if it cannot be made or written."""

    def __init__(
        self, folder: Path, lease_s: float, poll_interval_s: float = POLL_INTERVAL_S
    ) -> None:
        self._folder = folder
        self._lease_s = lease_s
        self._poll_interval_s = min(poll_interval_s, lease_s / 4)
        self._entries: dict[str, _Entry] = {}
        self._reported: set[str] = set()
        with _as_live_error(folder):
            folder.mkdir(parents=True, exist_ok=True)
            with self._locked():
                pass

    async def register(self, card: WorkerCard) -> "FileRegistration":
        """Publish a card; waits for a lease to run out that nobody renews.

        Raises: LiveError if another live worker has this id, or the folder cannot be written.
        """
        lease = Lease(card, self._lease_s, uuid.uuid4().hex, socket.gethostname(), os.getpid())
        give_up_s = time.monotonic() + self._lease_s + self._poll_interval_s
        while True:
            with _as_live_error(self._folder):
                holder = self.publish(lease)
            if holder is None:
                return FileRegistration(self, lease)
            if holder.host == lease.host or time.monotonic() > give_up_s:
                raise LiveError(
                    f"worker {card.name}: {holder.card.name} (process {holder.pid} on "
                    f"{holder.host}) already has worker id {card.worker_id} in {self._folder}; "
                    "stop that one, or give this one another --name"
                )
            await asyncio.sleep(self._poll_interval_s)

    def publish(self, lease: Lease) -> Lease | None:
        """Write a lease's file. If another live worker has its id: that one's lease, unchanged."""
        path = self._path(lease)
        with self._locked():
            entry = self._read(path.name, path)
            holder = entry.lease if entry is not None and entry.is_alive(time.time()) else None
            if holder is not None and holder.owner != lease.owner:
                return holder
            scratch = path.with_suffix(".tmp")  # a left-over is overwritten by the next
            scratch.write_bytes(msgspec.json.format(msgspec.json.encode(lease)))
            os.replace(scratch, path)
        return None

    def renew(self, lease: Lease) -> None:
        """Keep a lease alive. Raises: LiveError if another worker has taken the id."""
        path = self._path(lease)
        entry = self._read(path.name, path)
        if entry is not None and entry.lease is not None and entry.lease.owner == lease.owner:
            with contextlib.suppress(FileNotFoundError):  # just cleared away as too old
                os.utime(path)
                return
        if self.publish(lease) is not None:
            raise LiveError(
                f"worker {lease.card.name}: its lease in {self._folder} ran out, and another "
                "worker has taken its id; restart it under another --name"
            )

    def withdraw(self, lease: Lease) -> None:
        """Take a lease's file away; one of another owner stays."""
        path = self._path(lease)
        with self._locked():
            entry = self._read(path.name, path)
            if entry is not None and entry.lease is not None and entry.lease.owner == lease.owner:
                path.unlink(missing_ok=True)

    async def watch(self) -> AsyncIterator[dict[int, WorkerCard]]:
        """All live cards by worker id, at once and then after every change."""
        last: dict[int, WorkerCard] | None = None
        while True:
            cards = self._cards()
            if cards != last:
                last = cards
                yield dict(cards)
            await asyncio.sleep(self._poll_interval_s)

    async def close(self) -> None:
        """Nothing to release."""

    def _cards(self) -> dict[int, WorkerCard]:
        self._scan()
        now_s = time.time()
        cards: dict[int, WorkerCard] = {}
        for name, entry in sorted(self._entries.items()):
            if entry.lease is None:
                continue
            if entry.is_alive(now_s):
                cards[entry.lease.card.worker_id] = entry.lease.card
            else:
                self._clear(name)
        return cards

    def _scan(self) -> None:
        """Read the files that have changed since the last look."""
        try:
            with os.scandir(self._folder) as files:
                found = {file.name: file for file in files if file.name.endswith(".json")}
        except FileNotFoundError:  # removed while we run; a worker's next renewal makes it again
            found = {}
        entries: dict[str, _Entry] = {}
        for name, file in found.items():
            entry = self._read(name, file)
            if entry is not None:
                entries[name] = entry
        self._entries = entries

    def _read(self, name: str, file: "os.DirEntry[str] | Path") -> _Entry | None:
        """The file, from memory if it has not changed; None if it has gone."""
        try:
            stat = file.stat()
            version = (stat.st_mtime_ns, stat.st_ino)
            known = self._entries.get(name)
            if known is not None and known.version == version:
                return known
            content = (self._folder / name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            self._report(name, str(error))
            return None
        return _Entry(version, self._decode(name, content))

    def _decode(self, name: str, content: bytes) -> Lease | None:
        try:
            lease = msgspec.json.decode(content, type=Lease)
        except (msgspec.DecodeError, ValueError) as error:
            self._report(name, str(error))
            return None
        if name != self._path(lease).name:
            self._report(name, f"it holds the card of worker id {lease.card.worker_id}")
            return None
        return lease

    def _report(self, name: str, reason: str) -> None:
        if name not in self._reported:
            self._reported.add(name)
            log.warning("%s is no worker's card, passed over: %s", self._folder / name, reason)

    def _clear(self, name: str) -> None:
        """Remove a file whose lease has run out, unless it was renewed in the meantime."""
        path = self._folder / name
        with contextlib.suppress(OSError), self._locked():  # a reader may not be allowed to
            entry = self._read(name, path)
            if entry is not None and entry.lease is not None and not entry.is_alive(time.time()):
                path.unlink(missing_ok=True)

    def _path(self, lease: Lease) -> Path:
        return self._folder / f"{lease.card.worker_id}.json"

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / LOCK_FILE).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


class FileRegistration:
    """A card in the folder, renewed by a task until `close`."""

    def __init__(self, discovery: FileDiscovery, lease: Lease) -> None:
        self._discovery = discovery
        self._lease = lease
        self._heartbeat = asyncio.create_task(self._keep_alive())

    async def update(self, card: WorkerCard) -> None:
        """Publish a changed card. Raises: LiveError if its id is another's by now."""
        if card.worker_id != self._lease.card.worker_id:
            raise ValueError(f"card of worker {card.worker_id}, not {self._lease.card.worker_id}")
        self._lease = msgspec.structs.replace(self._lease, card=card)
        with _as_live_error(self._discovery._folder):
            if self._discovery.publish(self._lease) is not None:
                raise LiveError(f"worker {card.name}: another worker has taken its id")

    async def close(self) -> None:
        """Take the card away at once."""
        self._heartbeat.cancel()
        await asyncio.gather(self._heartbeat, return_exceptions=True)
        with contextlib.suppress(OSError):  # then the lease runs out
            self._discovery.withdraw(self._lease)

    async def _keep_alive(self) -> None:
        is_failing = False
        while True:
            await asyncio.sleep(self._lease.lease_s / 3)
            try:
                self._discovery.renew(self._lease)
                is_failing = False
            except LiveError as error:
                log.error("%s", error)
                return
            except OSError as error:
                if not is_failing:
                    log.error("worker %s cannot renew its lease: %s", self._lease.card.name, error)
                is_failing = True


def _process_exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@contextlib.contextmanager
def _as_live_error(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise LiveError(
            f"discovery folder {folder}: {error.strerror or error} (name one that can be written)"
        ) from None
