"""Runs trials on a Ray cluster: one that is there, or one of this machine for as long as it lasts.

Every request is a task of one core. A worker or a machine that is lost takes no trial with it: what
was at work there is run again elsewhere. What a trial answers depends on its request alone, so the
results are those of any other executor.
"""

import heapq
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterable
from importlib import import_module
from itertools import count, islice
from types import ModuleType
from typing import Any, TextIO, cast

from dynosim import __version__
from dynosim.errors import ConfigError
from dynosim.sweep.executor import READY_PER_JOB, Answer, Request, num_cores
from dynosim.sweep.status import FAILED

MAX_LOSSES = 4
"""Workers that may be lost over one request before it counts as what ends them."""
_CONNECT_S = 3.0
_POLL_S = 0.2
_COUNT_CORES_S = 1.0
_OBJECT_STORE_BYTES = 100_000_000  # Ray's least is 75 MB; answers are some kB and never lie in it
_MAX_TEMP_CHARS = 20
"""Sockets have paths of at most 107 characters; elsewhere Ray takes /tmp/ray."""
_HTTP2_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"
_SETTINGS_FRAME = 4

_Asked = tuple[int, int, int, Request]
"""Index, number in order of coming, workers lost over it, request: compared by the first two."""


class RayExecutor:
    """Answers requests with tasks of Ray. Use as a context, which connects and leaves.

    `address` is HOST:PORT of a cluster's head, "auto" for the one that this machine is part of, or
    None for RAY_ADDRESS if that is set, else a Ray of this machine's own, ended with the context.
    At most `jobs` tasks are at work; None: as many as the cluster has cores. Tasks that nobody
    waits for any more end as the context is left: to cancel one that is just about to answer ends
    this process (https://github.com/ray-project/ray/pull/54798).
    """

    def __init__(self, address: str | None = None, jobs: int | None = None) -> None:
        self._address = address or os.environ.get("RAY_ADDRESS") or None
        self._jobs = jobs
        self._folder: str | None = None
        self._num_cores, self._counted_s = 1, -_COUNT_CORES_S
        self._ray: ModuleType = sys
        self._stdout: _WithoutRay | None = None
        self.num_lost = 0  # tasks whose worker was lost

    def __enter__(self) -> "RayExecutor":
        """Raises: ConfigError if Ray is not installed, or the cluster is not there."""
        if self._address is not None:
            _check_address(self._address)
        self._ray = _imported()
        handler = signal.getsignal(signal.SIGTERM)
        try:
            self._connect()
            self._stdout = _WithoutRay(sys.stdout)
            sys.stdout = cast(TextIO, self._stdout)
        except BaseException:
            self._leave()
            raise
        finally:  # Ray sets one of its own
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, handler)
        return self

    def __exit__(self, *_: object) -> None:
        self._leave()

    def _connect(self) -> None:
        quiet = {"logging_level": "error", "log_to_driver": False}
        if self._address is None:
            own: dict[str, Any] = {
                "num_cpus": self._jobs or num_cores(),
                "include_dashboard": False,
                "object_store_memory": _OBJECT_STORE_BYTES,
            }
            if len(tempfile.gettempdir()) <= _MAX_TEMP_CHARS:
                self._folder = tempfile.mkdtemp(prefix="dynosim-ray-")
                own["_temp_dir"] = self._folder
            where, options = "start on this machine", {**quiet, **own, "address": "local"}
        else:
            where, options = f"join {self._address}", {**quiet, "address": self._address}
        try:
            self._ray.init(**options)
        except (Exception, SystemExit) as error:  # its native part ends the process with SIGTERM
            why = str(error).strip().splitlines() or [type(error).__name__]
            raise ConfigError(f"--executor ray: cannot {where}: {why[0]}") from None

    def _leave(self) -> None:
        if self._stdout is not None:
            self._stdout.is_ray_leaving = True
        self._ray.shutdown()
        if self._stdout is not None:
            sys.stdout, self._stdout = self._stdout.stream, None
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def run(
        self,
        function: str,
        requests: Iterable[tuple[int, Request]],
        follow: Callable[[int, Answer], Iterable[tuple[int, Request]]] | None = None,
    ) -> Generator[tuple[int, Answer], None, None]:
        """See `Executor`. Raises: ConfigError if the workers have no dynosim, or another one."""
        # a lost worker is our affair: Ray itself would wait for one of the same machine
        task = self._ray.remote(_answered).options(num_cpus=1, max_retries=0)
        numbers = count()
        source = ((index, next(numbers), 0, asked) for index, asked in requests)
        todo: list[_Asked] = []
        at_work: dict[Any, _Asked] = {}
        while True:
            for fresh in islice(source, max(0, READY_PER_JOB * self._room() - len(todo))):
                heapq.heappush(todo, fresh)
            if not todo and not at_work:
                break
            while todo and len(at_work) < self._room():
                asked = heapq.heappop(todo)
                at_work[task.remote(__version__, function, asked[3])] = asked
            ended, _ = self._ray.wait(list(at_work), num_returns=1, timeout=_POLL_S)
            for reference in ended:
                asked = at_work.pop(reference)
                answer = self._answer(reference, num_lost=asked[2])
                if answer is None:
                    heapq.heappush(todo, (asked[0], asked[1], asked[2] + 1, asked[3]))
                    continue
                for index, more in () if follow is None else follow(asked[0], answer):
                    heapq.heappush(todo, (index, next(numbers), 0, more))
                yield asked[0], answer

    def _answer(self, reference: Any, *, num_lost: int) -> Answer | None:
        """What a task answered; None if its worker was lost, too often for it to be chance."""
        errors = self._ray.exceptions
        try:
            version, answer = self._ray.get(reference)
        except errors.RayTaskError as error:
            raise ConfigError(
                f"--executor ray: a worker cannot run dynosim: {_last_line(error)} "
                f"(install dynosim {__version__} on every machine of the cluster)"
            ) from None
        except errors.RayError as error:
            self.num_lost += 1
            if num_lost + 1 < MAX_LOSSES:
                return None
            reason = f"{MAX_LOSSES} worker processes died over it: {_last_line(error)}"
            return {"status": FAILED, "reason": reason, "report": {}, "wall_ms": 0.0}
        if version != __version__:
            raise ConfigError(
                f"--executor ray: a worker has dynosim {version}, this is {__version__} "
                "(install the same on every machine of the cluster)"
            )
        found: Answer = answer
        return found

    def _room(self) -> int:
        """How many tasks may be at work. Machines come and go."""
        if self._jobs is not None:
            return self._jobs
        if time.monotonic() - self._counted_s >= _COUNT_CORES_S:
            self._num_cores = max(1, int(self._ray.cluster_resources().get("CPU", 0)))
            self._counted_s = time.monotonic()
        return self._num_cores


