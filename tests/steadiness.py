"""Whether the suite's verdict is the tree's: run it again and again, half of the times on a machine
that is busy with something else. `make steady`

    make steady STEADY='--runs 10 --busy 2'
    make steady STEADY='--runs 4 tests/unit/test_live_generation.py'

Runs alternate between a machine left alone and one with so many loops that do nothing. Prints the
verdict of each, and what failed; exit code 1 if anything did.
"""

import argparse
import multiprocessing
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+)", re.MULTILINE)


def _spin() -> None:
    while True:
        pass


@contextmanager
def busy_loops(count: int) -> Iterator[None]:
    """So many processes that take what they can get."""
    loops = [multiprocessing.Process(target=_spin, daemon=True) for _ in range(count)]
    for loop in loops:
        loop.start()
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.join()


def verdict(num_busy: int, arguments: Sequence[str]) -> list[str]:
    """Runs the suite once and says how it went; returns the tests that failed, or why none ran."""
    started_s = time.monotonic()
    command = [sys.executable, "-m", "pytest", "-n", "2", "--dist", "worksteal", *arguments]
    with busy_loops(num_busy):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    failed = _FAILED.findall(done.stdout)
    if done.returncode and not failed:
        failed = [f"exit code {done.returncode}"]
    last = (done.stdout.strip().splitlines() or ["no output"])[-1]
    beside = f"beside {num_busy} busy loops" if num_busy else "alone"
    print(f"{beside}: {last} ({time.monotonic() - started_s:.0f} s in all)", flush=True)
    for name in failed:
        print(f"  {name}", flush=True)
    return failed


def main(arguments: Sequence[str] | None = None) -> int:
    """Run them all; returns 0 if nothing failed."""
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--busy", type=int, default=2, help="busy loops in every second run")
    parser.add_argument("tests", nargs="*", help="files or node ids; default: the whole suite")
    options = parser.parse_args(arguments)
    failed = [verdict(options.busy * (number % 2), options.tests) for number in range(options.runs)]
    num_green = sum(not names for names in failed)
    print(f"{num_green} of {options.runs} runs were green")
    return 0 if num_green == options.runs else 1


if __name__ == "__main__":
    sys.exit(main())
