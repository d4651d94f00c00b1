"""The figures of one run, as charts."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from dynosim.metrics.report import Latencies
from dynosim.metrics.timeline import default_interval_ms, timeline_table
from dynosim.plots import series, style
from dynosim.plots.chart import Chart, ChartAxis, HeatMark, LineMark, Mark, Panel, PointMark
from dynosim.plots.page import number
from dynosim.records import FloatArray, RequestStatus, RunResult

if TYPE_CHECKING:
    import polars as pl

MAX_POINTS = 4000
MAX_LINES = 8  # workers drawn as lines; more become a heat map
MS_PER_S = 1000.0
Report = Mapping[str, Any]

_TIME = ChartAxis(title="virtual time (s)")
_FROM_ZERO = ChartAxis(from_zero=True)
_WORKER_PANELS = (
    ("Waiting requests", "waiting", False),
    ("Running requests", "running", False),
    ("KV blocks in use", "kv_used_share", True),
    ("Busy share of the time", "busy_share", True),
)
_PERCENTILES = {"median": 0.5, "p90": 0.9, "p99": 0.99}


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

    def _chart(self, *panels: Panel, height: int, **options: Any) -> Chart:
        return Chart(
            panels=panels,
            source=self._report.get("timing_source"),
            note=style.timing_note(self._report),
            height=height,
            **options,
        )

    def latencies(self) -> Chart:
        """Cumulative distributions of TTFT, ITL, TPOT and E2E, percentiles of the report marked."""
        gaps, weights = series.mean_row_gaps(self._result.steps)
        stalled = self._result.stalled_gaps_ms
        done = self._completed
        ones = np.ones(int(done.sum()))
        samples = (
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
        panels = [
            self._distribution(title, metric, values, weight, style.PALETTE[index])
            for index, (title, metric, values, weight) in enumerate(samples)
        ]
        return self._chart(*panels, height=660, columns=2, has_legend=False)

    def _distribution(
        self, title: str, metric: str, values: FloatArray, weights: FloatArray, color: str
    ) -> Panel:
        x, y = series.distribution(values, weights)
        is_wide = len(x) > 0 and x[0] > 0 and x[-1] > 30 * max(x[0], 1e-9)
        curve = LineMark(
            x=series.rounded(x),
            y=series.rounded(y),
            color=color,
            width=2.2,
            is_stepped=True,
            format="%{x:.4g} ms or less: %{y:.2%}",
        )
        marks = self._percentile_marks(metric, color, middle=_middle(x, is_wide=is_wide))
        return Panel(
            title=title,
            x=ChartAxis(title="ms", is_log=is_wide),
            y=ChartAxis(limits=(0.0, 1.08), is_percent=True),
            marks=(curve, marks),
        )

    def _percentile_marks(self, metric: str, color: str, *, middle: float) -> PointMark:
        """Percentiles as circles; their words above or below the curve, where it never runs."""
        found = {name: self._report.get(f"{name}_{metric}") for name in _PERCENTILES}
        known = {name: value for name, value in found.items() if value is not None}
        return PointMark(
            x=list(known.values()),
            y=[_PERCENTILES[name] for name in known],
            color=color,
            fills=("hollow",),
            words=tuple(f"{name} {number(value, 4)}" for name, value in known.items()),
            words_below=tuple(value < middle for value in known.values()),
            format="%{text} ms (exact)",
        )

    def latency_over_time(self) -> Chart:
        """TTFT of requests by arrival, ITL by when the gaps were."""
        return self._chart(
            Panel(
                title="Time to first token, by arrival (ms)",
                x=_TIME,
                y=ChartAxis(is_log=True, is_decades=True),
                marks=self._ttft_marks(),
            ),
            Panel(title="Inter-token latency (ms)", x=_TIME, y=_FROM_ZERO, marks=self._itl_marks()),
            height=580,
            shares_x=True,
        )

    def _ttft_marks(self) -> tuple[Mark, ...]:
        arrival = self._result.requests.arrival_ms[self._completed]
        ttft = self._latencies.ttft_ms[self._completed]
        shown = series.every_nth(len(ttft), MAX_POINTS)
        interval = np.minimum(
            (arrival / self._interval_ms).astype(np.int64), self._num_intervals - 1
        )
        curves = series.interval_percentiles(
            interval, ttft, np.ones(len(ttft)), num_intervals=self._num_intervals, percents=(50, 99)
        )
        points = PointMark(
            name="request",
            x=series.rounded(arrival[shown] / MS_PER_S),
            y=series.rounded(ttft[shown]),
            sizes=(4.0,),
            color=style.SKY,
            opacity=0.45,
            format="%{x:.1f} s: %{y:.4g} ms",
        )
        return (
            points,
            self._line("TTFT median", curves[0], style.BLUE),
            self._line("TTFT p99", curves[1], style.VERMILLION),
        )

    def _itl_marks(self) -> tuple[Mark, ...]:
        interval, gaps, counts = series.gaps_by_interval(
            self._result.steps, self._interval_ms, self._num_intervals
        )
        totals = np.bincount(interval, counts, self._num_intervals)
        sums = np.bincount(interval, counts * gaps, self._num_intervals)
        mean = np.where(totals > 0, sums / np.where(totals > 0, totals, 1), np.nan)
        (p99,) = series.interval_percentiles(
            interval, gaps, counts, num_intervals=self._num_intervals, percents=(99,)
        )
        return (
            self._line("ITL mean", mean, style.GREEN),
            self._line("ITL p99", p99, style.ORANGE),
        )

    def _line(self, name: str, values: FloatArray, color: str, **more: Any) -> LineMark:
        return LineMark(
            name=name,
            x=series.rounded(self._seconds),
            y=series.rounded(values),
            color=color,
            format="%{x:.1f} s: %{y:.4g}",
            **more,
        )

    def load(self) -> Chart:
        """Requests per second in and out, prompt tokens computed and output tokens per second."""
        log = self._result.requests
        lengths = self._per_worker("interval_ms")[0] / MS_PER_S
        prefill = self._per_worker("prefill_tokens").sum(axis=0) / lengths
        output = self._per_worker("output_tokens").sum(axis=0) / lengths
        rates = (
            self._line("arrivals", self._rate(log.arrival_ms), style.BLUE),
            self._line("completions", self._rate(log.finish_ms[self._completed]), style.ORANGE),
        )
        computed = self._line("prompt tokens computed", prefill, style.PURPLE)
        panels: tuple[tuple[str, tuple[Mark, ...]], ...] = (
            ("Requests/s", rates),
            ("Prompt tokens computed/s", (computed,)),
            ("Output tokens/s", (self._line("output tokens", output, style.GREEN),)),
        )
        return self._chart(
            *(Panel(title=title, x=_TIME, y=_FROM_ZERO, marks=marks) for title, marks in panels),
            height=660,
            shares_x=True,
        )

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

    def workers(self) -> Chart:
        """Queue, batch, KV use and busy share of every worker over time."""
        is_lines = len(self._result.workers) <= MAX_LINES
        panels = []
        for index, (title, column, is_share) in enumerate(_WORKER_PANELS):
            values = self._per_worker(column)
            most = float(np.nanmax(values, initial=0.0))
            y = ChartAxis(limits=(0.0, 1.06 * most or 1.0), is_percent=is_share)
            marks: tuple[Mark, ...] = (
                self._worker_lines(values, is_first=index == 0)
                if is_lines
                else (self._heat_map(values, is_share=is_share),)
            )
            panels.append(
                Panel(
                    title=title, x=_TIME, y=y if is_lines else ChartAxis(title="worker"),
                    marks=marks,
                )
            )  # fmt: skip
        return self._chart(*panels, height=920, shares_x=True)

    def _worker_lines(self, values: FloatArray, *, is_first: bool) -> tuple[Mark, ...]:
        """Lines of a worker go on and off together; the first panel's are in the legend."""
        return tuple(
            self._line(
                f"worker {worker}",
                row,
                style.PALETTE[worker],
                group=f"worker {worker}",
                in_legend=is_first,
            )
            for worker, row in enumerate(values)
        )

    def _heat_map(self, values: FloatArray, *, is_share: bool) -> HeatMark:
        return HeatMark(
            values=[series.rounded(row) for row in values],
            x=series.rounded(self._seconds),
            is_percent=is_share,
            format="worker %{y}, %{x:.1f} s: %{z:.3g}",
        )

    def cache(self) -> Chart:
        """Share of prompt tokens found in the prefix cache at first admission."""
        cached = self._per_worker("admitted_cached_tokens").sum(axis=0)
        inputs = self._per_worker("admitted_input_tokens").sum(axis=0)
        so_far = np.cumsum(inputs)
        marks = (
            self._line("per interval", _share(cached, inputs), style.SKY),
            self._line("since the start", _share(np.cumsum(cached), so_far), style.BLUE),
        )
        y = ChartAxis(title="reused", is_percent=True, limits=(0.0, 1.02))
        return self._chart(Panel(x=_TIME, y=y, marks=marks), height=340)


def _middle(ascending: FloatArray, *, is_wide: bool) -> float:
    """The value half way along an axis from the first to the last, logarithmic if `is_wide`."""
    if len(ascending) == 0:
        return 0.0
    low, high = float(ascending[0]), float(ascending[-1])
    return math.sqrt(low * high) if is_wide else (low + high) / 2


def _share(part: FloatArray, whole: FloatArray) -> FloatArray:
    return np.where(whole > 0, part / np.where(whole > 0, whole, 1.0), np.nan)
