"""The commands of the live layer: their arguments here, their work in `dynosim_runtime`.

That package is found through entry points, so that the twin never imports it; where what it needs
is not installed, the message says how to install it.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from dynosim.cli.dynamo_flags import WithLiveFlags
from dynosim.cli.help_groups import GroupedCommands
from dynosim.cli.options import AsJson, Overrides, Overwrite, PlanFile
from dynosim.errors import ConfigError

live_app = typer.Typer(no_args_is_help=True)
serve_app = typer.Typer(
    cls=GroupedCommands, no_args_is_help=True, help="Run a single live process in the foreground."
)
live_app.add_typer(serve_app, name="serve")

ModelDir = Annotated[
    Path | None, typer.Option("--model", help="Folder of the model, in place of the plan's.")
]
LiveEngine = Annotated[
    Literal["mock", "mock-cpu", "vllm", "vllm-cpu", "sglang", "trtllm"] | None,
    typer.Option("--engine", help="What runs the workers; the plan's own kind if not given."),
]
Speedup = Annotated[
    float, typer.Option(help="Mock workers run so many times faster than the step times say.")
]
Discovery = Annotated[
    str | None,
    typer.Option(help="file:DIR, etcd:HOST:PORT or kubernetes:NAMESPACE; the plan's otherwise."),
]
EnginePython = Annotated[
    Path | None, typer.Option(help="Python of the environment that has the engine installed.")
]


def _live(name: str) -> Callable[..., Any]:
    """A function of the live layer. Raises: ConfigError if the layer is not installed."""
    from importlib.metadata import entry_points

    for entry_point in entry_points(group="dynosim.live", name=name):
        try:
            function: Callable[..., Any] = entry_point.load()
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"the live layer needs {error.name}: pip install 'dynosim[runtime]'"
            ) from None
        return function
    raise ConfigError("the live layer is not installed: pip install 'dynosim[runtime]'")


@live_app.command(
    cls=WithLiveFlags,
    epilog="Example: dynosim deploy results/qwen/agg/top1 --mock --speedup 10",
)
def deploy(
    plan: PlanFile,
    mock: Annotated[bool, typer.Option("--mock", help="Simulated engines in real time.")] = False,
    real: Annotated[bool, typer.Option("--real", help="Real engines.")] = False,
    set_: Overrides = None,
    target: Annotated[str, typer.Option(help="Where to: local.")] = "local",
    out: Annotated[
        Path | None, typer.Option(help="Folder for logs and records; deployments/NAME if not given")
    ] = None,
    overwrite: Overwrite = False,
    model: ModelDir = None,
    engine: LiveEngine = None,
    engine_python: EnginePython = None,
    speedup: Speedup = 1.0,
    port: Annotated[int | None, typer.Option(help="Port of the frontend; 0: any.")] = None,
    json: AsJson = False,
) -> None:
    """Start frontend and workers of a plan; Ctrl-C stops them."""
    raise typer.Exit(
        _live("deploy")(
            plan,
            set_ or [],
            mock=mock,
            real=real,
            target=target,
            out=out,
            overwrite=overwrite,
            model=model,
            engine=engine,
            engine_python=engine_python,
            speedup=speedup,
            port=port,
            as_json=json,
        )
    )


@live_app.command(epilog="Example: dynosim validate results/qwen/agg/top1 --url http://HOST:PORT")
def validate(
    plan: PlanFile,
    url: Annotated[
        str | None, typer.Option(help="A running deployment; one is started if not given.")
    ] = None,
    set_: Overrides = None,
    trace: Annotated[Path | None, typer.Option(help="Workload, in place of the plan's.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for records and the report.")] = None,
    overwrite: Overwrite = False,
    mock: Annotated[bool, typer.Option("--mock", help="Start simulated engines.")] = False,
    real: Annotated[bool, typer.Option("--real", help="Start real engines.")] = False,
    model: ModelDir = None,
    engine: LiveEngine = None,
    engine_python: EnginePython = None,
    speedup: Speedup = 1.0,
    warmup: Annotated[int, typer.Option(min=0, help="Requests sent before, not counted.")] = 40,
    aiperf: Annotated[
        Path | None, typer.Option(help="Results exported by AIPerf, in place of a load.")
    ] = None,
    intervals: Annotated[
        int, typer.Option(min=0, help="Replays for 95 % intervals of predictions; 0: none.")
    ] = 16,
    json: AsJson = False,
) -> None:
    """Load a deployment; compare measured with predicted."""
    raise typer.Exit(
        _live("validate")(
            plan,
            set_ or [],
            url=url,
            trace=trace,
            out=out,
            overwrite=overwrite,
            mock=mock,
            real=real,
            model=model,
            engine=engine,
            engine_python=engine_python,
            speedup=speedup,
            warmup=warmup,
            aiperf=aiperf,
            as_json=json,
            intervals=intervals,
        )
    )


@live_app.command(epilog="Example: dynosim calibrate --url http://127.0.0.1:8100 --out timing.json")
def calibrate(
    out: Annotated[Path, typer.Option(help="Where to write the step-time model.")],
    overwrite: Overwrite = False,
    url: Annotated[str | None, typer.Option(help="A live engine's server to measure.")] = None,
    measurements: Annotated[
        Path | None, typer.Option(help="Log of requests that a real engine has served.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Model, for a prior and for the live engine's tokenizer.")
    ] = None,
    hardware: Annotated[str | None, typer.Option(help="For a prior; cpu: any CPU.")] = None,
    fit_fraction: Annotated[
        float, typer.Option(min=0.05, max=1.0, help="Leading part of the log to fit on.")
    ] = 0.7,
    num_gpu_blocks: Annotated[
        int | None, typer.Option(help="KV blocks of the engine, if the log does not say.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Write a fit that does not explain its own requests.")
    ] = False,
    json: AsJson = False,
) -> None:
    """Fit step times to a live engine, or to the log of its requests."""
    if (url is None) == (measurements is None):
        raise ConfigError("calibrate: give either --url or --measurements")
    if url is not None:
        raise typer.Exit(
            _live("calibrate_url")(url, out=out, overwrite=overwrite, model=model, as_json=json)
        )
    assert measurements is not None
    from dynosim.cli.fit import calibrate_measurements

    raise typer.Exit(
        calibrate_measurements(
            measurements,
            out=out,
            overwrite=overwrite,
            model=model,
            hardware=hardware,
            fit_fraction=fit_fraction,
            num_gpu_blocks=num_gpu_blocks,
            as_json=json,
            force=force,
        )
    )


@live_app.command(epilog="Example: dynosim rank results/qwen measured.jsonl")
def rank(
    predicted: Annotated[
        Path,
        typer.Argument(
            help="Predictions: a sweep's folder or table, a folder of runs, or JSON lines."
        ),
    ],
    measured: Annotated[
        Path, typer.Argument(help="Measurements by the same names (trial numbers, top1, folders).")
    ],
    metric: Annotated[
        str, typer.Option(help="The key to rank by, in both.")
    ] = "output_throughput_tok_s",
    lower_is_better: Annotated[bool, typer.Option("--lower-is-better", help="For times.")] = False,
    json: AsJson = False,
) -> None:
    """Tell whether predictions rank layouts as measurements do.

    Kendall's tau, and how much worse the layout is that the prediction chooses (regret).
    """
    from dynosim.cli.fit import rank as rank_command

    raise typer.Exit(
        rank_command(
            predicted, measured, metric=metric, lower_is_better=lower_is_better, as_json=json
        )
    )


@live_app.command("tiny-model", epilog="Example: dynosim tiny-model models/tiny")
def tiny_model(
    folder: Annotated[Path, typer.Argument(help="Where to write it.")],
    layers: Annotated[int, typer.Option(min=1, help="Transformer layers.")] = 4,
    hidden: Annotated[int, typer.Option(min=64, help="Width; a multiple of 32.")] = 256,
    seed: Annotated[int, typer.Option(help="Of the random weights.")] = 0,
    overwrite: Overwrite = False,
    json: AsJson = False,
) -> None:
    """Write a small random model, for machines without GPUs."""
    raise typer.Exit(
        _live("tiny_model")(
            folder, layers=layers, hidden=hidden, seed=seed, overwrite=overwrite, as_json=json
        )
    )


@serve_app.command(
    "frontend",
    cls=WithLiveFlags,
    epilog="Example: dynosim serve frontend run.yaml --port 8000",
)
def serve_frontend(
    plan: PlanFile,
    set_: Overrides = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0: any.")] = None,
    discovery: Discovery = None,
    model: ModelDir = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the router log and request records.")
    ] = None,
) -> None:
    """The OpenAI-compatible HTTP server with the router inside."""
    raise typer.Exit(
        _live("serve_frontend")(
            plan, set_ or [], host=host, port=port, discovery=discovery, model=model, out=out
        )
    )


@serve_app.command("worker", epilog="Example: dynosim serve worker run.yaml --engine mock")
def serve_worker(
    plan: PlanFile,
    set_: Overrides = None,
    name: Annotated[str, typer.Option(help="Unique name of this worker.")] = "worker-0",
    engine: LiveEngine = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port of the engine's HTTP server; 0: any.")] = 0,
    discovery: Discovery = None,
    model: ModelDir = None,
    engine_python: EnginePython = None,
    attach: Annotated[str | None, typer.Option(help="URL of an engine that runs already.")] = None,
    speedup: Speedup = 1.0,
    taint: Annotated[
        list[str] | None, typer.Option(help="A label that requests may require or prefer.")
    ] = None,
    topology: Annotated[
        list[str] | None,
        typer.Option(metavar="DOMAIN=VALUE", help="Where it is, as in zone=a."),
    ] = None,
    role: Annotated[
        Literal["agg", "prefill", "decode"],
        typer.Option(help="Its part in a plan with cluster.mode: disagg."),
    ] = "agg",
) -> None:
    """One engine: simulated in real time, or real.

    A real one is launched, or attached to.
    """
    raise typer.Exit(
        _live("serve_worker")(
            plan,
            set_ or [],
            name=name,
            engine=engine,
            host=host,
            port=port,
            discovery=discovery,
            model=model,
            engine_python=engine_python,
            attach=attach,
            speedup=speedup,
            taints=taint or [],
            topology=topology or [],
            role=role,
        )
    )


@serve_app.command(
    "planner",
    epilog="Example: dynosim serve planner run.yaml --url http://127.0.0.1:8000 --out advice",
)
def serve_planner(
    plan: PlanFile,
    url: Annotated[str, typer.Option(help="The frontend whose metrics it reads.")],
    set_: Overrides = None,
    discovery: Discovery = None,
    out: Annotated[Path, typer.Option(help="Folder for its decisions.")] = Path("decisions"),
    port: Annotated[int, typer.Option(help="Port of its own metrics; 0: any.")] = 0,
    speedup: Speedup = 1.0,
) -> None:
    """Advise on the size of a deployment, by the plan's controller."""
    raise typer.Exit(
        _live("serve_planner")(
            plan,
            set_ or [],
            url=url,
            discovery=discovery,
            out=out,
            port=port,
            speedup=speedup,
        )
    )
