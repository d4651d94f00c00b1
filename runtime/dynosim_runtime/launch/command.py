"""`dynosim deploy`: a plan becomes running processes, until Ctrl-C."""

import asyncio
import gc
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import orjson

from dynosim.config import RunConfig
from dynosim.errors import EXIT_INTERRUPTED
from dynosim_runtime.config import load_plan
from dynosim_runtime.launch.control import check_control, controlled
from dynosim_runtime.launch.deployment import LocalDeployment
from dynosim_runtime.launch.display import StartProgress, show_control, show_processes
from dynosim_runtime.launch.options import deploy_options
from dynosim_runtime.launch.specs import DeployOptions, Engine, num_workers


def deploy(
    plan: Path,
    overrides: list[str],
    *,
    mock: bool,
    real: bool,
    target: str,
    out: Path | None,
    overwrite: bool,
    model: Path | None,
    engine: Engine | None,
    engine_python: Path | None,
    speedup: float,
    port: int | None,
    as_json: bool,
) -> int:
    """Run the plan until told to stop; returns 130 after Ctrl-C, 0 after SIGTERM.

    Raises: ConfigError for what cannot be deployed; LiveError for what does not come up.
    """
    config = load_plan(plan, overrides)
    options = deploy_options(
        config,
        plan,
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
    )
    check_control(config, options)
    gc.enable()  # short commands run without; this one may run for months
    return asyncio.run(_run(config, options, as_json=as_json))


async def _run(config: RunConfig, options: DeployOptions, *, as_json: bool) -> int:
    with StartProgress(num_workers(config) + 1) as progress:
        deployment = LocalDeployment(config, options, observe=progress.changed)
        serving = asyncio.create_task(
            _serve(deployment, config, options, progress, as_json=as_json)
        )
        received = _on_signals(serving, deployment, progress)
        try:
            await serving
        except asyncio.CancelledError:
            if not received:
                raise
        progress.say("everything is stopped")
        return 0 if received[0] is signal.SIGTERM else EXIT_INTERRUPTED


async def _serve(
    deployment: LocalDeployment,
    config: RunConfig,
    options: DeployOptions,
    progress: StartProgress,
    *,
    as_json: bool,
) -> None:
    async with deployment, controlled(deployment, config, options, progress.say):
        progress.settle()
        try:
            if as_json:
                sys.stdout.write(orjson.dumps(deployment.summary()).decode() + "\n")
            else:
                show_processes(deployment.url, deployment.out, deployment.processes)
                show_control(deployment.notes)
            sys.stdout.flush()
        except OSError as error:  # it serves, whoever is told of it
            progress.say(f"standard output: {error}")
        await deployment.wait()


def _on_signals(
    serving: asyncio.Task[None], deployment: LocalDeployment, progress: StartProgress
) -> list[signal.Signals]:
    """The first signal stops the deployment, another one kills it; returns those received."""
    received: list[signal.Signals] = []

    def handler(number: signal.Signals) -> Callable[[], None]:
        def handle() -> None:
            received.append(number)
            progress.settle()
            if len(received) == 1:
                progress.say("stopping; once more to kill what still runs")
                serving.cancel()
            else:
                progress.say("killing")
                deployment.kill()

        return handle

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, handler(number))
    return received
