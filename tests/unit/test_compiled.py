"""What is compiled is run if all of it is as noted; else everything runs from its sources."""

import importlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from shared_data import ROOT

from dynosim import load_run, run
from dynosim.cluster import simulate
from dynosim.compiled import (
    COMPILED,
    CORE,
    LIST,
    NOTE,
    PURE,
    SUFFIX,
    CompiledLoader,
    CoreFinder,
    file_of,
    settle,
)
from dynosim.records import RunResult
from dynosim.router.eligibility import Constraints, eligible_mask
from dynosim.router.refusals import NoEligibleWorkerError
from dynosim.router.workers import WorkerTable

LISTED = (ROOT / LIST).read_text().split()
MODULES = ("dynosim.one", "dynosim.two")

Damage = Callable[[Path], object]


def path_of(tree: Path, module: str, suffix: str) -> Path:
    return Path(file_of(tree, module, suffix))


# ---- this tree's core ----------------------------------------------------------------------------


def test_the_core_under_test_is_the_one_that_is_meant() -> None:
    expected = os.environ.get("DYNOSIM_EXPECT_CORE")  # `.ci/run` tests one build, then the other
    assert expected in (None, CORE.kind), f"this is a {CORE}"


def test_every_module_of_the_list_is_there_and_loads() -> None:
    assert len(LISTED) > 40 and len(set(LISTED)) == len(LISTED)
    for name in LISTED:
        assert path_of(ROOT, name, ".py").is_file()
        file = importlib.import_module(name).__file__
        assert file is not None and file.endswith(SUFFIX) == (CORE.kind == COMPILED), name


