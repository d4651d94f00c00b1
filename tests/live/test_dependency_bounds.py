"""Both ends of what pyproject.toml allows: the oldest versions that it names, and the newest.

Each end is installed from the package registry into an environment of its own, and used there.
"""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

pytestmark = [pytest.mark.live, pytest.mark.timeout(1800)]

ROOT = Path(__file__).parents[2]
SMOKE = Path(__file__).with_name("dependency_smoke.py")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def oldest(requirement: str) -> str:
    """The requirement with its lower bound as the only version allowed."""
    name, _, version = re.fullmatch(r"([\w.\[\]-]+)(>=|==)([\d.]+).*", requirement).groups()  # type: ignore[union-attr]
    return f"{name}=={version}"


@pytest.mark.parametrize("end", ["oldest", "newest"])
def test_everything_works_at_both_ends(end: str, tmp_path: Path) -> None:
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    wanted = PROJECT["dependencies"]
    pins = [oldest(one) for one in wanted] if end == "oldest" else wanted
    install = [python, "-m", "pip", "install", "--quiet", "--no-compile"]
    subprocess.run([*install, *pins], check=True)
    subprocess.run([*install, "--no-deps", ROOT], check=True)
    (tmp_path / "used").mkdir()
    done = subprocess.run(
        [python, "-P", SMOKE, tmp_path / "used"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
