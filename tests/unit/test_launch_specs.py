"""From a plan to the processes that make it up."""

from pathlib import Path
from typing import Any

import pytest

from dynosim.config import RunConfig
from dynosim.config.loading import run_config_from_dict
from dynosim_runtime.launch.specs import (
    DeployOptions,
    ProcessSpec,
    gpu_workers,
    process_specs,
    worker_engine,
)

OUT = Path("/deployments/a")


def plan(**sections: Any) -> RunConfig:
    return run_config_from_dict(
        {
            "workload": {"synthetic": {"requests": 1, "isl": 1, "osl": 1, "rate_rps": 1}},
            "timing": {"kind": "fixed", "prefill_ms": 1, "decode_ms": 1},
            "engine": {"num_gpu_blocks": 100},
            **sections,
        }
    )


def specs(config: RunConfig, *, gpus: tuple[str, ...] = (), **options: Any) -> list[ProcessSpec]:
    given = DeployOptions(out=OUT, **{"engine": "mock", "port": 0, **options})
    return process_specs(config, given, port=8000, gpus=gpus, dynosim=("dynosim",))


def test_mock_workers_and_a_frontend() -> None:
    first, second, frontend = specs(plan(cluster={"workers": 2}), speedup=10.0)
    place = ("/deployments/a/plan/config.yaml", "--discovery", "file:/deployments/a/discovery")
    serve = ("dynosim", "serve", "worker", *place)
    assert first.command == (*serve, "--name", "worker-0", "--engine", "mock", "--speedup", "10.0")
    assert (second.name, second.role, dict(second.environment)) == ("worker-1", "worker", {})
    assert frontend.command == (
        "dynosim", "serve", "frontend", *place, "--port", "8000", "--out", "/deployments/a",
    )  # fmt: skip
    assert frontend.port == 8000


def test_each_worker_is_told_its_place_in_turn() -> None:
    places = {"zone": ["a", "b"], "rack": ["r"]}
    config = plan(cluster={"workers": 3, "taints": ["x", "y"], "topology": places})
    *workers, frontend = specs(config)
    for worker, zone in zip(workers, ("a", "b", "a"), strict=True):
        told = worker.command[worker.command.index("--taint") : worker.command.index("--engine")]
        assert told == (
            "--taint", "x", "--taint", "y", "--topology", f"zone={zone}", "--topology", "rack=r",
        )  # fmt: skip
    assert "--taint" not in frontend.command


def test_model_and_python_are_handed_on() -> None:
    model, python = Path("/models/m"), Path("/venv/bin/python")
    worker, frontend = specs(plan(), engine="vllm-cpu", model=model, engine_python=python)
    assert worker.command[-8:] == (
        "--model", "/models/m", "--name", "worker-0", "--engine", "vllm-cpu",
        "--engine-python", "/venv/bin/python",
    )  # fmt: skip
    assert frontend.command[6:8] == ("--model", "/models/m")
    assert "--speedup" not in worker.command


def test_gpu_workers_see_their_gpus_and_cpu_workers_none_of_them() -> None:
    config = plan(
        cluster={"workers": 3, "cpu_workers": 1},
        engine={"num_gpu_blocks": 100, "tensor_parallel": 2},
    )
    workers = specs(config, engine="vllm", gpus=("0,1", "2,3"))[:3]
    devices = [worker.environment.get("CUDA_VISIBLE_DEVICES") for worker in workers]
    assert devices == ["0,1", "2,3", None]
    engines = [worker.command[worker.command.index("--engine") + 1] for worker in workers]
    assert engines == ["vllm", "vllm", "vllm-cpu"]


def test_simulated_cpu_workers_are_cpus_too() -> None:
    config = plan(cluster={"workers": 3, "cpu_workers": 1}, engine={"num_gpu_blocks": 100})
    workers = specs(config, engine="mock")[:3]
    engines = [worker.command[worker.command.index("--engine") + 1] for worker in workers]
    assert engines == ["mock", "mock", "mock-cpu"]


@pytest.mark.parametrize(
    ("engine", "expected"), [("mock", 0), ("vllm-cpu", 0), ("vllm", 3), ("sglang", 3)]
)
def test_who_needs_gpus(engine: Any, expected: int) -> None:
    config = plan(cluster={"workers": 4, "cpu_workers": 1})
    assert sum(number for number, _ in gpu_workers(config, engine)) == expected
    assert worker_engine(0, config, engine) == engine


@pytest.mark.parametrize(
    ("live", "expected"),
    [
        ({}, "file:/deployments/a/discovery"),
        ({"discovery_endpoint": "/shared"}, "file:/shared"),
        ({"discovery": "etcd", "discovery_endpoint": "h:2379"}, "etcd:h:2379"),
    ],
)
def test_where_the_processes_meet(live: dict[str, str], expected: str) -> None:
    for spec in specs(plan(live=live)):
        assert spec.command[spec.command.index("--discovery") + 1] == expected
