"""`dynosim explain`, `schema` and `init`: what may be written, and a file to begin with.

Arguments here, the work in `dynosim.reference`, which is imported when a command runs.
"""

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dynosim.cli.options import AsJson, Overwrite

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
    """Say what a key means, its unit and default.

    Without a key, list those of files.
    """
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
    overwrite: Overwrite = False,
) -> None:
    """Print the JSON Schema of a file, for editors and checks."""
    from dynosim.reference.schemas import schema_text

    text = schema_text(name.value)
    if to is None:
        sys.stdout.write(text)
        return
    from dynosim.atomic import text_writer, write_files
    from dynosim.files.result_folder import check_files

    check_files([to], overwrite=overwrite, option="--to")
    write_files(to.parent, {to.name: text_writer(text)})
    print(f"schema: {to}", file=sys.stderr)


@reference_app.command(
    epilog="Example: dynosim init chat.yaml --model Qwen/Qwen3-32B --gpus 16 --trace "
    "traces/chat_sessions.jsonl.gz --ttft 2000 --itl 50"
)
def init(
    path: Annotated[
        Path | None, typer.Argument(help="File to write; sweep.yaml or run.yaml if not given.")
    ] = None,
    model: Annotated[str, typer.Option(help="Name, or config.json.")] = "Qwen/Qwen3-32B",
    hardware: Annotated[
        str, typer.Option("--hardware", "--system", help="Name, or data sheet.")
    ] = "h200_sxm",
    gpus: Annotated[int, typer.Option("--gpus", "--total-gpus", min=1, help="At most.")] = 8,
    trace: Annotated[
        Path | None, typer.Option(help="Trace to replay; else requests are made up.")
    ] = None,
    format: Annotated[str | None, typer.Option(help="Format of the trace; by its name.")] = None,
    isl: Annotated[int | None, typer.Option(min=1, help="Tokens of a prompt; 4000.")] = None,
    osl: Annotated[int | None, typer.Option(min=1, help="Tokens of an answer; 500.")] = None,
    rps: Annotated[float | None, typer.Option(min=0.001, help="Requests a second; 4.")] = None,
    ttft: Annotated[
        float | None, typer.Option(min=0.001, help="Bound on the time to the first token, ms.")
    ] = None,
    itl: Annotated[
        float | None,
        typer.Option("--itl", "--tpot", min=0.001, help="Bound on the time per token, ms."),
    ] = None,
    run: Annotated[bool, typer.Option("--run", help="A run file, not a sweep file.")] = False,
    schema: Annotated[
        bool, typer.Option(help="Write the JSON Schema beside the file, for editors.")
    ] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a commented sweep file (or run file) to begin with."""
    from dynosim.reference.starter import Starter
    from dynosim.reference.starter_files import write_starter

    kind = "run" if run else "sweep"
    starter = Starter(
        path=path if path is not None else Path(f"{kind}.yaml"),
        model=model,
        hardware=hardware,
        gpus=gpus,
        trace=trace,
        format=format,
        isl=isl,
        osl=osl,
        rps=rps,
        ttft_ms=ttft,
        itl_ms=itl,
        schema=f"{kind}.schema.json" if schema else None,
    )
    written = write_starter(starter, is_run=run, overwrite=overwrite)
    _tell_written(written, f"dynosim {kind} {starter.path}", as_json=as_json)


def _tell_written(written: list[Path], following: str, *, as_json: bool) -> None:
    """The files, and the command to go on with."""
    if as_json:
        document = {"written": [str(file) for file in written], "next": following}
        sys.stdout.write(json.dumps(document, indent=2) + "\n")
        return
    for file in written:
        print(f"wrote {file}", file=sys.stderr)
    print(f"next: {following}")
