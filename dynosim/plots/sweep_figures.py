"""The figures of a sweep, as plotly specifications."""

from typing import TYPE_CHECKING, Any

from dynosim.plots import style
from dynosim.plots import trials as trial_table
from dynosim.plots.page import Figure

if TYPE_CHECKING:
    import polars as pl

Rows = list[dict[str, Any]]
Objectives = tuple[str, str]

_SYMBOLS = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "x", "star")
_HOVER_KEYS = {
    "num_gpus": "GPUs",
    "mean_ttft_ms": "TTFT mean (ms)",
    "p99_ttft_ms": "TTFT p99 (ms)",
    "mean_itl_ms": "ITL mean (ms)",
    "p99_itl_ms": "ITL p99 (ms)",
    "prefix_cache_reused_ratio": "cache reuse",
    "sla_attainment": "within SLA",
}


class SweepFigures:
    """Draws the finished trials of a sweep."""

    def __init__(self, trials: "pl.DataFrame", objectives: Objectives) -> None:
        self._trials = trials
        self._objectives = objectives
        self._shown = trial_table.finished(trials, objectives)
        self._rows = self._shown.to_dicts()
        self._keys = trial_table.varied_keys(trials)

    def _layout(self, height: int) -> dict[str, Any]:
        return style.plotly_layout(
            source=trial_table.common_source(self._trials),
            note=trial_table.timing_note(self._trials),
            height=height,
        )

    def frontier(self) -> Figure:
        """All finished trials and the frontier; hovering tells configuration and numbers."""
        layout = self._layout(620)
        layout["yaxis"] = style.axis(
            trial_table.axis_title(self._objectives[0]), rangemode="tozero"
        )
        layout["xaxis"] = style.axis(trial_table.axis_title(self._objectives[1]))
        layout["annotations"] += self._labels()
        return Figure(
            [*self._frontiers(), *self._error_bars(), *self._groups(), *self._marks()], layout
        )

    def _labels(self) -> list[dict[str, Any]]:
        return [
            {
                "text": _escape(place.text),
                "x": place.x,
                "y": place.y,
                "xanchor": "right" if place.is_left else "left",
                "xshift": -8 if place.is_left else 8,
                "yshift": -10 if place.is_left else 9,
                "showarrow": False,
                "font": {"size": 11},
            }
            for place in trial_table.frontier_labels(self._trials, self._objectives)
        ]

    def _xy(self, rows: Rows) -> dict[str, Any]:
        return {
            "type": "scatter",
            "x": [row[self._objectives[1]] for row in rows],
            "y": [row[self._objectives[0]] for row in rows],
        }

    def _frontiers(self) -> list[dict[str, Any]]:
        fronts = (
            ("Pareto frontier", trial_table.frontier(self._trials, self._objectives), "solid"),
            ("within the SLA", trial_table.sla_frontier(self._trials, self._objectives), "dash"),
        )
        return [
            {
                **self._xy(rows.to_dicts()),
                "mode": "lines",
                "name": name,
                "line": {"color": style.BLACK, "width": 1.5, "dash": dash},
                "hoverinfo": "skip",
            }
            for name, rows, dash in fronts
            if not rows.is_empty()
        ]

    def _error_bars(self) -> list[dict[str, Any]]:
        """One trace of lines with gaps between them; none without intervals."""
        bars = trial_table.error_bars(self._trials, self._objectives)
        trace = {
            "type": "scatter",
            "x": [value for bar in bars for value in (*bar.x, None)],
            "y": [value for bar in bars for value in (*bar.y, None)],
            "mode": "lines",
            "name": trial_table.ERROR_BARS,
            "line": {"color": style.GREY, "width": 1.3},
            "hoverinfo": "skip",
        }
        return [trace] if bars else []

    def _groups(self) -> list[dict[str, Any]]:
        key = trial_table.TENSOR_PARALLEL
        grouped = key in self._shown.columns
        groups = sorted({row[key] for row in self._rows}) if grouped else [None]
        traces = []
        for index, group in enumerate(groups):
            rows = [row for row in self._rows if group is None or row[key] == group]
            traces.append(
                {
                    **self._xy(rows),
                    "mode": "markers",
                    "name": "trial" if group is None else f"TP{group}",
                    "text": [self._hover(row) for row in rows],
                    "hovertemplate": "%{text}<extra></extra>",
                    "marker": {
                        "size": [12 if row["is_pareto"] else 8 for row in rows],
                        "color": style.PALETTE[index % len(style.PALETTE)],
                        "symbol": _SYMBOLS[index % len(_SYMBOLS)],
                        "opacity": 0.85,
                    },
                }
            )
        return traces

    def _marks(self) -> list[dict[str, Any]]:
        saturated = [row for row in self._rows if row.get("saturated")]
        missing = [row for row in self._rows if trial_table.violates_sla(row)]
        marks = (("saturated", saturated, "circle-open", 17), ("misses SLA", missing, "x-thin", 8))
        return [
            {
                **self._xy(rows),
                "mode": "markers",
                "name": name,
                "hoverinfo": "skip",
                "marker": {
                    "size": size,
                    "symbol": symbol,
                    "color": "#555",
                    "line": {"width": 1.4, "color": "#555"},
                },
            }
            for name, rows, symbol, size in marks
            if rows
        ]

    def _hover(self, row: dict[str, Any]) -> str:
        lines = [f"<b>{_escape(trial_table.label(row, self._keys))}</b> (trial {row['trial_id']})"]
        lines += [
            f"{trial_table.axis_title(o)}: {row[o]:,.4g}{_between(row, o)}"
            for o in self._objectives
        ]
        lines += [
            f"{name}: {row[key]:,.4g}{_between(row, key)}"
            for key, name in _HOVER_KEYS.items()
            if row.get(key) is not None
        ]
        lines += [f"{_escape(key)}: {_escape(row[key])}" for key in self._keys]
        if row.get("saturated"):
            lines.append("<b>saturated</b>")
        if trial_table.violates_sla(row):
            lines.append("<b>misses the SLA</b>")
        return "<br>".join(lines)

    def parallel_coordinates(self) -> Figure:
        """Each line is a trial: what was varied, then the objectives, coloured by the first."""
        layout = self._layout(460)
        names = trial_table.short_names(self._keys)
        layout["margin"] |= {"t": 76, "l": 90, "r": 130}
        dimensions = [
            _dimension(names[key], [row[key] for row in self._rows]) for key in self._keys
        ]
        dimensions += [
            {
                "label": trial_table.axis_title(objective),
                "values": [row[objective] for row in self._rows],
            }
            for objective in self._objectives
        ]
        line = {
            "color": [row[self._objectives[0]] for row in self._rows],
            "colorscale": style.SEQUENTIAL,
            "showscale": False,
        }
        font = {"size": 11.5}
        trace = {"type": "parcoords", "line": line, "dimensions": dimensions, "labelfont": font}
        return Figure([trace], layout)

    def effects(self) -> Figure:
        """For every varied key, the first objective of all trials per value."""
        keys = self._keys or ["trial_id"]
        layout = self._layout(380)
        data = []
        width = 1 / len(keys)
        for index, key in enumerate(keys):
            suffix = style.axis_suffix(index)
            left = index * width
            layout[f"xaxis{suffix}"] = style.axis(
                key, domain=[left, left + width * 0.88], anchor=f"y{suffix}", type="category"
            )
            layout[f"yaxis{suffix}"] = style.axis(
                trial_table.axis_title(self._objectives[0]) if index == 0 else "",
                anchor=f"x{suffix}",
                rangemode="tozero",
                **({} if index == 0 else {"matches": "y", "showticklabels": False}),
            )
            data.append(self._box(key, suffix, style.PALETTE[index % len(style.PALETTE)]))
        layout["showlegend"] = False
        return Figure(data, layout)

    def _box(self, key: str, suffix: str, color: str) -> dict[str, Any]:
        rows = sorted(self._rows, key=lambda row: _sort_key(row[key]))
        return {
            "type": "box",
            "x": [str(row[key]) for row in rows],
            "y": [row[self._objectives[0]] for row in rows],
            "xaxis": f"x{suffix}",
            "yaxis": f"y{suffix}",
            "boxpoints": "all",
            "jitter": 0.4,
            "pointpos": 0,
            "marker": {"color": color, "size": 5, "opacity": 0.6},
            "line": {"width": 1.2, "color": color},
            "text": [trial_table.label(row, self._keys) for row in rows],
            "hovertemplate": "%{text}: %{y:,.4g}<extra></extra>",
        }


def _between(row: dict[str, Any], key: str) -> str:
    ends = trial_table.interval(row, key)
    return "" if ends is None else f" ({ends[0]:,.4g} to {ends[1]:,.4g})"


def _sort_key(value: Any) -> tuple[bool, float, str]:
    """Numbers before words, each in its own order."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return (not is_number, float(value) if is_number else 0.0, str(value))


def _dimension(key: str, values: list[Any]) -> dict[str, Any]:
    """An axis of evenly spaced ticks, one per value that occurs."""
    levels = sorted(set(values), key=_sort_key)
    return {
        "label": key,
        "values": [levels.index(value) for value in values],
        "tickvals": list(range(len(levels))),
        "ticktext": [str(level) for level in levels],
    }


def _escape(value: Any) -> str:
    return str(value).replace("&", "&amp;").replace("<", "&lt;")
