"""Trials of a sweep in this process: starting one of their own takes longer than they do."""

import json
import threading
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pytest

_one_at_a_time = threading.Lock()


class InlineWorker:
    """Answers as a worker process does, through JSON, without being one."""

    is_alive = True
    process = SimpleNamespace(kill=lambda: None)

    def ask(self, function: str, request: dict[str, Any]) -> Any:
        module, _, name = function.partition(":")
        answer = getattr(import_module(module), name)
        with _one_at_a_time:
            return json.loads(json.dumps(answer(json.loads(json.dumps(request)))))

    def stop(self) -> None:
        pass


@pytest.fixture
def worker_processes() -> None:
    """For tests whose subject are the processes."""


@pytest.fixture
def inline_workers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sweeps of this process need no others, unless a test asks for `worker_processes`."""
    if "worker_processes" not in request.fixturenames:
        monkeypatch.setattr("dynosim.sweep.executor._Worker", InlineWorker)
