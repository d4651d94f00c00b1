"""The HTML page of a comparison of controllers: who costs and keeps what, over time, and why."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dynosim.plots import style
from dynosim.plots.chart import Chart, ChartAxis, LineMark, Mark, Panel, RuleMark
from dynosim.plots.page import (
    Headline,
    Note,
    Page,
    Part,
    folded,
    number,
    preformatted,
    table,
    write_page,
)
from dynosim.plots.plotly_chart import plotly_figure

Document = Mapping[str, Any]
Rows = Sequence[Mapping[str, Any]]

COLUMNS = {
    "gpu_hours": "GPU hours",
    "gpu_hours_by_perfect": "by perfect",
    "sla_attainment": "within SLA",
    "missed_requests": "missed",
    "p95_ttft_ms": "TTFT p95 ms",
    "p95_itl_ms": "ITL p95 ms",
    "num_scale_ups": "ups",
    "num_scale_downs": "downs",
    "peak_workers": "most workers",
}
"""Of the comparison's table, after who it is."""
_COLORS = {
    "planner": style.BLUE,
    "hpa": style.ORANGE,
    "keda": style.GREEN,
    "concurrency": style.PURPLE,
    "static-peak": style.GREY,
    "static-mean": style.SKY,
    "perfect": style.BLACK,
}
MAX_CHANGES = 400
"""Of a contestant, on the page; its file has all."""


def write_plan_html(path: Path | str, document: Document, timeline: Rows, config: str) -> None:
    """Write one self-contained page. `timeline` are the rows of timeline.parquet.

    Raises: ConfigError when plotly is not installed; OSError when the file cannot be written.
    """
    write_page(path, plan_page(document, timeline, config))


def plan_page(document: Document, timeline: Rows, config: str) -> Page:
    """What the page shows, of the first seed where it is over time."""
    seeds = document["seeds"]
    first = [row for row in timeline if row["seed"] == seeds[0]]
    several = f", mean of {len(seeds)} seeds" if len(seeds) > 1 else ""
    seed_note = f" Of seed {seeds[0]}." if len(seeds) > 1 else ""
    parts = [
        Part("Comparison", _COMPARISON + several_text(seeds), body=comparison(document)),
        Part("Over time", _OVER_TIME + seed_note, plotly_figure(_over_time(document, first))),
        Part("Who decided what, and why", _DECISIONS + seed_note, body=decisions(document)),
        Part("What each goes by", body=_goes_by(document)),
        Part("Configuration", "Of the fixed cluster; runs/ has a file of each.",
             body=preformatted(config)),
    ]  # fmt: skip
    sla = ", ".join(f"{key} {value:g}" for key, value in document["sla"].items())
    lead = f"workload {document['trace_source']} · SLA {sla} for {_share(document, 'target')}"
    return Page(
        document["name"] or "comparison of controllers",
        lead + several,
        [Note(note) for note in document["notes"]],
        [],
        parts,
        Headline(headline(document)),
    )


_COMPARISON = (
    "The same requests for each. GPU hours are counted from launch to end, starting and draining "
    "included; by perfect: as a multiple of the bound. A request that was not served is missed."
)
_OVER_TIME = (
    "Load in requests/s, workers that serve, share of the requests of a bin within the SLA, and "
    "GPU hours so far. Names switch lines on and off."
)
_DECISIONS = "Decisions that changed a number of workers; decisions/ has all, with their figures."


def several_text(seeds: Sequence[int]) -> str:
    """What figures are, where there are several seeds."""
    return f" Means of {len(seeds)} seeds." if len(seeds) > 1 else ""


