"""What an operator sees of a deployment."""

from pathlib import Path
from typing import Any

import pytest

from dynosim_runtime.launch.display import StartProgress, show_processes
from dynosim_runtime.launch.supervised import ProcessStatus

OUT = Path("/a/very/long/folder/name/that/would/not/fit/in/a/terminal/of/eighty/columns/out")


def status(name: str, **fields: Any) -> ProcessStatus:
    given = {"role": "worker", "state": "ready", "pid": 11, "port": 8001, "restarts": 0, **fields}
    return ProcessStatus(name=name, log=OUT / "logs" / f"{name}.log", **given)


def test_the_table_names_every_process_and_where_it_writes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    show_processes("http://127.0.0.1:8000", OUT, [status("worker-0"), status("frontend", pid=None)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["http://127.0.0.1:8000", f"logs and records: {OUT}"]
    assert [line.split() for line in lines[2:]] == [
        ["process", "pid", "port", "state", "log"],
        ["worker-0", "11", "8001", "ready", "logs/worker-0.log"],
        ["frontend", "-", "8001", "ready", "logs/frontend.log"],
    ]


def test_off_a_terminal_progress_is_a_line_per_change(capsys: pytest.CaptureFixture[str]) -> None:
    with StartProgress(2) as progress:
        progress.changed(status("worker-0", state="starting"), "started, pid 11")
        progress.changed(status("worker-0"), "ready [in no markup]")
    captured = capsys.readouterr()
    assert captured.err == "worker-0: started, pid 11\nworker-0: ready [in no markup]\n"
    assert captured.out == ""


def test_on_a_terminal_it_says_what_is_waited_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    with StartProgress(9) as progress:
        for index in range(6):
            progress.changed(status(f"worker-{index}", state="starting"), "started")
        progress.changed(status("worker-0"), "ready")
    said = capsys.readouterr().err
    assert "starting 9 processes" in said
    assert "1 of 9 processes ready; waiting for worker-1, worker-2, worker-3, worker-4, ..." in said
