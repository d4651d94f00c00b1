"""What `--help` says of commands: each in its group, in one whole sentence, in 80 columns."""

import pytest
import typer

from dynosim.cli import main
from dynosim.cli.entry import app
from dynosim.cli.help_groups import GROUPS, OTHERS


def commands() -> list[list[str]]:
    """Every command with the groups that it is in."""
    root = typer.main.get_command(app)
    found: list[list[str]] = []
    pending = [([], root)]
    while pending:
        path, command = pending.pop()
        for name in getattr(command, "commands", {}):
            sub = command.get_command(None, name)  # type: ignore[attr-defined, arg-type]
            found.append([*path, name])
            pending.append(([*path, name], sub))
    return found


def shown(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main([*arguments, "--help"]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("group", [[], ["trace"], ["serve"]], ids=lambda group: " ".join(group))
def test_every_command_has_one_whole_line(
    group: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = shown(group, capsys)
    assert "..." not in text.replace("[ARGS]...", "")
    lines = text.splitlines()
    for name in [path[-1] for path in commands() if path[:-1] == group]:
        (place,) = [n for n, line in enumerate(lines) if line.startswith(f"  {name} ")]
        assert lines[place].endswith(".") and len(lines[place]) <= 80, lines[place]


def test_every_command_of_dynosim_has_a_group(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown([], capsys)
    headings = [line.rstrip(":") for line in text.splitlines() if line[:1].isupper()]
    assert [heading for heading in GROUPS if f"\n{heading}:\n" in text] == headings[2:]
    assert f"\n{OTHERS}:\n" not in text


def test_no_command_stands_in_two_groups() -> None:
    names = [name for group in GROUPS.values() for name in group]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("path", commands(), ids=" ".join)
def test_help_of_every_command_has_an_example_and_offers_no_completion(
    path: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    text = shown(path, capsys)
    assert "completion" not in text
    if path not in (["trace"], ["serve"]):
        assert f"Example: dynosim {' '.join(path)} " in " ".join(text.split())
