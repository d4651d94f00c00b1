import numpy as np
import pytest
from toy_runs import toy_run

from dynosim_runtime.validation.compare import (
    METRICS,
    Comparison,
    compare_reports,
    compare_requests,
    kolmogorov_smirnov,
)
from dynosim_runtime.validation.show import comparison_lines


@pytest.mark.parametrize(
    ("predicted", "measured", "difference", "is_good"),
    [
        (109.9, 100.0, 0.099, True),
        (89.0, 100.0, -0.11, False),
        (0.0, 0.0, 0.0, True),
        (1.0, 0.0, None, False),
        (None, 1.0, None, None),
        (1.0, None, None, None),
    ],
)
def test_verdict_is_within_a_tenth_of_what_was_measured(
    predicted: float | None, measured: float | None, difference: float | None, is_good: bool | None
) -> None:
    comparison = Comparison("TTFT mean", "mean_ttft_ms", "ms", predicted, measured)
    assert comparison.is_good is is_good
    assert comparison.difference == (None if difference is None else pytest.approx(difference))


def test_every_metric_is_in_the_twins_report() -> None:
    from dynosim.metrics import summarize

    toy = toy_run()
    report = summarize(toy.result, toy.timing, sla=None, wall_time_ms=0.0)
    rows = compare_reports(report, report)
    assert len(rows) == len(METRICS)
    assert all(row.is_good for row in rows)


def test_requests_are_compared_one_by_one() -> None:
    toy = toy_run(20)
    errors = compare_requests(toy.result.requests, toy.result.requests)
    assert errors["ttft_ms"].num_requests == 20
    assert errors["e2e_ms"].absolute_percentage_error["max"] == 0.0
    assert errors["tpot_ms"].kolmogorov_smirnov == 0.0
    with pytest.raises(ValueError, match="19 measured"):
        compare_requests(toy.result.requests, toy_run(19).result.requests)


def test_distance_of_distributions() -> None:
    one = np.array([1.0, 2.0, 3.0, 4.0])
    assert kolmogorov_smirnov(one, one + 10) == 1.0
    assert kolmogorov_smirnov(one, np.array([1.0, 2.0, 13.0, 14.0])) == pytest.approx(0.5)
    assert kolmogorov_smirnov(one, one[:0]) is None


def test_table_shows_values_differences_and_verdicts() -> None:
    rows = [
        Comparison("TTFT mean", "a", "ms", 90.0, 100.0),
        Comparison("cache hit rate", "b", "of prompt tokens", 0.5, None),
    ]
    document = {
        "name": "x",
        "num_requests": 2,
        "workload": "w",
        "measured_at": "u",
        "tolerance": 0.1,
        "metrics": [row.as_dict() for row in rows],
        "requests": {},
        "lateness_ms": None,
        "was_interrupted": False,
        "num_unserved": 1,
        "failures": [{"request_id": "7", "status": "failed", "error": "HTTP 500: dead"}],
        "notes": ["mind this"],
    }
    text = "\n".join(comparison_lines(document))
    assert "TTFT mean" in text
    assert "-10.0 %  yes" in text
    assert "7: failed: HTTP 500: dead" in text
    assert text.endswith("note: mind this")
