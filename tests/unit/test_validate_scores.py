"""Statistics and distances of four requests, by hand."""

from typing import Any

import numpy as np
import pytest

from dynosim.fit.measurements import Measurements
from dynosim.fit.replay import Predicted
from dynosim.fit.scores import (
    Score,
    columns_of,
    distances,
    error_values,
    mean_absolute_error,
    scores,
    statistic,
    worst,
)
from dynosim.records import FloatArray

MEASURED = Measurements(
    source="log",
    setup={},
    clock="clients",
    arrival_ms=np.array([0.0, 10.0, 20.0, 30.0]),
    input_tokens=np.array([5, 5, 5, 5]),
    output_tokens=np.array([1, 3, 5, 2]),
    ttft_ms=np.array([10.0, 20.0, 30.0, 40.0]),
    decode_ms=np.array([0.0, 20.0, 40.0, 30.0]),
    block_tokens=0,
    hashes=((),) * 4,
)
PREDICTED: Any = Predicted(
    np.array([11.0, 18.0, 33.0, 44.0]),
    np.array([0.0, 22.0, 36.0, 33.0]),
    None,  # type: ignore[arg-type]
)
FIRST_TOKENS = ([10.0, 20.0, 30.0, 40.0], [11.0, 18.0, 33.0, 44.0])
PER_TOKEN = ([10.0, 10.0, 30.0], [11.0, 9.0, 33.0])  # of the three with more than one token
LATENCIES = ([10.0, 40.0, 70.0, 70.0], [11.0, 40.0, 69.0, 77.0])


def percentile(values: list[float], share: float) -> float:
    """In line between the two neighbours."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def test_columns_are_per_request_and_one_token_has_no_gap() -> None:
    columns = columns_of(MEASURED, MEASURED.output_tokens.astype(np.float64))
    assert list(columns) == ["ttft_ms", "tpot_ms", "latency_ms"]
    assert columns["ttft_ms"].tolist() == FIRST_TOKENS[0]
    assert columns["latency_ms"].tolist() == LATENCIES[0]
    assert np.isnan(columns["tpot_ms"][0])
    assert columns["tpot_ms"][1:].tolist() == PER_TOKEN[0]


def test_every_statistic_of_every_metric_and_the_throughput() -> None:
    table = scores(MEASURED, PREDICTED)
    expected = {}
    for metric, columns in (
        ("ttft_ms", FIRST_TOKENS),
        ("tpot_ms", PER_TOKEN),
        ("latency_ms", LATENCIES),
    ):
        expected[f"mean_{metric}"] = [sum(column) / len(column) for column in columns]
        for name, share in (("median", 0.5), ("p90", 0.9), ("p95", 0.95), ("p99", 0.99)):
            expected[f"{name}_{metric}"] = [percentile(column, share) for column in columns]
    # Eleven tokens; the last of them at 100 ms, and at 107 ms.
    expected["throughput_tok_s"] = [11 / 0.100, 11 / 0.107]
    assert [score.name for score in table] == list(expected)
    for score in table:
        assert [score.measured, score.predicted] == pytest.approx(expected[score.name], rel=1e-12)


def test_scores_of_a_part_leave_the_throughput_whole() -> None:
    table = {score.name: score for score in scores(MEASURED, PREDICTED, slice(2, None))}
    assert table["mean_ttft_ms"].measured == 35.0
    assert table["mean_ttft_ms"].predicted == 38.5
    assert table["p99_tpot_ms"].measured == pytest.approx(10 + 0.99 * 20)
    assert table["throughput_tok_s"].measured == pytest.approx(110.0)


@pytest.mark.parametrize(
    ("measured", "predicted", "error"), [(20.0, 25.0, 0.25), (20.0, 15.0, -0.25), (3.0, 3.0, 0.0)]
)
def test_an_error_is_relative_to_the_measurement(
    measured: float, predicted: float, error: float
) -> None:
    assert Score("ttft_ms", "p95", measured, predicted).error == error
    assert Score("ttft_ms", "p95", measured, predicted).name == "p95_ttft_ms"


def test_nothing_measured_has_no_error() -> None:
    assert np.isnan(Score("tpot_ms", "mean", 0.0, 1.0).error)


def test_a_statistic_is_of_the_values_that_exist() -> None:
    values = np.array([np.nan, 4.0, np.nan, 6.0])
    assert statistic(values, "mean") == 5.0
    assert statistic(values, "p90") == pytest.approx(5.8)
    assert np.isnan(statistic(np.array([np.nan]), "mean"))


def naive_gap(one: list[float], other: list[float]) -> float:
    """The largest difference of the shares up to any value."""
    shares = [
        [sum(value <= at for value in column) / len(column) for column in (one, other)]
        for at in one + other
    ]
    return max(abs(a - b) for a, b in shares)


def test_distances_are_of_single_requests_and_of_their_distributions() -> None:
    first, per_token, latency = distances(MEASURED, PREDICTED)
    assert [one.metric for one in (first, per_token, latency)] == [
        "ttft_ms",
        "tpot_ms",
        "latency_ms",
    ]
    assert (first.mean_ape, first.median_ape) == (pytest.approx(0.1), pytest.approx(0.1))
    errors = [0.1, 0.1, 0.1]
    assert per_token.mean_ape == pytest.approx(sum(errors) / 3)
    errors = [1 / 10, 0.0, 1 / 70, 7 / 70]
    assert latency.mean_ape == pytest.approx(sum(errors) / 4)
    assert latency.median_ape == pytest.approx((1 / 70 + 1 / 10) / 2)
    for one, columns in ((first, FIRST_TOKENS), (per_token, PER_TOKEN), (latency, LATENCIES)):
        assert one.ks == pytest.approx(naive_gap(*columns))
    part = distances(MEASURED, PREDICTED, slice(0, 2))
    assert part[2].mean_ape == pytest.approx(0.05)


def test_requests_that_took_no_time_have_no_relative_error() -> None:
    fields = {name: getattr(MEASURED, name) for name in MEASURED.__dataclass_fields__}
    at_once = Measurements(**(fields | {"ttft_ms": np.array([0.0, 20.0, 30.0, 40.0])}))
    assert distances(at_once, PREDICTED)[0].mean_ape == pytest.approx(0.1)
    single = Measurements(**(fields | {"output_tokens": np.ones(4, np.int64)}))
    nothing: FloatArray = np.array([distances(single, PREDICTED)[1].mean_ape])
    assert np.isnan(nothing).all()
    assert np.isnan(distances(single, PREDICTED)[1].ks)


TABLE = [
    Score("ttft_ms", "mean", 100.0, 110.0),
    Score("ttft_ms", "p99", 100.0, 70.0),
    Score("tpot_ms", "mean", 10.0, 15.0),
    Score("throughput_tok_s", "", 50.0, 50.0),
]


def test_a_table_in_one_number_and_by_name() -> None:
    assert mean_absolute_error(TABLE) == pytest.approx((0.1 + 0.3 + 0.5 + 0.0) / 4)
    assert worst(TABLE, "ttft_ms") == pytest.approx(0.3)
    assert worst(TABLE, "tpot_ms") == pytest.approx(0.5)
    assert error_values(TABLE) == pytest.approx(
        {"mean_ttft_ms": 0.1, "p99_ttft_ms": -0.3, "mean_tpot_ms": 0.5, "throughput_tok_s": 0.0}
    )
