"""The comparison on the terminal: plain text, one row per metric."""

from collections.abc import Mapping
from typing import Any

_GROWING = ("ttft_ms", "e2e_latency_ms")  # latencies that contain the wait of a saturated run


def print_comparison(document: Mapping[str, Any]) -> None:
    """Print validation.json at a glance, on stdout."""
    for line in comparison_lines(document):
        print(line)


def comparison_lines(document: Mapping[str, Any]) -> list[str]:
    """The lines of the table and what must be said beside it."""
    metrics = document["metrics"]
    has_given = any(metric["capacity_given"] is not None for metric in metrics)
    is_saturated = bool(document["load"]["saturated"] or document["measured"].get("saturated"))
    titles = ("blind", "capacity given") if has_given else ("predicted",)
    columns = "".join(_column_head(title, document["tolerance"]) for title in titles)
    lines = [
        f"{document['name'] or 'run'}: {document['num_requests']:,} requests of "
        f"{document['workload']}, measured at {document['measured_at']}",
        f"{'metric':<20}{'measured':>11}{columns}",
    ]
    lines += [_row(metric, has_given, is_saturated) for metric in metrics]
    if is_saturated:
        lines.append(
            "~ saturated: this latency grows for as long as requests come, and tells how long that "
            "was"
        )
    for name, errors in document["requests"].items():
        lines.append(_request_line(name, errors))
    lines += _handoff_lines(document.get("handoff"))
    lateness = document["lateness_ms"]
    if lateness is not None:
        lines.append(
            f"requests were sent {lateness['mean']:.1f} ms after they were due in the mean, "
            f"{lateness['max']:.1f} ms at most"
        )
    lines += _attribution_lines(document["attribution"])
    if document["was_interrupted"]:
        lines.append("interrupted: the measured side is incomplete")
    lines += _failure_lines(document)
    return lines + [f"note: {note}" for note in document["notes"]]


def _handoff_lines(figures: Mapping[str, Any] | None) -> list[str]:
    """KV on its way, where there are prefill workers."""
    if figures is None or not figures["transfers"]:
        return []
    parts = [
        f"KV transfers: {figures['transfers']:,} of {figures['bytes_mean'] / 1e6:,.2f} MB in the "
        f"mean, {figures['transfer_ms_mean']:,.1f} ms",
        _beside("predicted", figures["predicted_transfer_ms_mean"]),
        _beside("the plan's links alone", figures["links_alone_ms_mean"]),
    ]
    lines = ["; ".join(filter(None, parts))]
    if figures["handoff_ms_mean"] is not None:
        mean = f"prefill's end to first token: {figures['handoff_ms_mean']:,.1f} ms"
        parts = [mean, _beside("predicted", figures["predicted_handoff_ms_mean"])]
        lines.append("; ".join(filter(None, parts)))
    return lines


def _beside(what: str, mean_ms: float | None) -> str:
    return "" if mean_ms is None else f"{what} {mean_ms:,.1f} ms"


def _column_head(title: str, tolerance: float) -> str:
    return f"{title:>16}{'error':>10}  {f'<{100 * tolerance:.0f} %':<5}{'95 % of replays':>19} in "


def _row(metric: Mapping[str, Any], has_given: bool, is_saturated: bool) -> str:
    is_marked = is_saturated and metric["key"].endswith(_GROWING)
    name = f"{'~ ' if is_marked else ''}{metric['metric']}"
    cells = _cells(metric)
    if has_given:
        cells += _cells(metric["capacity_given"])
    return f"{name:<20}{_number(metric['measured']):>11}{cells} {metric['unit']}"


def _cells(prediction: Mapping[str, Any]) -> str:
    """One prediction of a metric: value, error, verdict, interval, whether it holds."""
    difference, interval = prediction["difference"], prediction["interval"]
    error = "-" if difference is None else f"{100 * difference:+.1f} %"
    span = "-" if interval is None else "..".join(_number(bound) for bound in interval)
    return (
        f"{_number(prediction['predicted']):>16}{error:>10}  "
        f"{_verdict(prediction['is_within_tolerance']):<5}{span:>19} "
        f"{_verdict(prediction['is_inside_interval']):<3}"
    )


def _verdict(claim: bool | None) -> str:
    return {True: "yes", False: "no", None: "-"}[claim]


def _attribution_lines(attribution: Mapping[str, Any] | None) -> list[str]:
    if attribution is None:
        return []
    lines = [
        f"mean |error| over {attribution['num_metrics']} metrics, with parts of the blind "
        "prediction replaced by measured ones (parts can make up for each other):"
    ]
    errors = attribution["mean_abs_error"].items()
    lines += [f"  {part:<46}{100 * error:>7.1f} %" for part, error in errors]
    return lines + [
        f"  {part}: not replaced: {reason}" for part, reason in attribution["not_swapped"].items()
    ]


def _request_line(name: str, errors: Mapping[str, Any]) -> str:
    ape = errors["absolute_percentage_error"]
    distance = errors["kolmogorov_smirnov"]
    return (
        f"{name} of the same requests: error {_percent(ape['mean'])} in the mean, "
        f"{_percent(ape['median'])} median, {_percent(ape['p90'])} p90; distributions "
        f"{'-' if distance is None else f'{distance:.3f}'} apart (Kolmogorov-Smirnov)"
    )


def _failure_lines(document: Mapping[str, Any]) -> list[str]:
    if not document["num_unserved"]:
        return []
    lines = [f"{document['num_unserved']:,} requests were not served, first of all:"]
    lines += [
        f"  {failure['request_id']}: {failure['status']}: {failure['error']}"
        for failure in document["failures"][:5]
    ]
    return lines


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.2f}" if abs(value) >= 1 or value == 0 else f"{value:.4f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"
