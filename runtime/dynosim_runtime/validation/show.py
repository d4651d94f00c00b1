"""The comparison on the terminal: plain text, one row per metric."""

from collections.abc import Mapping
from typing import Any


def print_comparison(document: Mapping[str, Any]) -> None:
    """Print validation.json at a glance, on stdout."""
    for line in comparison_lines(document):
        print(line)


def comparison_lines(document: Mapping[str, Any]) -> list[str]:
    """The lines of the table and what must be said beside it."""
    tolerance = f"within {100 * document['tolerance']:.0f} %"
    lines = [
        f"{document['name'] or 'run'}: {document['num_requests']:,} requests of "
        f"{document['workload']}, measured at {document['measured_at']}",
        f"{'metric':<20}{'predicted':>12}{'measured':>12}{'difference':>12}  {tolerance}",
    ]
    lines += [_row(metric) for metric in document["metrics"]]
    for name, errors in document["requests"].items():
        lines.append(_request_line(name, errors))
    lateness = document["lateness_ms"]
    if lateness is not None:
        lines.append(
            f"requests were sent {lateness['mean']:.1f} ms after they were due in the mean, "
            f"{lateness['max']:.1f} ms at most"
        )
    if document["was_interrupted"]:
        lines.append("interrupted: the measured side is incomplete")
    lines += _failure_lines(document)
    return lines + [f"note: {note}" for note in document["notes"]]


def _row(metric: Mapping[str, Any]) -> str:
    difference = metric["difference"]
    text = "-" if difference is None else f"{100 * difference:+.1f} %"
    verdict = {True: "yes", False: "no", None: "-"}[metric["is_within_tolerance"]]
    return (
        f"{metric['metric']:<20}{_number(metric['predicted']):>12}"
        f"{_number(metric['measured']):>12}{text:>12}  {verdict:<4}{metric['unit']}"
    )


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