def headline(document: Document) -> str:
    """The answer in a sentence: the cheapest that keeps the SLA, beside the bound."""
    target = document["attainment_target"]
    rows = [row for row in document["contestants"] if row["gpu_hours"] is not None]
    good = [row for row in rows if row["sla_attainment"] >= target - 1e-12]
    real = [row for row in good if row["name"] != "perfect"]
    if not real:
        return f"None of them keeps the SLA for {_share(document, 'target')} of the requests."
    best = min(real, key=lambda row: row["gpu_hours"])
    text = (
        f"{best['name']} keeps the SLA with the fewest GPU hours, {number(best['gpu_hours'])}"
        f" ({style.share_text(best['sla_attainment'])} of the requests)"
    )
    by = best["gpu_hours_by_perfect"]
    return text + (f", {number(by)} times the bound's." if by is not None else ".")


def comparison(document: Document) -> str:
    """The comparison as an HTML table; who cannot run says why in place of figures."""
    rows = []
    for row in document["contestants"]:
        if row["why_not"]:
            cells = [row["why_not"], *[""] * (len(COLUMNS) - 1)]
        else:
            cells = [_cell(key, row[key]) for key in COLUMNS]
        rows.append([row["name"], *cells])
    return table(("", *COLUMNS.values()), rows)


def _cell(key: str, value: float | None) -> str:
    if key == "sla_attainment" and value is not None:
        return style.share_text(value)
    return number(value, 4)


def _share(document: Document, name: str) -> str:
    return style.share_text(document[f"attainment_{name}"])


def decisions(document: Document) -> str:
    """A folded table for each contestant that decides."""
    from markupsafe import Markup

    header = ("who", "at s", "why", "from", "to")
    blocks = []
    for row in document["contestants"]:
        changes = row["changes"]
        if not changes:
            continue
        shown = changes[:MAX_CHANGES]
        cells = [
            (one["pool"], f"{one['at_s']:,.0f}", f"{one['verdict']}: {'; '.join(one['reasons'])}",
             str(one["before"]), str(one["after"]))
            for one in shown
        ]  # fmt: skip
        left = f", the first {len(shown)}" if len(shown) < len(changes) else ""
        blocks.append(
            folded(f"{row['name']}: {len(changes)} changes{left}", table(header, cells, 3))
        )
    return Markup("").join(blocks)


def _goes_by(document: Document) -> str:
    rows = [(row["name"], row["goes_by"]) for row in document["contestants"]]
    return table(("", "goes by"), rows, 2)


def _over_time(document: Document, timeline: Rows) -> Chart:
    names = [row["name"] for row in document["contestants"] if row["gpu_hours"] is not None]
    by_name = {name: [row for row in timeline if row["contestant"] == name] for name in names}
    any_rows = by_name[names[0]]
    load = LineMark(
        x=[row["start_s"] for row in any_rows],
        y=[_rounded(row["offered_rps"]) for row in any_rows],
        color=style.BLACK,
        is_stepped=True,
        format="%{x:,.0f} s: %{y:.3g} requests/s",
    )

    def lines(key: str, *, in_legend: bool = False) -> tuple[Mark, ...]:
        return tuple(
            LineMark(
                x=[row["start_s"] for row in rows],
                y=[_rounded(row[key]) for row in rows],
                color=_COLORS[name],
                name=name,
                group=name,
                in_legend=in_legend,
                dash="dot" if name.startswith("static") else "solid",
                is_stepped=key != "gpu_hours_so_far",
                format="%{x:,.0f} s: %{y:.4g}",
            )
            for name, rows in by_name.items()
        )

    target = RuleMark(at=document["attainment_target"], text="target")
    zero, share = ChartAxis(from_zero=True), ChartAxis(limits=(0.0, 1.05), is_percent=True)
    time = ChartAxis(title="virtual time (s)")
    return Chart(
        panels=(
            Panel(title="Load (requests/s)", x=time, y=zero, marks=(load,)),
            Panel(title="Workers that serve", x=time, y=zero, marks=lines("ready", in_legend=True)),
            Panel(
                title="Within the SLA", x=time, y=share, marks=(*lines("sla_attainment"), target)
            ),
            Panel(title="GPU hours so far", x=time, y=zero, marks=lines("gpu_hours_so_far")),
        ),
        source=document["timing_source"],
        note=style.timing_note(document),
        height=900,
        shares_x=True,
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")
