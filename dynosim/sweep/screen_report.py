"""What a screen came to: how many were tried, and how wrong it was where it can be told."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from dynosim.config.sweep_schema import Search
from dynosim.sweep.meanfield import kendall_tau
from dynosim.sweep.results import THROUGHPUT_PER_GPU, Row
from dynosim.sweep.status import INFEASIBLE, OK, SCREENED

RANK = "screen_rank"
COMPARED = {
    "screen_rps": "request_throughput_rps",
    "screen_ttft_ms": "mean_ttft_ms",
    "screen_tpot_ms": "mean_tpot_ms",
}
"""Predicted keys of rows, and what the simulation says in their place."""


def screen_dict(search: Search, rows: Sequence[Row]) -> dict[str, Any]:
    """For summary.json. Errors are shares: 0.1 where the screen said a tenth more than came out."""
    ran = [row for row in rows if row.status == OK and RANK in row.report]
    by_prediction = [row for row in ran if row.report.get("screen_rps") is not None]
    prefill, decode, ttft = search.factors
    return {
        "method": search.screen,
        "prefill_factor": prefill,
        "decode_factor": decode,
        "ttft_factor": ttft,
        "num_ranked": sum(RANK in row.report for row in rows),
        "num_tried": sum(RANK in row.report and row.status != SCREENED for row in rows),
        "num_screened_out": sum(row.status == SCREENED for row in rows),
        "num_infeasible": sum(row.status == INFEASIBLE for row in rows),
        "errors": {
            own: _errors(by_prediction, predicted, own) for predicted, own in COMPARED.items()
        },
        "kendall_tau": _agreement(by_prediction),
        "rank_of_best": _rank_of_best(ran),
    }


def _errors(rows: Sequence[Row], predicted: str, own: str) -> dict[str, Any]:
    pairs = [(row.report[predicted], row.report.get(own)) for row in rows]
    found = [float(said) / float(came) - 1.0 for said, came in pairs if came]
    if not found:
        return {"num": 0, "median": None, "largest": None}
    return {"num": len(found), "median": median(found), "largest": max(found, key=abs)}


def _agreement(rows: Sequence[Row]) -> float | None:
    pairs = [
        (row.report[f"screen_{THROUGHPUT_PER_GPU}"], row.report[THROUGHPUT_PER_GPU])
        for row in rows
        if row.report.get(THROUGHPUT_PER_GPU) is not None
    ]
    return kendall_tau([said for said, _ in pairs], [came for _, came in pairs])


def _rank_of_best(rows: Sequence[Row]) -> int | None:
    """Where the screen had what came out best among those that meet the SLA."""
    good = [row for row in rows if row.meets_sla and row.report.get(THROUGHPUT_PER_GPU) is not None]
    best = max(good, key=lambda row: float(row.report[THROUGHPUT_PER_GPU]), default=None)
    return None if best is None else int(best.report[RANK])


def screen_text(told: Mapping[str, Any]) -> str:
    """The same in a sentence."""
    text = f"{told['num_tried']} of {told['num_ranked']} layouts tried, by the mean field"
    errors = told["errors"]
    words = [
        f"{name} {100 * errors[key]['median']:+.0f} %"
        for name, key in (
            ("requests/s", "request_throughput_rps"),
            ("TTFT", "mean_ttft_ms"),
            ("TPOT", "mean_tpot_ms"),
        )
        if errors[key]["median"] is not None
    ]
    if words:
        text += f"; it said {', '.join(words)} of what came out (medians)"
    if told["kendall_tau"] is not None:
        text += f", and their order with tau {told['kendall_tau']:.2f}"
    if told["rank_of_best"] is not None:
        text += f"; the best was its number {told['rank_of_best']}"
    return text