@pytest.mark.parametrize("mode", ["round-robin", "kv"])
def test_what_an_event_calls_is_on_the_list(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for data classes whose modules mypyc does not take, or makes what does not load."""
    calls: Counter[str] = Counter()

    def count(frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            calls[frame.f_globals.get("__name__", "")] += 1

    def counted(*arguments: Any, **options: Any) -> RunResult:
        sys.setprofile(count)
        try:
            return simulate(*arguments, **options)
        finally:
            sys.setprofile(None)

    monkeypatch.setattr("dynosim.experiment.run.simulate", counted)
    workload = "workload={synthetic: {requests: 500, isl: 2000, osl: 100, rate_rps: 20}}"
    outcome = run(load_run(ROOT / "sweeps/qwen_one.yaml", [workload, f"router.mode={mode}"]))
    num_events = outcome.report["num_scheduling_events"]
    assert num_events > 1000
    assert CORE.kind == COMPILED or sum(calls.values()) > num_events
    hot = {name for name, num in calls.items() if num > 0.1 * num_events and "dynosim" in name}
    not_taken = {"dynosim.records", "dynosim.indexer.base", "dynosim.cluster.settling_index"}
    assert hot - set(LISTED) <= not_taken


def test_pure_is_what_runs_if_it_is_asked_for() -> None:
    code = (
        "import importlib, json, sys; from dynosim.compiled import CORE;"
        f"[importlib.import_module(name) for name in {LISTED}];"
        "files = [m.__file__ for n, m in sys.modules.items() if n.startswith('dynosim')];"
        "print(json.dumps([CORE.kind, files]))"
    )
    environment = {**os.environ, "DYNOSIM_PURE": "1"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, check=True)
    kind, files = json.loads(done.stdout)
    assert kind == PURE
    assert len(files) > 60 and {Path(file).suffix for file in files} == {".py"}


def test_tracebacks_show_the_source_of_either() -> None:
    try:
        eligible_mask(WorkerTable(block_size=4), Constraints())
    except NoEligibleWorkerError:
        shown = traceback.format_exc()
    assert 'raise NoEligibleWorkerError("no worker has joined yet")' in shown
    assert f"{Path('dynosim/router/eligibility.py')}" in shown


# ---- a tree with two compiled modules ------------------------------------------------------------


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two modules with a note that they are compiled. Their library is one that can be loaded."""
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.delenv("DYNOSIM_PURE", raising=False)
    library, loadable = an_extension()
    monkeypatch.delitem(sys.modules, library, raising=False)
    (tmp_path / LIST).parent.mkdir(parents=True)
    (tmp_path / LIST).write_text("\n".join(MODULES))
    shutil.copy(loadable, path_of(tmp_path, library, SUFFIX))
    for module in (*MODULES, "dynosim.other"):
        path_of(tmp_path, module, ".py").write_text(f"name = '{module}'\n")
        path_of(tmp_path, module, SUFFIX).write_bytes(b"compiled " + module.encode())
    write_note(tmp_path, library)
    return tmp_path


def an_extension() -> tuple[str, Path]:
    """A module of Python's own that is a library in a file."""
    for name in ("_heapq", "_bisect", "_json", "_struct", "_csv"):
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin is not None and spec.origin.endswith(SUFFIX):
            return name, Path(spec.origin)
    pytest.skip("this Python keeps its own modules in one file")


def write_note(tree: Path, library: str) -> None:
    compiled = (library, *MODULES)
    note = {
        "suffix": SUFFIX,
        "library": library,
        "sizes": {name: path_of(tree, name, SUFFIX).stat().st_size for name in compiled},
        "sources": {
            name: importlib.util.source_hash(path_of(tree, name, ".py").read_bytes()).hex()
            for name in MODULES
        },
    }
    (tree / NOTE).write_text(json.dumps(note))


def change_note(tree: Path, **changes: object) -> None:
    note = json.loads((tree / NOTE).read_text())
    (tree / NOTE).write_text(json.dumps({**note, **changes}))


def library_of(tree: Path) -> Path:
    (file,) = tree.glob(f"*{SUFFIX}")
    return file


def shorten(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def spoil(file: Path) -> None:
    file.write_bytes(bytes(file.stat().st_size))


def loaders(tree: Path) -> dict[str, type]:
    """By what the modules that are there would be loaded now."""
    (finder,) = (f for f in sys.meta_path if isinstance(f, CoreFinder) and f.packages == tree)
    found = {}
    for name in (*MODULES, "dynosim.other"):
        spec = finder.find_spec(name, [str(tree / "dynosim")])
        if spec is not None:
            found[name.removeprefix("dynosim.")] = type(spec.loader)
    return found


def test_what_is_noted_runs_compiled_and_nothing_else(tree: Path) -> None:
    core = settle(tree)
    assert (str(core), core.is_stale) == ("compiled core", False)
    compiled = dict.fromkeys(("one", "two"), CompiledLoader)
    assert loaders(tree) == {**compiled, "other": SourceFileLoader}


def test_the_source_of_what_is_compiled_is_known(tree: Path) -> None:
    file = str(path_of(tree, "dynosim.one", SUFFIX))
    loader = CompiledLoader("dynosim.one", file)
    assert loader.get_source("dynosim.one") == "name = 'dynosim.one'\n"


CHANGES: dict[str, tuple[Damage, str, bool]] = {
    "source": (
        lambda tree: (tree / "dynosim/two.py").write_text("name = 2"),
        "dynosim.two has changed since it was compiled",
        True,
    ),
    "list": (
        lambda tree: (tree / LIST).write_text("dynosim.one\ndynosim.two\ndynosim.other"),
        "other modules are to be compiled than were",
        True,
    ),
    "other Python": (
        lambda tree: change_note(tree, suffix=".cpython-27.so"),
        f"compiled for .cpython-27.so, this Python loads {SUFFIX}",
        False,
    ),
    "no source": (lambda tree: (tree / "dynosim/two.py").unlink(), "two.py", False),
    "no library": (lambda tree: library_of(tree).unlink(), "cannot be loaded", False),
    "no module": (
        lambda tree: path_of(tree, "dynosim.two", SUFFIX).unlink(),
        f"two{SUFFIX}",
        False,
    ),
    "short library": (lambda tree: shorten(library_of(tree)), "is not the file", False),
    "short module": (
        lambda tree: shorten(path_of(tree, "dynosim.one", SUFFIX)),
        f"one{SUFFIX} is not the file that was compiled",
        False,
    ),
    "spoilt library": (lambda tree: spoil(library_of(tree)), "cannot be loaded", False),
    "no note": (lambda tree: (tree / NOTE).unlink(), "", False),
    "note cut off": (lambda tree: shorten(tree / NOTE), "damaged", False),
    "note of zeros": (lambda tree: spoil(tree / NOTE), "damaged", False),
    "note is a list": (lambda tree: (tree / NOTE).write_text("[]"), "damaged", False),
    "note without sizes": (lambda tree: change_note(tree, sizes=None), "damaged", False),
    "note with fewer files": (lambda tree: change_note(tree, sizes={}), "damaged", False),
    "note without sources": (lambda tree: change_note(tree, sources=3), "damaged", False),
    "nothing compiled": (
        lambda tree: (tree / NOTE).write_text('{"missing": "there is no C compiler (cc)"}'),
        "not compiled: there is no C compiler (cc)",
        False,
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_if_anything_is_not_as_noted_all_runs_from_its_sources(tree: Path, change: str) -> None:
    damage, reason, is_stale = CHANGES[change]
    damage(tree)
    core = settle(tree)
    assert (core.kind, core.is_stale) == (PURE, is_stale)
    assert reason in core.reason and bool(reason) == bool(core.reason)
    assert len(loaders(tree)) > 1 and set(loaders(tree).values()) == {SourceFileLoader}


@pytest.mark.parametrize(("value", "kind"), [("1", PURE), ("0", COMPILED), ("", COMPILED)])
def test_a_variable_forces_pure(
    tree: Path, monkeypatch: pytest.MonkeyPatch, value: str, kind: str
) -> None:
    monkeypatch.setenv("DYNOSIM_PURE", value)
    assert settle(tree).kind == kind
    assert (CompiledLoader in loaders(tree).values()) == (kind == COMPILED)
