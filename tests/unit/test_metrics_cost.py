"""GPU hours, money and energy of tokens."""

import pytest

from dynosim.metrics.cost import COST_KEYS, Power, cost_keys, energy_keys, money_keys

REPORT = {
    "gpu_hours": 4.0,
    "total_output_tokens": 2_000_000,
    "total_input_tokens": 6_000_000,
    "goodput_output_throughput_tok_s": 250.0,
    "duration_ms": 4_000_000.0,  # one million good tokens
}


def test_idle_gpus_and_bad_tokens_are_part_of_the_cost_of_good_ones() -> None:
    assert cost_keys(REPORT) == {
        "gpu_hours_per_m_output_tokens": pytest.approx(2.0),
        "gpu_hours_per_m_good_output_tokens": pytest.approx(4.0),
        "gpu_hours_per_m_tokens": pytest.approx(0.5),
    }


def test_what_there_is_none_of_costs_nothing_that_could_be_said() -> None:
    nothing = {**REPORT, "total_output_tokens": 0, "total_input_tokens": 0}
    for good in (None, 0.0):
        found = cost_keys({**nothing, "goodput_output_throughput_tok_s": good})
        assert found == dict.fromkeys(COST_KEYS)


def test_money_is_the_price_of_those_hours() -> None:
    report = {**REPORT, **cost_keys(REPORT)}
    assert money_keys(report, 2.5) == {
        "cost_per_m_output_tokens": pytest.approx(5.0),
        "cost_per_m_good_output_tokens": pytest.approx(10.0),
        "cost_per_m_tokens": pytest.approx(1.25),
    }
    assert set(money_keys(report, None).values()) == {None}
    assert (
        money_keys({**report, "gpu_hours_per_m_good_output_tokens": None}, 2.5)[
            "cost_per_m_good_output_tokens"
        ]
        is None
    )


def test_energy_is_idle_power_and_the_rest_of_the_limit_while_gpus_compute() -> None:
    """Four GPU hours at 100 + 0.5 x 600 W are 5.76 MJ, for two million tokens."""
    report = {**REPORT, "worker_busy_share": 0.5}
    found = energy_keys(report, Power(idle_w=100.0, tdp_w=700.0))
    assert found == {
        "energy_j_per_output_token": pytest.approx(2.88),
        "output_tok_s_per_mw": pytest.approx(1e6 / 2.88),
        "energy_source": "estimated",
    }
    building = energy_keys(report, Power(idle_w=100.0, tdp_w=700.0, pue=1.25))
    assert building["energy_j_per_output_token"] == pytest.approx(3.6)


def test_energy_that_is_not_known_is_not_zero() -> None:
    report = {**REPORT, "worker_busy_share": 0.5}
    assert set(energy_keys(report, None).values()) == {None}
    nothing = {**report, "total_output_tokens": 0}
    assert energy_keys(nothing, Power(100.0, 700.0))["energy_j_per_output_token"] is None
