"""Other names of keys: written by whoever knows AIConfigurator, read as ours."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from shared_data import ROOT

from dynosim.config import dump_run, load_run, load_sweep, run_config_from_dict
from dynosim.config.aliases import RUN_ALIASES, SWEEP_ALIASES
from dynosim.config.keys import all_keys
from dynosim.config.schema import RunConfig
from dynosim.config.sweep_schema import SweepKeys
from dynosim.errors import ConfigError

THEIRS = """\
model_path: Qwen/Qwen3-32B
system: h200_sxm
backend: vllm
backend_version: 0.12.0
isl: 4000
osl: 500
prefix: 1024
ttft: 600
tpot: 16.67
request_latency: 12000
workload: {synthetic: {requests: 10, rate_rps: 1}}
timing: {kind: aiconfigurator}
"""


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(THEIRS)
    return path


@pytest.fixture
def sweep_file(tmp_path: Path) -> Path:
    path = tmp_path / "sweep.yaml"
    path.write_text(THEIRS + "total_gpus: 8\nspace: {engine.tensor_parallel: [1, 2]}\n")
    return path


def refused(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_run(path, overrides)
    return str(caught.value)


def test_a_run_file_may_use_the_names_of_aiconfigurator(run_file: Path) -> None:
    config = load_run(run_file)
    assert (config.model, config.hardware) == ("Qwen/Qwen3-32B", "h200_sxm")
    assert config.timing.kind == "aiconfigurator"
    assert (config.timing.backend, config.timing.backend_version) == ("vllm", "0.12.0")
    assert config.sla is not None and config.sla.model_dump() == {
        "ttft_ms": 600,
        "itl_ms": 16.67,
        "e2e_ms": 12000,
    }
    synthetic = config.workload.synthetic
    assert synthetic is not None and synthetic.shared_prefix_tokens == 1024
    assert (synthetic.isl.mean, synthetic.osl.mean) == (4000, 500)


def test_the_resolved_file_has_our_names(run_file: Path) -> None:
    written = yaml.safe_load(dump_run(load_run(run_file)))
    assert not set(written) & set(RUN_ALIASES)
    assert run_config_from_dict(written).model_dump() == load_run(run_file).model_dump()


def test_a_sweep_file_has_the_same_names_and_the_gpus(sweep_file: Path) -> None:
    sweep = load_sweep(sweep_file, ["space.isl=[1000, 2000]", "tpot=20"])
    assert sweep.constraints.gpu_budget == 8
    assert sweep.constraints.sla is not None
    assert (sweep.constraints.sla.ttft_ms, sweep.constraints.sla.itl_ms) == (600, 20)
    assert [dimension.key for dimension in sweep.dimensions] == [
        "engine.tensor_parallel",
        "workload.synthetic.isl",
    ]
    assert "sla" not in sweep.base


def test_space_may_use_them_in_the_file(sweep_file: Path) -> None:
    text = sweep_file.read_text().replace("engine.tensor_parallel: [1, 2]", "osl: [100, 200]")
    sweep_file.write_text(text.replace("osl: 500\n", ""))
    assert [d.key for d in load_sweep(sweep_file).dimensions] == ["workload.synthetic.osl"]


def test_an_override_may_use_them(run_file: Path) -> None:
    config = load_run(run_file, ["ttft=700", "isl={dist: normal, mean: 9, std: 1}", "isl.mean=8"])
    assert config.sla is not None and config.sla.ttft_ms == 700
    assert config.workload.synthetic is not None
    assert (config.workload.synthetic.isl.dist, config.workload.synthetic.isl.mean) == ("normal", 8)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("hardware: b200_sxm", "run.yaml:2: system: given beside hardware, which it stands for"),
        ("system_name: b200_sxm", ": system_name: given beside hardware"),
        ("sla: {ttft_ms: 5}", "run.yaml:8: ttft: given beside sla.ttft_ms"),
        ("sla: {itl: 5}", ": sla.itl: given beside sla.itl_ms"),
        ("sla: 5", "ttft: stands for sla.ttft_ms, but sla is no section of keys"),
    ],
)
def test_both_names_are_one_too_many(run_file: Path, line: str, message: str) -> None:
    run_file.write_text(THEIRS + line + "\n")
    assert message in refused(run_file)


def test_a_bad_value_is_told_where_it_was_written(run_file: Path) -> None:
    run_file.write_text(THEIRS.replace("tpot: 16.67", "tpot: fast"))
    assert 'run.yaml:9: sla.itl_ms: expected a number, got "fast"' in refused(run_file)
    assert "--set isl: workload.synthetic.isl" in refused(run_file, "isl=-1")


def test_the_gpus_of_a_run_file_are_explained(run_file: Path) -> None:
    message = refused(run_file, "total_gpus=8")
    assert "in a sweep file it stands for constraints.gpu_budget" in message


def test_data_of_the_caller_stays_as_it_was() -> None:
    data: dict[str, Any] = yaml.safe_load(THEIRS)
    before = yaml.safe_load(THEIRS)
    run_config_from_dict(data)
    assert data == before


@pytest.mark.parametrize("name", ["gb200_sxm", "mi300"])
def test_names_of_hardware_are_those_of_the_sheets(run_file: Path, name: str) -> None:
    run_file.write_text(THEIRS.replace("h200_sxm", name))
    assert load_run(run_file).hardware == name.replace("_sxm", "").replace("mi300", "mi300x")
    assert load_run(run_file, ["system=h20"]).hardware == "h20"
    assert load_run(run_file, [f"hardware={name}"]) == load_run(run_file)


def test_names_of_hardware_may_vary(sweep_file: Path) -> None:
    sweep = load_sweep(sweep_file, ["space.system=[gb200_sxm, h20]"])
    assert sweep.dimensions[1].values == ("gb200", "h20")
    sweep = load_sweep(sweep_file, ["space.system={choices: [gb200_sxm]}"])
    assert sweep.dimensions[1].values == ("gb200",)


def test_every_alias_stands_for_a_key_and_is_none() -> None:
    keys = set(all_keys(RunConfig))
    assert set(RUN_ALIASES.values()) <= keys and not set(RUN_ALIASES) & keys
    keys |= set(all_keys(SweepKeys))
    assert set(SWEEP_ALIASES.values()) <= keys and not set(SWEEP_ALIASES) & keys


def test_the_page_has_every_other_name() -> None:
    page = (ROOT / "docs" / "keys.md").read_text()
    names = [alias.removeprefix("constraints.") for alias in SWEEP_ALIASES]
    assert [name for name in names if f"`{name}`" not in page] == []


def test_a_planner_may_be_told_in_seconds_and_in_plain_words(run_file: Path) -> None:
    said = "{target: sla, interval_s: 60, load_interval_s: 10, min_replicas: 2, max_gpus: 16}"
    run_file.write_text(THEIRS + f"planner: {said}\n")
    planner = load_run(run_file).planner
    assert planner is not None and planner.model_dump(exclude_unset=True) == {
        "optimization_target": "sla",
        "throughput_adjustment_interval_ms": 60_000.0,
        "load_adjustment_interval_ms": 10_000.0,
        "min_endpoint": 2,
        "max_gpu_budget": 16,
    }
    run_file.write_text(THEIRS + "planner: {interval_s: soon}\n")
    assert "throughput_adjustment_interval_ms: expected a number" in refused(run_file)
