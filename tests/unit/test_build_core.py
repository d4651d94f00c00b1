"""`setup.py` compiles all of the core, or the install ends well without and says what was missing.

A tree of two modules is built with the real compiler; in place of mypyc, which takes its time, a
stand-in writes the C. Everything is built for real in `tests/live/test_wheels.py`.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
from shared_data import ROOT

SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")
MODULES = ("dynosim.one", "dynosim.two")
PROJECT = """
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"
[project]
name = "dynosim"
version = "1"
[tool.setuptools]
packages = ["dynosim", "dynosim.compiled"]
"""
TRANSLATOR = '''
import os, sys
from pathlib import Path
from setuptools import Extension

MODULE = """
#include <Python.h>
static PyModuleDef module = {{PyModuleDef_HEAD_INIT, "{name}", 0, -1}};
PyMODINIT_FUNC PyInit_{name}(void) {{
    PyObject *made = PyModule_Create(&module);
    PyModule_AddStringConstant(made, "kind", "compiled");
    return made;
}}
"""

def mypycify(paths, *, group_name, **options):
    module = MODULE
    if os.environ.get("SPOIL"):
        module = module.replace("return made", 'Py_FatalError("spoilt"); return made')
    if os.environ.get("REFUSE"):
        print("dynosim/one.py:1: error: no types")
        sys.exit("mypy failed")
    names = [p.removesuffix(".py").replace("/", ".") for p in paths if p.endswith(".py")]
    made = []
    for name in [*names, f"{group_name}__mypyc"]:
        source = Path("build", f"{name}.c")
        source.parent.mkdir(exist_ok=True)
        source.write_text(module.format(name=name.rpartition(".")[2]))
        made.append(Extension(name, [str(source)]))
    return made
'''


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Two modules to compile, and the stand-in for mypyc beside them."""
    tree = tmp_path / "tree"
    shutil.copytree(ROOT / "dynosim/compiled", tree / "dynosim/compiled",
                    ignore=shutil.ignore_patterns("built.json", "__pycache__"))  # fmt: skip
    shutil.copy(ROOT / "setup.py", tree)
    rules = (ROOT / "pyproject.toml").read_text().split("[tool.setuptools.package-data]")[1]
    data = "[tool.setuptools.package-data]" + rules.split("[tool.pytest")[0]
    (tree / "pyproject.toml").write_text(PROJECT + data)
    (tree / "dynosim/__init__.py").write_text("import dynosim.compiled\n")
    for module in MODULES:
        (tree / (module.replace(".", "/") + ".py")).write_text("kind = 'pure'\n")
    (tree / "dynosim/compiled/core.txt").write_text("\n".join(MODULES))
    (tmp_path / "mypyc").mkdir()
    (tmp_path / "mypyc/__init__.py").touch()
    (tmp_path / "mypyc/build.py").write_text(TRANSLATOR)
    return tree


