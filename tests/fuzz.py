"""The property tests with random seeds and ten times the examples: `make fuzz`.

The suite draws the same examples in every run, so that a verdict is the tree's and not luck's; what
those examples miss, this finds. The seed is printed first, and again with a failure:

    make fuzz FUZZ='--seed 123 tests/property/test_twin.py'

draws the same examples again. It is a command, and the pytest plugin that the command uses: a
hypothesis profile alone would not do, since `@settings(max_examples=...)` of a test overrides it.
"""

import argparse
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, is_hypothesis_test, settings

ROOT = Path(__file__).resolve().parent.parent
PROFILE = "fuzz"
USED = "_hypothesis_internal_use_settings"  # where hypothesis, and its pytest plugin, keep them

# The database would bring back examples of other seeds.
settings.register_profile(
    PROFILE,
    derandomize=False,
    database=None,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """How many times the examples that a test asks for."""
    parser.addoption("--examples-times", type=int, default=1)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Give every property test more examples, and leave out what is none."""
    times = config.getoption("--examples-times")
    properties = [item for item in items if is_hypothesis_test(getattr(item, "obj", None))]
    found = [item.obj for item in properties]  # type: ignore[attr-defined]
    functions: dict[int, Any] = {id(one): one for one in (getattr(f, "__func__", f) for f in found)}
    for function in functions.values():  # once each, though parameters make it several items
        asked: settings = getattr(function, USED)
        setattr(function, USED, settings(asked, max_examples=times * asked.max_examples))
    config.hook.pytest_deselected(items=[item for item in items if item not in properties])
    items[:] = properties


def property_files(root: Path) -> list[str]:
    """The test files with property tests, or with contracts full of them."""
    paths = sorted(root.glob("tests/*/test_*.py"))
    return [str(path.relative_to(root)) for path in paths if _has_properties(path.read_text())]


def _has_properties(text: str) -> bool:
    return "@given(" in text or "Contract)" in text


def main(arguments: Sequence[str] | None = None) -> int:
    """Run them; returns pytest's exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    parser.add_argument("--times", type=int, default=10, help="the examples of a usual run")
    parser.add_argument("--jobs", default="2")
    parser.add_argument("tests", nargs="*", help="files or node ids; default: all property tests")
    options = parser.parse_args(arguments)
    again = f"make fuzz FUZZ='--seed {options.seed} --times {options.times}"
    print(f"seed {options.seed}: draw the same again with {again}'", flush=True)
    command = ["-p", "fuzz", f"--hypothesis-profile={PROFILE}", f"--hypothesis-seed={options.seed}"]
    command += [f"--examples-times={options.times}", "-n", options.jobs, "--tb=short"]
    known = [path for path in [os.environ.get("PYTHONPATH")] if path]
    code = subprocess.call(
        [sys.executable, "-m", "pytest", *command, *(options.tests or property_files(ROOT))],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), *known])},
    )
    if code:
        print(f"seed {options.seed} failed; one test again: {again} FILE::TEST'")
    return code


if __name__ == "__main__":
    sys.exit(main())
