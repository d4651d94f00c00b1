"""Whether the tests notice known mistakes: every mutant of the lists beside this file, one by one.

`make mutants`, or `python tests/mutants/run.py --only C2 --only metrics`. A mutant is killed if a
test fails with it. Every bug found adds the mistake that made it to a list (docs/testing.md).

Neither mutmut nor cosmic-ray serves: both make their own mutations, from operators over the syntax
tree (`<` for `<=`, a number plus one), and run what they made. Neither can be given a list. Ours
are whole mistakes of the kind that people make (a reset forgotten, the wrong column, a gap counted
from the wrong step), often several tokens or lines apart; as operators each would be a plugin.

The tree is copied once per job, and the tests are run without a mutant first. Then each mutant gets
the tests that its entry names and, if it survives those, all of its package. What the time does not
suffice for is listed as not run. Exit codes: 0 all killed or equivalent, 1 not, 2 a list does not
fit the tree or the tests fail without a mutant, 130 interrupted.
"""

import argparse
import json
import queue
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import TypeVar

import mutant_lists
from mutant_lists import ListError, Mutant
from mutant_trials import Copy, Stop, StoppedError, deal, gist, seconds_by_file

T = TypeVar("T")
KILLED, TIMEOUT, SURVIVED = "killed", "timeout", "SURVIVED"
EQUIVALENT, NOT_RUN, BROKEN = "equivalent", "not run", "BROKEN"
WAKE_S = 0.2
SLOWER = 5.0  # than without a mutant: then it will not end
TESTS_FAILED, TESTS_BROKEN = 1, 2  # pytest's exit codes; the latter: a module cannot be imported


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one mutant."""

    mutant: Mutant
    status: str
    detail: str = ""  # the test that failed, or why not
    seconds: float = 0.0

    @property
    def line(self) -> str:
        """For the screen."""
        detail = self.detail or f"{self.mutant.file}: {self.mutant.what}"
        return f"{self.status:<10} {self.mutant.id:<6} {self.seconds:6.1f} s  {detail}"


class Session:
    """One run of the whole: the copies, what the tests cost unmutated, and the results."""

    def __init__(self, options: argparse.Namespace, scratch: Path, stop: Stop) -> None:
        self.root: Path = options.root.resolve()
        self.lists: Path = options.lists or self.root / "tests" / "mutants"
        self.results: list[Result] = []
        self._cap_s: float = options.cap
        self._jobs: int = options.jobs
        self.stop = stop
        self._scratch = scratch
        self._deadline_s = time.monotonic() + 60 * options.minutes
        self._seconds: dict[str, float] = {}
        self._by_source = mutant_lists.default_tests(self.root, self.lists)
        self.mutants = mutant_lists.select(mutant_lists.load_lists(self.lists), options.only)
        mutant_lists.check_all(self.root, self.mutants)
        for mutant in self.mutants:
            self._default_tests(mutant)

    def run(self) -> None:
        """Fill `results`, until all are done, the time is up or it is interrupted.

        Raises: ListError if the tests fail without a mutant.
        """
        for mutant in self.mutants:
            if mutant.equivalent:
                self._note(Result(mutant, EQUIVALENT, mutant.equivalent))
        with ThreadPoolExecutor(self._jobs) as pool:
            try:
                copies = results_of([pool.submit(self._copy, n) for n in range(self._jobs)])
                self._run_unmutated(pool, copies)
                self._run_mutants(pool, copies)
            except StoppedError:
                pass
            finally:
                self.stop.over = True

    def not_run(self) -> list[Result]:
        """A result for each mutant without one."""
        done = {result.mutant.id for result in self.results}
        return [Result(mutant, NOT_RUN) for mutant in self.mutants if mutant.id not in done]

    def _note(self, result: Result) -> None:
        self.results.append(result)
        print(result.line, flush=True)

    def _default_tests(self, mutant: Mutant) -> list[str]:
        return mutant_lists.tests_for(mutant, self._by_source)

    def _copy(self, number: int) -> Copy:
        return Copy(self.root, self._scratch / str(number), self.stop, self._deadline_s)

    def _run_unmutated(self, pool: ThreadPoolExecutor, copies: Sequence[Copy]) -> None:
        """Run every file that is needed once. Raises: ListError, StoppedError."""
        wanted = [mutant for mutant in self.mutants if not mutant.equivalent]
        hints = [test for mutant in wanted for test in self._hints(mutant)]
        files = {test.partition("::")[0] for test in hints}
        files.update(file for mutant in wanted for file in self._default_tests(mutant))
        hands = deal(sorted(files), len(copies))
        print(f"{len(files)} test files without a mutant ...", flush=True)
        pairs = zip(copies, hands, strict=False)
        results_of([pool.submit(self._run_hand, copy, hand) for copy, hand in pairs])

    def _run_hand(self, copy: Copy, files: list[str]) -> None:
        """Raises: ListError if anything fails."""
        finding = copy.pytest(files, float("inf"), "--durations=0", "-vv")
        self._seconds |= seconds_by_file(finding.output)
        if finding.code != 0:
            raise ListError(f"tests fail without a mutant:\n{gist(finding.output)}")

    def _hints(self, mutant: Mutant) -> list[str]:
        return mutant_lists.existing(self.root, mutant.tests)

    def _run_mutants(self, pool: ThreadPoolExecutor, copies: Sequence[Copy]) -> None:
        pending: queue.SimpleQueue[Mutant] = queue.SimpleQueue()
        for mutant in self.mutants:
            if not mutant.equivalent:
                pending.put(mutant)
        clean_cache = self._scratch / "cache"
        for copy in copies:
            copy.add_cache_to(clean_cache)
        results_of([pool.submit(self._work, copy, pending, clean_cache) for copy in copies])

    def _work(self, copy: Copy, pending: "queue.SimpleQueue[Mutant]", clean_cache: Path) -> None:
        """Run mutants until none is left or the time is up."""
        while not pending.empty():
            try:
                mutant = pending.get_nowait()
                # What `silicon` makes is cached: its mutants must not find what was made without.
                copy.use_cache(None if mutant.package == "silicon" else clean_cache)
                self._note(self._run_mutant(copy, mutant))
            except (queue.Empty, StoppedError):
                return

    def _run_mutant(self, copy: Copy, mutant: Mutant) -> Result:
        start_s = time.monotonic()
        hints = self._hints(mutant)
        others = [file for file in self._default_tests(mutant) if file not in hints]
        others.sort(key=lambda file: self._seconds.get(file, 0.0))
        with copy.with_mutant(mutant):
            for tests in (hints, others):
                if not tests:
                    continue
                finding = copy.pytest(tests, self._limit_s(tests), "-x")
                seconds = time.monotonic() - start_s
                if finding.code is None:
                    detail = f"not done after {seconds:.0f} s: {', '.join(tests[:2])} ..."
                    return Result(mutant, TIMEOUT, detail, seconds)
                if finding.code in (TESTS_FAILED, TESTS_BROKEN):
                    return Result(mutant, KILLED, finding.first_failure, seconds)
                if finding.code != 0:
                    return Result(mutant, BROKEN, gist(finding.output), seconds)
        return Result(mutant, SURVIVED, seconds=time.monotonic() - start_s)

    def _limit_s(self, tests: list[str]) -> float:
        files = {test.partition("::")[0] for test in tests}
        return self._cap_s + SLOWER * sum(self._seconds.get(file, 0.0) for file in files)


def results_of(futures: "list[Future[T]]") -> list[T]:
    """Wait for all, or for the first that fails.

    It wakes now and then: a signal that comes just before an endless wait is heard after it only.
    """
    while True:
        found = wait(futures, timeout=WAKE_S, return_when=FIRST_EXCEPTION)
        for future in found.done:
            future.result()
        if not found.not_done:
            return [future.result() for future in futures]


def score_table(results: Sequence[Result]) -> list[str]:
    """By package: how many of the mutants that count were killed."""
    rows = [
        f"{'package':<14}{'killed':>8}{'survived':>10}{'equivalent':>12}{'not run':>9}{'score':>8}"
    ]
    packages = sorted({result.mutant.package for result in results})
    for name in (*packages, "all"):
        found = [r.status for r in results if name in ("all", r.mutant.package)]
        killed = found.count(KILLED) + found.count(TIMEOUT)
        survived, left = found.count(SURVIVED), found.count(NOT_RUN) + found.count(BROKEN)
        score = f"{killed / (killed + survived):.0%}" if killed + survived else "-"
        counts = f"{killed:>8}{survived:>10}{found.count(EQUIVALENT):>12}{left:>9}{score:>8}"
        rows.append(f"{name:<14}{counts}")
    return rows


def report(session: Session, options: argparse.Namespace) -> int:
    """Print the score, write what was asked for; returns the exit code."""
    if session.stop.interrupted:
        print("interrupted", file=sys.stderr)
    left = session.not_run()
    for result in left:
        print(result.line)
    results = session.results + left
    print("", *score_table(results), sep="\n")
    if options.json:
        found = [
            {**asdict(r.mutant), "package": r.mutant.package, "status": r.status,
             "detail": r.detail, "seconds": round(r.seconds, 1)}
            for r in results
        ]  # fmt: skip
        options.json.write_text(json.dumps({"mutants": found}, indent=1) + "\n")
    if options.learn:
        failed = {r.mutant.id: r.detail for r in results if r.status == KILLED and r.detail}
        mutant_lists.note_killers(session.lists, failed)
    if session.stop.interrupted:
        return 130
    return int(any(r.status in (SURVIVED, NOT_RUN, BROKEN) for r in results))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--only", action="append", default=[], metavar="ID|LIST|PACKAGE")
    parser.add_argument("--jobs", type=int, default=2, help="at once")
    parser.add_argument("--minutes", type=float, default=20.0, help="for all of it")
    parser.add_argument("--cap", type=float, default=60.0, help="seconds more than 5 times as slow")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument("--learn", action="store_true", help="note in the lists what killed each")
    parser.add_argument("--root", type=Path, default=Path(__file__).parents[2])
    parser.add_argument("--lists", type=Path, help="folder of the lists")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None, stop: Stop | None = None) -> int:
    """Run it, until done or interrupted; returns the exit code."""
    options = parse(arguments)
    with tempfile.TemporaryDirectory(prefix="mutants-") as scratch:
        try:
            session = Session(options, Path(scratch), stop or Stop())
            session.run()
            return report(session, options)
        except ListError as error:
            print(error, file=sys.stderr)
            return 2


def run_until_interrupted() -> int:
    """`main`, with the signals that end it. They set a flag and raise nothing: an exception in the
    midst of a lock's taking, wherever the thread pool happens to be, would leave it taken."""
    stop = Stop()

    def ask(number: int, frame: FrameType | None) -> None:
        stop.interrupted = True

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, ask)
    return main(stop=stop)


if __name__ == "__main__":
    sys.exit(run_until_interrupted())
