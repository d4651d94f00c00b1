"""A comparison of controllers on the terminal."""

from collections.abc import Mapping
from typing import Any

from dynosim.cli.text_table import counted, print_wrapped

_COLUMNS = (
    ("GPU h", "gpu_hours", "{:,.3g}"),
    ("in SLA", "sla_attainment", "{:.1%}"),
    ("missed", "missed_requests", "{:,.0f}"),
    ("TTFT p95", "p95_ttft_ms", "{:,.0f}"),
    ("ITL p95", "p95_itl_ms", "{:,.1f}"),
    ("up", "num_scale_ups", "{:.3g}"),
    ("down", "num_scale_downs", "{:.3g}"),
    ("most", "peak_workers", "{:.3g}"),
)
NUM_CHANGES = 3
"""Changes of each contestant that are explained; report.html and the files have all."""


def print_plan(document: Mapping[str, Any]) -> None:
    """The comparison: who, the table, the first decisions with their reasons."""
    num_seeds = len(document["seeds"])
    seeds = f", means of {num_seeds} seeds" if num_seeds > 1 else ""
    print_wrapped(
        f"{document['name'] or 'comparison'}: {document['mean_rps']:.3g} requests/s on average, "
        f"SLA {', '.join(f'{key} {value:g}' for key, value in document['sla'].items())} for "
        f"{document['attainment_target']:.3g} of the requests{seeds}"
    )
    for note in document["notes"]:
        print_wrapped(note)
    rows = [("", *(title for title, _, _ in _COLUMNS))]
    rows += [_cells(one) for one in document["contestants"]]
    widths = [max(len(row[place]) for row in rows if len(row) > 2) for place in range(len(rows[0]))]
    widths[0] = max(len(row[0]) for row in rows)
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=False)]
        if len(row) == 2:
            cells = [row[1]]
        print(" ".join([row[0].ljust(widths[0]), *cells]).rstrip())
    print()
    for one in document["contestants"]:
        print_wrapped(f"{one['name']}: {one['why_not'] or one['goes_by']}")
        _print_changes(one["changes"])


def _cells(one: Mapping[str, Any]) -> tuple[str, ...]:
    if one["why_not"]:
        return one["name"], f"not run: {one['why_not']}"
    return one["name"], *(
        "-" if one[key] is None else form.format(one[key]) for _, key, form in _COLUMNS
    )


def _print_changes(changes: list[dict[str, Any]]) -> None:
    for change in changes[:NUM_CHANGES]:
        why = "; ".join(change["reasons"])
        print_wrapped(
            f"  {change['at_s']:,.0f} s {change['pool']} {change['before']} -> {change['after']} "
            f"{change['verdict']}: {why}"
        )
    if len(changes) > NUM_CHANGES:
        print(f"  and {counted(len(changes) - NUM_CHANGES, 'more change')}")
