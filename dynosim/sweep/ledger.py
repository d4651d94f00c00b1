"""What a sweep has finished: one JSON line per trial, written before the next one is counted.

Intervals of a trial's metrics follow on a line of their own. Where loads are searched, every load
of a layout has a line.

A sweep that is killed loses nothing finished, and one whose machine loses its power what ended in
the last fifth of a second; a line torn by the kill is dropped on resuming. Every
line ends with a checksum of itself and of the sweep, so that a changed digit, or a line of another
sweep, is not believed.
"""

import hashlib
import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dynosim.errors import EXIT_FAILURE, ConfigError, DynosimError
from dynosim.files.result_folder import SWEEP, check_results
from dynosim.files.user_text import parse_json
from dynosim.sweep.packed import packed_answer
from dynosim.sweep.space import Trial

LEDGER = "ledger.jsonl"
FORMAT = 2
SYNC_EVERY_S = 0.2
"""The system is asked to put lines on the disk: each time takes it as long as a small trial."""
_SEAL = b',"sha256":"'
_CHECKSUM_CHARS = 16

Record = dict[str, Any]
"""`trial_id, config_hash, values, status, reason, report, wall_ms`; kept without `values`."""


class LedgerError(DynosimError):
    """A line cannot be written: the disk is full, or gone."""

    exit_code = EXIT_FAILURE


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
    _synced_s: float = -SYNC_EVERY_S
    _hashes: dict[int, str] = field(default_factory=dict)  # of what is kept of each trial

    def record_of(self, trial: Trial) -> Record | None:
        """What the trial answered last; None if it did not, or was another one."""
        return self.records.get(trial.index) if self._is_of(trial) else None

    def probes_of(self, trial: Trial) -> list[Record]:
        """What the layout did, load by load; nothing if it was another one."""
        return self.probes.get(trial.index, []) if self._is_of(trial) else []

    def _is_of(self, trial: Trial) -> bool:
        return self._hashes.get(trial.index) == trial.ledger_hash

    def append(self, trial: Trial, answer: dict[str, Any]) -> Record:
        """Persist what a trial answered; returns once it is written."""
        record = {
            "trial_id": trial.index,
            "config_hash": trial.ledger_hash,
            "values": trial.values,
            **answer,
        }
        self._append(record)
        self.note(record)
        return self.records[trial.index]

    def append_probe(self, trial: Trial, answer: Record) -> Record:
        """Persist what a layout did at one load; returns it as it is kept."""
        record = {"trial_id": trial.index, "config_hash": trial.ledger_hash, "probe": answer}
        self._append(record)
        self.note(record)
        return self.probes[trial.index][-1]

    def append_intervals(self, trial: Trial, intervals: Record) -> None:
        """Persist the intervals of a trial that is in the ledger already."""
        line = {"trial_id": trial.index, "config_hash": trial.ledger_hash, "intervals": intervals}
        self._write(line)
        self.note(line)

    def note(self, line: Record) -> None:
        """Keep what a line says. A trial that has become another one takes its number over, as it
        does where a search goes on from a trial that failed and then did not."""
        index = line["trial_id"]
        if self._hashes.get(index) != line["config_hash"]:
            self._hashes[index] = line["config_hash"]
            for kept in (self.records, self.probes, self.intervals):
                kept.pop(index, None)
        if "probe" in line:
            self.probes.setdefault(index, []).append(packed_answer(line["probe"]))
        elif "intervals" in line:
            self.intervals[index] = line["intervals"]
        else:
            self.records[index] = packed_answer({k: v for k, v in line.items() if k != "values"})

    def _append(self, record: Record) -> None:
        if not self.is_started:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_bytes(b"")
            self._write({"dynosim_sweep": FORMAT, "sweep_hash": self.sweep_hash})
            self.is_started = True
        self._write(record)

    def _write(self, record: Record) -> None:
        try:
            with self.path.open("ab") as file:
                file.write(_sealed(record, self.sweep_hash) + b"\n")
                file.flush()
                if time.monotonic() - self._synced_s >= SYNC_EVERY_S:
                    os.fsync(file.fileno())
                    self._synced_s = time.monotonic()
        except OSError as error:
            raise LedgerError(
                f"{self.path}: {error.strerror or error} (what it holds is kept: see to that, and "
                "give the same command with --resume to go on)"
            ) from None


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
    ledger = Ledger(path, sweep_hash, is_started=True)
    for number, text in enumerate(texts[1:], 2):
        ledger.note(_parsed(path, number, text, sweep_hash))
    return ledger


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
