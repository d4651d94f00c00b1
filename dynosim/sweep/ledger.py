"""What a sweep has finished: one JSON line per trial, on the disk before the next one is counted.

Intervals of a trial's metrics follow on a line of their own.

A sweep that is killed loses nothing finished; a line torn by the kill is dropped on resuming.
"""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dynosim.errors import ConfigError
from dynosim.sweep.space import Trial

LEDGER = "ledger.jsonl"
FORMAT = 1

Record = dict[str, Any]
"""`trial_id, config_hash, values, status, reason, report, wall_ms`"""


@dataclass(slots=True)
class Ledger:
    """The ledger of one sweep. `records` has the last one of each trial, by its index, `intervals`
    what `Intervals.to_dict` gave for it and its `samples`, if that was asked for.

    The file is made when there is something to keep: input that no trial can use leaves nothing.
    """

    path: Path
    sweep_hash: str
    records: dict[int, Record] = field(default_factory=dict)
    is_started: bool = False
    intervals: dict[int, Record] = field(default_factory=dict)

    def append(self, trial: Trial, answer: dict[str, Any]) -> Record:
        """Persist what a trial answered; returns once the disk has it."""
        record = {
            "trial_id": trial.index,
            "config_hash": trial.config_hash,
            "values": trial.values,
            **answer,
        }
        if not self.is_started:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_bytes(b"")
            _append_line(self.path, {"dynosim_sweep": FORMAT, "sweep_hash": self.sweep_hash})
            self.is_started = True
        _append_line(self.path, record)
        self.records[trial.index] = record
        return record

    def append_intervals(self, trial: Trial, intervals: Record) -> None:
        """Persist the intervals of a trial that is in the ledger already."""
        line = {"trial_id": trial.index, "config_hash": trial.config_hash, "intervals": intervals}
        _append_line(self.path, line)
        self.intervals[trial.index] = intervals


def new_ledger(folder: Path, *, sweep_hash: str, overwrite: bool) -> Ledger:
    """An empty ledger in `folder`.

    Raises: ConfigError if one is there already and may not be overwritten.
    """
    path = folder / LEDGER
    if path.exists() and not overwrite:
        raise ConfigError(
            f"{folder}: holds a sweep already (give --resume to go on with it, --overwrite to "
            "start anew, or another --out)"
        )
    return Ledger(path, sweep_hash)


def resumed_ledger(folder: Path, *, sweep_hash: str) -> Ledger:
    """The ledger in `folder` with what was finished; a new one if there is none.

    Raises: ConfigError if it belongs to another sweep, or is damaged elsewhere than at its end.
    """
    path = folder / LEDGER
    if not path.exists():
        return new_ledger(folder, sweep_hash=sweep_hash, overwrite=False)
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if not whole:  # killed while the first line was written
        return new_ledger(folder, sweep_hash=sweep_hash, overwrite=True)
    lines = [_parsed(path, number, line) for number, line in enumerate(whole.splitlines(), 1)]
    found = lines[0].get("sweep_hash")
    if found != sweep_hash:
        raise ConfigError(
            f"{path}: belongs to another sweep ({found}, this one is {sweep_hash}): the space, the "
            "configuration, the trace or the step times have changed (undo that, give --overwrite, "
            "or another --out)"
        )
    if len(whole) != len(content):
        with path.open("r+b") as file:
            file.truncate(len(whole))
    records = {line["trial_id"]: line for line in lines[1:] if "status" in line}
    intervals = {line["trial_id"]: line["intervals"] for line in lines[1:] if "intervals" in line}
    return Ledger(path, sweep_hash, records, is_started=True, intervals=intervals)


def _parsed(path: Path, number: int, line: bytes) -> Record:
    try:
        record = json.loads(line)
        if isinstance(record, dict) and ("trial_id" in record or number == 1):
            return record
    except ValueError:
        pass
    raise ConfigError(
        f"{path}:{number}: damaged (remove that line: its trial is then run again)"
    ) from None


def _append_line(path: Path, record: Record) -> None:
    line = json.dumps(record, separators=(",", ":"))
    with path.open("ab") as file:
        file.write(line.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
