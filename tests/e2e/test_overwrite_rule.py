"""Results are replaced by results of the same kind only, and only if that is asked for."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from dynosim.cli import main
from dynosim.files.result_folder import KINDS, kind_of

pytestmark = pytest.mark.usefixtures("inline_workers", "no_pictures")

RUN_FILE = """\
name: small
workload: {synthetic: {requests: 20, isl: 300, osl: 10, rate_rps: 20}}
engine: {num_gpu_blocks: 200, max_model_len: 512}
timing: {kind: polynomial}
"""
SWEEP_KEYS = "space: {cluster.workers: [1, 2]}\nload: {search: fixed}\n"
COMMANDS = ("run", "sweep", "deploy", "validate", "tiny-model")
FINISHED_AT_ONCE = ("run", "sweep", "tiny-model")
NAMES = {
    "run": "a run",
    "sweep": "a sweep",
    "deploy": "a deployment",
    "validate": "a validation",
    "tiny-model": "a tiny model",
}


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "run.yaml").write_text(RUN_FILE)
    (tmp_path / "sweep.yaml").write_text(RUN_FILE + SWEEP_KEYS)
    return tmp_path


def written(kind: str, folder: Path) -> None:
    """What a command leaves in a folder; of live ones what they are known by."""
    folder.mkdir()
    if kind in ("deploy", "validate"):
        inner = folder if kind == "deploy" else folder / "deployment"
        inner.mkdir(exist_ok=True)
        (inner / "deployment.json").write_text('{"url": "", "processes": [], "out": ""}')
    elif kind == "others":
        (folder / "report.json").write_text('{"covered": 97}')
    else:
        assert call(kind, folder, folder.parent) == 0


def call(command: str, out: Path, files: Path, *more: str) -> int:
    arguments = {
        "run": [str(files / "run.yaml"), "--out", str(out)],
        "sweep": [str(files / "sweep.yaml"), "--out", str(out)],
        "deploy": [str(files / "run.yaml"), "--mock", "--out", str(out)],
        "validate": [str(files / "run.yaml"), "--url", "http://127.0.0.1:9", "--out", str(out)],
        "tiny-model": [str(out), "--layers", "1", "--hidden", "64"],
    }
    return main([command, *arguments[command], *more])


def content(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("held", [*COMMANDS, "others"])
def test_a_folder_of_another_kind_is_refused_whatever_is_given(
    files: Path, capsys: pytest.CaptureFixture[str], held: str
) -> None:
    folder = files / "out"
    written(held, folder)
    before = content(folder)
    for command in COMMANDS:
        if command == held:
            continue
        for more in ([], ["--overwrite"], *([["--resume"]] if command == "sweep" else [])):
            assert call(command, folder, files, *more) == 2, (command, more)
            message = capsys.readouterr().err
            assert f"{folder}: holds " in message and "Traceback" not in message
            assert NAMES.get(held, "report.json, which is not of") in message
            assert NAMES[command] in message and "name a" in message
            assert content(folder) == before, (command, more)


@pytest.mark.parametrize("held", COMMANDS)
def test_the_same_kind_is_refused_until_overwrite_is_given(
    files: Path, capsys: pytest.CaptureFixture[str], held: str
) -> None:
    folder = files / "out"
    written(held, folder)
    (folder / "notes.txt").write_text("mine")
    before = content(folder)
    assert call(held, folder, files) == 2
    message = capsys.readouterr().err
    assert f"{folder}: holds {NAMES[held]} already" in message and "--overwrite" in message
    assert content(folder) == before
    if held in FINISHED_AT_ONCE:
        assert call(held, folder, files, "--overwrite") == 0
        assert (folder / "notes.txt").read_text() == "mine"


def test_a_sweep_goes_on_in_its_folder(files: Path) -> None:
    assert call("sweep", files / "out", files) == 0
    assert call("sweep", files / "out", files, "--resume") == 0


@pytest.mark.parametrize("command", FINISHED_AT_ONCE)
def test_hidden_files_do_not_fill_a_folder(files: Path, command: str) -> None:
    folder = files / "out"
    folder.mkdir()
    (folder / ".gitignore").write_text("*")
    assert call(command, folder, files) == 0
    assert (folder / ".gitignore").read_text() == "*"


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_each_mark_tells_its_kind(tmp_path: Path, kind: object) -> None:
    for number, (name, key) in enumerate(kind.marks.items()):  # type: ignore[attr-defined]
        folder = tmp_path / str(number)
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text(f'{{"{key}": 1}}' if key else "")
        assert kind_of(folder) is kind
        if key:
            (folder / name).write_text('{"other": 1}')
            assert kind_of(folder) is None
            (folder / name).write_text("{torn")
            assert kind_of(folder) is None


# ---- commands that write a file ------------------------------------------------------------------


def synth(files: Path) -> list[str]:
    return ["trace", "synth", str(files / "t.jsonl"), "--requests", "5", "--isl", "64", "--osl",
            "4", "--rate-rps", "1"]  # fmt: skip


def convert(files: Path) -> list[str]:
    main([*synth(files), "--overwrite"])
    return ["trace", "convert", str(files / "t.jsonl"), str(files / "c.jsonl"), "--to", "mooncake"]


def plot(files: Path) -> list[str]:
    main([*synth(files), "--overwrite"])
    return ["trace", "inspect", str(files / "t.jsonl"), "--plot", str(files / "p.png")]


def why_trace(files: Path) -> list[str]:
    if not (files / "run").exists():
        main(["run", str(files / "run.yaml"), "--out", str(files / "run")])
    return ["why", str(files / "run"), "--perfetto", str(files / "w.json")]


def router_log(files: Path) -> list[str]:
    return ["run", str(files / "run.yaml"), "--router-log", str(files / "r.jsonl"), "--set",
            "router.mode=kv"]  # fmt: skip


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (synth, "t.jsonl"),
        (convert, "c.jsonl"),
        (plot, "p.png"),
        (why_trace, "w.json"),
        (router_log, "r.jsonl"),
    ],
)
def test_a_file_is_replaced_only_if_told_to(
    files: Path,
    capsys: pytest.CaptureFixture[str],
    command: Callable[[Path], list[str]],
    name: str,
) -> None:
    arguments = command(files)
    file = files / name
    file.write_text("mine")
    assert main(arguments) == 2
    message = capsys.readouterr().err
    assert f"{file}: is there already" in message and "--overwrite" in message
    assert file.read_text() == "mine"
    assert main([*arguments, "--overwrite"]) == 0
    assert file.read_bytes() != b"mine"
    file.unlink()
    assert main(arguments) == 0


@pytest.mark.parametrize("beside", ["t.json", "t.report.json", "t.png"])
def test_calibrate_replaces_nothing_it_was_not_told_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], beside: str
) -> None:
    (tmp_path / beside).write_text("mine")
    log = tmp_path / "absent.jsonl"
    arguments = ["calibrate", "--measurements", str(log), "--out", str(tmp_path / "t.json")]
    assert main(arguments) == 2
    assert f"{tmp_path / beside}: is there already" in capsys.readouterr().err
    assert main([*arguments, "--overwrite"]) == 2
    assert "absent.jsonl" in capsys.readouterr().err


@pytest.mark.parametrize("more", [[], ["--overwrite"]])
def test_what_is_no_plain_file_is_never_replaced(
    files: Path, capsys: pytest.CaptureFixture[str], more: list[str]
) -> None:
    pipe = files / "t.jsonl"
    os.mkfifo(pipe)
    assert main([*synth(files), *more]) == 2
    assert f"{pipe}: is no plain file" in capsys.readouterr().err
    assert pipe.is_fifo()
