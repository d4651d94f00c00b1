"""Copies of the tree, and pytest in them, one mutant at a time."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mutant_lists import ListError, Mutant

GRACE_S = 3.0  # for tests to end what they started
_POLL_S = 0.05
_FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+)", re.MULTILINE)
_DURATION = re.compile(r"^ *([\d.]+)s (?:call|setup|teardown) +(\S+?)::", re.MULTILINE)


class StoppedError(Exception):
    """The time is up, or the user wants it to end."""


class Stop:
    """Why to end before all is done. Plain flags: a signal's handler can set one at any time."""

    interrupted = False
    over = False  # nobody waits for the rest any more

    @property
    def asked(self) -> bool:
        """Whether there is a reason."""
        return self.interrupted or self.over


@dataclass(frozen=True, slots=True)
class Finding:
    """What a run of pytest said."""

    code: int | None  # pytest's exit code; None: it took too long and was ended
    first_failure: str  # node id, or file that cannot be imported; "" without one
    output: str


class Copy:
    """A copy of the tree, to be mutated and mended again, with folders of its own to write to.

    A `.pyc` goes by the hash of its source, not by size and time, so none can outlive a mutation;
    one that is made anew goes by what the one before went by.
    """

    def __init__(self, root: Path, folder: Path, stop: Stop, deadline_s: float) -> None:
        self.tree = folder / "tree"
        self._scratch = folder / "tmp"
        self._cache = folder / "cache"
        self._stop = stop
        self._deadline_s = deadline_s
        self._shared = root.parent / "shared"
        self._scratch.mkdir(parents=True)
        for name in tracked_files(root):
            target = self.tree / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, target)
        compiler = ["-m", "compileall", "-q", "--invalidation-mode", "checked-hash", "."]
        subprocess.run([sys.executable, *compiler], cwd=self.tree, check=False)

    def pytest(self, tests: Iterable[str], limit_s: float, *options: str) -> Finding:
        """Run tests in the order given. Raises: StoppedError."""
        arguments = ["-q", "-rfE", "-p", "no:xdist", "-p", "no:cacheprovider"]
        log = self._scratch / "pytest.log"
        with log.open("wb") as stdout:
            process = subprocess.Popen(
                [sys.executable, "-m", "pytest", *arguments, *options, *tests],
                cwd=self.tree,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                code = self._wait(process, limit_s)
            finally:
                end_group(process)
        output = log.read_text(errors="replace")
        failed = _FAILED.search(output)
        return Finding(code, failed[1] if failed else "", output)

    def with_mutant(self, mutant: Mutant) -> "Mutated":
        """A context in which the copy has the mistake in it."""
        return Mutated(self.tree / mutant.file, mutant)

    def add_cache_to(self, folder: Path) -> None:
        """Add what its tests have cached on disk to a folder."""
        if self._cache.is_dir():
            shutil.copytree(self._cache, folder, dirs_exist_ok=True)

    def use_cache(self, folder: Path | None) -> None:
        """Begin with what such a folder holds. Cached files are replaced, never changed."""
        shutil.rmtree(self._cache, ignore_errors=True)
        if folder is not None and folder.is_dir():
            shutil.copytree(folder, self._cache, copy_function=os.link)

    def _wait(self, process: "subprocess.Popen[bytes]", limit_s: float) -> int | None:
        until_s = time.monotonic() + limit_s
        while process.poll() is None:
            if self._stop.asked or time.monotonic() > self._deadline_s:
                raise StoppedError
            if time.monotonic() > until_s:
                return None
            time.sleep(_POLL_S)
        return process.returncode

    def _environment(self) -> dict[str, str]:
        unwanted = ("PYTEST_ADDOPTS", "PYTHONDONTWRITEBYTECODE")  # the latter costs seconds a run
        environment = {k: v for k, v in os.environ.items() if k not in unwanted}
        environment |= {
            "CI": "1",  # property tests draw the same examples in every run
            "DYNOSIM_CACHE": str(self._cache),
            "PYTHONPATH": os.pathsep.join([str(self.tree), str(self.tree / "runtime")]),
            "TMPDIR": str(self._scratch),
        }
        if self._shared.is_dir():
            environment.setdefault("DYNOSIM_SHARED", str(self._shared))
        return environment


class Mutated(contextlib.AbstractContextManager[None]):
    """Puts a mutant into a file, and what was there back again."""

    def __init__(self, path: Path, mutant: Mutant) -> None:
        self._path = path
        self._mutant = mutant
        self._original = path.read_bytes()

    def __enter__(self) -> None:
        self._path.write_text(self._mutant.applied_to(self._original.decode()), encoding="utf-8")

    def __exit__(self, *error: object) -> None:
        self._path.write_bytes(self._original)


def end_group(process: "subprocess.Popen[bytes]") -> None:
    """End a process with all it started: politely, then not."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def tracked_files(root: Path) -> list[str]:
    """The files that git tracks or does not ignore, and that are there. Raises: ListError."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    found = subprocess.run(command, cwd=root, capture_output=True, check=False)
    if found.returncode:
        raise ListError(f"{root}: {found.stderr.decode().strip()}")
    names = [name for name in found.stdout.decode().split("\0") if name]
    return [name for name in names if (root / name).is_file()]


def seconds_by_file(output: str) -> dict[str, float]:
    """Test files -> seconds, from what pytest prints with `--durations=0 -vv`."""
    seconds: dict[str, float] = {}
    for duration, file in _DURATION.findall(output):
        seconds[file] = seconds.get(file, 0.0) + float(duration)
    return seconds


def gist(output: str) -> str:
    """Of pytest's output, which tests failed and why, or how it ends if it does not tell."""
    failed = re.findall(r"(?m)^(?:FAILED|ERROR) .*", output)
    reasons = re.findall(r"(?m)^E  .*", output)
    return "\n".join([*failed, *reasons[:15]]) if failed else output[-2000:]


def deal(files: Sequence[str], num_hands: int) -> list[list[str]]:
    """The files in so many heaps; none is empty."""
    return [list(files[i::num_hands]) for i in range(min(num_hands, len(files)))]
