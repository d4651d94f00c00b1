"""Fixtures shared by all tests."""

import signal
from pathlib import Path

import pytest
from shared_data import ROOT

# Programs that a script starts in the background ignore Ctrl-C, and so would those that tests start
# and interrupt: a handler of our own is not passed on, they begin with the system's.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def root() -> Path:
    return ROOT
