"""Compiles the hot core if `DYNOSIM_COMPILE=1` asks for it; everything else is in pyproject.toml.

mypyc makes C of the modules below as they stand: the same typed Python runs compiled or not. All of
them are compiled or none is; where a compiler, Python's headers or mypy are missing, or anything
fails, the install goes on in pure Python and one line says why.
"""

import json
import os
import shlex
import shutil
import sys
import sysconfig
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import find_spec, source_hash
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
CORE = {
    "engine": (
        "block_pool core cores decode_set engine instant kv_cache pace plan recorder sequence"
        " waiting"
    ),
    "engine/vllm": "asynchronous bulk foreseen loop scheduler seats",
    "cluster": (
        "block_names cluster event_plane frontends journal lone_placer placement pool requests"
        " router_placer token_log"
    ),
    "timing": "formulas model scaled step",
    "workload": "extents load",
    "router": (
        "active_blocks cheapest cost decision eligibility kv_choice kv_router levels load"
        " modes prefill_load request slots workers"
    ),
    "indexer": "extents",
}  # fmt: skip
SOURCES = [
    f"dynosim/{folder}/{name}.py" for folder, names in CORE.items() for name in names.split()
]
NOTE = "dynosim/compiled/built.json"
# Whatever else mypy would say of the tree is for `make lint`.
MYPY_OPTIONS = ["--config-file=", "--follow-imports=silent", "--ignore-missing-imports"]
NEEDS_TO_COMPILE = ["mypy>=1.18", "numpy>=2.1,<3"]


def say(why: str) -> None:
    """Tell that there will be no compiled core, and why."""
    print(f"dynosim: the core stays pure Python: {why}", file=sys.stderr)


def what_is_missing() -> str | None:
    """Why nothing can be compiled here; None: it can."""
    compiler = shlex.split(sysconfig.get_config_var("CC") or "cc")[0]
    if shutil.which(compiler) is None and shutil.which("cc") is None:
        return f"no C compiler ({compiler}) is installed"
    header = Path(sysconfig.get_path("include"), "Python.h")
    if not header.is_file():
        return f"Python's headers are missing ({header})"
    if find_spec("mypyc") is None:
        return "mypy is not installed"
    return None


def extensions() -> list[Extension]:
    """The core's modules, translated to C; empty, with a line that says why, if that fails."""
    missing = what_is_missing()
    if missing is not None:
        say(missing)
        return []
    from mypyc.build import mypycify

    try:
        return mypycify([*MYPY_OPTIONS, *SOURCES], opt_level="3", debug_level="0")
    except (Exception, SystemExit) as error:
        say(f"mypyc refuses it: {error}")
        return []


class BuildCore(build_ext):
    """Compiles all of it and notes from what, or leaves nothing behind."""

    def run(self) -> None:
        """See the class."""
        if not self.extensions:
            return
        try:
            super().run()
        except Exception as error:  # of many kinds, from many layers
            for file in self.get_outputs():
                Path(file).unlink(missing_ok=True)
            self.extensions = []
            say(f"it does not compile: {error}")
            return
        self._note()

    def _note(self) -> None:
        library = next(e.name for e in self.extensions if e.name.endswith("__mypyc"))
        sources = {
            file.removesuffix(".py").replace("/", "."): source_hash(
                (ROOT / file).read_bytes()
            ).hex()
            for file in SOURCES
        }
        note = {"suffix": EXTENSION_SUFFIXES[0], "library": library, "sources": sources}
        path = (ROOT if self.inplace else Path(self.build_lib)) / NOTE
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(note, indent=1) + "\n")


if os.environ.get("DYNOSIM_COMPILE", "0") in ("", "0"):
    setup()
else:
    setup(
        ext_modules=extensions(), cmdclass={"build_ext": BuildCore}, setup_requires=NEEDS_TO_COMPILE
    )
