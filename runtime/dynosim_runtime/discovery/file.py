"""Discovery in a folder: a file per worker, whose time of change is its lease's last renewal.

Whoever reads compares that time with its own clock: processes of one host, or of hosts with one
clock and one file system. A worker of this host whose process is gone is gone at once; any other
when its lease has run out. A lock makes registering, updating and clearing away exclusive, so
that a card is never lost between two of them; reading takes no lock, since files appear whole.

A disk that is full costs no worker: spare files keep room for cards, and what still cannot be
written is tried again. Where the folder has become read-only, nobody can renew a lease, and a
worker of this host is there as long as its process is.
"""

import asyncio
import contextlib
import fcntl
import logging
import os
import socket
import stat
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Annotated, NamedTuple

import msgspec

from dynosim.files.storage import is_fault
from dynosim_runtime.card import LiveCard
from dynosim_runtime.errors import LiveError
from dynosim_runtime.outage import Outage
from dynosim_runtime.small_files import read_file, replace_file

POLL_INTERVAL_S = 0.25
LOCK_FILE = ".lock"
SPARE_FILES = tuple(f".spare-{number}" for number in range(8))  # one is kept at least
LOCK_TIMEOUT_S = 5.0  # for another process, which needs it for less than a millisecond
LOCK_POLL_S = 0.01
RETRY_S = 0.5  # to publish a card, on a full disk
MAX_CARD_BYTES = 1 << 20

log = logging.getLogger(__name__)


class Lease(msgspec.Struct, frozen=True):
    """What a worker's file holds."""

    card: LiveCard
    lease_s: Annotated[float, msgspec.Meta(gt=0)]
    owner: str  # of the registration; another one after a restart
    host: str
    pid: Annotated[int, msgspec.Meta(ge=1, lt=1 << 31)]  # of the process that keeps it alive


class _Entry(NamedTuple):
    """A file as it was last read; `lease` is None for one that is none of ours."""

    version: tuple[int, int]  # time of change in ns, inode
    lease: Lease | None

    def is_alive(self, now_s: float) -> bool:
        lease = self.lease
        if lease is None or now_s - self.version[0] / 1e9 > lease.lease_s:
            return False
        return lease.host != socket.gethostname() or _process_exists(lease.pid)

    def is_unrenewed(self) -> bool:
        """Its process is there; that its lease ran out may be the disk's fault."""
        lease = self.lease
        return (
            lease is not None and lease.host == socket.gethostname() and _process_exists(lease.pid)
        )


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
        self._reading = Outage(log, f"discovery folder {folder}")
        try:
            with self._locked(0.0):
                pass
        except OSError as error:
            if not (is_passing(error) and folder.is_dir()):
                raise _live_error(folder, error) from None

    async def register(self, card: LiveCard) -> "FileRegistration":
        """Publish a card; waits for a lease to run out that nobody renews, and for room on a disk.

        Raises: LiveError if another live worker has this id, or the folder cannot be written.
        """
        lease = Lease(card, self._lease_s, uuid.uuid4().hex, socket.gethostname(), os.getpid())
        give_up_s = time.monotonic() + self._lease_s + self._poll_interval_s
        writing = Outage(log, f"worker {card.name} cannot publish its card")
        while True:
            try:
                holder = await asyncio.to_thread(self.publish, lease)
            except OSError as error:
                if not is_passing(error):
                    raise _live_error(self._folder, error) from None
                writing.failed(error)
                await asyncio.sleep(RETRY_S)
                continue
            writing.worked()
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
        """Write a lease's file. If another live worker has its id: that one's lease, unchanged.

        Raises: OSError.
        """
        path = self._path(lease)
        with self._locked():
            entry = self._read(path.name, path)
            holder = entry.lease if entry is not None and entry.is_alive(time.time()) else None
            if holder is not None and holder.owner != lease.owner:
                return holder
            replace_file(
                path,
                msgspec.json.format(msgspec.json.encode(lease)),
                scratch=path.with_suffix(".tmp"),
                spare=self._spare(),
            )
        return None

    def renew(self, lease: Lease) -> None:
        """Keep a lease alive. Raises: LiveError if another worker has taken the id; OSError."""
        path = self._path(lease)
        entry = self._read(path.name, path)
        if entry is not None and entry.lease is not None and entry.lease.owner == lease.owner:
            with contextlib.suppress(FileNotFoundError):  # just cleared away as too old
                os.utime(path, follow_symlinks=False)
                return
        if self.publish(lease) is not None:
            raise LiveError(
                f"worker {lease.card.name}: its lease in {self._folder} ran out, and another "
                "worker has taken its id; restart it under another --name"
            )

    def withdraw(self, lease: Lease) -> None:
        """Take a lease's file away; one of another owner stays. Raises: OSError."""
        path = self._path(lease)
        with self._locked():
            entry = self._read(path.name, path)
            if entry is not None and entry.lease is not None and entry.lease.owner == lease.owner:
                self._remove(path)

    async def watch(self) -> AsyncIterator[dict[int, LiveCard]]:
        """All live cards by worker id, at once and then after every change.

        While the folder cannot be read, those known stay. Read in a thread: a file system may
        take its time.
        """
        last: dict[int, LiveCard] | None = None
        while True:
            try:
                cards = await asyncio.to_thread(self._cards)
                self._reading.worked()
            except OSError as error:
                self._reading.failed(error)
                cards = {} if last is None else last
            if cards != last:
                last = cards
                yield dict(cards)
            await asyncio.sleep(self._poll_interval_s)

    async def close(self) -> None:
        """Nothing to release."""

    def _cards(self) -> dict[int, LiveCard]:
        self._scan()
        now_s = time.time()
        cards: dict[int, LiveCard] = {}
        for name, entry in sorted(self._entries.items()):
            if entry.lease is None:
                continue
            if entry.is_alive(now_s) or (entry.is_unrenewed() and self._is_read_only()):
                cards[entry.lease.card.worker_id] = entry.lease.card
            else:
                self._clear(name)
        return cards

    def _scan(self) -> None:
        """Read the files that have changed since the last look. Raises: OSError."""
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
            status = file.stat(follow_symlinks=False)
            version = (status.st_mtime_ns, status.st_ino)
            known = self._entries.get(name)
            if known is not None and known.version == version:
                return known
            if not stat.S_ISREG(status.st_mode):
                self._report(name, "it is no regular file")
                return _Entry(version, None)
            content = read_file(self._folder / name, MAX_CARD_BYTES)
        except FileNotFoundError:
            return None
        except OSError as error:
            self._report(name, str(error))
            return None
        return _Entry(version, self._decode(name, content))

    def _decode(self, name: str, content: bytes) -> Lease | None:
        try:
            lease = msgspec.json.decode(content, type=Lease)
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
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
        with contextlib.suppress(OSError), self._locked(0.0):  # a reader may not be allowed to
            entry = self._read(name, path)
            if entry is not None and entry.lease is not None and not entry.is_alive(time.time()):
                self._remove(path)

    def _remove(self, path: Path) -> None:
        """Take a file away; on a full disk others would take its blocks. Raises: OSError."""
        for name in SPARE_FILES:
            if not (self._folder / name).exists():
                path.replace(self._folder / name)
                return
        path.unlink(missing_ok=True)

    def _spare(self) -> Path:
        """A spare file; if there is none, where one is to be."""
        spares = [self._folder / name for name in SPARE_FILES]
        return next((spare for spare in spares if spare.exists()), spares[0])

    def _is_read_only(self) -> bool:
        try:
            return bool(os.statvfs(self._folder).f_flag & os.ST_RDONLY)
        except OSError:
            return False

    def _path(self, lease: Lease) -> Path:
        return self._folder / f"{lease.card.worker_id}.json"

    @contextlib.contextmanager
    def _locked(self, timeout_s: float | None = None) -> Iterator[None]:
        """Raises: OSError, TimeoutError if another process keeps the lock to itself."""
        timeout_s = LOCK_TIMEOUT_S if timeout_s is None else timeout_s
        self._folder.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
        lock = os.open(self._folder / LOCK_FILE, flags, 0o644)
        try:
            give_up_s = time.monotonic() + timeout_s
            while not _has_locked(lock):
                if time.monotonic() >= give_up_s:
                    raise TimeoutError(f"another process keeps {self._folder / LOCK_FILE} locked")
                time.sleep(LOCK_POLL_S)
            yield
        finally:
            os.close(lock)


