"""What is computed once and kept on disk: step-time tables and capacity estimates.

The folder is $DYNOSIM_CACHE, else ~/.cache/dynosim. Files are written beside their place and moved
there in one step, so that any number of processes may read and write at once; a file that cannot be
read is computed anew. A folder that cannot be written only costs time.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


def cache_folder(override: Path | str | None = None) -> Path:
    """Where cached files live; not necessarily there yet."""
    if override is not None:
        return Path(override)
    from_environment = os.environ.get("DYNOSIM_CACHE")
    if from_environment:
        return Path(from_environment)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dynosim"


def cache_key(parts: Mapping[str, Any]) -> str:
    """A short name that is equal exactly when all parts (plain JSON values) are."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def load_or_build(
    path: Path,
    *,
    load: Callable[[Path], T],
    build: Callable[[], T],
    save: Callable[[T, Path], None],
) -> T:
    """What `path` holds, else what `build` makes, which is then kept at `path`.

    `load` raises any of OSError, ValueError, KeyError, EOFError for a file that cannot be used.
    """
    try:
        return load(path)
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, EOFError):
        pass  # damaged, or of another format: written again below
    value = build()
    with contextlib.suppress(OSError):
        _write_atomically(path, lambda temporary: save(value, temporary))
    return value


def _write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    import tempfile

    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
