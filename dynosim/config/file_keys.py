"""Which keys of a run file name other files."""

from collections.abc import Callable
from typing import Any

from dynosim.config.overrides import put
from dynosim.config.schema import is_path

FileKey = tuple[str, ...]


def file_keys(data: dict[str, Any]) -> dict[FileKey, str]:
    """The files that a run file's data name, by key."""
    workload, timing = data.get("workload") or {}, data.get("timing") or {}
    synthetic = workload.get("synthetic") or {}
    hardware = data.get("hardware")
    named: dict[FileKey, Any] = {("model",): data.get("model")}
    if isinstance(hardware, dict):
        named["hardware", "name"] = hardware.get("name")
    else:
        named[("hardware",)] = hardware
    names = {key: name for key, name in named.items() if is_path(name or "")}
    names["workload", "trace"] = workload.get("trace")
    for key, section in synthetic.items():
        if isinstance(section, dict):
            names["workload", "synthetic", key, "trace"] = section.get("trace")
    names["timing", "file"] = timing.get("file")
    return {key: name for key, name in names.items() if name is not None}


def with_files(data: dict[str, Any], name_of: Callable[[FileKey, str], str]) -> dict[str, Any]:
    """The data with every file under the name that `name_of` gives it."""
    for key, name in file_keys(data).items():
        data = put(data, key, name_of(key, name))
    return data
