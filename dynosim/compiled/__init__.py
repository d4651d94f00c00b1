"""Whether the hot core runs compiled or as plain Python: decided once, before any of it is loaded.

`setup.py` compiles the modules that `core.txt` lists and notes in `built.json` for which Python, of
which sources, into files of which size. They are taken all together or not at all: if anything is
not as noted, all of them run from their sources. A mixture of two versions would be neither.
"""

import importlib.machinery
import importlib.util
import json
import os
import sys
from collections.abc import Collection, Sequence
from importlib.machinery import (
    SOURCE_SUFFIXES,
    ExtensionFileLoader,
    FileFinder,
    ModuleSpec,
    PathFinder,
    SourceFileLoader,
)
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

PACKAGES = Path(__file__).resolve().parent.parent.parent  # the folder that holds the packages
NOTE, LIST = "dynosim/compiled/built.json", "dynosim/compiled/core.txt"
SUFFIX = importlib.machinery.EXTENSION_SUFFIXES[0]
PURE, COMPILED = "pure Python", "compiled"


class Build(NamedTuple):
    """What was compiled, as `setup.py` notes it."""

    suffix: str  # of the compiled modules' files: tells Python's version and the platform
    library: str  # the module that holds all the code
    sizes: dict[str, int]  # module, the library among them -> bytes of its compiled file
    sources: dict[str, str]  # module -> hash of its source, in hex


class Core(NamedTuple):
    """What this process runs."""

    kind: str  # PURE or COMPILED
    reason: str = ""  # why not compiled, where that was tried
    is_stale: bool = False  # sources have changed since

    def __str__(self) -> str:
        return f"{self.kind} core ({self.reason})" if self.reason else f"{self.kind} core"


class UnusableError(Exception):
    """What was compiled cannot be used; says why."""

    def __init__(self, reason: str, *, is_stale: bool = False) -> None:
        super().__init__(reason)
        self.is_stale = is_stale


def read_build(packages: Path) -> Build | None:
    """What was compiled; None: nothing. Raises: UnusableError."""
    try:
        text = (packages / NOTE).read_bytes()
    except FileNotFoundError:
        return None
    try:
        note = json.loads(text)
        if "missing" in note:
            raise UnusableError(f"not compiled: {note['missing']}")
        build = Build(**note)
        if build.sizes.keys() == {build.library, *build.sources.keys()}:
            return build
    except (ValueError, TypeError, AttributeError):
        pass
    raise UnusableError("the note of what was compiled is damaged")


def check_build(build: Build, packages: Path) -> None:
    """Raises: UnusableError if it is for another Python, of other sources or not complete."""
    if build.suffix != SUFFIX:
        raise UnusableError(f"compiled for {build.suffix}, this Python loads {SUFFIX}")
    if sorted(build.sources) != sorted((packages / LIST).read_text().split()):
        raise UnusableError("other modules are to be compiled than were", is_stale=True)
    for module, known in build.sources.items():
        with open(file_of(packages, module, ".py"), "rb", buffering=0) as source:
            found = importlib.util.source_hash(source.read()).hex()
        if found != known:
            raise UnusableError(f"{module} has changed since it was compiled", is_stale=True)
    for module, size in build.sizes.items():
        file = file_of(packages, module, SUFFIX)
        if os.stat(file).st_size != size:
            raise UnusableError(f"{os.path.basename(file)} is not the file that was compiled")


def file_of(packages: Path, module: str, suffix: str) -> str:
    """A module's file. Text, since a hundred of them as `Path` take as long as reading them."""
    return f"{packages}/{module.replace('.', '/')}{suffix}"


class CompiledLoader(ExtensionFileLoader):
    """Loads a compiled module and knows its source, so that tracebacks show it."""

    def exec_module(self, module: ModuleType) -> None:
        """Load it, and stay its loader: mypyc's modules name a plain one."""
        super().exec_module(module)
        module.__loader__ = self

    def get_source(self, fullname: str) -> str | None:  # type: ignore[override]  # theirs has none
        """Raises: ImportError if it is not there."""
        source = self.path.removesuffix(SUFFIX) + ".py"
        return SourceFileLoader(fullname, source).get_source(fullname)


class CoreFinder:
    """Finds our modules: compiled if they are among those given, else as sources.

    It leaves nothing to Python's own rule, by which any compiled file beside a source comes first.
    """

    def __init__(self, packages: Path, compiled: Collection[str] = ()) -> None:
        self.packages = packages
        self._compiled = frozenset(compiled)
        self._folders: dict[str, FileFinder] = {}

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """See `importlib.abc.MetaPathFinder`; None: not our business."""
        if name in self._compiled:
            file = file_of(self.packages, name, SUFFIX)
            loader = CompiledLoader(name, file)
            return importlib.util.spec_from_file_location(name, file, loader=loader)
        if not name.startswith("dynosim."):
            return None
        for folder in path or ():
            spec = self._folder(folder).find_spec(name, target)
            if spec is not None and spec.loader is not None:
                return spec
        return None

    def _folder(self, folder: str) -> FileFinder:
        if folder not in self._folders:
            self._folders[folder] = FileFinder(folder, (SourceFileLoader, SOURCE_SUFFIXES))
        return self._folders[folder]


def settle(packages: Path = PACKAGES) -> Core:
    """Decide, and see to it that what was decided is what is loaded from now on."""
    core, finder = Core(PURE), CoreFinder(packages)
    try:
        build = read_build(packages)
        if build is not None:
            finder = _usable(build, packages)
            core = Core(COMPILED)
    except UnusableError as error:
        core = Core(PURE, str(error), error.is_stale)
    except (OSError, ImportError) as error:
        core = Core(PURE, f"cannot be loaded: {error}")
    # Before Python's own search, but after those who change what they load, such as pytest.
    place = sys.meta_path.index(PathFinder) if PathFinder in sys.meta_path else 0
    sys.meta_path.insert(place, finder)
    return core


def _usable(build: Build, packages: Path) -> CoreFinder:
    """The finder of what was compiled, with its library loaded, so that all will be found.

    Raises: UnusableError, OSError, ImportError.
    """
    if os.environ.get("DYNOSIM_PURE", "0") not in ("", "0"):
        raise UnusableError("DYNOSIM_PURE is set")
    check_build(build, packages)
    finder = CoreFinder(packages, build.sizes)
    spec = finder.find_spec(build.library)
    assert spec is not None and spec.loader is not None
    library = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(library)
    sys.modules[build.library] = library
    return finder


CORE = settle()
"""What this process runs."""
