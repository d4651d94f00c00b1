"""Runs trials in worker processes of this machine.

A worker that dies takes only its own trial with it. What a trial answers depends on its request
alone, so the number of workers changes nothing but the order in which answers come.

Little is imported here, so that workers can be started before anything else is: they get ready
while the sweep's file is read.
"""

import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Generator, Iterable
from itertools import count
from math import inf
from pathlib import Path
from typing import IO, Any

from dynosim.sweep.status import FAILED

Request = dict[str, Any]
Answer = dict[str, Any]

TRIAL_MODULE = "dynosim.sweep.trial"
STDERR_TAIL = 400
STARTED_EARLY = 8
"""Workers; others wait for trials to be there for them."""
_POLL_S = 0.2  # how soon an interrupt is seen where waiting on a queue cannot be interrupted


_Todo = queue.PriorityQueue[tuple[float, int, Request]]
"""Index, number in order of coming, request: lowest first, so requests are never compared."""
_NOTHING_MORE: tuple[float, int, Request] = (inf, -1, {})


class _Worker:
    """One child process, spoken to by one thread at a time."""

    def __init__(self) -> None:
        package_root = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, (package_root, os.environ.get("PYTHONPATH"))))
        threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"}
        self._errors: IO[bytes] = tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "dynosim.sweep.worker", TRIAL_MODULE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, **threads, "PYTHONPATH": path},
            start_new_session=True,  # Ctrl-C is for the sweep, which then ends its workers
        )

    def ask(self, function: str, request: Request) -> Answer:
        """The function's answer; if the process dies over it, one that says so."""
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps([function, request]).encode() + b"\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except OSError:
            line = b""
        if line.endswith(b"\n"):
            answer: Answer = json.loads(line)
            return answer
        code = self.process.wait()
        self._errors.seek(0)
        tail = self._errors.read()[-STDERR_TAIL:].decode(errors="replace").strip()
        how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
        last = f": {tail.splitlines()[-1]}" if tail else ""
        reason = f"the worker process died ({how}){last}"
        return {"status": FAILED, "reason": reason, "report": {}, "wall_ms": 0.0}

    @property
    def is_alive(self) -> bool:
        return self.process.poll() is None

    def stop(self) -> None:
        """End the process at once."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self._errors):
            if pipe is not None:
                try:
                    pipe.close()
                except OSError:  # unsent input of a dead process
                    pass


class LocalExecutor:
    """Answers requests with up to `jobs` processes. Use as a context: it starts and ends them.

    They are kept between calls, with what they have loaded.
    """

    def __init__(self, jobs: int) -> None:
        self._jobs = jobs
        self._idle: list[_Worker] = []

    def __enter__(self) -> "LocalExecutor":
        self._idle = [_Worker() for _ in range(min(self._jobs, STARTED_EARLY))]
        return self

    def __exit__(self, *_: object) -> None:
        while self._idle:
            self._idle.pop().stop()

    def run(
        self,
        function: str,
        requests: Iterable[tuple[int, Request]],
        follow: Callable[[int, Answer], Iterable[tuple[int, Request]]] | None = None,
    ) -> Generator[tuple[int, Answer], None, None]:
        """(index, answer) of each (index, request), as they come.

        `function` is "module:name"; in a worker it turns a request into its answer. `follow` may
        make further requests of an answer. Of those that wait the one with the lowest index starts
        first, so that what was begun is finished first. Closing the iterator ends all workers that
        are at work, at once.
        """
        todo: _Todo = queue.PriorityQueue()
        numbers = count()
        done: queue.SimpleQueue[tuple[int, Answer] | BaseException] = queue.SimpleQueue()
        num_open = 0
        for index, request in requests:
            todo.put((index, next(numbers), request))
            num_open += 1
        num_lanes = self._jobs if follow is not None else min(self._jobs, num_open)
        lanes = [
            _Lane(function, self._idle, todo, done) for _ in range(num_lanes if num_open else 0)
        ]
        try:
            for lane in lanes:
                lane.start()
            while num_open:
                index, answer = _next(done)
                num_open -= 1
                for of, request in () if follow is None else follow(index, answer):
                    todo.put((of, next(numbers), request))
                    num_open += 1
                if not num_open:
                    for _ in lanes:
                        todo.put(_NOTHING_MORE)
                yield index, answer
            for lane in lanes:
                lane.join()  # each gives its worker back
        finally:
            for lane in lanes:
                lane.cancel()
                todo.put(_NOTHING_MORE)
            for lane in lanes:
                lane.finish()


def num_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class _Lane(threading.Thread):
    """Feeds one worker, and others in its place if it dies, until there is nothing to do."""

    def __init__(
        self,
        function: str,
        idle: list[_Worker],
        todo: "_Todo",
        done: "queue.SimpleQueue[tuple[int, Answer] | BaseException]",
    ) -> None:
        super().__init__(daemon=True)
        self._function = function
        self._idle = idle
        self._todo = todo
        self._done = done
        self._lock = threading.Lock()
        self._worker: _Worker | None = None
        self._is_cancelled = False

    def run(self) -> None:
        try:
            while (asked := self._todo.get()) != _NOTHING_MORE:
                worker = self._living_worker()
                if worker is None:
                    break
                answer = worker.ask(self._function, asked[2])
                if self._is_cancelled:
                    break
                self._done.put((int(asked[0]), answer))
            self._give_back()
        except BaseException as error:
            self._done.put(error)

    def cancel(self) -> None:
        """End the worker if it is at work, and start no other."""
        with self._lock:
            self._is_cancelled = True
            if self._worker is not None:
                self._worker.process.kill()

    def finish(self) -> None:
        """Wait for the thread, after `cancel` and something in its queue."""
        self.join()
        if self._worker is not None:
            self._worker.stop()

    def _living_worker(self) -> _Worker | None:
        with self._lock:
            if self._is_cancelled:
                return None
            if self._worker is not None and not self._worker.is_alive:
                self._worker.stop()
                self._worker = None
            if self._worker is None:
                try:
                    self._worker = self._idle.pop()
                except IndexError:
                    self._worker = _Worker()
            return self._worker

    def _give_back(self) -> None:
        with self._lock:
            if self._worker is not None and self._worker.is_alive and not self._is_cancelled:
                self._idle.append(self._worker)
                self._worker = None


def _next(done: "queue.SimpleQueue[tuple[int, Answer] | BaseException]") -> tuple[int, Answer]:
    while True:
        try:
            item = done.get(timeout=_POLL_S)
        except queue.Empty:
            continue
        if isinstance(item, BaseException):
            raise item
        return item
