"""Both wheels, built with the Makefile's commands from a bare copy of the tree, and installed."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from shared_data import ROOT

from dynosim.compiled import LIST, SUFFIX, file_of
from dynosim.metrics import PROCESS_KEYS

LISTED = (ROOT / LIST).read_text().split()
RUNS = {
    "measured step times, kv": ["router.mode=kv"],
    "formulas, round-robin": [
        "timing={kind: linear, base_ms: 8, per_prefill_token_ms: 0.05, per_decode_ms: 0.2}",
        "router.mode=round-robin",
    ],
    "roofline, kv with lost events": [
        "timing={kind: roofline}",
        "router={mode: kv, events: {delay_ms: 20}}",
    ],
}


def bash(command: str, folder: Path, **variables: str) -> str:
    """Run a command that must end well; its output."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("DYNOSIM_", "PYTHON"))}
    done = subprocess.run(
        ["bash", "-ec", command], cwd=folder, env={**environment, **variables},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The compiled and the pure wheel."""
    tree = tmp_path_factory.mktemp("wheels") / "tree"
    files = "git ls-files --cached --others --exclude-standard -z"
    bash(f"mkdir {tree}; {files} | xargs -0 cp --parents -t {tree}", ROOT)
    bash(f"DYNOSIM_COMPILE=1 {sys.executable} -m build --wheel", tree)
    (compiled,) = tree.glob("dist/*.whl")
    bash(f"{sys.executable} -m build", tree)
    (pure,) = set(tree.glob("dist/*.whl")) - {compiled}
    (sources,) = tree.glob("dist/*.tar.gz")
    names = bash(f"tar tzf {sources}", tree).split()
    assert any(name.endswith("/setup.py") for name in names)
    assert not any(name.endswith((".so", ".c", "/built.json")) for name in names)
    return {"compiled": compiled, "pure Python": pure}


@pytest.fixture(scope="module")
def installed(wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Environments with a wheel each; what it depends on is that of these tests."""
    folders = {}
    for kind, wheel in wheels.items():
        folder = tmp_path_factory.mktemp("installed")
        bash(f"{sys.executable} -m venv --without-pip {folder}", folder)
        packages = packages_of(folder)
        others = [path for path in sys.path if path.endswith("site-packages")]
        (packages / "others.pth").write_text("\n".join(others) + "\n")
        pip = f"{sys.executable} -m pip --python {folder}/bin/python install --quiet --no-deps"
        bash(f"{pip} {wheel}", folder)
        folders[kind] = folder
    return folders


def packages_of(folder: Path) -> Path:
    (packages,) = folder.glob("lib/python*/site-packages")
    return packages


def test_names_and_content(wheels: dict[str, Path]) -> None:
    python = f"cp{sys.version_info.major}{sys.version_info.minor}"
    assert f"-{python}-{python}" in wheels["compiled"].name
    assert wheels["pure Python"].name.endswith("-py3-none-any.whl")
    content = {kind: set(zipfile.ZipFile(wheel).namelist()) for kind, wheel in wheels.items()}
    libraries = {name for name in content["compiled"] if name.endswith(SUFFIX)}
    assert len(libraries) == len(LISTED) + 1
    note = "dynosim/compiled/built.json"
    assert unversioned(content["compiled"]) - libraries == {
        *unversioned(content["pure Python"]),
        note,
    }
    assert {name.replace(".", "/") + ".py" for name in LISTED} <= content["pure Python"]
    print({kind: wheel.stat().st_size for kind, wheel in wheels.items()})


def unversioned(names: set[str]) -> set[str]:
    """Without the list of files that each wheel keeps of itself."""
    return {name for name in names if not name.endswith(("RECORD", "SOURCES.txt"))}


@pytest.mark.parametrize("case", RUNS)
def test_reports_are_equal_but_for_what_ran(installed: dict[str, Path], case: str) -> None:
    overrides = " ".join(f"--set '{override}'" for override in RUNS[case])
    reports = {}
    for kind, folder in installed.items():
        command = f"{folder}/bin/dynosim run {ROOT}/sweeps/qwen_one.yaml --json {overrides}"
        report = json.loads(bash(command, folder))
        assert report["core"] == kind
        reports[kind] = json.dumps({k: v for k, v in report.items() if k not in PROCESS_KEYS})
    assert reports["compiled"] == reports["pure Python"]


def test_a_traceback_of_compiled_code_shows_its_source(installed: dict[str, Path]) -> None:
    code = """
import traceback
from dynosim.router.eligibility import Constraints, eligible_mask
from dynosim.router.workers import WorkerTable
try:
    eligible_mask(WorkerTable(4), Constraints())
except Exception:
    print(traceback.format_exc())
"""
    shown = {}
    for kind, folder in installed.items():
        (folder / "fails.py").write_text(code)
        lines = bash("bin/python fails.py", folder).splitlines()
        place = next(i for i, line in enumerate(lines) if "eligibility.py" in line)
        shown[kind] = [lines[place].partition("dynosim/router")[2], lines[place + 1]]
    assert shown["compiled"] == shown["pure Python"]
    assert "raise NoEligibleWorkerError" in shown["compiled"][1]


def test_an_installed_core_may_be_changed_or_forced_pure(installed: dict[str, Path]) -> None:
    folder = installed["compiled"]
    command = f"{folder}/bin/dynosim --version"
    assert bash(command, folder).endswith("compiled core\n")
    assert bash(command, folder, DYNOSIM_PURE="1").endswith("(DYNOSIM_PURE is set)\n")
    source = Path(file_of(packages_of(folder), "dynosim.engine.core", ".py"))
    text = source.read_text()
    source.write_text(text + "# changed\n")
    changed = "pure Python core (dynosim.engine.core has changed since it was compiled)\n"
    assert bash(command, folder).endswith(changed)
    source.write_text(text)
    assert bash(command, folder).endswith("compiled core\n")
    (library,) = packages_of(folder).glob(f"*__mypyc{SUFFIX}")
    library.write_bytes(library.read_bytes()[:100_000])
    assert "is not the file that was compiled" in bash(command, folder)
