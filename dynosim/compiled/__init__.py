"""Whether the hot core runs compiled or as plain Python: decided once, before any of it is loaded.

`make fast` compiles the modules that `setup.py` lists and leaves a note beside this file: for which
Python they are, and from which sources they were made. They are taken all together or not at all,
and not if a source has changed since: a mixture of two versions would be neither.
"""

import importlib.machinery
import importlib.util
import json
import os
import sys
from collections.abc import Sequence
from importlib.machinery import ExtensionFileLoader, ModuleSpec, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

PACKAGES = Path(__file__).resolve().parent.parent.parent  # the folder that holds the packages
NOTE = Path(__file__).with_name("built.json")
SUFFIX = importlib.machinery.EXTENSION_SUFFIXES[0]
PURE, COMPILED = "pure Python", "compiled"


class Build(NamedTuple):
    """What was compiled, as noted by `setup.py`."""

    suffix: str  # of the compiled modules' files: tells Python's version and the platform
    library: str  # the module that holds all the code
    sources: dict[str, str]  # module -> hash of its source, in hex


class Core(NamedTuple):
    """What this process runs."""

    kind: str  # PURE or COMPILED
    reason: str = ""  # why not compiled, if something was compiled
    is_stale: bool = False  # sources have changed since

    def __str__(self) -> str:
        return f"{self.kind} core ({self.reason})" if self.reason else f"{self.kind} core"


def source_of(module: str) -> Path:
    """The file of one of our modules."""
    return PACKAGES / (module.replace(".", "/") + ".py")


def hash_of(module: str) -> str:
    """Of a module's source, as Python tells outdated byte code by."""
    return importlib.util.source_hash(source_of(module).read_bytes()).hex()


def read_note() -> Build | None:
    """What was compiled; None: nothing."""
    try:
        return Build(**json.loads(NOTE.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def choose(build: Build | None) -> Core:
    """What to run, given what was compiled."""
    if build is None:
        return Core(PURE)
    if os.environ.get("DYNOSIM_PURE", "0") not in ("", "0"):
        return Core(PURE, "DYNOSIM_PURE is set")
    if build.suffix != SUFFIX:
        return Core(PURE, f"compiled for {build.suffix}, this Python loads {SUFFIX}")
    for module, known in build.sources.items():
        if hash_of(module) != known:
            return Core(PURE, f"{module} has changed since it was compiled", is_stale=True)
    return Core(COMPILED)


class _Finder:
    """Finds the core's modules: as sources, or else the library that holds their compiled code."""

    def __init__(self, build: Build, core: Core) -> None:
        self._build = build
        self._is_pure = core.kind == PURE

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """See `importlib.abc.MetaPathFinder`; None: not our business."""
        if self._is_pure:
            if name not in self._build.sources:
                return None
            source = str(source_of(name))
            return importlib.util.spec_from_file_location(
                name, source, loader=SourceFileLoader(name, source)
            )
        if name != self._build.library:
            return None
        library = str(PACKAGES / (name + SUFFIX))
        return importlib.util.spec_from_file_location(
            name, library, loader=ExtensionFileLoader(name, library)
        )


def _settle() -> Core:
    build = read_note()
    core = choose(build)
    if build is not None:
        sys.meta_path.insert(0, _Finder(build, core))
    return core


CORE = _settle()
"""What this process runs."""
