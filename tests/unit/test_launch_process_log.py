"""Logs of processes: rotated without losing a line, and their ends told."""

import subprocess
import sys
from pathlib import Path

import pytest
from waiting import PATIENCE_S

from dynosim_runtime.launch.log_writer import MAX_OVERRUN_BYTES, RotatedFile, older_path
from dynosim_runtime.launch.process_log import ProcessLog


def all_of(path: Path) -> bytes:
    """All that is kept, the oldest first."""
    parts = []
    number = 0
    while older_path(path, number).exists():
        parts.append(older_path(path, number).read_bytes())
        number += 1
    return b"".join(reversed(parts))


@pytest.mark.parametrize("piece_bytes", [1, 7, 64, 1000])
def test_every_line_is_kept_whole_however_it_comes(tmp_path: Path, piece_bytes: int) -> None:
    said = b"".join(b"line %d %s\n" % (n, b"x" * (n % 40)) for n in range(200))
    file = RotatedFile(tmp_path / "log", 500, 100)
    for begin in range(0, len(said), piece_bytes):
        file.write(said[begin : begin + piece_bytes])
    file.close()
    files = list(tmp_path.iterdir())
    assert len(files) > 5
    assert all(part.read_bytes().endswith(b"\n") for part in files)
    assert all(part.stat().st_size < 500 + 50 for part in files)
    assert all_of(tmp_path / "log") == said


def test_the_oldest_goes(tmp_path: Path) -> None:
    file = RotatedFile(tmp_path / "log", 100, 3)
    for number in range(100):
        file.write(b"line %4d\n" % number)
    file.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "log.1", "log.2"]
    assert all_of(tmp_path / "log") == b"".join(b"line %4d\n" % n for n in range(70, 100))


def test_a_line_without_an_end_is_cut(tmp_path: Path) -> None:
    file = RotatedFile(tmp_path / "log", 1000, 4)
    for _ in range(40):
        file.write(b"#" * 10_000)
    file.close()
    sizes = [path.stat().st_size for path in tmp_path.iterdir()]
    assert len(sizes) == 4
    assert max(sizes) <= 1000 + MAX_OVERRUN_BYTES + 10_000


def test_a_new_start_goes_on_behind_what_is_there(tmp_path: Path) -> None:
    for number in range(4):
        file = RotatedFile(tmp_path / "log", 25, 9)
        file.write(b"start %d\n" % number)
        file.close()
    assert (tmp_path / "log").read_bytes() == b"start 0\nstart 1\nstart 2\nstart 3\n"


def test_what_a_full_disk_costs_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    file = RotatedFile(folder / "log", 1000, 2)
    file.write(b"lost\n")
    folder.mkdir()
    file.write(b"kept\n")
    file.close()
    assert (folder / "log").read_bytes() == b"[5 bytes could not be written]\nkept\n"


def test_a_writer_takes_all_that_a_process_and_its_children_say(tmp_path: Path) -> None:
    log = ProcessLog(tmp_path / "logs" / "a.log", max_bytes=2000, max_files=50)
    talker = (
        "import subprocess, sys\n"
        "print('first', flush=True)\n"
        "sys.stderr.write('error\\n')\n"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(0.2);'"
        " 'print(*range(4000), sep=chr(10))'])\n"
    )
    writer = log.start_writer()
    assert writer.stdin is not None
    with writer.stdin as output:
        subprocess.run(
            [sys.executable, "-c", talker], stdout=output, stderr=subprocess.STDOUT, check=True
        )
    assert writer.wait(PATIENCE_S) == 0
    assert all_of(log.path).split() == [b"first", b"error", *(b"%d" % n for n in range(4000))]
    assert log.last_lines(3) == ["3997", "3998", "3999"]


def test_last_lines_reach_back_into_the_file_before(tmp_path: Path) -> None:
    log = ProcessLog(tmp_path / "log", max_bytes=100, max_files=3)
    assert log.last_lines() == []
    file = RotatedFile(log.path, log.max_bytes, log.max_files)
    for number in range(12):
        file.write(b"line %4d\n\n" % number)
    file.close()
    assert log.last_lines(5) == [f"line {number:4d}" for number in range(7, 12)]
