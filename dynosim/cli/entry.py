"""The command line: arguments in, one library call, text out.

Only typer is imported at once; every command imports what it needs, so that `--help` is quick.
Exit codes: 0 done, 1 failure, 2 bad input (one message, no traceback), 3 a condition that the user
asked to fail on, 130 interrupted.
"""

import atexit
import gc
import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from dynosim import __version__
from dynosim.cli.completion_scripts import SCRIPTS, SHELL, install
from dynosim.cli.dynamo_flags import WithRouterFlags
from dynosim.cli.help_groups import GroupedCommands
from dynosim.cli.options import (
    AsJson,
    FailIfAny,
    FailIfNone,
    Overrides,
    Overwrite,
    SkipBadLines,
    with_skip,
)
from dynosim.compiled import CORE
from dynosim.errors import EXIT_FAILURE, EXIT_INTERRUPTED, ConfigError, DynosimError, InvariantError


class _LazyGroup(GroupedCommands):
    """Loads `dynosim trace` when it is called, and says what a word that is no command meant."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name == "trace":
            from dynosim.cli.trace import app as trace_app

            self.add_command(typer.main.get_command(trace_app), "trace")
        return super().get_command(ctx, cmd_name)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            from dynosim.cli.near_commands import unknown_command

            ctx.fail(unknown_command(args[0], self.list_commands(ctx)))
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


_Shell = Literal["bash", "zsh", "fish"]


def _show_completion(shell: _Shell | None) -> None:
    if shell is not None:
        typer.echo(SCRIPTS[shell], nl=False)
        raise typer.Exit


def _install_completion(shell: _Shell | None) -> None:
    if shell is not None:
        for path in install(shell):
            typer.echo(f"written: {path}")
        typer.echo(f"completion works in every new {shell}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print and exit.")
    ] = False,
    install_completion: Annotated[
        _Shell | None,
        typer.Option(
            metavar="SHELL",
            callback=_install_completion,
            is_eager=True,
            help="Complete commands in bash, zsh or fish.",
        ),
    ] = None,
    show_completion: Annotated[
        _Shell | None,
        typer.Option(
            metavar="SHELL",
            callback=_show_completion,
            is_eager=True,
            help="Print the script that does so.",
        ),
    ] = None,
) -> None:
    pass


def _compute_in_one_thread() -> None:
    """Runs multiply no large matrices, and numpy's threads spin for long before they sleep."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


@app.command(
    cls=WithRouterFlags,
    epilog="Example: dynosim run sweeps/qwen_one.yaml --set cluster.workers=8 --out out",
)
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
    perfetto: Annotated[
        bool, typer.Option("--perfetto", help="With --out: write trace.json.gz for Perfetto.")
    ] = False,
    metrics_every: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="With --out: write the frontend's metrics so often."),
    ] = None,
    intervals: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Replays for 95 % intervals; 0: none. 16 if step times have variants.",
            show_default=False,
        ),
    ] = None,
    windows: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="Results also by windows of so many seconds."),
    ] = None,
    reuse_bound: Annotated[
        bool, typer.Option("--reuse-bound", help="Reuse also as perfect foresight would have it.")
    ] = False,
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
        perfetto=perfetto,
        metrics_every_s=metrics_every,
        intervals=intervals,
        windows_s=windows,
        reuse_bound=reuse_bound,
    )
    raise typer.Exit(run_command(arguments))


@app.command(
    cls=WithRouterFlags,
    epilog="Example: dynosim sweep sweeps/qwen.yaml --jobs 2 --out results/qwen",
)
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
    exhaustive: Annotated[
        bool,
        typer.Option("--exhaustive", help="Seek the capacity of layouts far from the best, too."),
    ] = False,
    fail_if_none: FailIfNone = False,
) -> None:
    """Simulate many configurations and find the best trade-offs."""
    _compute_in_one_thread()
    from dynosim.cli.sweep import SweepArguments, sweep_command

    arguments = SweepArguments(
        file=spec,
        overrides=[
            *with_skip(set_, skip_bad_lines),
            *(["load.exhaustive=true"] if exhaustive else []),
        ],
        out=out,
        jobs=jobs,
        executor=executor,
        ray_address=ray_address,
        resume=resume,
        overwrite=overwrite,
        as_json=json,
        intervals=intervals,
        fail_if_none=fail_if_none,
    )
    raise typer.Exit(sweep_command(arguments))


