"""GPU hours per million tokens."""

import pytest

from dynosim.metrics.cost import COST_KEYS, cost_keys

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
