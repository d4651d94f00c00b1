"""Dynamo's flags and environment variables, as options of commands that read a run or sweep file.

What comes later wins: the file, the environment (live processes only), a flag, `--set`.
"""

import os
import sys
from collections.abc import Sequence
from inspect import Parameter, Signature
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from dynosim.router.dynamo_names import NAMES, DynamoName, Stated, stated_in


class WithRouterFlags(TyperCommand):
    """A command that takes Dynamo's names for the router's keys."""

    is_live = False

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self._names = [name for name in NAMES if self.is_live or not name.is_live]
        self.params += _options(self._names)

    def invoke(self, ctx: Any) -> Any:
        """Turn what was given into changes of the file, before those of `--set`."""
        stated = _environment() if self.is_live else []
        for name in self._names:
            value = ctx.params.pop(name.name)
            if value is not None:
                stated.append(_stated(name, value))
        ctx.params["set_"] = [*stated, *(ctx.params.get("set_") or [])]
        return super().invoke(ctx)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Behind the command's own options: each of Dynamo's flags, and the key that it sets."""
        super().format_options(ctx, formatter)
        with formatter.section("Dynamo's names for keys"):
            formatter.write_dl([(_shown(name), name.key) for name in self._names])


class WithLiveFlags(WithRouterFlags):
    """One that starts live processes: their flags too, and the environment."""

    is_live = True


def _options(names: Sequence[DynamoName]) -> list[Any]:
    """The options, as typer makes them of a function that has them as parameters."""

    def takes_them(**values: Any) -> None:
        """Called by nobody."""

    kinds: dict[str, Any] = {}
    for name in names:
        option = typer.Option(_shown(name), hidden=True, help=name.key, show_default=False)
        is_switch = name.kind == "switch"
        kinds[name.name] = (
            Annotated[bool | None, option] if is_switch else Annotated[str | None, option]
        )
    keyword = Parameter.KEYWORD_ONLY
    takes_them.__annotations__ = kinds
    takes_them.__signature__ = Signature(  # type: ignore[attr-defined]
        [Parameter(key, keyword, default=None, annotation=kind) for key, kind in kinds.items()]
    )
    app = typer.Typer(add_completion=False)
    app.command()(takes_them)
    return list(typer.main.get_command(app).params)


def _shown(name: DynamoName) -> str:
    no = f"/--no-{name.option[2:]}" if name.kind == "switch" else ""
    return f"{name.option}{no}"


def _stated(name: DynamoName, value: Any) -> Stated:
    if isinstance(value, bool):
        source = name.option if value else f"--no-{name.option[2:]}"
        return Stated.of(name, "true" if value else "false", source)
    return Stated.of(name, value, name.option)


def _environment() -> list[Stated]:
    """What the environment changes, told on stderr: nobody sees it on the command line."""
    stated = stated_in(os.environ)
    for one in stated:
        print(f"{one.source} sets {one}", file=sys.stderr)
    return stated
