"""A controller that runs: its driver, its log, its metrics, and what is told of it."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from dynosim.build.live_control import live_controller, pool_gpus
from dynosim.config import RunConfig
from dynosim.config.controllers import ScalingConfig
from dynosim.config.loading import resolved
from dynosim.decisionlog.files import FORMAT, KIND, DecisionLogHeader
from dynosim.decisionlog.rotating import DecisionLog, LoggedController
from dynosim.errors import ConfigError
from dynosim.planner.look import Look
from dynosim_runtime.planner.driver import ScalingDriver, StopWatch
from dynosim_runtime.planner.gauges import ControllerGauges, GaugesPage
from dynosim_runtime.planner.workforce import Workforce

log = logging.getLogger(__name__)

Status = dict[str, Any]


def check_scaled(plan: RunConfig) -> None:
    """Raises: ConfigError for a plan whose workers nobody can scale live."""
    if plan.cluster.cpu_workers:
        raise ConfigError(
            f"cluster.cpu_workers: {plan.cluster.cpu_workers}, but a controller scales workers "
            "that are alike (add --set cluster.cpu_workers=0)"
        )
    for key, value in _minimums(plan).items():
        if value == 0:
            raise ConfigError(
                f"{key}: 0, but requests do not wait at a live frontend while there is no worker, "
                f"so nobody would see them come (add --set {key}=1)"
            )


def _minimums(plan: RunConfig) -> dict[str, int | None]:
    found: dict[str, int | None] = {}
    if plan.planner is not None:
        for key in ("min_endpoint", "prefill_min_endpoint", "decode_min_endpoint"):
            found[f"planner.{key}"] = getattr(plan.planner, key)
    for name in ("hpa", "keda", "concurrency"):
        section = getattr(plan, name)
        if section is not None:
            found[f"{name}.min_replicas"] = section.min_replicas
    return found


@asynccontextmanager
async def control_session(
    plan: RunConfig,
    workforce: Workforce,
    *,
    url: str,
    watch: StopWatch,
    folder: Path,
    speedup: float,
    port: int = 0,
    advisory: bool = False,
    say: Callable[[str], None],
    tell: Callable[[Status], None],
) -> AsyncIterator[asyncio.Task[None]]:
    """Runs the plan's controller around a block of code; the task that does ends by defects only.

    `folder` takes its log, `port` shows its metrics. `tell` gets its status after every look.
    With `advisory` nothing is carried out. Raises: ConfigError for a folder or controller that
    cannot be; LiveError for a port in use.
    """
    header = DecisionLogHeader(FORMAT, KIND, resolved(plan), speedup)
    decisions = DecisionLog(
        folder,
        header,
        max_bytes=plan.live.router_log_mib << 20,
        max_files=plan.live.router_log_files,
    )
    controller = LoggedController(lambda: live_controller(plan, speedup), decisions)
    gauges = ControllerGauges(pool_gpus(plan))
    page = GaugesPage(gauges, port)

    def status() -> Status:
        return {
            **driver.status(),
            "is_advisory": is_advisory,
            "gpu_hours": round(gauges.gpu_hours, 6),
            "log": str(folder),
            "log_failure": decisions.failure,
            "metrics": page.url,
        }

    def heard(look: Look) -> None:
        gauges.note(look)
        tell(status())

    is_advisory = advisory or (plan.planner is not None and plan.planner.advisory)
    driver = ScalingDriver(
        controller,
        workforce,
        url=url,
        scaling=plan.scaling or ScalingConfig(),
        watch=watch,
        carries_out=not is_advisory,
        say=say,
        heard=heard,
    )
    running: asyncio.Task[None] | None = None
    try:
        await page.start()
        tell(status())
        running = asyncio.create_task(driver.run(), name="scaling")
        running.add_done_callback(lambda task: _tell_end(task, say))
        yield running
    finally:
        if running is not None:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
        await page.close()
        decisions.close()


def _tell_end(task: "asyncio.Task[None]", say: Callable[[str], None]) -> None:
    """A defect ends the controller, not the deployment: the workers stay as they are."""
    error = None if task.cancelled() else task.exception()
    if error is not None:
        log.error("the controller has failed", exc_info=error)
        say(f"the controller has failed, the workers stay as they are: {error!r}")
