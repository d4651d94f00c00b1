"""What a sweep has finished: one JSON line per trial, on the disk before the next one is counted.

Intervals of a trial's metrics follow on a line of their own. Where loads are searched, every load
of a layout has a line.

A sweep that is killed loses nothing finished; a line torn by the kill is dropped on resuming. Every
line ends with a checksum of itself and of the sweep, so that a changed digit, or a line of another
sweep, is not believed.
"""

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dynosim.errors import ConfigError
from dynosim.files.result_folder import SWEEP, check_results
from dynosim.files.user_text import parse_json
from dynosim.sweep.space import Trial

LEDGER = "ledger.jsonl"
FORMAT = 2
_SEAL = b',"sha256":"'
_CHECKSUM_CHARS = 16

Record = dict[str, Any]
"""`trial_id, config_hash, values, status, reason, report, wall_ms`"""


@dataclass(slots=True)
class Ledger:
    """The ledger of one sweep. `records` has the last one of each trial, by its index, `intervals`
    what `Intervals.to_dict` gave for it and its `samples`, if that was asked for; `probes` what
    `run_probe` answered for each load of a layout, in the order in which that was.

    The file is made when there is something to keep: input that no trial can use leaves nothing.
    """

    path: Path
    sweep_hash: str
    records: dict[int, Record] = field(default_factory=dict)
    is_started: bool = False
    intervals: dict[int, Record] = field(default_factory=dict)
    probes: dict[int, list[Record]] = field(default_factory=dict)

    def append(self, trial: Trial, answer: dict[str, Any]) -> Record:
        """Persist what a trial answered; returns once the disk has it."""
        record = {
            "trial_id": trial.index,
            "config_hash": trial.config_hash,
            "values": trial.values,
            **answer,
        }
        self._append(record)
        self.records[trial.index] = record
        return record

    def append_probe(self, trial: Trial, answer: Record) -> None:
        """Persist what a layout did at one load."""
        self._append({"trial_id": trial.index, "config_hash": trial.config_hash, "probe": answer})
        self.probes.setdefault(trial.index, []).append(answer)

    def append_intervals(self, trial: Trial, intervals: Record) -> None:
        """Persist the intervals of a trial that is in the ledger already."""
        line = {"trial_id": trial.index, "config_hash": trial.config_hash, "intervals": intervals}
        self._write(line)
        self.intervals[trial.index] = intervals

    def _append(self, record: Record) -> None:
        if not self.is_started:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_bytes(b"")
            self._write({"dynosim_sweep": FORMAT, "sweep_hash": self.sweep_hash})
            self.is_started = True
        self._write(record)

    def _write(self, record: Record) -> None:
        with self.path.open("ab") as file:
            file.write(_sealed(record, self.sweep_hash) + b"\n")
            file.flush()
            os.fsync(file.fileno())


def new_ledger(folder: Path, *, sweep_hash: str, overwrite: bool) -> Ledger:
    """An empty ledger in `folder`.

    Raises: ConfigError for a folder that holds a sweep and may not be overwritten, or other things.
    """
    path = folder / LEDGER
    check_results(folder, SWEEP, overwrite=overwrite)
    return Ledger(path, sweep_hash)


def resumed_ledger(folder: Path, *, sweep_hash: str) -> Ledger:
    """The ledger in `folder` with what was finished; a new one if there is none.

    Raises: ConfigError if it belongs to another sweep, or is damaged elsewhere than at its end.
    """
    path = folder / LEDGER
    if not path.exists():
        return new_ledger(folder, sweep_hash=sweep_hash, overwrite=True)
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if not whole:  # killed while the first line was written
        return new_ledger(folder, sweep_hash=sweep_hash, overwrite=True)
    texts = whole.splitlines()
    header = _header(path, texts[0])
    found = header["sweep_hash"]
    if found != sweep_hash:
        raise ConfigError(
            f"{path}: belongs to another sweep ({found}, this one is {sweep_hash}): the space, the "
            "configuration, the trace or the step times have changed (undo that, give --overwrite, "
            "or another --out)"
        )
    if len(whole) != len(content):
        with path.open("r+b") as file:
            file.truncate(len(whole))
    lines = [_parsed(path, number, text, sweep_hash) for number, text in enumerate(texts[1:], 2)]
    records = {line["trial_id"]: line for line in lines if "status" in line}
    intervals = {line["trial_id"]: line["intervals"] for line in lines if "intervals" in line}
    probes: dict[int, list[Record]] = {}
    for line in lines:
        if "probe" in line:
            probes.setdefault(line["trial_id"], []).append(line["probe"])
    return Ledger(path, sweep_hash, records, is_started=True, intervals=intervals, probes=probes)


def _header(path: Path, text: bytes) -> Record:
    """The first line. Raises: ConfigError if it is damaged, or of another version's form."""
    why = "damaged"
    try:
        header = parse_json(text)
        if header["dynosim_sweep"] != FORMAT:
            why = "written by another version of dynosim"
        elif _unsealed(text, header["sweep_hash"]) is not None:
            return dict(header)
    except (ValueError, TypeError, KeyError):
        pass
    raise ConfigError(f"{path}:1: {why} (give --overwrite to start anew, or another --out)")


def _parsed(path: Path, number: int, text: bytes, sweep_hash: str) -> Record:
    record = _unsealed(text, sweep_hash)
    if record is None:
        raise ConfigError(
            f"{path}:{number}: damaged (remove that line: its trial is then run again)"
        )
    return record


def _sealed(record: Record, sweep_hash: str) -> bytes:
    """The record as a line, a checksum as its last key."""
    body = json.dumps(record, separators=(",", ":")).encode()[:-1]
    return body + _SEAL + _checksum(body, sweep_hash) + b'"}'


def _unsealed(line: bytes, sweep_hash: str) -> Record | None:
    """The record of a line, None unless every byte is as it was written for this sweep."""
    body, _, found = line.rpartition(_SEAL)
    if found != _checksum(body, sweep_hash) + b'"}':
        return None
    record: Record = json.loads(body + b"}")
    return record


def _checksum(body: bytes, sweep_hash: str) -> bytes:
    return hashlib.sha256(sweep_hash.encode() + body).hexdigest()[:_CHECKSUM_CHARS].encode()
