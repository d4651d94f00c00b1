"""One piece of the work: one recording at one level, answered as plain data and kept on disk.

What is kept is found again by the recording's content, the program's own text and what was asked;
so an interrupted run goes on where it was, and a changed program judges anew.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from dynosim import __version__
from dynosim.errors import DynosimError
from dynosim.files.digest import file_sha256
from dynosim.silicon.cache import cache_folder, cache_key, load_or_build
from dynosim.silicon.catalogue import core_version
from dynosim.verify.curves import judge_curve
from dynosim.verify.experiments import judge_experiment
from dynosim.verify.logs import judge_log
from dynosim.verify.matrix import token_error
from dynosim.verify.verdict import CURVE, EXPERIMENT, RecordingVerdict

FUNCTION = "dynosim.verify.work:answer"
"""What worker processes are asked."""


FAR_TIMES = 2.0
"""A factor that separates one GPU from another, and is beyond what blind predictions are off by
where their tables hold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """What is asked. `model`, `hardware` and `version` are for recordings that state none."""

    path: str
    kind: str
    name: str  # of an experiment in its list; else ""
    level: str
    label: str
    model: str | None
    hardware: str | None
    version: str | None
    replays: int
    seed: int

    @property
    def kept_at(self) -> Path:
        """Where its answer is kept. Raises: OSError if the recording is gone."""
        asked = asdict(self)
        del asked["path"], asked["label"]
        key = cache_key(
            {
                **asked,
                "recording": file_sha256(Path(self.path)),
                "program": program_digest(),
                "tables": core_version(),
            }
        )
        return _folder() / f"{key}.json"


def answer(request: Mapping[str, Any]) -> dict[str, Any]:
    """The verdict on a piece, from what is kept or worked out and kept. Never raises for input."""
    piece = Piece(**request)
    return load_or_build(
        piece.kept_at, load=_load, build=lambda: judge(piece).to_dict(), save=_save
    )


def kept(piece: Piece) -> RecordingVerdict | None:
    """The verdict that an earlier run has kept, under the label that is wanted now."""
    try:
        return replace(RecordingVerdict.from_dict(_load(piece.kept_at)), recording=piece.label)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def judge(piece: Piece) -> RecordingVerdict:
    """The verdict on a piece; one that says why, where no prediction can be made."""
    path, common = Path(piece.path), {"replays": piece.replays, "seed": piece.seed}
    try:
        if piece.kind == EXPERIMENT:
            verdict = judge_experiment(
                path,
                piece.name,
                piece.level,
                version=piece.version,
                label=piece.label,
                models=_folder() / "models" / file_sha256(path)[:16],
                **common,
            )
        elif piece.kind == CURVE:
            verdict = judge_curve(
                path, piece.level, hardware=piece.hardware, label=piece.label, **common
            )
        else:
            verdict = judge_log(
                path,
                piece.level,
                model=piece.model,
                hardware=piece.hardware,
                label=piece.label,
                **common,
            )
    except DynosimError as error:
        verdict = RecordingVerdict(
            recording=piece.label, kind=piece.kind, level=piece.level, problem=str(error)
        )
    return _without_places(_with_doubt(verdict))


def _with_doubt(verdict: RecordingVerdict) -> RecordingVerdict:
    """A blind verdict whose times per token are far outside says that the GPU may be another."""
    error = token_error(verdict)
    if error is None or verdict.level == "fitted" or 1 / FAR_TIMES < 1 + error < FAR_TIMES:
        return verdict
    gpu = verdict.setup.get("hardware") or "the GPU that is named"
    note = (
        f"times per token are {1 / (1 + error):.2g} times those predicted for {gpu}: was it"
        " recorded on another GPU, or by an engine with other arguments? (--hardware is for"
        " recordings that name none)"
    )
    return replace(verdict, notes=(note, *verdict.notes))


def _without_places(verdict: RecordingVerdict) -> RecordingVerdict:
    """Nothing of it depends on where this machine keeps its files."""
    folders = sorted((_folder() / "models").glob("*"))

    def plain(text: str) -> str:
        for folder in folders:
            text = text.replace(f"{folder}/", "")
        return text

    return replace(
        verdict,
        timing=plain(verdict.timing),
        notes=tuple(map(plain, verdict.notes)),
        timing_notes=tuple(map(plain, verdict.timing_notes)),
        problem=plain(verdict.problem),
    )


def _folder() -> Path:
    return cache_folder() / "verify"


@cache
def program_digest() -> str:
    """Tells one state of dynosim's own files from another."""
    root = Path(__file__).resolve().parents[1]
    sha = hashlib.sha256(__version__.encode())
    for path in sorted(root.rglob("*")):
        if path.suffix in (".py", ".json", ".yaml", ".txt"):
            sha.update(path.relative_to(root).as_posix().encode())
            sha.update(path.read_bytes())
    return sha.hexdigest()


def _load(path: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(path.read_bytes())
    try:
        RecordingVerdict.from_dict(data)
    except TypeError as error:
        raise ValueError(f"{path}: no verdict: {error}") from None
    return data


def _save(data: dict[str, Any], path: Path) -> None:
    path.write_text(json.dumps(data), encoding="utf-8")
