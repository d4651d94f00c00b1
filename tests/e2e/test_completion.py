"""Completion as the shells do it, and the help it completes."""

import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from waiting import PATIENCE_S

from dynosim.cli import main
from dynosim.cli.completion import candidates, split_line
from dynosim.cli.completion_scripts import SCRIPTS
from dynosim.cli.entry import app

SHELLS = sorted(SCRIPTS)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home with `dynosim` on the path, the one of this tree."""
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    command = bin_folder / "dynosim"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m dynosim "$@"\n')
    command.chmod(0o755)
    root = Path(__file__).parents[2]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(root), str(root / "runtime")]))
    monkeypatch.setenv("PATH", f"{bin_folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setenv("TERM", "dumb")
    (tmp_path / "my_sweep.yaml").write_text("")
    (tmp_path / "my_notes.txt").write_text("")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def offered(line: str) -> list[str]:
    import typer

    words, incomplete = split_line(line)
    return candidates(typer.main.get_command(app), words[1:], incomplete)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("dynosim swe", ["sweep"]),
        ("dynosim trace con", ["convert"]),
        ("dynosim serve w", ["worker"]),
        ("dynosim run --exact", ["--exact-stepping"]),
        ("dynosim run x.yaml --set engine.max_num_s", ["engine.max_num_seqs="]),
        ("dynosim run x.yaml --set engine.enable_prefix_caching=", None),
        ("dynosim run x.yaml --set load.sea", []),
        ("dynosim sweep x.yaml --set load.sea", ["load.search="]),
        ("dynosim sweep x.yaml --set load.search=c", ["load.search=capacity", "load.search=curve"]),
        ("dynosim sweep x.yaml --set space.router.mod", ["space.router.mode="]),
        ("dynosim run x.yaml --set=hardware=h200", ["--set=hardware=h200_sxm"]),
        ("dynosim support --hardware h200", ["h200_sxm"]),
        ("dynosim support --model=Qwen/Qwen3-1.", ["--model=Qwen/Qwen3-1.7B"]),
        ("dynosim deploy x.yaml --engine sg", ["sglang"]),
        ("dynosim run x.yaml --jobs ", []),
        ("dynosim explain load.toler", ["load.tolerance"]),
        ("dynosim nonsense ", []),
        ("dynosim run 'unfinished", []),
    ],
)
def test_what_is_offered(line: str, expected: list[str] | None) -> None:
    found = offered(line)
    if expected is None:
        assert found and all(word.startswith(line.split()[-1]) for word in found)
    else:
        assert found == expected


def test_sweep_and_run_files_are_offered_with_the_folders_on_the_way(home: Path) -> None:
    (home / "more").mkdir()
    (home / "more" / "deep.yml").write_text("")
    assert offered("dynosim sweep m") == ["more/", "my_sweep.yaml"]
    assert offered("dynosim run more/") == ["more/deep.yml"]
    assert offered("dynosim sweep x.yaml --out my") == ["my_notes.txt", "my_sweep.yaml"]


@pytest.mark.parametrize(
    ("line", "replies"),
    [
        ("dynosim run --set engine.max_num_se", ["engine.max_num_seqs="]),
        ("dynosim sweep --set load.search=cu", ["curve"]),  # bash replaces what follows "="
        ("dynosim support --hardware=h200", ["h200_sxm"]),
        ("dynosim sweep my", ["my_sweep.yaml"]),
        ("dynosim replay", ["replay-log"]),
    ],
)
def test_bash_is_answered(home: Path, line: str, replies: list[str]) -> None:
    code = (
        'eval "$(dynosim --show-completion bash)"\n'
        'COMP_LINE="$1"; COMP_POINT=${#COMP_LINE}\n'
        "_dynosim_completion dynosim\n"
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "--norc", "--noprofile", "-c", code, "bash", line], capture_output=True, text=True
    )
    assert done.stdout.split() == replies, done.stderr


class Typist:
    """Types into an interactive shell and waits for what appears."""

    def __init__(self, *command: str) -> None:
        self.process, self._terminal = pty.fork()
        if self.process == 0:
            os.execvp(command[0], command)
        self.seen = ""

    def types(self, text: str) -> None:
        os.write(self._terminal, text.encode())

    def waits_for(self, text: str, timeout_s: float = PATIENCE_S) -> None:
        deadline = time.monotonic() + timeout_s
        while text not in self.seen:
            assert time.monotonic() < deadline, f"{text!r} is not in {self.seen!r}"
            if select.select([self._terminal], [], [], 0.1)[0]:
                read = os.read(self._terminal, 4096).decode(errors="replace")
                self.seen += re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", read)

    def ends(self) -> None:
        os.close(self._terminal)
        os.waitpid(self.process, 0)


@pytest.fixture
def typist(request: pytest.FixtureRequest, home: Path) -> Iterator[Typist]:
    """An interactive shell in which completion was installed as the help says."""
    shell, *options = request.param
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed here")
    installed = subprocess.run(
        ["dynosim", "--install-completion", shell], capture_output=True, text=True
    )
    assert installed.returncode == 0, installed.stderr
    typist = Typist(shell, *options)
    yield typist
    typist.ends()


@pytest.mark.live
@pytest.mark.parametrize(
    "typist",
    [("bash", "--noprofile", "-i"), ("zsh", "-d", "-i")],
    indirect=True,
    ids=lambda s: s[0],
)
def test_after_installing_tab_completes(typist: Typist) -> None:
    typist.types("echo rea''dy\n")
    typist.waits_for("ready")
    typist.types("dynosim run my_sw\t--set engine.max_num_se\t8 --set router.mod\trando\t")
    typist.types("\x01echo \n")  # to the start of the line
    typist.waits_for(
        "\ndynosim run my_sweep.yaml --set engine.max_num_seqs=8 --set router.mode=random"
    )


def test_fish_is_answered(home: Path) -> None:
    if shutil.which("fish") is None:
        pytest.skip("fish is not installed here")
    assert main(["--install-completion", "fish"]) == 0
    asked = 'complete -C "dynosim run --set engine.max_num_se"; complete -C "dynosim run my"'
    done = subprocess.run(["fish", "-c", asked], capture_output=True, text=True)
    assert done.stdout.split() == ["engine.max_num_seqs=", "my_sweep.yaml"], done.stderr


@pytest.mark.parametrize("shell", SHELLS)
def test_installing_twice_changes_nothing(
    home: Path, shell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def files() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}

    (home / ".bashrc").write_text("alias l=ls")  # without an end of line
    assert main(["--install-completion", shell]) == 0
    assert "written: " in capsys.readouterr().out
    first = files()
    assert first[home / ".bashrc"].startswith(b"alias l=ls" + (b"\n" if shell == "bash" else b""))
    assert main(["--install-completion", shell]) == 0
    assert files() == first


def test_an_unknown_shell_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--install-completion", "powershell"]) == 2
    message = capsys.readouterr().err
    assert "bash" in message and "zsh" in message and "Traceback" not in message