@app.command(epilog="Example: dynosim diff results/main results/mine --fail-if 'capacity < -3 %'")
def diff(
    a: Annotated[Path, typer.Argument(help="Folder of a run or of a sweep: before.")],
    b: Annotated[Path, typer.Argument(help="Folder of the same kind: after.")],
    json: AsJson = False,
    fail_if: Annotated[
        list[str] | None,
        typer.Option(
            "--fail-if",
            metavar="CONDITION",
            help="Exit with 3 if a change is too large: 'capacity < -3 %', 'p95_ttft_ms > 50'.",
        ),
    ] = None,
) -> None:
    """Compare two runs or two sweeps: what differs, and why."""
    _compute_in_one_thread()
    from dynosim.cli.diff import DiffArguments, diff_command

    raise typer.Exit(diff_command(DiffArguments(a=a, b=b, as_json=json, fail_if=fail_if or ())))


@app.command(epilog="Example: dynosim why out --slowest 5")
def why(
    folder: Annotated[Path, typer.Argument(help="Folder of a run (its --out).")],
    request: Annotated[
        str | None, typer.Argument(help="Id of a request, as in requests.parquet.")
    ] = None,
    slowest: Annotated[
        int | None, typer.Option(min=1, help="Tell of so many with the longest time to token 1.")
    ] = None,
    json: AsJson = False,
    perfetto: Annotated[
        Path | None, typer.Option(help="File for a trace of the whole run, for Perfetto.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Tell why a request of a finished run took so long."""
    _compute_in_one_thread()
    from dynosim.cli.why import WhyArguments, why_command

    asked = WhyArguments(
        folder=folder,
        request_id=request,
        slowest=slowest,
        as_json=json,
        perfetto=perfetto,
        overwrite=overwrite,
    )
    raise typer.Exit(why_command(asked))


_SIZE_EXAMPLE = (
    "Example: dynosim size Qwen/Qwen3-32B --hardware h200_sxm --gpus 16 --rps 18 --isl 4000 "
    "--osl 500 --ttft 2000 --itl 50"
)


@app.command(epilog=_SIZE_EXAMPLE)
def size(
    model: Annotated[str, typer.Argument(help="A known model, or its config.json.")],
    hardware: Annotated[str, typer.Option(help="A known GPU, or its data sheet.")],
    gpus: Annotated[int, typer.Option(min=1, help="GPUs that there are at most.")],
    rps: Annotated[float | None, typer.Option(help="Requests a second to hold.")] = None,
    sessions_per_s: Annotated[
        float | None, typer.Option(help="In place of --rps: sessions started a second.")
    ] = None,
    concurrency: Annotated[
        int | None, typer.Option(help="In place of --rps: requests in flight.")
    ] = None,
    trace: Annotated[str | None, typer.Option(help="What requests are like: a trace.")] = None,
    isl: Annotated[int | None, typer.Option(help="Or: prompts of so many tokens ...")] = None,
    osl: Annotated[int | None, typer.Option(help="... and answers of so many.")] = None,
    ttft: Annotated[float | None, typer.Option(help="SLA: ms to the first token.")] = None,
    itl: Annotated[float | None, typer.Option(help="SLA: mean ms between tokens.")] = None,
    e2e: Annotated[float | None, typer.Option(help="SLA: ms from arrival to end.")] = None,
    attainment: Annotated[
        float | None, typer.Option(help="Share of requests that keep it; 0.95 if not given.")
    ] = None,
    tp: Annotated[str, typer.Option(help="GPUs of a worker, as in 1,2,4.")] = "1,2,4,8",
    router: Annotated[str, typer.Option(help="Router modes, as in kv,least-loaded.")] = "kv",
    set_: Overrides = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for all results; results/size-MODEL if not given.")
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Worker processes; one per core if not given.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with what the folder holds.")
    ] = False,
    overwrite: Overwrite = False,
    json: AsJson = False,
    fail_if_none: FailIfNone = False,
) -> None:
    """Find the fewest GPUs that hold a load within an SLA."""
    _compute_in_one_thread()
    from dynosim.cli.size import SizeArguments, size_command

    asked = SizeArguments(
        model=model, hardware=hardware, gpus=gpus, rps=rps, sessions_per_s=sessions_per_s,
        concurrency=concurrency, trace=trace, isl=isl, osl=osl, ttft_ms=ttft, itl_ms=itl,
        e2e_ms=e2e, attainment=attainment, tensor_parallel=tp, router=router,
        overrides=set_ or [], out=out, jobs=jobs, resume=resume, overwrite=overwrite,
        as_json=json, fail_if_none=fail_if_none,
    )  # fmt: skip
    raise typer.Exit(size_command(asked))


@app.command(epilog="Example: dynosim plan sweeps/plan_bursty.yaml --out results/bursty")
def plan(
    file: Annotated[Path, typer.Argument(help="Run file; may state several controllers.")],
    set_: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="Folder for all results.")] = None,
    overwrite: Overwrite = False,
    json: AsJson = False,
    against: Annotated[
        str, typer.Option(help="Who is compared, as in planner,hpa,perfect; all if not given.")
    ] = "",
    seeds: Annotated[int, typer.Option(min=1, max=100, help="Seeds, from the file's on.")] = 1,
    attainment: Annotated[
        float, typer.Option(help="Share of requests that are to be within the SLA.")
    ] = 0.95,
    bin_: Annotated[
        float | None,
        typer.Option("--bin", help="Seconds of a bin of time; about 120 bins if not given."),
    ] = None,
    most_workers: Annotated[
        int, typer.Option(min=1, max=4096, help="Largest fixed cluster that is tried.")
    ] = 64,
) -> None:
    """Compare planner, autoscalers, fixed clusters and the bound."""
    _compute_in_one_thread()
    from dynosim.cli.plan import PlanArguments, plan_command

    asked = PlanArguments(
        file=file, overrides=set_ or [], out=out, overwrite=overwrite, as_json=json,
        against=against, seeds=seeds, attainment=attainment, bin_s=bin_,
        most_workers=most_workers,
    )  # fmt: skip
    raise typer.Exit(plan_command(asked))


