"""`dynosim explain`, `schema` and `init`: what may be written, and a file to begin with.

Arguments here, the work in `dynosim.reference`, which is imported when a command runs.
"""

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dynosim.cli.options import AsJson

if TYPE_CHECKING:
    from dynosim.reference.catalogue import KeyFact

MANY = 4
"""More keys than these are told in a line each."""

reference_app = typer.Typer(no_args_is_help=True)


class SchemaName(StrEnum):
    """Files that have a schema."""

    run = "run"
    sweep = "sweep"
    synthetic = "synthetic"
    report = "report"
    summary = "summary"


@reference_app.command(epilog="Example: dynosim explain engine.max_num_batched_tokens")
def explain(
    key: Annotated[
        str | None,
        typer.Argument(help="Key of a run or sweep file, or of a report; a section: all below it."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what a key means, its unit and default; without one, list the keys of files."""
    from dynosim.reference.catalogue import file_facts, find

    facts = file_facts() if key is None else find(key)
    if as_json:
        document = {"keys": [fact.to_dict() for fact in facts]}
        sys.stdout.write(json.dumps(document, indent=2) + "\n")
    elif key is None:
        _print_tree(facts)
    else:
        _print_facts(facts)


def _print_tree(facts: "list[KeyFact]", base: str = "") -> None:
    """A line for each key, cut where a terminal ends."""
    import shutil

    from dynosim.reference.texts import tree_lines

    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for line in tree_lines(facts, base=base, width=width):
        print(f"  {line}" if base else line)


def _print_facts(facts: "list[KeyFact]") -> None:
    """A section with what is below it, a few keys in full, or a list of many."""
    from dynosim.reference.texts import key_text

    first, *others = facts
    if others and others[0].key.startswith(f"{first.key}."):
        print(key_text(first))
        _print_tree(others, base=first.key)
    elif len(facts) <= MANY:
        print("\n\n".join(map(key_text, facts)))
    else:
        _print_tree(facts)


@reference_app.command(epilog="Example: dynosim schema sweep --to sweep.schema.json")
def schema(
    name: Annotated[SchemaName, typer.Argument(help="Which file.")] = SchemaName.sweep,
    to: Annotated[Path | None, typer.Option(help="File to write; else it is printed.")] = None,
) -> None:
    """Print the JSON Schema of a file, for editors and checks."""
    from dynosim.reference.schemas import schema_text

    text = schema_text(name.value)
    if to is None:
        sys.stdout.write(text)
        return
    from dynosim.atomic import text_writer, write_files

    write_files(to.parent, {to.name: text_writer(text)})
    print(f"schema: {to}", file=sys.stderr)
