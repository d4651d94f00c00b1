"""The command line as the documentation shows it: its reference page, and whether commands exist.

`make docs-update` writes the page anew.
"""

import re
import shlex
from collections.abc import Iterator
from typing import Any

import typer

from dynosim.config.keys import all_keys, key_problem
from dynosim.config.sweep_schema import SweepKeys

_SHELL = re.compile(r"\d?>{1,2}(&\d)?|&&?|\|\|?")

HEAD = """\
# Commands

<!-- written by tests/update_docs.py from the commands' own help; a test holds it current -->

`--json` prints one document on stdout and everything else on stderr. Exit codes: 0 done, 1 failure,
2 bad input (one message that names file, line or key and the remedy), 130 interrupted with what was
finished kept.
"""


def root_command() -> Any:
    from dynosim.cli.entry import app

    return typer.main.get_command(app)


def commands_of(group: Any, words: tuple[str, ...]) -> Iterator[tuple[Any, Any, tuple[str, ...]]]:
    """Every command below a group with its context and its words; groups before what they hold."""
    context = group.make_context(words[-1], [], resilient_parsing=True)
    for name in group.list_commands(context):
        _, command, _ = group.resolve_command(context, [name])
        if command.hidden:
            continue
        own = (*words, name)
        yield command, command.make_context(" ".join(own), [], resilient_parsing=True), own
        if hasattr(command, "list_commands"):
            yield from commands_of(command, own)


def reference_page() -> str:
    """docs/reference/commands.md."""
    parts = [HEAD]
    for command, context, words in commands_of(root_command(), ("dynosim",)):
        records = [(p, p.get_help_record(context)) for p in command.get_params(context)]
        rows = [
            f"| `{_cell(record[0])}` | {_cell(record[1])} |"
            for parameter, record in records
            if record is not None and "--help" not in parameter.opts
        ]
        parts.append(f"## `{' '.join(words)}`\n\n{command.help}\n")
        if rows:
            parts.append("\n".join(["| | |", "|---|---|", *rows]) + "\n")
        if command.epilog:
            example = command.epilog.removeprefix("Example: ")
            parts.append(f"```bash\n{example}\n```\n")
    return "\n".join(parts)


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def problem_of(line: str) -> str | None:
    """Why a line that begins with `dynosim` is no command with these options; None if it is one."""
    words = shlex.split(line.replace("[--", "--").replace("]", ""), comments=True)
    ends = [place for place, word in enumerate(words) if _SHELL.fullmatch(word)]
    _, *words = words[: ends[0]] if ends else words
    return _problem(root_command(), "dynosim", words)


def _problem(command: Any, name: str, words: list[str]) -> str | None:
    try:
        if not hasattr(command, "list_commands"):
            return _key_problem(command.make_context(name, words).params.get("set_"))
        if words and words[0].startswith("-"):
            known = {option for parameter in command.params for option in parameter.opts}
            return None if words[0] in known else f"no such option: {words[0]}"
        context = command.make_context(name, [], resilient_parsing=True)
        _, inner, rest = command.resolve_command(context, words)
    except Exception as error:
        if hasattr(error, "format_message"):  # click's, of whichever copy typer uses
            return str(error.format_message())
        raise
    return f"no such command: {words[0]}" if inner is None else _problem(inner, words[0], rest)


def _key_problem(overrides: list[str] | None) -> str | None:
    """What is wrong with the first `--set` whose key no run or sweep file has."""
    for key in (override.partition("=")[0] for override in overrides or []):
        is_swept = key in all_keys(SweepKeys) or key.startswith("space.")
        if not is_swept and key_problem(tuple(key.split(".")), {}):
            return f"no such key: {key}"
    return None
