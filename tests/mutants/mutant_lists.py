"""The lists of mutants: reading and checking them, and noting in them which test killed which."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

DEFAULT_TESTS = "tests_by_package.yaml"
_REQUIRED = ("id", "file", "what", "old", "new")
_OPTIONAL = ("tests", "equivalent")


class ListError(Exception):
    """A list, or an entry of one, that cannot be used as it is."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """One mistake: `old`, which `file` holds exactly once, replaced by `new`."""

    id: str
    area: str  # the list it is in
    file: str
    what: str
    old: str
    new: str
    tests: tuple[str, ...] = ()  # files or node ids to run first: those known to kill it
    equivalent: str | None = None  # why no test can tell it from the original

    @property
    def package(self) -> str:
        """Where the score counts it: the package below `dynosim`, or `runtime`."""
        first, *others = Path(self.file).parts
        return others[0] if first == "dynosim" and len(others) > 1 else first

    def applied_to(self, source: str) -> str:
        """The source with the mistake in it. Raises: ListError."""
        count = source.count(self.old)
        if count != 1:
            fault = "stale: its `old` text is not in the file" if count == 0 else "ambiguous"
            detail = f": its `old` text is there {count} times" if count > 1 else ""
            raise ListError(f"{self.file}: mutant {self.id} is {fault}{detail}")
        mutated = source.replace(self.old, self.new)
        try:
            compile(mutated, self.file, "exec")
        except SyntaxError as error:
            raise ListError(
                f"{self.file}: mutant {self.id} is not Python (line {error.lineno}: {error.msg})"
            ) from None
        if mutated == source:
            raise ListError(f"{self.file}: mutant {self.id} changes nothing")
        return mutated


def load_lists(folder: Path) -> list[Mutant]:
    """All mutants of all lists in a folder. Raises: ListError."""
    mutants: list[Mutant] = []
    for path in sorted(folder.glob("*.yaml")):
        if path.name != DEFAULT_TESTS:
            entries = yaml.safe_load(path.read_text(encoding="utf-8")) or []
            mutants += [_mutant(entry, path) for entry in entries]
    ids = [mutant.id for mutant in mutants]
    repeated = sorted({name for name in ids if ids.count(name) > 1})
    if repeated:
        raise ListError(f"{folder}: ids that stand for several mutants: {', '.join(repeated)}")
    return mutants


def _mutant(entry: Mapping[str, Any], path: Path) -> Mutant:
    missing = [key for key in _REQUIRED if key not in entry]
    unknown = [key for key in entry if key not in (*_REQUIRED, *_OPTIONAL)]
    if missing or unknown:
        name = entry.get("id", "without an id")
        raise ListError(f"{path.name}: mutant {name}: missing {missing}, unknown {unknown}")
    facts = {key: str(entry[key]) for key in _REQUIRED}
    tests = tuple(entry.get("tests") or ())
    return Mutant(area=path.stem, tests=tests, equivalent=entry.get("equivalent"), **facts)


def select(mutants: Iterable[Mutant], names: list[str]) -> list[Mutant]:
    """Those with these ids, or of these lists or packages; all without names. Raises: ListError."""
    if not names:
        return list(mutants)
    chosen = [m for m in mutants if {m.id, m.area, m.package} & set(names)]
    found = {name for m in chosen for name in (m.id, m.area, m.package)}
    unknown = [name for name in names if name not in found]
    if unknown:
        raise ListError(f"no mutant, list or package is called {', '.join(unknown)}")
    return chosen


def check_all(root: Path, mutants: Iterable[Mutant]) -> None:
    """Raises: ListError that names every mutant that does not fit the tree."""
    faults: list[str] = []
    for mutant in mutants:
        try:
            mutant.applied_to((root / mutant.file).read_text(encoding="utf-8"))
        except OSError as error:
            faults.append(f"{mutant.file}: mutant {mutant.id}: {error.strerror}")
        except ListError as error:
            faults.append(str(error))
    if faults:
        raise ListError("\n".join(faults))


def default_tests(root: Path, folder: Path) -> dict[str, list[str]]:
    """Test files by source folder or file, as in `tests_by_package.yaml`. Raises: ListError."""
    table = yaml.safe_load((folder / DEFAULT_TESTS).read_text(encoding="utf-8"))
    files: dict[str, list[str]] = {}
    for source, patterns in table.items():
        found = {path.relative_to(root).as_posix() for p in patterns for path in root.glob(p)}
        if not found:
            raise ListError(f"{DEFAULT_TESTS}: {source}: no test file matches {patterns}")
        files[source] = sorted(found)
    return files


def tests_for(mutant: Mutant, by_source: Mapping[str, list[str]]) -> list[str]:
    """The test files of the file, or of the innermost folder, that is listed. Raises: ListError."""
    for place in (Path(mutant.file), *Path(mutant.file).parents):
        if place.as_posix() in by_source:
            return by_source[place.as_posix()]
    raise ListError(f"{DEFAULT_TESTS}: no tests are listed for {mutant.file}")


def existing(root: Path, tests: Iterable[str]) -> list[str]:
    """Those of some files and node ids that are there; a test may have been renamed since."""
    kept = []
    for test in tests:
        path, _, name = test.partition("::")
        function = name.partition("[")[0].rpartition("::")[2]
        file = root / path
        if file.is_file() and f"def {function}" in (file.read_text() if name else "def "):
            kept.append(test)
    return kept


def note_killers(folder: Path, failed: Mapping[str, str]) -> None:
    """Rewrite the `tests` lines of mutants, leaving all else as it is; `failed`: id -> node id."""
    killers = {name: test.partition("[")[0] for name, test in failed.items()}  # of any parameters
    for path in sorted(folder.glob("*.yaml")):
        blocks = re.split(r"(?m)^(?=- id: )", path.read_text(encoding="utf-8"))
        for number, block in enumerate(blocks):
            head = re.match(r"- id: (\S+)", block)
            if head and head[1] in killers:
                kept = re.sub(r"(?m)^  tests: .*\n", "", block).rstrip("\n")
                gap = block[len(block.rstrip("\n")) + 1 :]  # the empty line before the next one
                blocks[number] = f"{kept}\n  tests: [{killers[head[1]]}]\n{gap}"
        text = "".join(blocks)
        if text != path.read_text(encoding="utf-8"):
            path.write_text(text, encoding="utf-8")
