"""Fixtures shared by all tests."""

import gc
import signal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from inline_workers import inline_workers, worker_processes
from no_pictures import no_pictures
from shared_data import ROOT

__all__ = ["inline_workers", "no_pictures", "root", "worker_processes"]

# A verdict is the tree's: the same examples in every run, and none is too slow for a busy machine.
# `make fuzz` draws others.
settings.register_profile(
    "suite",
    derandomize=True,
    database=None,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("suite")

# Programs that a script starts in the background ignore Ctrl-C, and so would those that tests start
# and interrupt: a handler of our own is not passed on, they begin with the system's.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """Thousands of tests are no garbage: searches for it need not look through them each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def root() -> Path:
    return ROOT
