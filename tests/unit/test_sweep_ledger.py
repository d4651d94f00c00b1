"""The ledger of finished trials: nothing finished is lost, nothing torn is believed."""

import json
from pathlib import Path

import pytest

from dynosim.errors import ConfigError
from dynosim.sweep.ledger import LEDGER, Ledger, LedgerError, new_ledger, resumed_ledger
from dynosim.sweep.space import Trial

ANSWER = {"status": "ok", "reason": "", "report": {"a": 0.1, "b": None}, "wall_ms": 1.5}


def trial(index: int) -> Trial:
    return Trial(index, {"cluster.workers": index}, None)


def filled(folder: Path, count: int = 3) -> Ledger:
    ledger = new_ledger(folder, sweep_hash="abc", overwrite=False)
    for index in range(count):
        ledger.append(trial(index), ANSWER)
    return ledger


def test_resumed_records_equal_those_written(tmp_path: Path) -> None:
    written = filled(tmp_path).records
    resumed = resumed_ledger(tmp_path, sweep_hash="abc").records
    assert json.dumps(resumed, default=dict) == json.dumps(written, default=dict)
    assert dict(resumed[0]["report"]) == ANSWER["report"]


def test_nothing_is_written_before_the_first_trial(tmp_path: Path) -> None:
    new_ledger(tmp_path / "out", sweep_hash="abc", overwrite=False)
    assert not (tmp_path / "out").exists()


def test_torn_line_is_dropped_and_the_next_one_is_whole(tmp_path: Path) -> None:
    filled(tmp_path)
    path = tmp_path / LEDGER
    whole = path.read_bytes()
    last_line = whole.splitlines(keepends=True)[-1]
    for cut in (1, 10, len(last_line) - 1):
        path.write_bytes(whole[:-cut])
        ledger = resumed_ledger(tmp_path, sweep_hash="abc")
        assert sorted(ledger.records) == [0, 1]
        ledger.append(trial(2), ANSWER)
        assert path.read_bytes() == whole


def test_torn_first_line_starts_anew(tmp_path: Path) -> None:
    (tmp_path / LEDGER).write_bytes(b'{"dynosim_sw')
    ledger = resumed_ledger(tmp_path, sweep_hash="abc")
    ledger.append(trial(0), ANSWER)
    assert sorted(resumed_ledger(tmp_path, sweep_hash="abc").records) == [0]


def test_resume_without_a_ledger_starts(tmp_path: Path) -> None:
    assert resumed_ledger(tmp_path / "new", sweep_hash="abc").records == {}


def test_other_sweep_is_refused(tmp_path: Path) -> None:
    filled(tmp_path)
    before = (tmp_path / LEDGER).read_bytes()
    with pytest.raises(ConfigError, match="another sweep"):
        resumed_ledger(tmp_path, sweep_hash="xyz")
    with pytest.raises(ConfigError, match="--resume"):
        new_ledger(tmp_path, sweep_hash="abc", overwrite=False)
    assert (tmp_path / LEDGER).read_bytes() == before


def test_damage_inside_is_told_with_its_line(tmp_path: Path) -> None:
    filled(tmp_path)
    path = tmp_path / LEDGER
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], b"???\n", *lines[1:]]))
    with pytest.raises(ConfigError, match=r"ledger\.jsonl:2"):
        resumed_ledger(tmp_path, sweep_hash="abc")


def test_a_changed_byte_anywhere_is_not_believed(tmp_path: Path) -> None:
    filled(tmp_path)
    path = tmp_path / LEDGER
    whole = path.read_bytes()
    ends = [place for place, byte in enumerate(whole) if byte == ord("\n")]
    for place in set(range(len(whole))) - set(ends):
        other = b"7" if whole[place : place + 1] != b"7" else b"8"
        path.write_bytes(whole[:place] + other + whole[place + 1 :])
        number = 1 + sum(end < place for end in ends)
        with pytest.raises(ConfigError, match=rf"ledger\.jsonl:{number}: damaged|other version"):
            resumed_ledger(tmp_path, sweep_hash="abc")


def test_a_line_of_another_sweep_is_not_believed(tmp_path: Path) -> None:
    filled(tmp_path / "a")
    other = new_ledger(tmp_path / "b", sweep_hash="xyz", overwrite=False)
    other.append(trial(3), ANSWER)
    line = (tmp_path / "b" / LEDGER).read_bytes().splitlines(keepends=True)[1]
    with (tmp_path / "a" / LEDGER).open("ab") as file:
        file.write(line)
    with pytest.raises(ConfigError, match=r"ledger\.jsonl:5: damaged"):
        resumed_ledger(tmp_path / "a", sweep_hash="abc")


def test_a_ledger_of_an_older_version_is_refused_as_such(tmp_path: Path) -> None:
    (tmp_path / LEDGER).write_text('{"dynosim_sweep":1,"sweep_hash":"abc"}\n')
    with pytest.raises(ConfigError, match=r"ledger\.jsonl:1: written by another version"):
        resumed_ledger(tmp_path, sweep_hash="abc")


def test_intervals_come_back_beside_their_trial(tmp_path: Path) -> None:
    ledger = filled(tmp_path)
    ledger.append_intervals(trial(1), {"ttft_ms": [1.0, 2.0]})
    resumed = resumed_ledger(tmp_path, sweep_hash="abc")
    assert resumed.intervals == {1: {"ttft_ms": [1.0, 2.0]}}
    assert sorted(resumed.records) == [0, 1, 2]


def test_last_line_of_a_repeated_trial_counts(tmp_path: Path) -> None:
    ledger = filled(tmp_path)
    ledger.append(trial(1), {**ANSWER, "status": "failed"})
    assert resumed_ledger(tmp_path, sweep_hash="abc").records[1]["status"] == "failed"


def test_a_trial_that_has_become_another_one_takes_its_number_over(tmp_path: Path) -> None:
    ledger = filled(tmp_path)
    ledger.append_intervals(trial(1), {"ttft_ms": [1.0, 2.0]})
    other = Trial(1, {"cluster.workers": 9}, None)
    for found in (ledger, resumed_ledger(tmp_path, sweep_hash="abc")):
        assert found.record_of(other) is None and found.probes_of(other) == []
        assert found.record_of(trial(1)) is not None
    ledger.append(other, ANSWER)
    for found in (ledger, resumed_ledger(tmp_path, sweep_hash="abc")):
        assert found.record_of(trial(1)) is None and found.record_of(other) is not None
        assert found.intervals == {} and sorted(found.records) == [0, 1, 2]


def test_many_lines_share_a_sync_and_none_waits_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s, synced = [100.0], []
    monkeypatch.setattr("dynosim.sweep.ledger.time.monotonic", lambda: now_s[0])
    monkeypatch.setattr("dynosim.sweep.ledger.os.fsync", lambda _: synced.append(now_s[0]))
    ledger = new_ledger(tmp_path, sweep_hash="abc", overwrite=False)
    for index in range(10):
        ledger.append(trial(index), ANSWER)
        assert (tmp_path / LEDGER).read_bytes().count(b"\n") == index + 2
        now_s[0] += 0.07
    assert synced == pytest.approx([100.0, 100.21, 100.42, 100.63])


def test_a_line_that_cannot_be_written_is_one_message(tmp_path: Path) -> None:
    ledger = filled(tmp_path)
    (tmp_path / LEDGER).unlink()
    (tmp_path / LEDGER).mkdir()
    with pytest.raises(LedgerError, match=r"ledger\.jsonl: Is a directory \(.*--resume"):
        ledger.append(trial(3), ANSWER)
