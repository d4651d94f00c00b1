"""Worker processes: every request is answered once, whatever happens to a worker."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dynosim.sweep.executor import READY_PER_JOB, LocalExecutor
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
    with LocalExecutor(jobs) as executor:
        answers = list(executor.run("fake_trials:square", [(n, {"n": n}) for n in range(10)]))
    assert sorted((index, answer["square"]) for index, answer in answers) == [
        (index, index**2) for index in range(10)
    ]
    assert len({answer["pid"] for _, answer in answers}) <= jobs


def test_workers_are_kept_for_the_next_call_and_end_with_the_context() -> None:
    with LocalExecutor(1) as executor:
        pids = [
            answer["pid"]
            for _ in range(2)
            for _, answer in executor.run("fake_trials:square", [(0, {"n": 1})])
        ]
        assert pids[0] == pids[1]
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)


def test_a_dying_worker_fails_its_own_trial_only() -> None:
    with LocalExecutor(2) as executor:
        answers = dict(executor.run("fake_trials:fragile", [(n, {"n": n}) for n in range(6)]))
        after = dict(executor.run("fake_trials:fragile", [(0, {"n": 0})]))
    assert sorted(answers) == list(range(6))
    assert answers[2]["status"] == FAILED
    assert "exit code 7" in answers[2]["reason"]
    assert "about to fall" in answers[2]["reason"]
    assert all(answers[index]["status"] == "ok" for index in (0, 1, 3, 4, 5))
    assert after == {0: {"status": "ok"}}


def test_closing_ends_the_workers_at_once() -> None:
    with LocalExecutor(2) as executor:
        answers = executor.run("fake_trials:stuck", [(index, {"n": index}) for index in range(3)])
        assert next(answers)[0] == 0
        answers.close()  # would wait for minutes if it did not end them


def test_no_requests_are_no_work() -> None:
    with LocalExecutor(2) as executor:
        assert list(executor.run("no_such_module:f", [])) == []


def test_a_function_that_cannot_be_found_fails_its_trials() -> None:
    with LocalExecutor(1) as executor:
        answers = dict(executor.run("no_such_module:f", [(0, {}), (1, {})]))
    assert [answers[index]["status"] for index in (0, 1)] == [FAILED, FAILED]
    assert "no_such_module" in answers[0]["reason"]


def test_answers_bring_further_requests() -> None:
    def follow(index: int, answer: dict[str, Any]) -> list[tuple[int, dict[str, Any]]]:
        return [(index + 10, {"n": index + 10})] if index < 30 else []

    with LocalExecutor(2) as executor:
        answers = dict(
            executor.run("fake_trials:square", [(n, {"n": n}) for n in range(2)], follow)
        )
    assert sorted(answers) == [0, 1, 10, 11, 20, 21, 30, 31]
    assert answers[31]["square"] == 961


def test_what_was_begun_is_finished_first() -> None:
    def follow(index: int, answer: dict[str, Any]) -> list[tuple[int, dict[str, Any]]]:
        return [(index, {"n": answer["square"] + 1})] if answer["square"] < 20 else []

    with LocalExecutor(1) as executor:
        asked = [(n, {"n": 1}) for n in range(3)]
        order = [index for index, _ in executor.run("fake_trials:square", asked, follow)]
    assert sorted(order) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    last = [len(order) - 1 - order[::-1].index(n) for n in range(3)]
    assert last == sorted(last)  # the worker takes others while one is followed up


def test_closing_ends_workers_that_wait_for_further_requests() -> None:
    with LocalExecutor(2) as executor:
        answers = executor.run("fake_trials:square", [(0, {"n": 0})], lambda *_: [(1, {"n": 1})])
        assert next(answers)[0] == 0
        answers.close()


def test_requests_are_made_as_there_is_room_for_them() -> None:
    made: list[int] = []

    def requests() -> Iterator[tuple[int, dict[str, Any]]]:
        for n in range(100):
            made.append(n)
            yield n, {"n": n}

    with LocalExecutor(2) as executor:
        answers = executor.run("fake_trials:square", requests())
        next(answers)
        assert len(made) <= 2 * READY_PER_JOB + 1
        assert len(list(answers)) == 99
