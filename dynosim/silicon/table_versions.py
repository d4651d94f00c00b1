"""Which version's measurements are taken of each kind of kernel, and a folder that holds just them.

aiconfigurator-core keeps its measurements by family of kernels, engine and engine version, and
families were not all measured with the same versions. For the version in use each table is taken
from that version if it was measured with it, else from the newest that is not newer, else from the
oldest that is. The library itself answers for its newest version alone and fills gaps from others
without saying so; it is therefore given a folder in which nothing else lies.
"""

import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from dynosim.engine.vllm.versions import NEWEST, Version, parse_version
from dynosim.errors import ConfigError
from dynosim.silicon.catalogue import core_folder

TableName = tuple[str, str]
"""Family and file, such as ("gemm", "gemm_perf.parquet")."""

_BASE: TableName = ("gemm", "gemm_perf.parquet")
"""The table that every model needs: its versions are those that an engine was measured as a whole
with; others have single tables for what came new."""

_OLDEST_VLLM: Version = (0, 6)
"""The first of vLLM's releases with the engine that is simulated in use; tables begin at 0.12."""
_LATER_MINORS = 8
"""So many minor releases after the newest that we know of may have come out since."""
_NOT_TABLES = ("query_versions.yaml",)


def order(version: str) -> tuple[Version, int, int]:
    """For sorting versions: 1.3.0rc20 stands after 1.3.0rc3 and before 1.3.0."""
    numbers = parse_version(version)
    tail = re.sub(r"^v?[0-9.]*", "", version.strip())
    digits = re.findall(r"[0-9]+", tail)
    is_release = 0 if re.match(r"(rc|dev|a|b)", tail) else 1
    return numbers + (0,) * (3 - len(numbers)), is_release, int(digits[-1]) if digits else 0


@dataclass(frozen=True, slots=True)
class TableChoice:
    """Which version of each table stands for the version in use."""

    wanted: str
    versions: Mapping[TableName, str]

    @property
    def label(self) -> str:
        """The version that the library is told: it picks among attention kernels by it."""
        own = ("attention", "generation_attention_perf.parquet")
        return self.versions.get(own) or self.versions.get(_BASE) or self.wanted

    def changed(self, table: TableName, version: str) -> "TableChoice":
        """The same with another version of one table."""
        return TableChoice(self.wanted, {**self.versions, table: version})


@cache
def table_versions(system: str, backend: str) -> Mapping[TableName, tuple[str, ...]]:
    """The versions that each table of a system and engine was measured with, oldest first."""
    folder = core_folder()
    if folder is None:
        return {}
    found: dict[TableName, list[str]] = {}
    for path in (folder / "systems" / "data" / system).glob(f"*/{backend}/*/*.parquet"):
        version = path.parent.name
        family = path.parent.parent.parent.name
        found.setdefault((family, path.name), []).append(version)
    return {table: tuple(sorted(versions, key=order)) for table, versions in found.items()}


def known_versions(system: str, backend: str) -> list[str]:
    """Every version that an engine's tables on a system know, oldest first."""
    tables = table_versions(system, backend)
    of_kernels = {
        one for (family, _), versions in tables.items() for one in versions if family != "kda"
    }
    return sorted(of_kernels, key=order)


def newest_version(system: str, backend: str) -> str | None:
    """The newest version that an engine was measured as a whole with; None without tables."""
    tables = table_versions(system, backend)
    versions = tables.get(_BASE) or tuple(known_versions(system, backend))
    return versions[-1] if versions else None


def choose(system: str, backend: str, wanted: str) -> TableChoice:
    """Of each table the version in use, or the nearest to it."""
    tables = table_versions(system, backend)
    return TableChoice(wanted, {one: nearest(of, wanted) for one, of in tables.items()})


def nearest(versions: tuple[str, ...], wanted: str) -> str:
    """The newest that is not newer than the wanted one, else the oldest."""
    not_newer = [one for one in versions if order(one) <= order(wanted)]
    return not_newer[-1] if not_newer else versions[0]


