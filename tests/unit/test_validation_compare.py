from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from toy_runs import toy_run

from dynosim_runtime.validate.compare import (
    METRICS,
    Comparison,
    compare_reports,
    compare_requests,
    kolmogorov_smirnov,
)
from dynosim_runtime.validate.show import comparison_lines


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


def test_interval_holds_what_was_measured_or_not() -> None:
    row = Comparison("TTFT mean", "mean_ttft_ms", "ms", 90.0, 95.0, (85.0, 95.0))
    assert row.is_inside_interval is True
    assert row.as_dict()["interval"] == (85.0, 95.0)
    assert replace(row, measured=96.0).is_inside_interval is False
    assert replace(row, measured=None).is_inside_interval is None
    assert replace(row, interval=None).is_inside_interval is None


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
    text = "\n".join(comparison_lines(document_of()))
    assert "TTFT mean" in text
    assert "-10.0 %  yes" in text
    assert "85.00..95.00 no" in text
    assert "7: failed: HTTP 500: dead" in text
    assert text.endswith("note: mind this")


def test_table_puts_both_columns_side_by_side() -> None:
    better = {
        "predicted": 98.0,
        "difference": -0.02,
        "is_within_tolerance": True,
        "interval": (95.0, 101.0),
        "is_inside_interval": True,
    }
    lines = comparison_lines(document_of(better))
    assert lines[1].index("blind") < lines[1].index("capacity given")
    assert "-10.0 %  yes" in lines[2] and "-2.0 %  yes" in lines[2]
    assert "95.00..101.00 yes" in lines[2]


def test_latencies_of_a_saturated_run_are_marked() -> None:
    document = document_of()
    document["measured"] = {"saturated": True}
    text = "\n".join(comparison_lines(document))
    assert "~ TTFT mean" in text and "~ saturated: " in text
    assert "~ cache hit rate" not in text


def test_attribution_is_shown_with_what_could_not_be_swapped() -> None:
    document = document_of()
    document["attribution"] = {
        "num_metrics": 18,
        "mean_abs_error": {"none": 0.1, "arrival jitter": 0.05},
        "not_swapped": {"KV capacity": "the deployment does not tell its KV blocks"},
    }
    text = "\n".join(comparison_lines(document))
    assert "mean |error| over 18 metrics" in text
    assert "arrival jitter" in text and "5.0 %" in text
    assert "KV capacity: not replaced: the deployment does not tell" in text


def document_of(given: dict[str, Any] | None = None) -> dict[str, Any]:
    rows = [
        Comparison("TTFT mean", "mean_ttft_ms", "ms", 90.0, 100.0, (85.0, 95.0)),
        Comparison("cache hit rate", "b", "of prompt tokens", 0.5, None),
    ]
    return {
        "name": "x",
        "num_requests": 2,
        "workload": "w",
        "measured_at": "u",
        "tolerance": 0.1,
        "metrics": [{**row.as_dict(), "capacity_given": given} for row in rows],
        "load": {"saturated": False},
        "measured": {},
        "attribution": None,
        "requests": {},
        "lateness_ms": None,
        "was_interrupted": False,
        "num_unserved": 1,
        "failures": [{"request_id": "7", "status": "failed", "error": "HTTP 500: dead"}],
        "notes": ["mind this"],
    }
