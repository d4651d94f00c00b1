"""Fixtures shared by all tests."""

from pathlib import Path

import pytest
from shared_data import ROOT


@pytest.fixture
def root() -> Path:
    return ROOT
