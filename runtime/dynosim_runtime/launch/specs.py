"""From a plan to the processes that make it up. Pure: nothing is started or looked up here."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from dynosim.config import RunConfig
from dynosim.config.cluster import POOL_ROLES
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
    common: tuple[str, ...] = (
        str(options.plan_file),
        "--discovery",
        deployment_discovery(plan, options.out),
    )
    if options.model is not None:
        common += ("--model", str(options.model))
    workers = [
        ProcessSpec(
            name=name,
            role="worker",
            command=(*dynosim, "serve", "worker", *common, "--name", name, *given),
            environment={"CUDA_VISIBLE_DEVICES": gpus[index]} if index < len(gpus) else {},
        )
        for index, (name, given) in enumerate(_workers(plan, options))
    ]
    out = ("--port", str(port), "--out", str(options.out))
    frontend = (*dynosim, "serve", "frontend", *common, *out)
    return [
        *workers,
        ProcessSpec(
            name=FRONTEND, role="frontend", command=frontend, port=port, environment=silenced()
        ),
    ]


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
    """The engine of a worker: the last `cluster.cpu_workers` run on CPUs, simulated or real."""
    is_on_cpu = index >= plan.cluster.workers - plan.cluster.cpu_workers
    return f"{engine}-cpu" if is_on_cpu and engine in ("mock", "vllm") else engine


def _workers(plan: RunConfig, options: DeployOptions) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The name of each worker, and what its command is given."""
    if not plan.cluster.is_disagg:
        for index in range(plan.cluster.workers):
            engine = worker_engine(index, plan, options.engine)
            given = (*place_options(plan, index, None), *_worker_options(engine, options))
            yield f"worker-{index}", given
        return
    for role in POOL_ROLES:
        for index in range(plan.cluster.pool(role).workers):
            places = place_options(plan, index, role)
            given = ("--role", role, *places, *_worker_options(options.engine, options))
            yield f"{role}-{index}", given


def _worker_options(engine: str, options: DeployOptions) -> tuple[str, ...]:
    given: tuple[str, ...] = ("--engine", engine)
    if options.engine == "mock":
        return (*given, "--speedup", str(options.speedup))
    if options.engine_python is not None:
        given += ("--engine-python", str(options.engine_python))
    return given
