"""The command line: arguments in, one library call, text out.

Only typer is imported at once; every command imports what it needs, so that `--help` is quick.
Exit codes: 0 done, 1 failure, 2 bad input (one message, no traceback), 130 interrupted.
"""

import atexit
import gc
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from dynosim import __version__
from dynosim.cli.options import AsJson, Overrides, Overwrite, SkipBadLines, with_skip
from dynosim.compiled import CORE
from dynosim.errors import EXIT_FAILURE, EXIT_INTERRUPTED, DynosimError, InvariantError


class _LazyGroup(TyperGroup):
    """Loads `dynosim trace` with its own module, when it is called."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] == "trace":
            from dynosim.cli.trace import app as trace_app

            self.add_command(typer.main.get_command(trace_app), "trace")
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=_LazyGroup,
    help="Simulate, compare and choose configurations of LLM inference clusters.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"dynosim {__version__}, {CORE}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print and exit.")
    ] = False,
) -> None:
    pass


def _compute_in_one_thread() -> None:
    """Runs multiply no large matrices, and numpy's threads spin for long before they sleep."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


@app.command(epilog="Example: dynosim run sweeps/qwen_one.yaml --set cluster.workers=8 --out out")
def run(
    config: Annotated[Path, typer.Argument(help="Run file (YAML).")],
    set_: Overrides = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for report.json, report.html and the tables.")
    ] = None,
    overwrite: Overwrite = False,
    json: AsJson = False,
    exact_stepping: Annotated[
        bool, typer.Option("--exact-stepping", help="Decide every engine step singly (slow).")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Test the laws of conservation at the end.")
    ] = False,
    skip_bad_lines: SkipBadLines = False,
    router_log: Annotated[
        Path | None, typer.Option(help="File for the router's inputs and decisions.")
    ] = None,
    kv_events: Annotated[
        bool, typer.Option("--kv-events", help="With --out: write and plot all KV events.")
    ] = False,
    intervals: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Replays for 95 % intervals; 0: none. 16 if the fitted step times have draws.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Simulate one configuration and report on it."""
    _compute_in_one_thread()
    from dynosim.cli.run import RunArguments, run_command

    arguments = RunArguments(
        file=config,
        overrides=with_skip(set_, skip_bad_lines),
        out=out,
        overwrite=overwrite,
        as_json=json,
        exact_stepping=exact_stepping,
        check=check,
        router_log=router_log,
        kv_events=kv_events,
        intervals=intervals,
    )
    raise typer.Exit(run_command(arguments))


@app.command(epilog="Example: dynosim sweep sweeps/qwen.yaml --jobs 2 --out results/qwen")
def sweep(
    spec: Annotated[Path, typer.Argument(help="Sweep file (YAML).")],
    set_: Overrides = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for all results; results/NAME if not given.")
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Worker processes; one per core if not given.")
    ] = None,
    executor: Annotated[
        str, typer.Option(help="Where trials run: local (this machine) or ray (a cluster).")
    ] = "local",
    ray_address: Annotated[
        str | None,
        typer.Option(help="Ray's head, HOST:PORT; else RAY_ADDRESS, else a Ray is started."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with what the folder holds.")
    ] = False,
    overwrite: Overwrite = False,
    json: AsJson = False,
    skip_bad_lines: SkipBadLines = False,
    intervals: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Replays of each trial on the frontier for 95 % intervals; as in `dynosim run`.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Simulate many configurations and find the best trade-offs."""
    _compute_in_one_thread()
    from dynosim.cli.sweep import SweepArguments, sweep_command

    arguments = SweepArguments(
        file=spec,
        overrides=with_skip(set_, skip_bad_lines),
        out=out,
        jobs=jobs,
        executor=executor,
        ray_address=ray_address,
        resume=resume,
        overwrite=overwrite,
        as_json=json,
        intervals=intervals,
    )
    raise typer.Exit(sweep_command(arguments))


@app.command(epilog="Example: dynosim conformance scenarios/*.json --golden golden")
def conformance(
    scenarios: Annotated[list[Path], typer.Argument(help="Scenario files (JSON).")],
    golden: Annotated[
        Path | None, typer.Option(help="Folder of recorded answers with the same file names.")
    ] = None,
    json: AsJson = False,
) -> None:
    """Run scheduler scenarios step by step; print the steps or compare them."""
    from dynosim.cli.conformance import main_command

    raise typer.Exit(main_command(scenarios, golden, json))


@app.command("replay-log", epilog="Example: dynosim replay-log router.jsonl")
def replay_log(
    log: Annotated[Path, typer.Argument(help="Log of a router, of the twin or live.")],
    json: AsJson = False,
) -> None:
    """Derive every decision of a router again from its inputs; show the first that differs."""
    from dynosim.cli.replay import replay_log_command

    raise typer.Exit(replay_log_command(log, as_json=json))


@app.command(epilog="Example: dynosim support --model Qwen/Qwen3-32B --hardware h200_sxm")
def support(
    model: Annotated[str | None, typer.Option(help="Only this model.")] = None,
    hardware: Annotated[str | None, typer.Option(help="Only this hardware.")] = None,
    engine: Annotated[str | None, typer.Option(help="Only this engine.")] = None,
    json: AsJson = False,
) -> None:
    """List which step times are measured, derived or estimated."""
    from dynosim.cli.support import support_command

    support_command(model, hardware, engine, as_json=json)


@app.command("trace", context_settings={"ignore_unknown_options": True})
def _trace() -> None:
    """Inspect, convert and generate traces."""


def _add_live_commands() -> None:
    from dynosim.cli.live import live_app

    app.add_typer(live_app)


_add_live_commands()


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code. Never raises for what a user can cause."""
    if arguments is None:
        gc.disable()  # imports make many objects and no garbage; what runs for long enables it
        atexit.register(gc.freeze)  # a last search for garbage would be for nothing
    return _guarded(lambda: _invoke(arguments))


def _invoke(arguments: list[str] | None) -> int:
    # standalone_mode prints usage errors and turns typer.Exit into SystemExit
    app(args=arguments, prog_name="dynosim")
    return 0


def _guarded(command: Callable[[], int]) -> int:
    try:
        code = command()
        sys.stdout.flush()
        return code
    except SystemExit as error:
        return _exit_code(error)
    except DynosimError as error:
        return _complain(f"error: {error}", error.exit_code)
    except KeyboardInterrupt:
        return _complain("interrupted", EXIT_INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILURE
    except OSError as error:
        return _complain(f"error: {error}", EXIT_FAILURE)
    except MemoryError as error:
        what = f" ({error})" if str(error) else ""
        return _complain(f"error: out of memory{what}: try a smaller workload", EXIT_FAILURE)
    except InvariantError as error:
        import traceback

        traceback.print_exc()
        return _complain(f"error: a law of the simulation is broken, please report: {error}", 1)


def _exit_code(error: SystemExit) -> int:
    if error.code is None or isinstance(error.code, int):
        return error.code or 0
    return _complain(str(error.code), EXIT_FAILURE)


def _complain(message: str, code: int) -> int:
    print(message.encode("utf-8", "backslashreplace").decode(), file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
