"""Worker processes: every request is answered once, whatever happens to a worker."""

from pathlib import Path

import pytest

from dynosim.sweep.executor import LocalExecutor
from dynosim.sweep.status import FAILED

FAKE = """
import os, sys

def square(request):
    print("noise on stdout")
    return {"status": "ok", "square": request["n"] ** 2, "pid": os.getpid()}

def fragile(request):
    if request["n"] == 2:
        print("about to fall", file=sys.stderr, flush=True)
        os._exit(7)
    return {"status": "ok"}

def stuck(request):
    if request["n"]:
        import time
        time.sleep(600)
    return {"status": "ok"}
"""


@pytest.fixture(autouse=True)
def fake_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fake_trials.py").write_text(FAKE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


@pytest.mark.parametrize("jobs", [1, 3])
def test_every_request_is_answered_once(jobs: int) -> None:
    executor = LocalExecutor(jobs, "fake_trials:square")
    answers = list(executor.run([(index, {"n": index}) for index in range(10)]))
    assert sorted((index, answer["square"]) for index, answer in answers) == [
        (index, index**2) for index in range(10)
    ]
    assert len({answer["pid"] for _, answer in answers}) <= jobs


def test_a_dying_worker_fails_its_own_trial_only() -> None:
    executor = LocalExecutor(2, "fake_trials:fragile")
    answers = dict(executor.run([(index, {"n": index}) for index in range(6)]))
    assert sorted(answers) == list(range(6))
    assert answers[2]["status"] == FAILED
    assert "exit code 7" in answers[2]["reason"]
    assert "about to fall" in answers[2]["reason"]
    assert all(answers[index]["status"] == "ok" for index in (0, 1, 3, 4, 5))


def test_closing_ends_the_workers_at_once() -> None:
    executor = LocalExecutor(2, "fake_trials:stuck")
    answers = executor.run([(index, {"n": index}) for index in range(3)])
    assert next(answers)[0] == 0
    answers.close()  # would wait for minutes if it did not end them


def test_no_requests_need_no_worker() -> None:
    assert list(LocalExecutor(4, "no_such_module:f").run([])) == []


def test_a_worker_that_cannot_start_fails_its_trials() -> None:
    answers = dict(LocalExecutor(1, "no_such_module:f").run([(0, {}), (1, {})]))
    assert [answers[index]["status"] for index in (0, 1)] == [FAILED, FAILED]
    assert "no_such_module" in answers[0]["reason"]
