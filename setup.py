"""Compiles the hot core if `DYNOSIM_COMPILE=1` asks for it; everything else is in pyproject.toml.

mypyc makes C of the modules that `dynosim/compiled/core.txt` lists, as they stand: the same typed
Python runs compiled or not. All of them are compiled or none is: if anything is missing or fails,
the install goes on in pure Python. Why is said here and noted beside the list, from where
`dynosim --version` tells it, since pip shows nothing of a build that ends well.
"""

import contextlib
import importlib.util
import io
import json
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
CORE = ROOT.joinpath("dynosim/compiled/core.txt").read_text().split()
NOTE = "dynosim/compiled/built.json"
GROUP = "dynosim"
LIBRARY = f"{GROUP}__mypyc"  # the module that holds all the code, by mypyc's rule
SUFFIX = EXTENSION_SUFFIXES[0]
NEEDS_TO_COMPILE = ["mypy>=1.18", "numpy>=2.1,<3"]
# Whatever else mypy would say of the tree is for `make lint`.
MYPY_OPTIONS = ["--config-file=", "--follow-imports=silent", "--ignore-missing-imports"]

# a * b + c in two roundings, as Python does it: some processors could do it in one.
EXACT = ["-ffp-contract=off"]
# Calls inside the library, and into Python, without a detour: a tenth of a trial.
DIRECT = ["-fvisibility=hidden", "-fno-plt"]


class CannotCompileError(Exception):
    """There will be no compiled core; says what is missing."""


def path_of(module: str, suffix: str) -> str:
    """The file of a module, from the root of the tree."""
    return module.replace(".", "/") + suffix


def check_tools() -> None:
    """Raises: CannotCompileError if a compiler, Python's headers or mypy are missing."""
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    if shutil.which(compiler[0]) is None:
        raise CannotCompileError(f"there is no C compiler ({compiler[0]})")
    header = Path(sysconfig.get_path("include"), "Python.h")
    if not header.is_file():
        raise CannotCompileError(f"Python's headers are missing ({header})")
    with tempfile.TemporaryDirectory() as folder:
        source, made = Path(folder, "probe.c"), Path(folder, "probe.o")
        source.write_text("#include <Python.h>\n")
        command = [*compiler, f"-I{header.parent}", "-c", str(source), "-o", str(made)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if not made.is_file():
            why = first_error(done.stderr) or f"exit status {done.returncode}"
            raise CannotCompileError(f"the C compiler fails ({shlex.join(compiler)}: {why})")
    if importlib.util.find_spec("mypyc") is None:
        raise CannotCompileError("mypy is not installed")


def first_error(output: str) -> str:
    """Of what a compiler has printed, the line that says why it ends; empty: none."""
    lines = output.strip().splitlines()
    return next((line for line in lines if "error:" in line), lines[0] if lines else "")


def translate() -> list[Any]:
    """The core in C. Raises: CannotCompileError."""
    from mypyc.build import mypycify

    paths = [path_of(module, ".py") for module in CORE]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            extensions = mypycify(
                [*MYPY_OPTIONS, *paths], opt_level="2", debug_level="0", group_name=GROUP
            )
        except (Exception, SystemExit) as error:
            why = first_error(printed.getvalue()) or str(error)
            raise CannotCompileError(f"mypyc refuses it: {why}") from error
    for extension in extensions:
        extension.extra_compile_args += [*EXACT, *DIRECT]
    return extensions


def check_that_it_loads(folder: Path) -> None:
    """Raises: CannotCompileError. Not where what the core imports is absent, as in most builds."""
    code = f"import importlib; [importlib.import_module(name) for name in {CORE}]"
    environment = {**os.environ, "PYTHONPATH": str(folder), "DYNOSIM_PURE": "0"}
    done = subprocess.run(
        [sys.executable, "-B", "-c", code],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
    if done.returncode and not last.startswith("ModuleNotFoundError"):
        raise CannotCompileError(f"it does not load: {last}")


class BuildCore(build_ext):
    """Compiles all of the core and notes of what, or leaves nothing but a note that says why."""

    def run(self) -> None:
        """See the class."""
        folder = (ROOT if self.inplace else Path(self.build_lib)).resolve()
        note = folder / NOTE
        note.unlink(missing_ok=True)  # without one, nothing compiled is loaded
        try:
            self._compile()
            note.write_text(json.dumps(self._note(folder), indent=1) + "\n")
            check_that_it_loads(folder)
        except CannotCompileError as error:
            print(f"dynosim: the core stays pure Python: {error}", file=sys.stderr)
            for module in (*CORE, LIBRARY):
                (folder / path_of(module, SUFFIX)).unlink(missing_ok=True)
            note.parent.mkdir(parents=True, exist_ok=True)
            note.write_text(json.dumps({"missing": str(error)}) + "\n")
            self._give_up()

    def _compile(self) -> None:
        check_tools()
        self.distribution.ext_modules = translate()
        self.swig_opts = None  # type: ignore[assignment]  # finalizing makes a list of it, once
        self.finalize_options()  # takes the extensions over
        try:
            super().run()
        except Exception as error:  # of many kinds, from many layers
            raise CannotCompileError(f"it does not compile: {error}") from error

    def _give_up(self) -> None:
        """What is being built is pure, whatever was expected."""
        self.extensions = self.distribution.ext_modules = []
        wheel = self.distribution.get_command_obj("bdist_wheel", create=False)
        if isinstance(wheel, bdist_wheel):
            wheel.root_is_pure = True

    def _note(self, folder: Path) -> dict[str, Any]:
        """What `dynosim.compiled.Build` holds."""
        files = {module: folder / path_of(module, SUFFIX) for module in (LIBRARY, *CORE)}
        sources = {module: (ROOT / path_of(module, ".py")).read_bytes() for module in CORE}
        return {
            "suffix": SUFFIX,
            "library": LIBRARY,
            "sizes": {module: file.stat().st_size for module, file in files.items()},
            "sources": {
                module: importlib.util.source_hash(text).hex() for module, text in sources.items()
            },
        }


def options() -> dict[str, Any]:
    """What `setup` must know to compile the core; nothing if that is not asked for."""
    if os.environ.get("DYNOSIM_COMPILE", "0") in ("", "0"):
        return {}
    expected = Extension(LIBRARY, [])  # its place is taken by what mypyc makes
    # A front end asks for what the build needs by this command; nobody else shall install it.
    needs = NEEDS_TO_COMPILE if "egg_info" in sys.argv else []
    return {
        "ext_modules": [expected],
        "cmdclass": {"build_ext": BuildCore},
        "setup_requires": needs,
    }


if __name__ == "__main__":
    setup(**options())
