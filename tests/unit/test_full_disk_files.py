"""Files of a deployment on a disk that is full: what is lost, what stays whole, what comes back."""

import json
import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from disk_support import needs_mount, no_room, small_disk
from router_support import BLOCK, Doors, card, request

from dynosim.indexer.base import Removed, Stored
from dynosim.indexer.make import IndexSpec
from dynosim.router.knobs import RouterSpec
from dynosim.routerlog import rotating as rotating_log
from dynosim.routerlog.replay import log_files, replay_log
from dynosim.routerlog.rotating import RotatingLog
from dynosim_runtime.errors import LiveError
from dynosim_runtime.launch.log_writer import RotatedFile
from dynosim_runtime.launch.status_file import StatusFile
from dynosim_runtime.requests import RequestRecord
from dynosim_runtime.serving import request_log as records
from dynosim_runtime.serving.request_log import RecordWriter
from dynosim_runtime.small_files import read_file, replace_file

BEYOND_JSON = 10**5000  # Python writes no whole number of so many digits


def reports(caplog: pytest.LogCaptureFixture, word: str) -> list[str]:
    return [record.getMessage() for record in caplog.records if word in record.getMessage()]


def empty_files(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.is_file() and not path.stat().st_size]


@contextmanager
def at_once() -> Iterator[None]:
    """Fails if what is inside waits for something."""

    def fail(*args: object) -> None:
        raise AssertionError("it waits")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(10)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


# ---- small files ---------------------------------------------------------------------------------


def test_a_file_that_cannot_be_replaced_stays_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path, scratch, spare = (tmp_path / name for name in ("file", "scratch", "spare"))
    replace_file(path, b"old", scratch=scratch)
    with no_room(), pytest.raises(OSError):
        replace_file(path, b"new", scratch=scratch, spare=spare)
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
    replace_file(path, b"new", scratch=scratch, spare=spare)
    assert path.read_bytes() == b"new"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "spare"]
    assert spare.stat().st_size == 4096


def test_what_stands_in_the_way_of_the_scratch_file_is_removed(tmp_path: Path) -> None:
    path, scratch = tmp_path / "file", tmp_path / "scratch"
    os.mkfifo(scratch)
    with at_once():
        replace_file(path, b"new", scratch=scratch)
    assert path.read_bytes() == b"new" and not scratch.exists()


@needs_mount
def test_a_spare_file_gives_its_room_on_a_full_disk_again_and_again(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 64) as disk:
        path, scratch, spare = (disk.folder / name for name in ("file", "scratch", "spare"))
        replace_file(path, b"0" * 500, scratch=scratch, spare=spare)
        for number in range(1, 5):
            disk.fill()
            content = str(number).encode() * (100 + number * (-1) ** number)
            replace_file(path, content, scratch=scratch, spare=spare)
            assert path.read_bytes() == content
        disk.fill()
        with pytest.raises(OSError):
            replace_file(path, b"x" * 10_000, scratch=scratch, spare=spare)
        assert path.read_bytes() == content
        assert not scratch.exists()


