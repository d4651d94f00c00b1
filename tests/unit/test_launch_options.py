"""What a user can ask of `dynosim deploy` wrongly: one message, before anything starts."""

import sys
from pathlib import Path
from typing import Any

import pytest

from dynosim.config import RunConfig, load_run
from dynosim.errors import ConfigError
from dynosim_runtime.launch.options import check_engine_installed, deploy_options
from dynosim_runtime.launch.specs import DeployOptions

RUN = """\
workload: {synthetic: {requests: 1, isl: 1, osl: 1, rate_rps: 1}}
timing: {kind: fixed, prefill_ms: 1, decode_ms: 1}
engine: {num_gpu_blocks: 100}
live: {port: 8123}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(RUN)
    for name, file in (("weights", "model.safetensors"), ("described", "README.md")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / file).write_text("")
    return tmp_path


def options(**given: Any) -> DeployOptions:
    path = Path("run.yaml")
    config: RunConfig = load_run(path, given.pop("overrides", []))
    return deploy_options(config, path, **{"mock": False, "real": False, **given})


def test_what_is_not_said_comes_from_the_plan(folder: Path) -> None:
    found = options(mock=True)
    assert (found.engine, found.port, found.model) == ("mock", 8123, None)
    assert found.out == folder / "deployments" / "run"
    assert options(mock=True, overrides=["name=a/b"]).out == folder / "deployments" / "a-b"


def test_what_is_said_wins(folder: Path) -> None:
    found = options(mock=True, port=0, out=Path("there"), model=Path("weights"), speedup=4.0)
    assert (found.port, found.out, found.speedup) == (0, folder / "there", 4.0)
    assert found.model == folder / "weights"


def test_a_real_engine_on_a_cpu(folder: Path) -> None:
    given: dict[str, Any] = {"real": True, "engine": "vllm-cpu"}
    found = options(**given, model=Path("weights"), engine_python=Path("bin/python"))
    assert (found.engine, found.engine_python) == ("vllm-cpu", folder / "bin" / "python")
    assert options(**given, overrides=["model=./weights"]).model == folder / "weights"


CPU = {"real": True, "engine": "vllm-cpu"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "give either --mock"),
        ({"mock": True, "real": True}, "give either --mock"),
        ({"mock": True, "target": "k8s"}, "--target k8s: only local is there; .* comes later"),
        ({"mock": True, "engine": "vllm"}, "--mock --engine vllm: these contradict each other"),
        ({"real": True, "engine": "mock"}, "--real --engine mock: these contradict each other"),
        ({"real": True, "engine": "tgi"}, "--engine tgi: expected mock, vllm"),
        ({"mock": True, "speedup": 0.0}, "--speedup 0: expected a number above 0"),
        ({"mock": True, "speedup": float("nan")}, "--speedup nan: expected"),
        ({**CPU, "speedup": 2.0}, "--speedup 2: only simulated engines"),
        (CPU, "--engine vllm-cpu needs --model DIR"),
        ({**CPU, "overrides": ["model=Qwen/Qwen3-32B"]}, "--engine vllm-cpu needs --model DIR"),
        (
            {**CPU, "overrides": ["model=weights"]},
            r"model: weights counts as a name; as a folder it is \./weights",
        ),
        ({**CPU, "model": Path("nowhere")}, "model nowhere: no config.json there"),
        ({"mock": True, "model": Path("nowhere")}, "model nowhere: no config.json there"),
        ({**CPU, "model": Path("described")}, "described: no weights there"),
        (
            {"real": True, "engine": "sglang", "overrides": ["cluster.cpu_workers=1"]},
            "cluster.cpu_workers: sglang runs on GPUs only",
        ),
        ({"real": True}, "--engine vllm needs --model DIR"),
        (
            {"mock": True, "overrides": ["engine.data_parallel=2"]},
            "engine.data_parallel: 2, but live engines are started with one rank .*2 times as many",
        ),
        ({"mock": True, "out": Path("run.yaml")}, "--out .*run.yaml is a file"),
    ],
)
def test_bad_requests_are_refused(folder: Path, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        options(**given)


def python_without_engines(folder: Path) -> Path:
    python = folder / "python-without-engines"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
    python.chmod(0o755)
    return python


def test_an_engine_that_is_not_installed_is_refused(folder: Path) -> None:
    python = python_without_engines(folder)
    with pytest.raises(ConfigError, match=r"--engine vllm-cpu: .* has no vllm .*--engine-python"):
        check_engine_installed(options(**CPU, model=Path("weights"), engine_python=python))


def test_a_python_that_is_not_there_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"--engine-python .*no/python"):
        check_engine_installed(
            options(**CPU, model=Path("weights"), engine_python=Path("no/python"))
        )


def test_an_engine_that_is_installed_is_accepted(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "vllm.py").write_text("")
    monkeypatch.setenv("PYTHONPATH", str(folder))
    check_engine_installed(options(**CPU, model=Path("weights")))
