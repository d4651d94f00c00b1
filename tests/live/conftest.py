"""What the live tests share."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from cluster import dynosim


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this folder is live."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.live)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small random model that `dynosim tiny-model` writes."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    result = dynosim("tiny-model", folder)
    assert result.returncode == 0, result.stderr
    return folder
