"""From a plan to the processes that make it up. Pure: nothing is started or looked up here."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from dynosim.config import RunConfig
from dynosim.config.cluster import POOL_ROLES, PoolRole
from dynosim.config.engine import EngineConfig
from dynosim.router.dynamo_names import silenced
from dynosim_runtime.discovery.make import discovery_spec
from dynosim_runtime.launch.places import place_options

Engine = Literal["mock", "vllm", "vllm-cpu", "sglang", "trtllm"]
GPU_ENGINES = ("vllm", "sglang", "trtllm")
FRONTEND = "frontend"
DYNOSIM = (sys.executable, "-m", "dynosim")  # how the command is called


@dataclass(frozen=True, slots=True, kw_only=True)
class DeployOptions:
    """What is not in the plan: where and with which engine it runs. Made by `deploy_options`."""

    out: Path
    engine: Engine
    port: int  # of the frontend; 0: any free one
    model: Path | None = None
    engine_python: Path | None = None
    speedup: float = 1.0  # of mock workers

    @property
    def plan_file(self) -> Path:
        """The plan as it runs: defaults and overrides written out."""
        return self.out / "plan" / "config.yaml"

    def log_file(self, name: str) -> Path:
        """Where a process's output goes."""
        return self.out / "logs" / f"{name}.log"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessSpec:
    """One process to be kept running."""

    name: str
    role: Literal["frontend", "worker"]
    command: tuple[str, ...]
    port: int | None = None
    environment: Mapping[str, str] = field(default_factory=dict)  # on top of ours


def process_specs(
    plan: RunConfig,
    options: DeployOptions,
    *,
    port: int,
    gpus: Sequence[str] = (),
    dynosim: Sequence[str] = DYNOSIM,
) -> list[ProcessSpec]:
    """The workers and the frontend on `port`.

    `gpus` has the CUDA_VISIBLE_DEVICES of each GPU worker; `dynosim` is how the command is called.
    """
    workers = [
        worker_spec(
            plan,
            options,
            role,
            index,
            gpus=gpus[number] if number < len(gpus) else None,
            dynosim=dynosim,
        )
        for number, (role, index) in enumerate(_workers(plan))
    ]
    out = ("--port", str(port), "--out", str(options.out))
    frontend = (*dynosim, "serve", "frontend", *_common(plan, options), *out)
    return [
        *workers,
        ProcessSpec(
            name=FRONTEND, role="frontend", command=frontend, port=port, environment=silenced()
        ),
    ]


def worker_spec(
    plan: RunConfig,
    options: DeployOptions,
    role: PoolRole | None,
    index: int,
    *,
    gpus: str | None = None,
    dynosim: Sequence[str] = DYNOSIM,
) -> ProcessSpec:
    """One worker; `index` counts those of its role, None in a plan without roles."""
    name = worker_name(role, index)
    engine = worker_engine(index, plan, options.engine) if role is None else options.engine
    given = (*place_options(plan, index, role), *_worker_options(engine, options))
    if role is not None:
        given = ("--role", role, *given)
    return ProcessSpec(
        name=name,
        role="worker",
        command=(*dynosim, "serve", "worker", *_common(plan, options), "--name", name, *given),
        environment={} if gpus is None else {"CUDA_VISIBLE_DEVICES": gpus},
    )


def worker_name(role: PoolRole | None, index: int) -> str:
    """What a worker is called; see `worker_spec`."""
    return f"{role or 'worker'}-{index}"


def gpu_workers(plan: RunConfig, engine: Engine) -> list[tuple[int, EngineConfig]]:
    """Workers that need GPUs of their own, by kind: how many, and their engine."""
    if engine not in GPU_ENGINES:
        return []
    parts = plan.pools()
    return [(part.cluster.workers - part.cluster.cpu_workers, part.engine) for part in parts]


def num_workers(plan: RunConfig) -> int:
    """Workers of all kinds."""
    return sum(part.cluster.workers for part in plan.pools())


def deployment_discovery(plan: RunConfig, out: Path) -> str:
    """Where the processes meet: a folder of the deployment, unless the plan names a place."""
    if plan.live.discovery == "file" and plan.live.discovery_endpoint is None:
        return f"file:{out / 'discovery'}"
    return discovery_spec(plan.live)


def worker_engine(index: int, plan: RunConfig, engine: Engine) -> str:
    """The engine of a worker: the last `cluster.cpu_workers` run on CPUs, simulated or real.

    Those launched later do not.
    """
    workers = plan.cluster.workers
    is_on_cpu = workers - plan.cluster.cpu_workers <= index < workers
    return f"{engine}-cpu" if is_on_cpu and engine in ("mock", "vllm") else engine


def _workers(plan: RunConfig) -> Iterator[tuple[PoolRole | None, int]]:
    """Role and number of each worker."""
    if not plan.cluster.is_disagg:
        yield from ((None, index) for index in range(plan.cluster.workers))
        return
    for role in POOL_ROLES:
        yield from ((role, index) for index in range(plan.cluster.pool(role).workers))


def _common(plan: RunConfig, options: DeployOptions) -> tuple[str, ...]:
    """What every process is given."""
    discovery = deployment_discovery(plan, options.out)
    common = (str(options.plan_file), "--discovery", discovery)
    return common if options.model is None else (*common, "--model", str(options.model))


def _worker_options(engine: str, options: DeployOptions) -> tuple[str, ...]:
    given: tuple[str, ...] = ("--engine", engine)
    if options.engine == "mock":
        return (*given, "--speedup", str(options.speedup))
    if options.engine_python is not None:
        given += ("--engine-python", str(options.engine_python))
    return given
