"""Which keys of a run file name other files."""

from collections.abc import Callable
from typing import Any

from dynosim.config.cluster import POOL_ROLES
from dynosim.config.overrides import put
from dynosim.config.schema import is_path

GENERATED = ("synthetic", "agents")
"""Sources of a workload whose lengths may be drawn from a file's."""
FileKey = tuple[str, ...]


def file_keys(data: dict[str, Any]) -> dict[FileKey, str]:
    """The files that a run file's data name, by key."""
    workload, timing = data.get("workload") or {}, data.get("timing") or {}
    hardware = data.get("hardware")
    named: dict[FileKey, Any] = {("model",): data.get("model"), **_hardware((), hardware)}
    pools = _pools(data)
    for at, pool in pools.items():
        named |= _hardware(at, pool.get("hardware"))
    names = {key: name for key, name in named.items() if is_path(name or "")}
    names["workload", "trace"] = workload.get("trace")
    for source in GENERATED:
        for key, section in (workload.get(source) or {}).items():
            if isinstance(section, dict):
                names["workload", source, key, "trace"] = section.get("trace")
    names["timing", "file"] = timing.get("file")
    for at, pool in pools.items():
        names[*at, "timing", "file"] = (pool.get("timing") or {}).get("file")
    return {key: name for key, name in names.items() if name is not None}


def _pools(data: dict[str, Any]) -> dict[FileKey, dict[str, Any]]:
    """The sections of pools, by where they stand."""
    cluster = data.get("cluster") or {}
    found = {("cluster", role): cluster.get(role) for role in POOL_ROLES}
    return {at: pool for at, pool in found.items() if isinstance(pool, dict)}


def _hardware(at: FileKey, hardware: Any) -> dict[FileKey, Any]:
    """The name of hardware, which may be a file's."""
    if isinstance(hardware, dict):
        return {(*at, "hardware", "name"): hardware.get("name")}
    return {(*at, "hardware"): hardware}


def with_files(data: dict[str, Any], name_of: Callable[[FileKey, str], str]) -> dict[str, Any]:
    """The data with every file under the name that `name_of` gives it."""
    for key, name in file_keys(data).items():
        data = put(data, key, name_of(key, name))
    return data
