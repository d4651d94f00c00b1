"""The pictures of a sweep's trials: the frontier, the spread by setting, all settings together."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynosim.plots import style
from dynosim.plots import trials as trial_table
from dynosim.plots.chart import (
    BoxMark,
    Chart,
    ChartAxis,
    LineMark,
    Mark,
    Panel,
    PointMark,
)
from dynosim.plots.families import LayoutFamily, family_of, family_styles
from dynosim.plots.page import Figure, number
from dynosim.plots.png_chart import write_chart_png

if TYPE_CHECKING:
    import polars as pl

Rows = list[dict[str, Any]]
Objectives = tuple[str, str]

MAX_POINTS = 2000
"""Trials drawn beside the frontier; of more, evenly by the first objective."""

_HOVER_KEYS = {
    "num_gpus": "GPUs",
    "mean_ttft_ms": "TTFT mean (ms)",
    "p99_ttft_ms": "TTFT p99 (ms)",
    "mean_itl_ms": "ITL mean (ms)",
    "p99_itl_ms": "ITL p99 (ms)",
    "prefix_cache_reused_ratio": "cache reuse",
    "sla_attainment": "within SLA",
}


def write_pareto_png(
    path: Path | str, *, title: str, trials: "pl.DataFrame", objectives: Objectives
) -> None:
    """Draw the trials and their frontier; the first objective is upwards, the second to the right.

    The same trials give the same bytes.
    """
    write_chart_png(path, SweepCharts(trials, objectives).frontier(), title=title)


class SweepCharts:
    """Draws the finished trials of a sweep."""

    def __init__(self, trials: "pl.DataFrame", objectives: Objectives) -> None:
        self._trials = trials
        self._objectives = objectives
        self._shown = trial_table.finished(trials, objectives)
        self._rows = self._shown.to_dicts()
        self._keys = trial_table.varied_keys(trials)
        self._styles = family_styles(family_of(row) for row in self._rows)
        self._drawn = self._sampled()

    @property
    def num_left_out(self) -> int:
        """Finished trials that the pictures do not show."""
        return len(self._rows) - len(self._drawn)

    def _sampled(self) -> Rows:
        """What is drawn: the frontiers, and of the others every so many by the first objective."""
        front = [row for row in self._rows if row["is_pareto"] or row.get("is_sla_pareto")]
        numbers = {row["trial_id"] for row in front}
        others = [row for row in self._rows if row["trial_id"] not in numbers]
        if len(others) > MAX_POINTS:
            others.sort(key=lambda row: (row[self._objectives[0]], row["trial_id"]))
            others = [others[i * len(others) // MAX_POINTS] for i in range(MAX_POINTS)]
        kept = numbers | {row["trial_id"] for row in others}
        return [row for row in self._rows if row["trial_id"] in kept]

    def _chart(self, panels: Sequence[Panel], **options: Any) -> Chart:
        return Chart(
            panels=tuple(panels),
            source=trial_table.common_source(self._trials) if self._rows else "measured",
            note=trial_table.timing_note(self._trials),
            **options,
        )

    def frontier(self) -> Chart:
        """All finished trials and the frontier; hovering tells configuration and numbers."""
        marks = (*self._frontiers(), *self._error_bars(), *self._groups(), *self._doubts())
        labels = trial_table.frontier_labels(self._trials, self._objectives) if self._rows else []
        panel = Panel(
            x=ChartAxis(title=trial_table.axis_title(self._objectives[1]), from_zero=True),
            y=ChartAxis(title=trial_table.axis_title(self._objectives[0]), from_zero=True),
            marks=marks,
            labels=tuple(labels),
        )
        return self._chart([panel], height=620, empty="" if self._rows else "no trial finished")

    def _xs(self, rows: Rows) -> list[float]:
        return [row[self._objectives[1]] for row in rows]

    def _ys(self, rows: Rows) -> list[float]:
        return [row[self._objectives[0]] for row in rows]

    def _frontiers(self) -> list[Mark]:
        fronts = (
            ("Pareto frontier", trial_table.frontier(self._trials, self._objectives), "solid"),
            ("within the SLA", trial_table.sla_frontier(self._trials, self._objectives), "dash"),
        )
        return [
            LineMark(
                x=self._xs(rows.to_dicts()),
                y=self._ys(rows.to_dicts()),
                color=style.BLACK,
                width=1.5,
                name=name,
                dash="dash" if dash == "dash" else "solid",
            )
            for name, rows, dash in fronts
            if not rows.is_empty()
        ]

    def _error_bars(self) -> list[Mark]:
        """One line with gaps; none without intervals."""
        bars = trial_table.error_bars(self._trials, self._objectives)
        mark = LineMark(
            x=[value for bar in bars for value in (*bar.x, None)],
            y=[value for bar in bars for value in (*bar.y, None)],
            name=trial_table.ERROR_BARS,
            color=style.GREY,
            width=1.3,
        )
        return [mark] if bars else []

    def _groups(self) -> list[Mark]:
        """One colour and symbol for each family."""
        by_family: dict[LayoutFamily, Rows] = {}
        for row in self._drawn:
            by_family.setdefault(family_of(row), []).append(row)
        return [
            PointMark(
                x=self._xs(rows),
                y=self._ys(rows),
                name=family.name if family.is_told else _plain_name(by_family),
                color=self._styles[family].color,
                symbol=self._styles[family].symbol,
                sizes=tuple(12.0 if row["is_pareto"] else 8.0 for row in rows),
                fills=tuple(trial_table.fill_of(row) for row in rows),
                opacity=0.85,
                hover=tuple(self._hover(row) for row in rows),
                rows=tuple(row["trial_id"] for row in rows),
            )
            for family, rows in sorted(by_family.items())
        ]

    def _doubts(self) -> list[Mark]:
        saturated = [row for row in self._drawn if row.get("saturated")]
        missing = [row for row in self._drawn if trial_table.violates_sla(row)]
        kinds = (
            ("saturated", saturated, "circle-open", 17.0),
            ("misses SLA", missing, "x-thin", 8.0),
        )
        return [
            PointMark(
                x=self._xs(rows),
                y=self._ys(rows),
                name=name,
                color=style.GREY,
                symbol=symbol,
                sizes=(size,),
                fills=("half",),
            )
            for name, rows, symbol, size in kinds
            if rows
        ]

    def _hover(self, row: dict[str, Any]) -> str:
        lines = [f"{trial_table.label(row, self._keys)} (trial {row['trial_id']})"]
        lines += [
            f"{trial_table.axis_title(o)}: {number(row[o], 4)}{_between(row, o)}"
            for o in self._objectives
        ]
        lines += [
            f"{name}: {number(row[key], 4)}{_between(row, key)}"
            for key, name in _HOVER_KEYS.items()
            if row.get(key) is not None
        ]
        lines += [f"{key}: {row[key]}" for key in self._keys]
        if row.get("saturated"):
            lines.append("saturated")
        if trial_table.violates_sla(row):
            lines.append("misses the SLA")
        return "\n".join(lines)

    def effects(self) -> Chart:
        """For every varied key, the first objective of all trials per value."""
        panels = []
        for index, key in enumerate(self._keys or ["trial_id"]):
            levels = _levels([row[key] for row in self._rows])
            places = {_name(level): place for place, level in enumerate(levels)}
            rows = sorted(self._drawn, key=lambda row: places[_name(row[key])])
            box = BoxMark(
                at=[places[_name(row[key])] for row in rows],
                values=[row[self._objectives[0]] for row in rows],
                color=style.PALETTE[index % len(style.PALETTE)],
                hover=tuple(trial_table.label(row, self._keys) for row in rows),
            )
            title = trial_table.axis_title(self._objectives[0]) if index == 0 else ""
            panels.append(
                Panel(
                    x=ChartAxis(title=key, names=tuple(map(str, levels))),
                    y=ChartAxis(title=title, from_zero=True),
                    marks=(box,),
                )
            )
        return self._chart(panels, height=380, columns=len(panels), has_legend=False)

    def parallel_coordinates(self) -> Figure:
        """Each line is a trial: what was varied, then the objectives, coloured by the first.

        For the screen alone, where one can select along an axis.
        """
        chart = self._chart([], height=460)
        layout = style.plotly_layout(source=chart.source, height=chart.height)
        names = trial_table.short_names(self._keys)
        layout["margin"] |= {"t": 76, "l": 90, "r": 130}
        dimensions = [
            _dimension(names[key], [row[key] for row in self._drawn]) for key in self._keys
        ]
        dimensions += [
            {
                "label": trial_table.axis_title(objective),
                "values": [row[objective] for row in self._drawn],
            }
            for objective in self._objectives
        ]
        line = {
            "color": [row[self._objectives[0]] for row in self._drawn],
            "colorscale": style.SEQUENTIAL,
            "showscale": False,
        }
        font = {"size": 11.5}
        trace = {"type": "parcoords", "line": line, "dimensions": dimensions, "labelfont": font}
        return Figure([trace], layout, note=chart.note, min_width_px=120 * len(dimensions))


def _plain_name(families: Iterable[LayoutFamily]) -> str:
    """The family that nothing tells from others: aggregated ones, where there are others."""
    return "agg" if any(family.is_disaggregated for family in families) else "trial"


def _between(row: dict[str, Any], key: str) -> str:
    ends = trial_table.interval(row, key)
    return "" if ends is None else f" ({number(ends[0], 4)} to {number(ends[1], 4)})"


def _sort_key(value: Any) -> tuple[bool, float, str]:
    """Numbers before words, each in its own order."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return (not is_number, float(value) if is_number else 0.0, str(value))


def _name(value: Any) -> str:
    return json.dumps(value, default=str)


def _levels(values: list[Any]) -> list[Any]:
    """The values that occur, once each, in order."""
    return sorted({_name(value): value for value in values}.values(), key=_sort_key)


def _dimension(key: str, values: list[Any]) -> dict[str, Any]:
    """An axis of evenly spaced ticks, one per value that occurs."""
    levels = _levels(values)
    return {
        "label": key,
        "values": [levels.index(value) for value in values],
        "tickvals": list(range(len(levels))),
        "ticktext": [str(level) for level in levels],
    }
