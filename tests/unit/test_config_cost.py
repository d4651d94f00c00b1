"""Prices of GPUs in run files, and what they come to."""

from pathlib import Path

import pytest

from dynosim.config import load_run
from dynosim.errors import ConfigError
from dynosim.experiment.run import run
from dynosim.silicon.hardware import hardware_sheet
from dynosim.silicon.power import IDLE_W, TDP_W

RUN = """
hardware: {hardware}
workload: {{synthetic: {{requests: 20, isl: 200, osl: 20, arrival: poisson, rate_rps: 5}}}}
engine: {{num_gpu_blocks: 1000}}
timing: {{kind: fixed, prefill_ms: 10, decode_ms: 10}}
cost: {cost}
"""


def run_file(folder: Path, cost: str, hardware: str = "h200_sxm") -> Path:
    path = folder / "run.yaml"
    path.write_text(RUN.format(cost=cost, hardware=hardware))
    return path


def test_a_price_makes_money_of_gpu_hours(tmp_path: Path) -> None:
    report = run(load_run(run_file(tmp_path, "{gpu_hour: {H200: 2.5}}"))).report
    hours = report["gpu_hours_per_m_output_tokens"]
    assert report["cost_per_m_output_tokens"] == pytest.approx(2.5 * hours)
    assert report["energy_source"] == "estimated" and report["energy_j_per_output_token"] > 0


def test_without_a_price_there_is_no_money(tmp_path: Path) -> None:
    report = run(load_run(run_file(tmp_path, "{pue: 1.5}"))).report
    assert report["cost_per_m_output_tokens"] is None
    plain = run(load_run(run_file(tmp_path, "{}"))).report
    ratio = report["energy_j_per_output_token"] / plain["energy_j_per_output_token"]
    assert ratio == pytest.approx(1.5)


def test_hardware_of_unknown_power_has_no_energy(tmp_path: Path) -> None:
    assert hardware_sheet("gh200").tdp_w is None
    report = run(load_run(run_file(tmp_path, "{}", "gh200"))).report
    assert report["energy_j_per_output_token"] is None and report["energy_source"] is None


@pytest.mark.parametrize(
    ("cost", "told"),
    [
        ("{gpu_hour: {h201: 2.5}}", "cost.gpu_hour.h201: is no GPU that is known"),
        ("{gpu_hour: {h100_sxm: 2.5}}", "has no price of h200_sxm (add h200_sxm: 2.50)"),
        ("{gpu_hour: {h200_sxm: 0}}", "cost.gpu_hour.h200_sxm: "),
        ("{pue: 0.9}", "cost.pue: "),
    ],
)
def test_a_price_that_means_nothing_is_refused(tmp_path: Path, cost: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_run(run_file(tmp_path, cost))
    assert told in str(caught.value)


def test_idle_power_is_less_than_the_limit() -> None:
    assert all(IDLE_W[name] < TDP_W[name] / 3 for name in IDLE_W)
    assert all(hardware_sheet(name).tdp_w == limit for name, limit in TDP_W.items())
