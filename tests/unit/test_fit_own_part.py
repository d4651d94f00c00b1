"""Whether a fit explains the requests it was fitted to."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from dynosim.fit.measurements import Measurements
from dynosim.fit.own_part import gap_beyond, own_part, sample_ks
from dynosim.fit.replay import Predicted
from dynosim.fit.scores import largest_gap

COUNT = 100
RNG = np.random.default_rng(0)
MEASURED = Measurements(
    source="log",
    setup={},
    clock="engine",
    arrival_ms=np.linspace(0.0, 100.0 * COUNT, COUNT),
    input_tokens=np.full(COUNT, 100),
    output_tokens=np.full(COUNT, 101),
    ttft_ms=RNG.uniform(500.0, 900.0, COUNT),
    decode_ms=RNG.uniform(1000.0, 2000.0, COUNT),
    block_tokens=0,
    hashes=((),) * COUNT,
)


def predicted(first: float = 1.0, decode: float = 1.0) -> Predicted:
    nothing: Any = None
    return Predicted(first * MEASURED.ttft_ms, decode * MEASURED.decode_ms, nothing)


@pytest.mark.parametrize(
    ("first", "decode", "named"),
    [
        (1.0, 1.0, []),
        (1.14, 1.0, []),
        (1.155, 1.0, ["mean_ttft_ms"]),
        (0.01, 1.0, ["mean_ttft_ms", "mean_latency_ms"]),
        (1.0, 1.04, []),
        (1.0, 1.06, ["mean_tpot_ms"]),
        (1.0, 0.9, ["mean_tpot_ms", "mean_latency_ms"]),
    ],
)
def test_means_beyond_the_limits_are_misfits(first: float, decode: float, named: list[str]) -> None:
    found = own_part(MEASURED, predicted(first, decode), COUNT)
    means = [text.split()[0] for text in found.misfits if text.startswith("mean_")]
    assert means == named


def test_only_the_fitted_requests_are_judged() -> None:
    run = predicted()
    late = replace(run, ttft_ms=np.where(np.arange(COUNT) < 40, 1.0, 9.0) * run.ttft_ms)
    assert own_part(MEASURED, late, 40).misfits == ()
    assert own_part(MEASURED, late, 60).misfits


def test_a_distribution_elsewhere_is_a_misfit_though_the_mean_is_right() -> None:
    swapped = np.where(np.arange(COUNT) % 2, 0.1, 1.9) * float(MEASURED.ttft_ms.mean())
    found = own_part(MEASURED, replace(predicted(), ttft_ms=swapped), COUNT)
    assert any("of the distribution of ttft_ms elsewhere" in text for text in found.misfits)
    assert found.ks == pytest.approx(max(one.ks for one in found.apart))


def test_short_first_tokens_may_be_a_step_off() -> None:
    quick = replace(MEASURED, ttft_ms=np.full(COUNT, 12.0))
    found = own_part(quick, replace(predicted(), ttft_ms=np.full(COUNT, 20.0)), COUNT)
    assert found.misfits == ()


def test_the_gap_beyond_a_shift_is_none_within_it_and_kolmogorovs_without_one() -> None:
    values = np.linspace(100.0, 200.0, 50)
    assert gap_beyond(values, values + 4.9, share=0.0, slack=5.0) == 0.0
    assert gap_beyond(values, values * 1.04, share=0.05, slack=0.0) == 0.0
    other = np.linspace(130.0, 170.0, 50)
    plain = gap_beyond(values, other, share=0.0, slack=0.0)
    assert plain == pytest.approx(largest_gap(values, other))
    assert 0 < gap_beyond(values, other, share=0.0, slack=5.0) < plain


def test_distances_of_distributions_are_scipys() -> None:
    from scipy.stats import ks_2samp

    for seed in range(5):
        rng = np.random.default_rng(seed)
        one, other = rng.normal(0, 1, 40).round(1), rng.normal(0.4, 1, 25).round(1)
        assert largest_gap(one, other) == pytest.approx(ks_2samp(one, other).statistic)
    assert sample_ks(90) == pytest.approx(0.2027, abs=1e-3)
