"""Exchanges over a link by the formula, and measured times over a stated one."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from timing_support import silicon_table

from dynosim.silicon.hardware import hardware_sheet
from dynosim.silicon.linked import over_link, with_link
from dynosim.timing.links import LINK_GB_S, all_gather_ms, all_reduce_ms, all_reduces_ms
from dynosim.timing.silicon_model import SiliconModel
from dynosim.timing.silicon_table import SiliconTable
from dynosim.timing.step import StepShape


def test_an_all_reduce_is_a_latency_and_the_bytes_that_are_sent() -> None:
    # 8 MB over 4 ranks: each sends 12 MB, at 60 % of 100 GB/s.
    assert all_reduce_ms(8e6, 4, 100.0) == pytest.approx(0.005 + 12e6 / 60e6)
    assert all_gather_ms(8e6, 4, 100.0) == pytest.approx(0.005 + 6e6 / 60e6)
    assert all_reduce_ms(8e6, 1, 100.0) == all_reduce_ms(0.0, 4, 100.0) == 0.0
    assert all_gather_ms(8e6, 1, 100.0) == all_gather_ms(0.0, 4, 100.0) == 0.0


@given(st.floats(1, 1e9), st.integers(2, 16), st.sampled_from(sorted(LINK_GB_S)))
def test_a_slower_link_never_takes_less(message: float, ranks: int, link: str) -> None:
    rate = LINK_GB_S[link]
    assert all_reduce_ms(message, ranks, rate / 2) > all_reduce_ms(message, ranks, rate)
    assert all_reduce_ms(message, ranks + 1, rate) >= all_reduce_ms(message, ranks, rate)
    (of_array,) = all_reduces_ms(np.array([message]), ranks, rate)
    assert of_array == pytest.approx(all_reduce_ms(message, ranks, rate))


def two_ranks(table: SiliconTable) -> SiliconTable:
    """The table with two all-reduces of 1,000 bytes a token, 30 us each at any size."""
    collectives = [{"launches": 2.0, "bytes_per_token": 1000.0, "ranks": 2}]
    reduces = np.full(len(table.linear_ms), 0.06)
    reduces[0] = 0.0
    linear = table.linear_ms + reduces
    meta = table.meta | {"collectives": collectives}
    return replace(table, linear_ms=linear, collective_ms=reduces, meta=meta)


def test_a_stated_link_takes_the_place_of_the_measured_all_reduces() -> None:
    plain = silicon_table()
    measured = two_ranks(plain)
    assert with_link(measured, None) is measured
    linked = with_link(measured, 1.0)
    for tokens in (1, 100, 512):
        extra = 2 * all_reduce_ms(1000.0 * tokens, 2, 1.0)
        assert linked.linear_ms[tokens] == pytest.approx(plain.linear_ms[tokens] + extra)
    for step in (StepShape.of_prompts(1, 100), StepShape.of_decodes(7, 700)):
        tokens = step.prefill_tokens + step.num_decodes
        extra = 2 * all_reduce_ms(1000.0 * tokens, 2, 1.0)
        expected = SiliconModel(plain).step_ms(step) + extra
        assert SiliconModel(linked).step_ms(step) == pytest.approx(expected)


def test_one_gpu_has_no_use_for_a_link() -> None:
    table = silicon_table()
    assert with_link(table, 1.0) is table
    assert over_link(table, None) is None


def test_measured_all_reduces_are_compared_with_the_hardwares_link() -> None:
    sheet = replace(hardware_sheet("l4"), link_gb_per_s=1.0)
    measured = two_ranks(silicon_table())
    expected = 0.06 / (2 * all_reduce_ms(512_000.0, 2, 1.0))
    assert over_link(measured, sheet) == pytest.approx(expected)
    assert over_link(measured, None) is None
