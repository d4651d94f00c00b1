"""`dynosim replay-log` on a folder, as a live router leaves it."""

import json
from pathlib import Path

import pytest
from router_support import BLOCK, Doors, card, request

from dynosim.cli import main
from dynosim.indexer.make import IndexSpec
from dynosim.router.knobs import RouterSpec
from dynosim.routerlog.replay import log_files
from dynosim.routerlog.rotating import RotatingLog


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    log = RotatingLog(tmp_path / "log", max_bytes=20_000, max_files=9)
    router = Doors(log.open(RouterSpec(BLOCK, mode="random"), IndexSpec("compressed")))
    for worker_id in range(5):
        router.add_worker(card(worker_id))
    for number in range(300):
        router.submit(request(number), float(number))
        router.free(number, number + 0.5)
        log.maintain()
    log.close()
    return tmp_path / "log"


def test_all_files_of_a_folder_are_replayed(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["replay-log", str(folder), "--json"]) == 0
    verdict = json.loads(capsys.readouterr().out)
    assert verdict["equal"] and verdict["num_decisions"] == 300 and verdict["num_files"] > 2
    assert main(["replay-log", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert f"{verdict['num_files']} files, 300 decisions" in shown and "all equal" in shown


def test_a_changed_decision_is_found_with_its_file(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = log_files(folder)[1]
    lines = file.read_text().splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith('["arrive"'))
    entry = json.loads(lines[at])
    entry[3][1] = (entry[3][1] + 1) % 5
    lines[at] = json.dumps(entry)
    file.write_text("\n".join(lines) + "\n")
    assert main(["replay-log", str(folder)]) == 1
    assert f"{file}:{at + 1}: the decision at" in capsys.readouterr().out


def test_a_cut_off_line_is_shown(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = log_files(folder)[-1]
    file.write_bytes(file.read_bytes()[:-9])
    assert main(["replay-log", str(folder)]) == 0
    assert "the last line is cut off" in capsys.readouterr().out


def test_an_empty_folder_is_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay-log", str(tmp_path)]) == 2
    shown = capsys.readouterr().err
    assert "holds no router log (router-000001.jsonl, ...)" in shown and "Traceback" not in shown


def test_a_foreign_file_in_the_folder_is_named(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "router-old.jsonl").write_text("")
    assert main(["replay-log", str(folder)]) == 2
    assert "router-old.jsonl: not named as a file of a router log" in capsys.readouterr().err