def other_neighbour(versions: tuple[str, ...], wanted: str) -> str | None:
    """The neighbour on the other side of `wanted` than `nearest`; None where there is none."""
    chosen = nearest(versions, wanted)
    newer = [one for one in versions if order(one) > order(wanted)]
    is_between = order(chosen) < order(wanted) and bool(newer)
    return newer[0] if is_between else None


def neighbours_of(choice: TableChoice, system: str, backend: str) -> TableChoice | None:
    """The choice with every table from its neighbour above; None where all are from below alone."""
    tables = table_versions(system, backend)
    above = {one: other_neighbour(of, choice.wanted) for one, of in tables.items()}
    if not any(above.values()):
        return None
    versions = {one: above[one] or version for one, version in choice.versions.items()}
    return TableChoice(choice.wanted, versions)


def others_by_distance(system: str, backend: str, table: TableName, chosen: str) -> list[str]:
    """The other versions of a table, to turn to where the chosen one lacks what is asked: older
    ones first, the newest of them first, then newer ones."""
    versions = table_versions(system, backend).get(table, ())
    older = [one for one in versions if order(one) < order(chosen)]
    newer = [one for one in versions if order(one) > order(chosen)]
    return older[::-1] + newer


def version_in_use(system: str, backend: str, stated: str | None, *, key: str) -> str:
    """The version whose tables are wanted: as stated, else the newest that the tables know.

    Raises: ConfigError, naming `key` and the neighbours, for a version that cannot be.
    """
    newest = newest_version(system, backend)
    if newest is None:
        raise ConfigError(
            f"timing.kind aiconfigurator: no measurements of {backend} on {system};"
            " use `timing: {kind: roofline}` for an estimate"
        )
    if stated is None:
        return newest
    problem = version_problem(stated, backend)
    if problem is not None:
        known = known_versions(system, backend)
        raise ConfigError(f"{key}: {problem}; the tables of {system} know {', '.join(known)}")
    return stated


def versions_nearby(system: str | None, backend: str) -> list[str]:
    """Measured versions to offer in place of one that cannot be: of the system, else of all."""
    known = known_versions(system, backend) if system is not None else []
    if known:
        return known
    folder = core_folder()
    systems = [] if folder is None else [one.name for one in (folder / "systems/data").iterdir()]
    return sorted({one for name in systems for one in known_versions(name, backend)}, key=order)


def version_problem(stated: str, backend: str = "vllm") -> str | None:
    """What is wrong with a version; None for one that may be, measured or not."""
    if not re.fullmatch(r"v?[0-9]+(\.[0-9]+)+((\.|-|\+)?[a-z][a-z0-9.+]*)?", stated.strip()):
        return f"expected a version such as 0.19.0, got {stated!r}"
    if backend != "vllm":
        return None
    version, newest = parse_version(stated), parse_version(NEWEST)
    if version < _OLDEST_VLLM:
        return f"{stated} is older than the engine that is simulated (0.6 and later)"
    if version[0] != newest[0] or version[1] > newest[1] + _LATER_MINORS:
        return f"there is no vLLM {stated} that we know of (the newest is {NEWEST})"
    return None


@contextmanager
def systems_folder(
    system: str, backend: str, choice: TableChoice, *, with_others: bool = False
) -> Iterator[Path]:
    """A systems folder for the library that holds the chosen tables, as links.

    `with_others` adds other engines' tables, which the library fills gaps from.
    """
    folder = core_folder()
    assert folder is not None, "a choice is made of an installed package"
    source = folder / "systems"
    with tempfile.TemporaryDirectory(prefix="dynosim-systems-") as name:
        root = Path(name)
        for path in source.glob("*.yaml"):
            if path.name not in _NOT_TABLES:
                (root / path.name).symlink_to(path)
        data = source / "data" / system
        for (family, file), version in choice.versions.items():
            own = data / family / backend / version
            place = root / "data" / system / family / backend / choice.label
            place.mkdir(parents=True, exist_ok=True)
            (place / file).symlink_to(own / file)
        for path in data.glob("*/*"):
            is_engine = path.name in ("vllm", "sglang", "trtllm")
            place = root / "data" / system / path.parent.name / path.name
            if path.name != backend and (with_others or not is_engine) and not place.exists():
                place.parent.mkdir(parents=True, exist_ok=True)
                place.symlink_to(path)
        yield root
