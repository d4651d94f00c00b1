"""A local deployment under the controller of its plan."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from dynosim.build.live_control import live_controller
from dynosim.config import RunConfig
from dynosim_runtime.launch.deployment import LocalDeployment
from dynosim_runtime.launch.specs import DeployOptions
from dynosim_runtime.launch.workforce import LocalWorkforce
from dynosim_runtime.planner.session import check_scaled, control_session

LOG_FOLDER = "decisions"


def decision_folder(out: Path) -> Path:
    """Where a deployment's controller keeps what it saw and decided."""
    return out / LOG_FOLDER


def check_control(plan: RunConfig, options: DeployOptions) -> None:
    """Raises: ConfigError if the plan has a controller that cannot run live."""
    if plan.is_scaled:
        check_scaled(plan)
        live_controller(plan, options.speedup)


@asynccontextmanager
async def controlled(
    deployment: LocalDeployment,
    plan: RunConfig,
    options: DeployOptions,
    say: Callable[[str], None],
) -> AsyncIterator[None]:
    """Runs the plan's controller around a block of code, where it has one.

    Raises: ConfigError, LiveError as `control_session` does.
    """

    def tell(status: dict[str, Any]) -> None:
        deployment.notes["control"] = status
        deployment.write_status()

    def say_and_log(text: str) -> None:
        deployment.say(text)
        say(text)

    async with AsyncExitStack() as stack:
        if plan.is_scaled:
            as_it_is = as_engines_are(plan, deployment)
            await stack.enter_async_context(
                control_session(
                    as_it_is,
                    LocalWorkforce(deployment, as_it_is),
                    url=deployment.url,
                    watch=deployment.watch,
                    folder=decision_folder(deployment.out),
                    speedup=options.speedup,
                    say=say_and_log,
                    tell=tell,
                )
            )
        yield


def as_engines_are(plan: RunConfig, deployment: LocalDeployment) -> RunConfig:
    """The plan with the KV blocks that real engines turned out to have."""
    if plan.cluster.is_disagg:
        return plan  # roles may differ: what the plan says of each counts
    blocks = [card.total_kv_blocks for card in deployment.cards().values()]
    known = [number for number in blocks if number is not None]
    if plan.engine.num_gpu_blocks != "auto" or not known:
        return plan
    engine = plan.engine.model_copy(update={"num_gpu_blocks": min(known) + 1})
    return plan.model_copy(update={"engine": engine})