class _WithoutRay:
    """The stream, without the pages that Ray writes to it when a machine is lost: at once, from
    threads of its own, and again as it leaves."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.is_ray_leaving = False

    def write(self, text: str) -> int:
        """As the stream does."""
        if self.is_ray_leaving or threading.current_thread().name.startswith("ray_"):
            return len(text)
        return self.stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def _answered(version: str, function: str, request: Request) -> tuple[str, Answer | None]:
    """In a worker: its own version, and what the function answers if that is the asker's."""
    os.environ.setdefault("POLARS_MAX_THREADS", "1")
    if version != __version__:
        return __version__, None
    module, _, name = function.partition(":")
    try:
        answer: Answer = getattr(import_module(module), name)(request)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        answer = {"status": FAILED, "reason": reason, "report": {}, "wall_ms": 0.0}
    return __version__, answer


def _imported() -> ModuleType:
    """Ray, told to keep to itself. Raises: ConfigError."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        return import_module("ray")
    except ImportError:
        raise ConfigError(
            "--executor ray: Ray is not installed (pip install 'dynosim[ray]', or use "
            "--executor local)"
        ) from None


def _check_address(address: str) -> None:
    """Refuse at once what Ray would try for minutes. Raises: ConfigError."""
    if address in ("auto", "local"):
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "/" in address:
        raise ConfigError(
            f"--executor ray: {address} is no address (give HOST:PORT of the cluster's head, as "
            "`ray start` prints it, on a machine that is part of it)"
        )
    why = _not_there(host, int(port))
    if why:
        raise ConfigError(
            f"--executor ray: no Ray cluster at {address}: {why} (start one with `ray start "
            "--head`, or leave --ray-address and RAY_ADDRESS out)"
        )


def _not_there(host: str, port: int) -> str:
    """Why no server of Ray's kind, which speaks HTTP/2, answers; empty if one does."""
    try:
        with socket.create_connection((host, port), timeout=_CONNECT_S) as peer:
            if os.environ.get("RAY_USE_TLS", "0") != "0":
                return ""
            peer.sendall(_HTTP2_GREETING)
            start = peer.recv(9)
    except OSError as error:
        return error.strerror or str(error)
    is_settings = len(start) == 9 and start[3] == _SETTINGS_FRAME
    return "" if is_settings else "something else answers there"


def _last_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__