@needs_mount
def test_nobody_else_gets_the_room_of_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is given back for a moment on a full disk is gone: another process takes it."""
    replace = os.replace
    with small_disk(tmp_path / "disk") as disk:
        path, scratch, spare = (disk.folder / name for name in ("file", "scratch", "spare"))
        replace_file(path, b"0" * 500, scratch=scratch, spare=spare)
        disk.fill()

        def replace_before_a_thief(source: Path, target: Path) -> None:
            replace(source, target)
            disk.fill()

        monkeypatch.setattr("os.replace", replace_before_a_thief)
        for number in range(1, 6):
            replace_file(path, bytes([number]) * 500, scratch=scratch, spare=spare)
            assert path.read_bytes() == bytes([number]) * 500
        assert sorted(file.name for file in disk.folder.iterdir()) == ["file", "filler", "spare"]
        assert spare.stat().st_size == 500
        monkeypatch.undo()
        disk.free()
        replace_file(path, b"6" * 500, scratch=scratch, spare=spare)
        assert spare.stat().st_size == 4096


def test_only_small_regular_files_are_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 100)
    assert read_file(path, 100) == b"x" * 100
    with pytest.raises(OSError, match="100 bytes, more than 99"):
        read_file(path, 99)
    os.mkfifo(tmp_path / "pipe")  # opening one waits for a writer
    (tmp_path / "link").symlink_to(path)
    for name in ("pipe", "link", "."):
        with at_once(), pytest.raises(OSError):
            read_file(tmp_path / name, 100)


# ---- deployment.json and deploy.log --------------------------------------------------------------


def test_the_status_is_written_later_and_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "deployment.json"
    with no_room():
        status = StatusFile(path)
        for number in range(3):
            status.write({"number": number})
        status.retry()
        assert list(tmp_path.iterdir()) == []
    assert len(reports(caplog, "deployment.json")) == 1
    status.retry()
    assert json.loads(path.read_bytes()) == {"number": 2}
    path.write_bytes(b"somebody else's")
    status.retry()  # there is nothing to be written
    assert path.read_bytes() == b"somebody else's"
    status.close()
    assert [file.name for file in tmp_path.iterdir()] == ["deployment.json"]
    assert len(reports(caplog, "works again, after 4 failures")) == 1


def test_a_log_says_how_much_of_it_is_lost(tmp_path: Path) -> None:
    file = RotatedFile(tmp_path / "log", 1000, 2)
    file.write(b"before\n")
    with no_room():
        file.write(b"lost\n" * 10)
    file.write(b"after\n")
    file.close()
    assert (tmp_path / "log").read_bytes() == b"before\n[50 bytes could not be written]\nafter\n"


def test_a_log_whose_place_is_a_pipe_waits_for_nobody(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "log")
    with at_once():
        file = RotatedFile(tmp_path / "log", 1000, 2)
        file.write(b"lost\n")
        file.close()


# ---- records of requests -------------------------------------------------------------------------


def record(number: int) -> RequestRecord:
    return RequestRecord(request_id=f"r{number}", arrival_ms=float(number), input_tokens=3)


def ids_in(path: Path) -> list[str]:
    return [json.loads(line)["request_id"] for line in path.read_text().splitlines()]


def test_records_are_lost_and_counted_and_come_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    writer = RecordWriter(tmp_path)
    path = tmp_path / "requests.jsonl"
    writer(record(0))
    with no_room():
        for number in range(1, 6):
            writer(record(number))
    assert writer.num_lost == 5
    writer(record(6))
    writer.close()
    assert ids_in(path) == ["r0", "r6"]
    assert len(reports(caplog, "records of requests are lost")) == 2  # its begin and its end


@pytest.mark.parametrize("more", [1, 10, 100])
def test_half_a_record_is_taken_back(tmp_path: Path, more: int) -> None:
    writer = RecordWriter(tmp_path)
    path = tmp_path / "requests.jsonl"
    writer(record(0))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + more, hard))
    writer(record(1))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert ids_in(path) == ["r0"]
    writer(record(2))
    assert ids_in(path) == ["r0", "r2"]
    writer.close()


def test_a_line_torn_by_a_killed_process_spoils_no_other(tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    path.write_text('{"request_id": "r0"}\n{"reque')
    writer = RecordWriter(tmp_path)
    writer(record(1))
    writer(record(2))
    writer.close()
    lines = path.read_text().splitlines()
    assert lines[1] == '{"reque'
    assert [json.loads(line)["request_id"] for line in lines[2:]] == ["r1", "r2"]


def test_a_rotation_that_fails_loses_no_older_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "MAX_BYTES", 1)
    folder, moved = tmp_path / "out", tmp_path / "moved"
    writer = RecordWriter(folder)
    for number in range(4):
        writer(record(number))
    folder.rename(moved)  # nothing can be opened there
    for number in range(4, 8):
        writer(record(number))
    moved.rename(folder)
    writer(record(8))
    writer.close()
    kept = [ids_in(path) for path in sorted(folder.iterdir())]
    assert kept == [["r8"], ["r3"], ["r2"], ["r1"]]


def test_a_full_disk_does_not_keep_a_frontend_from_starting(tmp_path: Path) -> None:
    with no_room():
        writer = RecordWriter(tmp_path)
        writer(record(0))
    writer(record(1))
    writer.close()
    assert ids_in(tmp_path / "requests.jsonl") == ["r1"]
    with pytest.raises(LiveError, match="cannot be written"):
        RecordWriter(tmp_path / "requests.jsonl")


# ---- the router's log ----------------------------------------------------------------------------


def opened(folder: Path) -> tuple[RotatingLog, Any]:
    log = RotatingLog(folder, max_bytes=100_000, flush_interval_s=0.0)
    router = Doors(log.open(RouterSpec(BLOCK, mode="kv"), IndexSpec("compressed")))
    for worker_id in range(2):
        router.add_worker(card(worker_id))
    return log, router


def place(log: RotatingLog, router: Any, first: int, count: int = 5) -> None:
    for number in range(first, first + count):
        assert router.submit(request(str(number), [number]), float(number)) is not None
        router.free(str(number), float(number))
        log.maintain()


def test_a_router_log_goes_on_when_there_is_room_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(rotating_log, "RETRY_S_MIN", 0.0)
    log, router = opened(tmp_path)
    place(log, router, 0)
    with no_room():
        place(log, router, 10)
        assert log.failure is not None
        assert log.failure.startswith(f"{tmp_path}: the router log ends here: File too large")
    place(log, router, 20)
    assert log.failure is None
    log.close()
    assert len(reports(caplog, "ends here")) == len(reports(caplog, "goes on")) == 1
    assert not empty_files(tmp_path)
    assert [file.name[-7:] for file in log_files(tmp_path)] == ["1.jsonl", "2.jsonl"]
    verdict = replay_log(tmp_path)
    assert verdict.is_equal and verdict.num_decisions >= 5 + 4


def test_tries_become_rare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 0.0
    monkeypatch.setattr(rotating_log, "monotonic", lambda: now_s)
    log, router = opened(tmp_path)
    tries: list[float] = []
    begin = RotatingLog._begin_file

    def counted(*args: Any, **options: Any) -> Any:
        tries.append(now_s)
        return begin(*args, **options)

    monkeypatch.setattr(RotatingLog, "_begin_file", counted)
    with no_room():
        for tick in range(200):
            now_s = float(tick)
            log.maintain()
            router.submit(request(str(tick), [tick]), float(tick))
    assert tries == [5.0, 15.0, 35.0, 75.0, 135.0, 195.0]
    now_s = 1000.0
    log.maintain()
    log.close()
    assert log.failure is None and replay_log(tmp_path).is_equal


def test_a_router_starts_unlogged_on_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rotating_log, "RETRY_S_MIN", 0.0)
    with no_room():
        log, router = opened(tmp_path)
        place(log, router, 0)
        assert list(tmp_path.iterdir()) == []
    place(log, router, 10)
    log.close()
    verdict = replay_log(tmp_path)
    assert verdict.is_equal and verdict.num_files == 1 and verdict.num_decisions >= 4


def test_an_input_that_no_json_can_hold_costs_a_file_and_not_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(rotating_log, "RETRY_S_MIN", 0.0)
    log, router = opened(tmp_path)
    place(log, router, 0)
    router.apply_events(0, 0, [Stored(None, [BEYOND_JSON], [1])])
    log.maintain()  # the state cannot be told either, while the router knows this block
    place(log, router, 10)
    router.apply_events(0, 0, [Removed([BEYOND_JSON])])
    place(log, router, 20)
    log.close()
    assert log.failure is None
    assert reports(caplog, "an entry event cannot be told: ValueError")
    verdict = replay_log(tmp_path)
    assert verdict.is_equal and verdict.num_decisions >= 5 + 4
    assert "ValueError" in verdict.notes[0]


def test_the_end_of_a_log_on_a_full_disk_is_no_error(tmp_path: Path) -> None:
    log, router = opened(tmp_path)
    router.submit(request("r", [1]), 1.0)
    with no_room():
        log.close()
    assert log.failure is not None and "File too large" in log.failure
