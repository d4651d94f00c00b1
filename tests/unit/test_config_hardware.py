"""`hardware`: a name, or a section that also states the link between a worker's GPUs."""

import pickle
from pathlib import Path
from typing import Any

import pytest

from dynosim.config.loading import dump_run, load_run, resolved, run_config_from_dict
from dynosim.config.minimal import minimal
from dynosim.config.schema import RunConfig
from dynosim.config.sweep_loading import load_sweep
from dynosim.errors import ConfigError

BASE: dict[str, Any] = {
    "model": "Qwen/Qwen3-32B",
    "hardware": "h100_sxm",
    "workload": {"synthetic": {"isl": 8, "osl": 8, "requests": 2, "rate_rps": 1}},
    "engine": {"tensor_parallel": 2},
    "timing": {"kind": "roofline"},
}


def config_of(hardware: Any, **changes: Any) -> RunConfig:
    return run_config_from_dict({**BASE, "hardware": hardware, **changes})


def test_a_name_is_a_name() -> None:
    config = config_of("h100_sxm")
    assert config.hardware == config.hardware_source == "h100_sxm"
    assert config.link_gb_per_s is None
    assert resolved(config)["hardware"] == minimal(config)["hardware"] == "h100_sxm"


@pytest.mark.parametrize(
    ("section", "rate"),
    [
        ({"name": "h100_sxm", "link_gb_s": 64}, 64.0),
        ({"name": "h100_sxm", "link": "pcie_gen5"}, 64.0),
        ({"name": "h100_sxm", "link": "nvlink3"}, 300.0),
        ({"name": "h100_sxm"}, None),
    ],
)
def test_a_section_is_read_as_its_name_and_knows_its_link(
    section: dict[str, Any], rate: float | None
) -> None:
    config = config_of(section)
    assert config.hardware == config.hardware_source == "h100_sxm"
    assert f"{config.hardware}" == "h100_sxm" and {"h100_sxm": 1}[config.hardware] == 1
    assert config.link_gb_per_s == rate
    copy = pickle.loads(pickle.dumps(config))
    assert (copy.hardware, copy.link_gb_per_s) == ("h100_sxm", rate)


def test_what_is_written_says_the_same_again(tmp_path: Path) -> None:
    config = config_of({"name": "h100_sxm", "link": "pcie_gen4"})
    path = tmp_path / "run.yaml"
    path.write_text(dump_run(config))
    again = load_run(path)
    assert again.link_gb_per_s == 32.0
    assert minimal(again) == minimal(config)
    assert minimal(config)["hardware"] == {"name": "h100_sxm", "link": "pcie_gen4"}


@pytest.mark.parametrize(
    ("hardware", "message"),
    [
        (
            {"name": "h100_sxm", "link_gb_s": 0},
            "hardware.link_gb_s: a link of 0 GB/s moves nothing",
        ),
        ({"name": "h100_sxm", "link_gb_s": -64}, "a link of -64 GB/s moves nothing"),
        ({"name": "h100_sxm", "link_gb_s": "fast"}, "hardware.link_gb_s: expected a number"),
        ({"name": "h100_sxm", "link": "nvlink9"}, "did you mean nvlink5"),
        ({"name": "h100_sxm", "link": "nvlink4", "link_gb_s": 1}, "hardware.link: given beside"),
        ({"name": "h100_sxm", "speed": 1}, "hardware.speed: unknown key"),
        ({"link_gb_s": 64}, "hardware.name: missing"),
        (64, "hardware: expected text, got 64"),
    ],
)
def test_what_cannot_be_is_refused_by_its_key(hardware: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config_of(hardware)
    assert message in str(caught.value)


def run_file(folder: Path, hardware: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(
        f"model: Qwen/Qwen3-32B\nhardware: {hardware}\ntiming: {{kind: roofline}}\n"
        "engine: {tensor_parallel: 2}\n"
        "workload: {synthetic: {isl: 8, osl: 8, requests: 2, rate_rps: 1}}\n"
    )
    return path


def test_a_link_can_be_set_beside_a_plain_name(tmp_path: Path) -> None:
    path = run_file(tmp_path, "h100_sxm")
    config = load_run(path, ["hardware.link_gb_s=64"])
    assert (config.hardware, config.link_gb_per_s) == ("h100_sxm", 64.0)
    config = load_run(path, ["hardware.link=nvlink4", "hardware.name=h200_sxm"])
    assert (config.hardware, config.link_gb_per_s) == ("h200_sxm", 450.0)
    section = run_file(tmp_path, "{name: h100_sxm, link_gb_s: 64}")
    assert load_run(section, ["hardware=h200_sxm"]).link_gb_per_s is None
    assert load_run(section, ["hardware.name=gb200_sxm"]).hardware == "gb200"  # the sheet's name


def test_a_sweep_may_vary_the_link_of_a_plain_name(tmp_path: Path) -> None:
    path = run_file(tmp_path, "h100_sxm")
    path.write_text(path.read_text() + "space: {hardware.link_gb_s: [64, 450]}\n")
    sweep = load_sweep(path)
    (dimension,) = sweep.dimensions
    points = [
        run_config_from_dict(sweep.point_data({dimension.key: value}))
        for value in dimension.samples()
    ]
    assert [(one.hardware, one.link_gb_per_s) for one in points] == [
        ("h100_sxm", 64.0),
        ("h100_sxm", 450.0),
    ]


def test_a_data_sheet_is_found_where_the_run_file_lies(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("memory_gib: 80\n")
    path = run_file(tmp_path, "{name: mine.yaml, link_gb_s: 64}")
    config = load_run(path)
    assert config.hardware_source == str(tmp_path / "mine.yaml")
    assert resolved(config)["hardware"]["name"] == str(tmp_path / "mine.yaml")


@pytest.mark.parametrize(
    ("version", "message"),
    [
        ("abc", "engine.version: expected a version such as 0.19.0"),
        ("0.99.0", "engine.version: there is no vLLM 0.99.0"),
        ("0.5.0", "engine.version: 0.5.0 is older"),
        (0.13, 'write "0.13" or 0.13.0'),
    ],
)
def test_a_version_that_cannot_be_is_refused(version: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config_of("h100_sxm", engine={"version": version})
    assert message in str(caught.value)


def test_the_link_bears_on_the_roofline() -> None:
    from dynosim.build.engine import prepare
    from dynosim.timing.step import StepShape

    step = StepShape.of_prompts(1, 2048)
    usual, slow = (
        prepare(config_of(hardware)).timing.step_ms(step)
        for hardware in ("h100_sxm", {"name": "h100_sxm", "link_gb_s": 16})
    )
    moved = (2 * 64 + 1) * 2048 * 5120 * 2 / 0.6 / 1e6  # 2 of 64 layers each, ms x GB/s
    assert slow - usual == pytest.approx(moved * (1 / 16 - 1 / 450), rel=1e-6)