@app.command(epilog="Example: dynosim conformance scenarios/*.json --golden golden")
def conformance(
    scenarios: Annotated[list[Path], typer.Argument(help="Scenario files (JSON).")],
    golden: Annotated[
        Path | None, typer.Option(help="Folder of recorded answers with the same file names.")
    ] = None,
    json: AsJson = False,
) -> None:
    """Run scheduler scenarios; print their steps or compare them."""
    from dynosim.cli.conformance import main_command

    raise typer.Exit(main_command(scenarios, golden, json))


_VERIFY_EXAMPLE = (
    "Example: dynosim verify recordings --hardware rtx_pro_6000_server --to accuracy.md"
)


@app.command(epilog=_VERIFY_EXAMPLE)
def verify(
    paths: Annotated[
        list[Path],
        typer.Argument(help="Request logs, lists of experiments, throughput curves; or folders."),
    ],
    level: Annotated[
        str, typer.Option(help="What predictions are told, as in apriori,fitted.")
    ] = "apriori,capacity,fitted",
    model: Annotated[
        str | None, typer.Option(help="Model of logs whose set-up names none.")
    ] = None,
    hardware: Annotated[
        str | None, typer.Option(help="GPU of recordings whose set-up names none.")
    ] = None,
    engine_version: Annotated[
        str | None, typer.Option(help="Engine's version of experiments that state none.")
    ] = None,
    to: Annotated[
        Path | None, typer.Option(help="File for the matrix as a page (Markdown).")
    ] = None,
    before: Annotated[
        Path | None, typer.Option(help="An earlier --json, to stand beside it on the page.")
    ] = None,
    plots: Annotated[
        Path | None, typer.Option(help="Folder for pictures of throughput curves.")
    ] = None,
    remarks: Annotated[
        Path | None, typer.Option(help="Text (Markdown) that the page takes over.")
    ] = None,
    overwrite: Overwrite = False,
    json: AsJson = False,
    intervals: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Replays of each blind prediction for 95 % intervals; 0: none. 16 if not given.",
            show_default=False,
        ),
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Worker processes; one per core if not given.")
    ] = None,
) -> None:
    """Hold predictions against recorded runs of real engines."""
    _compute_in_one_thread()
    from dynosim.cli.verify import VerifyArguments, verify_command

    asked = VerifyArguments(
        paths=paths,
        level=level,
        model=model,
        hardware=hardware,
        engine_version=engine_version,
        to=to,
        before=before,
        remarks=remarks,
        plots=plots,
        overwrite=overwrite,
        as_json=json,
        intervals=intervals,
        jobs=jobs,
    )
    raise typer.Exit(verify_command(asked))


