"""From files to pieces of work: which recording is judged at which levels."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dynosim.errors import DynosimError
from dynosim.fit.deployment import deployment_of
from dynosim.fit.log_file import read_measurements
from dynosim.verify.curve_file import read_curve
from dynosim.verify.experiment_file import Experiment, read_experiments
from dynosim.verify.finding import Found, find_recordings
from dynosim.verify.verdict import CURVE, EXPERIMENT
from dynosim.verify.work import Piece

_SUFFIXES = (".gz", ".jsonl", ".json", ".csv")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What `dynosim verify` was asked for."""

    paths: Sequence[Path]
    levels: Sequence[str]
    model: str | None = None
    hardware: str | None = None
    version: str | None = None
    replays: int
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """Pieces of work, and what none can be made of."""

    pieces: tuple[Piece, ...]
    unreadable: tuple[tuple[str, str], ...]  # file, what is wrong with it
    untold: tuple[tuple[str, str, str], ...]  # recording, level, what it lacks for it
    passed_over: int


def plan_of(asked: Asked) -> Plan:
    """All work on the recordings that were found; each is read once to see whether it can be."""
    found = find_recordings(asked.paths)
    pieces: list[Piece] = []
    untold: list[tuple[str, str, str]] = []
    unreadable = [(str(path), why) for path, why in found.unreadable]
    labels = _labels(found)
    for path, kind in found.recordings:
        try:
            names = _recordings(path, kind, unreadable)
        except DynosimError as error:
            unreadable.append((str(path), str(error)))
            continue
        for name, lacking in names:
            label = f"{labels[path]}: {name}" if name else labels[path]
            for level in asked.levels:
                if level in lacking:
                    untold.append((label, level, lacking[level]))
                    continue
                pieces.append(
                    Piece(
                        path=str(path),
                        kind=kind,
                        name=name,
                        level=level,
                        label=label,
                        model=asked.model,
                        hardware=asked.hardware,
                        version=asked.version,
                        replays=asked.replays,
                        seed=asked.seed,
                    )
                )
    return Plan(tuple(pieces), tuple(unreadable), tuple(untold), len(found.passed_over))


Lacking = dict[str, str]  # by level, why it cannot be judged


def _recordings(
    path: Path, kind: str, unreadable: list[tuple[str, str]]
) -> list[tuple[str, Lacking]]:
    """What a file holds: names (empty for a file that is one recording), and what each lacks.

    Experiments that cannot be used are noted as unreadable. Raises: DynosimError for a whole file.
    """
    if kind == EXPERIMENT:
        names = []
        for one in read_experiments(path):
            if isinstance(one, Experiment):
                lacking = {"fitted": "means and percentiles tell too little to fit to"}
                if one.blocks is None:
                    lacking["capacity"] = "its KV blocks are not recorded"
                names.append((one.name, lacking))
            else:
                unreadable.append((str(path), str(one)))
        return names
    if kind == CURVE:
        read_curve(path)
        return [("", dict.fromkeys(("capacity", "fitted"), "a curve records no more than output"))]
    deployment = deployment_of(read_measurements(path).setup)
    has_blocks = deployment.given_blocks is not None
    return [("", {} if has_blocks else {"capacity": "its KV blocks are not recorded"})]


def _labels(found: Found) -> dict[Path, str]:
    """File names without their usual endings; with the folder where two are the same."""
    short = {path: _short(path.name) for path, _ in found.recordings}
    names = list(short.values())
    return {
        path: name if names.count(name) == 1 else f"{path.parent.name}/{path.name}"
        for path, name in short.items()
    }


def _short(name: str) -> str:
    for suffix in _SUFFIXES:
        name = name.removesuffix(suffix)
    return name
