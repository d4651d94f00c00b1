"""Records on disk: whole lines, in files that do not grow without bound."""

import json
from pathlib import Path

import pytest

from dynosim_runtime.errors import LiveError
from dynosim_runtime.requests import RequestRecord
from dynosim_runtime.serving import request_log as records
from dynosim_runtime.serving.request_log import RecordWriter


def record(number: int) -> RequestRecord:
    return RequestRecord(request_id=f"r{number}", arrival_ms=float(number), input_tokens=3)


def ids_in(path: Path) -> list[str]:
    return [json.loads(line)["request_id"] for line in path.read_text().splitlines()]


def test_records_are_on_disk_at_once_and_the_next_run_appends(tmp_path: Path) -> None:
    path = tmp_path / "out" / "requests.jsonl"
    for number in range(2):
        writer = RecordWriter(tmp_path / "out")
        writer(record(number))
        assert ids_in(path) == [f"r{i}" for i in range(number + 1)]
        writer.close()


def test_the_oldest_files_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = RecordWriter(tmp_path)
    writer(record(0))
    path = tmp_path / "requests.jsonl"
    monkeypatch.setattr(records, "MAX_BYTES", 2 * path.stat().st_size)
    for number in range(1, 10):
        writer(record(number))
    writer.close()
    assert ids_in(path) == ["r8", "r9"]
    assert ids_in(tmp_path / "requests.jsonl.1") == ["r6", "r7"]
    assert ids_in(tmp_path / "requests.jsonl.3") == ["r2", "r3"]
    assert len(list(tmp_path.iterdir())) == records.MAX_FILES


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LiveError, match="cannot be written"):
        RecordWriter(tmp_path / "file")