def build(tree: Path, *command: str, **variables: str) -> str:
    """Run `setup.py`, which must end well; returns what it says."""
    environment = {**os.environ, "DYNOSIM_COMPILE": "1", "PYTHONPATH": str(tree.parent)}
    done = subprocess.run(
        [sys.executable, "setup.py", "--quiet", *command],
        cwd=tree, env={**environment, **variables}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stderr


def build_in_place(tree: Path, **variables: str) -> str:
    return build(tree, "build_ext", "--inplace", **variables)


def run_of(tree: Path) -> tuple[str, list[str]]:
    """What the core is and what its modules are, as a new process sees it."""
    code = (
        "import json; from dynosim.compiled import CORE; from dynosim import one, two;"
        "print(json.dumps([str(CORE), [one.kind, two.kind]]))"
    )
    environment = {k: v for k, v in os.environ.items() if k != "DYNOSIM_PURE"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tree, env=environment,
                          capture_output=True, text=True, check=True)  # fmt: skip
    core, kinds = json.loads(done.stdout)
    return core, kinds


def a_compiler(folder: Path, *lines: str) -> str:
    """A script that stands for a compiler."""
    script = folder / "a-compiler"
    script.write_text("\n".join(("#!/bin/sh", *lines)) + "\n")
    script.chmod(0o755)
    return str(script)


def needs_a_compiler() -> None:
    try:
        setup_module().check_tools()
    except Exception as error:
        pytest.skip(str(error))


def setup_module() -> ModuleType:
    """`setup.py`, which does nothing when it is imported."""
    spec = importlib.util.spec_from_file_location("setup_of_dynosim", ROOT / "setup.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def compiled_files(tree: Path) -> list[str]:
    return sorted(str(path.relative_to(tree)) for path in tree.rglob("*.so"))


# ---- where it can be compiled --------------------------------------------------------------------


@pytest.mark.live
def test_compiled_then_changed_then_compiled_again_then_impossible(tree: Path) -> None:
    needs_a_compiler()
    assert build_in_place(tree) == ""
    assert run_of(tree) == ("compiled core", ["compiled"] * 2)
    (tree / "dynosim/two.py").write_text("kind = 'changed'\n")
    stale = "pure Python core (dynosim.two has changed since it was compiled)"
    assert run_of(tree) == (stale, ["pure", "changed"])
    build_in_place(tree)
    assert run_of(tree) == ("compiled core", ["compiled"] * 2)

    # A compiler that can do what is tried first, and no more, half-way through the modules.
    breaks = a_compiler(tree.parent, 'case "$*" in *two.c*) exit 1;; *) exec cc "$@";; esac')
    (said,) = build_in_place(tree, CC=breaks).splitlines()
    assert said.startswith("dynosim: the core stays pure Python: it does not compile: ")
    core, kinds = run_of(tree)
    assert core.startswith("pure Python core (not compiled: it does not compile: ")
    assert kinds == ["pure", "changed"]
    assert [file for file in compiled_files(tree) if not file.startswith("build")] == []


@pytest.mark.live
def test_a_wheel_is_compiled_if_asked_for_and_else_pure(tree: Path) -> None:
    """Whatever lies compiled in the tree."""
    needs_a_compiler()
    (tree / "dynosim/compiled/built.json").write_text("{}")
    (tree / f"dynosim/old{SUFFIX}").touch()
    build(tree, "bdist_wheel")
    build(tree, "bdist_wheel", DYNOSIM_COMPILE="0")
    breaks = a_compiler(tree.parent, 'case "$*" in *two.c*) exit 1;; *) exec cc "$@";; esac')
    build(tree, "bdist_wheel", "--dist-dir=broken", CC=breaks)
    python = f"cp{sys.version_info.major}{sys.version_info.minor}"
    (compiled,) = tree.glob(f"dist/dynosim-1-{python}-{python}*-*.whl")
    (pure,) = tree.glob("dist/dynosim-1-py3-none-any.whl")
    (broken,) = tree.glob("broken/*.whl")
    assert broken.name == pure.name
    sources = {f"dynosim/{name}.py" for name in ("__init__", "one", "two", "compiled/__init__")}
    sources.add("dynosim/compiled/core.txt")
    note = {"dynosim/compiled/built.json"}
    libraries = {f"{name}{SUFFIX}" for name in ("dynosim/one", "dynosim/two", "dynosim__mypyc")}
    assert content(pure) == sources
    assert content(broken) == sources | note
    assert content(compiled) == sources | note | libraries

    for wheel, kind in ((compiled, "compiled"), (pure, "pure"), (broken, "pure")):
        folder = tree.parent / f"from {wheel.parent.name} {wheel.name}"
        zipfile.ZipFile(wheel).extractall(folder)
        assert run_of(folder)[1] == [kind] * 2


def content(wheel: Path) -> set[str]:
    """What a wheel holds besides its metadata."""
    names = zipfile.ZipFile(wheel).namelist()
    assert len(names) == len(set(names))
    return {name for name in names if ".dist-info/" not in name}


# ---- where it cannot -----------------------------------------------------------------------------


def test_without_a_compiler_the_build_ends_well_and_says_so_in_one_line(tree: Path) -> None:
    why = "the C compiler fails (false: exit status 1)"
    assert build_in_place(tree, CC="false") == f"dynosim: the core stays pure Python: {why}\n"
    assert run_of(tree) == (f"pure Python core (not compiled: {why})", ["pure"] * 2)
    assert compiled_files(tree) == []


def why_not() -> str:
    """What `setup.py` finds missing."""
    setup = setup_module()
    with pytest.raises(setup.CannotCompileError) as refused:
        setup.check_tools()
    return str(refused.value)


@pytest.mark.parametrize(
    ("compiler", "why"),
    [
        ("true", "the C compiler fails (true: exit status 0)"),
        ("/no/such-compiler -m64", "there is no C compiler (/no/such-compiler)"),
    ],
)
def test_a_compiler_that_makes_nothing_is_named(
    monkeypatch: pytest.MonkeyPatch, compiler: str, why: str
) -> None:
    monkeypatch.setenv("CC", compiler)
    assert why_not() == why


def test_what_the_compiler_lacks_is_named(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    error = "/usr/include/limits.h:26: fatal error: bits/libc.h: No such file or directory"
    compiler = a_compiler(tree.parent, "echo In file included from Python.h: >&2",
                          f"echo '{error}' >&2", "exit 1")  # fmt: skip
    monkeypatch.setenv("CC", compiler)
    assert why_not() == f"the C compiler fails ({compiler}: {error})"


def test_missing_headers_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", a_compiler(tmp_path, "exit 1"))
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path / name))
    header = tmp_path / "include" / "Python.h"
    assert why_not() == f"Python's headers are missing ({header})"


def test_missing_mypy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    needs_a_compiler()
    monkeypatch.setitem(sys.modules, "mypyc", None)
    assert why_not() == "mypy is not installed"


def test_what_mypyc_refuses_is_named(tree: Path) -> None:
    needs_a_compiler()
    (said,) = build_in_place(tree, REFUSE="1").splitlines()
    assert said.endswith("pure Python: mypyc refuses it: dynosim/one.py:1: error: no types")
    assert compiled_files(tree) == []


def test_what_compiles_and_does_not_load_is_not_kept(tree: Path) -> None:
    needs_a_compiler()
    (said,) = build_in_place(tree, SPOIL="1").splitlines()
    assert "the core stays pure Python: it does not load: " in said
    assert run_of(tree)[1] == ["pure"] * 2


# ---- what a front end is told --------------------------------------------------------------------


def test_a_build_needs_mypy_only_if_it_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    setup = setup_module()
    monkeypatch.setattr(sys, "argv", ["setup.py", "egg_info"])
    monkeypatch.setenv("DYNOSIM_COMPILE", "1")
    assert any(need.startswith("mypy") for need in setup.options()["setup_requires"])
    for value in ("", "0"):
        monkeypatch.setenv("DYNOSIM_COMPILE", value)
        assert setup.options() == {}