@app.command("plan-cases", epilog="Example: dynosim plan-cases silence --controller planner")
def plan_cases(
    scenarios: Annotated[
        list[str] | None, typer.Argument(help="Their names; all if none is given.")
    ] = None,
    controller: Annotated[
        str, typer.Option(help="Who scales, as in planner,hpa.")
    ] = "planner,hpa,keda",
    to: Annotated[
        Path | None, typer.Option(help="File for the verdicts as a page (Markdown).")
    ] = None,
    overwrite: Overwrite = False,
    json: AsJson = False,
    fail_if_any: FailIfAny = False,
) -> None:
    """Try planner, HPA and KEDA on scenarios from what users report."""
    _compute_in_one_thread()
    from dynosim.cli.plan_cases import ScenarioArguments, plan_cases_command

    asked = ScenarioArguments(
        names=scenarios or [],
        controllers=controller,
        to=to,
        overwrite=overwrite,
        as_json=json,
        fail_if_any=fail_if_any,
    )
    raise typer.Exit(plan_cases_command(asked))


@app.command("replay-log", epilog="Example: dynosim replay-log router.jsonl")
def replay_log(
    log: Annotated[Path, typer.Argument(help="Log of a router, or of who scales.")],
    json: AsJson = False,
) -> None:
    """Derive logged decisions again; show the first that differs."""
    from dynosim.cli.replay import replay_log_command

    raise typer.Exit(replay_log_command(log, as_json=json))


@app.command(epilog="Example: dynosim support --model Qwen/Qwen3-32B --hardware h200_sxm")
def support(
    what: Annotated[
        Literal["models", "hardware"] | None,
        typer.Argument(help="List what is known of these alone.", show_default=False),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Only this model.")] = None,
    hardware: Annotated[str | None, typer.Option(help="Only this hardware.")] = None,
    engine: Annotated[str | None, typer.Option(help="Only this engine.")] = None,
    json: AsJson = False,
) -> None:
    """List which step times are measured, derived or estimated.

    Without an option: how many combinations of hardware and engine each model has of each.
    """
    from dynosim.cli.support import hardware_command, models_command, support_command

    if what is None:
        support_command(model, hardware, engine, as_json=json)
    elif (model, hardware, engine) != (None, None, None):
        raise ConfigError(f"support {what}: takes no --model, --hardware or --engine (drop them)")
    else:
        (models_command if what == "models" else hardware_command)(as_json=json)


@app.command("trace", context_settings={"ignore_unknown_options": True})
def _trace() -> None:
    """Inspect, convert and generate traces."""


def _add_other_commands() -> None:
    from dynosim.cli.live import live_app
    from dynosim.cli.reference import reference_app

    app.add_typer(reference_app)
    app.add_typer(live_app)


_add_other_commands()


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code. Never raises for what a user can cause."""
    if arguments is None:
        gc.disable()  # imports make many objects and no garbage; what runs for long enables it
        atexit.register(gc.freeze)  # a last search for garbage would be for nothing
        if SHELL in os.environ:
            return _guarded(_complete)
    return _guarded(lambda: _invoke(arguments))


def _complete() -> int:
    from dynosim.cli.completion import answer

    return answer(_command(), os.environ[SHELL])


def _invoke(arguments: list[str] | None) -> int:
    # standalone_mode prints usage errors and turns typer.Exit into SystemExit
    _command()(args=arguments, prog_name="dynosim")
    return 0


@cache
def _command() -> Any:
    """All commands, put together once: a program that calls `main` often would wait for it."""
    return typer.main.get_command(app)


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
