"""The figures of one run, as plotly specifications."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from dynosim.metrics.report import Latencies
from dynosim.metrics.timeline import default_interval_ms, timeline_table
from dynosim.plots import series, style
from dynosim.plots.page import Figure, number
from dynosim.records import FloatArray, RequestStatus, RunResult

if TYPE_CHECKING:
    import polars as pl

MAX_POINTS = 4000
MAX_LINES = 8  # workers drawn as lines; more become a heat map
MS_PER_S = 1000.0
Report = Mapping[str, Any]

_TIME = "virtual time (s)"
_WORKER_PANELS = (
    ("Waiting requests", "waiting", ""),
    ("Running requests", "running", ""),
    ("KV blocks in use", "kv_used_share", ".0%"),
    ("Busy share of the time", "busy_share", ".0%"),
)


class RunFigures:
    """Draws one run; every figure carries the run's timing note."""

    def __init__(self, result: RunResult, report: Report) -> None:
        self._result = result
        self._report = report
        self._interval_ms = default_interval_ms(result.end_ms)
        self._num_intervals = max(1, math.ceil(result.end_ms / self._interval_ms))
        self._seconds = np.arange(self._num_intervals) * (self._interval_ms / MS_PER_S)
        self._timeline: pl.DataFrame = timeline_table(result, self._interval_ms)
        self._completed = result.requests.status == RequestStatus.COMPLETED
        self._latencies = Latencies.of(result.requests)

    @property
    def interval_s(self) -> float:
        """Width of the intervals that the curves over time are drawn in."""
        return self._interval_ms / MS_PER_S

    @property
    def shown_every(self) -> int:
        """Of how many requests one is drawn as a point."""
        step = series.every_nth(int(self._completed.sum()), MAX_POINTS).step
        return int(step)

    def _layout(self, height: int) -> dict[str, Any]:
        return style.plotly_layout(
            source=self._report.get("timing_source"),
            note=style.timing_note(self._report),
            height=height,
        )

    def latencies(self) -> Figure:
        """Cumulative distributions of TTFT, ITL, TPOT and E2E, percentiles of the report marked."""
        layout = self._layout(620)
        gaps, weights = series.mean_row_gaps(self._result.steps)
        stalled = self._result.stalled_gaps_ms
        done = self._completed
        ones = np.ones(int(done.sum()))
        panels = (
            ("Time to first token", "ttft_ms", self._latencies.ttft_ms[done], ones),
            (
                "Inter-token latency, all gaps",
                "itl_ms",
                np.concatenate((gaps, stalled)),
                np.concatenate((weights, np.ones(len(stalled)))),
            ),
            ("Time per output token, per request", "tpot_ms", self._latencies.tpot_ms[done], ones),
            ("End-to-end latency", "e2e_latency_ms", self._latencies.e2e_ms[done], ones),
        )
        data: list[dict[str, Any]] = []
        for index, (title, metric, values, weight) in enumerate(panels):
            data += self._distribution_panel(layout, index, title, metric, values, weight)
        layout["showlegend"] = False
        return Figure(data, layout)

    def _distribution_panel(
        self,
        layout: dict[str, Any],
        index: int,
        title: str,
        metric: str,
        values: FloatArray,
        weights: FloatArray,
    ) -> list[dict[str, Any]]:
        column, row = index % 2, index // 2
        left, bottom = column * 0.54, 0.58 - row * 0.58
        suffix = style.axis_suffix(index)
        x, y = series.distribution(values, weights)
        is_wide = len(x) > 0 and x[0] > 0 and x[-1] > 30 * max(x[0], 1e-9)
        layout[f"xaxis{suffix}"] = style.axis(
            "ms",
            domain=[left, left + 0.46],
            anchor=f"y{suffix}",
            type="log" if is_wide else "linear",
            **({"dtick": "D2"} if is_wide else {}),
        )
        layout[f"yaxis{suffix}"] = style.axis(
            "", domain=[bottom, bottom + 0.40], anchor=f"x{suffix}", range=[0, 1.08],
            tickformat=".0%",
        )  # fmt: skip
        layout["annotations"].append(style.panel_title(title, left, bottom + 0.405))
        axes = {"xaxis": f"x{suffix}", "yaxis": f"y{suffix}"}
        curve = {
            "type": "scatter",
            "mode": "lines",
            "x": series.rounded(x),
            "y": series.rounded(y),
            "line": {"color": style.PALETTE[index], "width": 2.2, "shape": "hv"},
            "hovertemplate": "%{x:.4g} ms or less: %{y:.2%}<extra></extra>",
            **axes,
        }
        marks = self._percentile_marks(metric, index, middle=_middle(x, is_wide=is_wide))
        return [curve, marks | axes]

    def _percentile_marks(self, metric: str, index: int, *, middle: float) -> dict[str, Any]:
        """Percentiles as circles; their words above or below the curve, where it never runs."""
        marks = {"median": 0.5, "p90": 0.9, "p99": 0.99}
        found = {name: self._report.get(f"{name}_{metric}") for name in marks}
        known = {name: value for name, value in found.items() if value is not None}
        return {
            "type": "scatter",
            "mode": "markers+text",
            "x": list(known.values()),
            "y": [marks[name] for name in known],
            "text": [f"{name} {number(known[name], 4)}" for name in known],
            "textposition": [
                "bottom right" if known[name] < middle else "top left" for name in known
            ],
            "textfont": {"size": 11},
            "cliponaxis": False,
            "marker": {
                "size": 8,
                "color": "white",
                "line": {"color": style.PALETTE[index], "width": 2},
            },
            "hovertemplate": "%{text} ms (exact)<extra></extra>",
        }

    def latency_over_time(self) -> Figure:
        """TTFT of requests by arrival, ITL by when the gaps were."""
        layout = self._layout(560)
        panels = (
            ("Time to first token, by arrival (ms)", {"type": "log", "dtick": 1}),
            ("Inter-token latency (ms)", {"rangemode": "tozero"}),
        )
        style.stack_panels(layout, panels, x_title=_TIME)
        return Figure([*self._ttft_traces(), *self._itl_traces()], layout)

    def _ttft_traces(self) -> list[dict[str, Any]]:
        arrival = self._result.requests.arrival_ms[self._completed]
        ttft = self._latencies.ttft_ms[self._completed]
        shown = series.every_nth(len(ttft), MAX_POINTS)
        interval = np.minimum(
            (arrival / self._interval_ms).astype(np.int64), self._num_intervals - 1
        )
        curves = series.interval_percentiles(
            interval, ttft, np.ones(len(ttft)), num_intervals=self._num_intervals, percents=(50, 99)
        )
        points = {
            "type": "scatter",
            "mode": "markers",
            "name": "request",
            "x": series.rounded(arrival[shown] / MS_PER_S),
            "y": series.rounded(ttft[shown]),
            "marker": {"size": 4, "color": style.SKY, "opacity": 0.45},
            "hovertemplate": "%{x:.1f} s: %{y:.4g} ms<extra>request</extra>",
        }
        return [
            points,
            self._line("TTFT median", curves[0], style.BLUE),
            self._line("TTFT p99", curves[1], style.VERMILLION),
        ]

    def _itl_traces(self) -> list[dict[str, Any]]:
        interval, gaps, counts = series.gaps_by_interval(
            self._result.steps, self._interval_ms, self._num_intervals
        )
        totals = np.bincount(interval, counts, self._num_intervals)
        sums = np.bincount(interval, counts * gaps, self._num_intervals)
        mean = np.where(totals > 0, sums / np.where(totals > 0, totals, 1), np.nan)
        (p99,) = series.interval_percentiles(
            interval, gaps, counts, num_intervals=self._num_intervals, percents=(99,)
        )
        return [
            self._line("ITL mean", mean, style.GREEN, axis="2"),
            self._line("ITL p99", p99, style.ORANGE, axis="2"),
        ]

    def _line(
        self, name: str, values: FloatArray, color: str, *, axis: str = "", **more: Any
    ) -> dict[str, Any]:
        return {
            "type": "scatter",
            "mode": "lines",
            "name": name,
            "x": series.rounded(self._seconds),
            "y": series.rounded(values),
            "xaxis": f"x{axis}",
            "yaxis": f"y{axis}",
            "line": {"color": color, "width": 1.8, **more},
            "hovertemplate": "%{x:.1f} s: %{y:.4g}<extra>" + name + "</extra>",
        }

    def load(self) -> Figure:
        """Requests per second in and out, prompt tokens computed and output tokens per second."""
        layout = self._layout(640)
        titles = ("Requests/s", "Prompt tokens computed/s", "Output tokens/s")
        panels = [(title, {"rangemode": "tozero"}) for title in titles]
        style.stack_panels(layout, panels, x_title=_TIME)
        log = self._result.requests
        lengths = self._per_worker("interval_ms")[0] / MS_PER_S
        prefill = self._per_worker("prefill_tokens").sum(axis=0) / lengths
        output = self._per_worker("output_tokens").sum(axis=0) / lengths
        data = [
            self._line("arrivals", self._rate(log.arrival_ms), style.BLUE),
            self._line("completions", self._rate(log.finish_ms[self._completed]), style.ORANGE),
            self._line("prompt tokens computed", prefill, style.PURPLE, axis="2"),
            self._line("output tokens", output, style.GREEN, axis="3"),
        ]
        return Figure(data, layout)

    def _rate(self, times_ms: FloatArray) -> FloatArray:
        known = times_ms[~np.isnan(times_ms)]
        interval = np.minimum((known / self._interval_ms).astype(np.int64), self._num_intervals - 1)
        lengths = self._per_worker("interval_ms")[0] / MS_PER_S
        counts = np.bincount(interval, minlength=self._num_intervals)
        rate: FloatArray = counts / lengths
        return rate

    def _per_worker(self, column: str) -> FloatArray:
        """(workers, intervals)"""
        values = self._timeline[column].fill_null(float("nan")).to_numpy()
        return values.astype(np.float64).reshape(len(self._result.workers), self._num_intervals)

    def workers(self) -> Figure:
        """Queue, batch, KV use and busy share of every worker over time."""
        layout = self._layout(900)
        is_lines = len(self._result.workers) <= MAX_LINES
        panels: list[tuple[str, dict[str, Any]]] = []
        data: list[dict[str, Any]] = []
        for index, (title, column, tickformat) in enumerate(_WORKER_PANELS):
            values = self._per_worker(column)
            suffix = style.axis_suffix(index)
            if is_lines:
                most = float(np.nanmax(values, initial=0.0))
                options: dict[str, Any] = {"range": [0, 1.06 * most or 1], "tickformat": tickformat}
                data += self._worker_lines(values, suffix, is_first=index == 0)
            else:
                options = {"title": "worker"}
                middle = 1 - (index + 0.5) / len(_WORKER_PANELS)
                data.append(self._heat_map(values, suffix, tickformat, middle))
            panels.append((title, options))
        style.stack_panels(layout, panels, x_title=_TIME)
        return Figure(data, layout)

    def _worker_lines(
        self, values: FloatArray, suffix: str, *, is_first: bool
    ) -> list[dict[str, Any]]:
        lines = []
        for worker, row in enumerate(values):
            line = self._line(f"worker {worker}", row, style.PALETTE[worker], axis=suffix)
            lines.append(line | {"legendgroup": str(worker), "showlegend": is_first})
        return lines

    def _heat_map(
        self, values: FloatArray, suffix: str, tickformat: str, middle: float
    ) -> dict[str, Any]:
        return {
            "type": "heatmap",
            "zmin": 0,
            "z": [series.rounded(row) for row in values],
            "x": series.rounded(self._seconds),
            "xaxis": f"x{suffix}",
            "yaxis": f"y{suffix}",
            "colorscale": style.SEQUENTIAL,
            "colorbar": {"len": 0.2, "y": middle, "thickness": 12, "tickformat": tickformat},
            "hovertemplate": "worker %{y}, %{x:.1f} s: %{z:.3g}<extra></extra>",
        }

    def cache(self) -> Figure:
        """Share of prompt tokens found in the prefix cache at first admission."""
        layout = self._layout(340)
        layout["xaxis"] = style.axis(_TIME)
        layout["yaxis"] = style.axis("reused", tickformat=".0%", range=[0, 1.02])
        cached = self._per_worker("admitted_cached_tokens").sum(axis=0)
        inputs = self._per_worker("admitted_input_tokens").sum(axis=0)
        so_far = np.cumsum(inputs)
        return Figure(
            [
                self._line("per interval", _share(cached, inputs), style.SKY),
                self._line("since the start", _share(np.cumsum(cached), so_far), style.BLUE),
            ],
            layout,
        )


def _middle(ascending: FloatArray, *, is_wide: bool) -> float:
    """The value half way along an axis from the first to the last, logarithmic if `is_wide`."""
    if len(ascending) == 0:
        return 0.0
    low, high = float(ascending[0]), float(ascending[-1])
    return math.sqrt(low * high) if is_wide else (low + high) / 2


def _share(part: FloatArray, whole: FloatArray) -> FloatArray:
    return np.where(whole > 0, part / np.where(whole > 0, whole, 1.0), np.nan)