class FileRegistration:
    """A card in the folder, renewed by a task until `close`."""

    def __init__(self, discovery: FileDiscovery, lease: Lease) -> None:
        self._discovery = discovery
        self._lease = lease
        self._is_published = True  # the card, as it is now
        self._heartbeat = asyncio.create_task(self._keep_alive())

    async def update(self, card: LiveCard) -> None:
        """Publish a changed card. Raises: LiveError if its id is another's, or it must wait."""
        if card.worker_id != self._lease.card.worker_id:
            raise ValueError(f"card of worker {card.worker_id}, not {self._lease.card.worker_id}")
        self._lease = msgspec.structs.replace(self._lease, card=card)
        self._is_published = False
        try:
            await asyncio.to_thread(self._publish)
        except OSError as error:
            raise _live_error(self._discovery._folder, error) from None

    async def close(self) -> None:
        """Take the card away at once."""
        self._heartbeat.cancel()
        await asyncio.gather(self._heartbeat, return_exceptions=True)
        with contextlib.suppress(OSError):  # then the lease runs out
            await asyncio.to_thread(self._discovery.withdraw, self._lease)

    def _publish(self) -> None:
        """Raises: LiveError if its id is another's by now; OSError."""
        if self._discovery.publish(self._lease) is not None:
            raise LiveError(f"worker {self._lease.card.name}: another worker has taken its id")
        self._is_published = True

    def _renew(self) -> None:
        if self._is_published:
            self._discovery.renew(self._lease)
        else:
            self._publish()

    async def _keep_alive(self) -> None:
        renewing = Outage(log, f"worker {self._lease.card.name} cannot renew its lease")
        while True:
            await asyncio.sleep(self._lease.lease_s / 3)
            try:
                await asyncio.to_thread(self._renew)
                renewing.worked()
            except LiveError as error:
                log.error("%s", error)
                return
            except Exception as error:  # whatever it is, the next time it may be over
                renewing.failed(error)


def is_passing(error: OSError) -> bool:
    """Whether it may be over soon, unlike a wrong place."""
    return is_fault(error) or isinstance(error, TimeoutError)


def _has_locked(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _process_exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _live_error(folder: Path, error: OSError) -> LiveError:
    return LiveError(
        f"discovery folder {folder}: {error.strerror or error} (name one that can be written)"
    )
