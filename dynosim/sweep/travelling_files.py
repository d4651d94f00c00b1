"""What a winner's folder needs besides its run file, and how it gets there when the folder is sent.

Small files go along, in `inputs`. Large ones are not copied: the run file names them from where it
lies, and the folder's README tells which file is meant, by name and SHA-256. A model goes along
only if it is a description; its weights stay where they are.
"""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from dynosim.atomic import Writer
from dynosim.config.file_keys import FileKey, file_keys
from dynosim.config.minimal import minimal
from dynosim.config.schema import RunConfig
from dynosim.experiment.prediction import input_files
from dynosim.files.digest import file_sha256

INPUTS = "inputs"
COPIED_BYTES_MAX = 1 << 20
_MODEL_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
_WEIGHTS = ("*.safetensors", "*.bin")


@dataclass(frozen=True, slots=True)
class TravellingFile:
    """A file or folder that a run file names."""

    key: FileKey
    name: str  # as the run file in the winner's folder says it
    sha256: str
    num_bytes: int
    copies: dict[str, Path] = field(default_factory=dict)  # by name in the folder; empty: not

    @property
    def label(self) -> str:
        """For the README."""
        size = f"{self.num_bytes / 1e6:,.1f} MB" if self.num_bytes >= 1e5 else f"{self.num_bytes} B"
        if self.key == ("model",):
            size = "a model; of its config.json"
        return f"{Path(self.name).name} ({size}, SHA-256 {self.sha256[:16]})"

    def writers(self) -> dict[str, Writer]:
        """Of its copies in a winner's folder."""
        return {name: _copier(path) for name, path in self.copies.items()}


def travelling_files(config: RunConfig, folder: Path) -> list[TravellingFile]:
    """The files that `config` names and that are there, for a run file that lies in `folder`."""
    found: list[TravellingFile] = []
    taken: set[str] = set()
    described = input_files(config)
    for key, given in file_keys(minimal(config)).items():
        if not described[key].is_file():
            continue
        place = config.resolve(given).resolve()
        copies = dict(_copies(key, place, taken))
        num_bytes = sum(path.stat().st_size for path in copies.values())
        if not copies or num_bytes > COPIED_BYTES_MAX:
            copies, num_bytes = {}, described[key].stat().st_size
            name = os.path.relpath(place, folder.resolve())
        else:
            name = next(iter(copies))
            taken |= set(copies)
            name = name if not place.is_dir() else str(Path(name).parent)
        sha256 = file_sha256(described[key])
        found.append(TravellingFile(key, _as_path(name), sha256, num_bytes, copies))
    return found


def has_weights(model: Path) -> bool:
    """Whether a model's folder holds more than its description."""
    return any(True for pattern in _WEIGHTS for _ in model.glob(pattern))


def _copies(key: FileKey, place: Path, taken: set[str]) -> Iterator[tuple[str, Path]]:
    """Where copies of what is at `place` would lie, the one that is named first."""
    if key == ("model",):
        home = place if place.is_dir() else place.parent
        if has_weights(home):
            return
        names = dict.fromkeys(_MODEL_FILES if place.is_dir() else (place.name, *_MODEL_FILES))
        for name in names:
            if (home / name).is_file():
                yield f"{INPUTS}/{home.name}/{name}", home / name
        return
    name = f"{INPUTS}/{place.name}"
    if name in taken:  # another file of the same name
        name = f"{INPUTS}/{'.'.join(key)}/{place.name}"
    yield name, place


def _as_path(name: str) -> str:
    """A name that is read as a path, not as that of a model or of hardware."""
    return name if name.startswith((".", "/")) else f"./{name}"


def _copier(source: Path) -> Writer:
    def write(path: Path) -> None:
        shutil.copyfile(source, path)

    return write
