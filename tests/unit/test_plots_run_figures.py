"""What the figures of a run draw is what its requests and steps say, worked out plainly."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from toy_runs import ToyRun, ToyTiming, toy_run

from dynosim.metrics import summarize, timeline_table
from dynosim.plots import run_figures, series
from dynosim.plots.page import Figure
from dynosim.plots.plotly_chart import plotly_figure
from dynosim.plots.run_figures import RunFigures
from dynosim.records import RequestStatus

Numbers = list[float | None]


@pytest.fixture(scope="module")
def run() -> ToyRun:
    """Three workers, a request that never finished, intervals of 10 ms."""
    toy = toy_run(60, workers=3, preempt_chance=0.03, seed=4)
    log = toy.result.requests
    status, finish_ms = log.status.copy(), log.finish_ms.copy()
    status[7], finish_ms[7] = int(RequestStatus.UNFINISHED), np.nan
    log = replace(log, status=status, finish_ms=finish_ms)
    return replace(toy, result=replace(toy.result, requests=log))


@pytest.fixture(scope="module")
def figures(run: ToyRun) -> RunFigures:
    return RunFigures(run.result, summarize(run.result, run.timing, sla=None, wall_time_ms=0.0))


def trace_of(figure: Figure, name: str) -> dict[str, Any]:
    (found,) = [trace for trace in figure.data if trace.get("name") == name]
    return found


def short(values: list[float]) -> Numbers:
    """Six significant digits, as on the page; None for NaN."""
    return [None if math.isnan(value) else float(f"{value:.6g}") for value in values]


def assert_drawn(trace: dict[str, Any], x: list[float], y: list[float]) -> None:
    assert trace["x"] == short(x)
    assert len(trace["y"]) == len(y) > 0
    for drawn, expected in zip(trace["y"], short(y), strict=True):
        # The last of six digits may round the other way: sums were added in another order.
        is_near = drawn == expected or (
            drawn is not None
            and expected is not None
            and math.isclose(drawn, expected, rel_tol=1e-5)
        )
        assert is_near, (drawn, expected)


def intervals_of(run: ToyRun) -> tuple[float, int, list[float]]:
    """Width and number of the intervals, and where they start, in seconds."""
    starts = sorted(set(timeline_table(run.result)["start_ms"].to_list()))
    width_ms = starts[1] - starts[0]
    return width_ms, len(starts), [start / 1000 for start in starts]


def per_interval(
    run: ToyRun, times_ms: list[float], values: list[float], fold: Callable[[list[float]], float]
) -> list[float]:
    """What `fold` makes of the values whose times lie in each interval; NaN of none."""
    width_ms, count, _ = intervals_of(run)
    groups: list[list[float]] = [[] for _ in range(count)]
    for time, value in zip(times_ms, values, strict=True):
        groups[min(int(time / width_ms), count - 1)].append(value)
    return [fold(group) if group else math.nan for group in groups]


def nearest_rank(percent: float) -> Callable[[list[float]], float]:
    """The smallest value that at least `percent` of the group do not exceed."""
    return lambda group: sorted(group)[max(0, math.ceil(len(group) * percent / 100 - 1e-9) - 1)]


def test_times_to_first_token_are_drawn_at_their_arrivals(run: ToyRun, figures: RunFigures) -> None:
    log = run.result.requests
    figure = plotly_figure(figures.latency_over_time())
    done = [index for index in range(60) if index != 7]
    arrivals = [float(log.arrival_ms[index]) for index in done]
    ttft = [float(log.first_token_ms[index] - log.arrival_ms[index]) for index in done]
    assert_drawn(trace_of(figure, "request"), [time / 1000 for time in arrivals], ttft)
    _, _, seconds = intervals_of(run)
    for name, percent in (("TTFT median", 50), ("TTFT p99", 99)):
        expected = per_interval(run, arrivals, ttft, nearest_rank(percent))
        assert_drawn(trace_of(figure, name), seconds, expected)
    assert figures.shown_every == 1


def test_percentiles_of_a_crowded_interval_are_neither_its_mean_nor_its_largest() -> None:
    """All of 200 requests arrive in the first interval: each percentile is another one's."""
    run = toy_run(200, arrivals_ms=[number / 1000 for number in range(200)])
    log = run.result.requests
    ttft = sorted((log.first_token_ms - log.arrival_ms).tolist())
    figure = plotly_figure(RunFigures(run.result, {}).latency_over_time())
    found = [trace_of(figure, name)["y"][0] for name in ("TTFT median", "TTFT p99")]
    assert found == short([ttft[99], ttft[197]])


def test_gaps_are_drawn_when_they_were(run: ToyRun, figures: RunFigures) -> None:
    """A row of steps has one mean gap; an interval counts the part of its gaps that it holds."""
    width_ms, count, seconds = intervals_of(run)
    steps = run.result.steps
    sums, totals = [0.0] * count, [0.0] * count
    held: list[list[tuple[float, float]]] = [[] for _ in range(count)]
    for row in range(len(steps.num_steps)):
        start, length = float(steps.start_ms[row]), float(steps.duration_ms[row])
        gaps = int(steps.num_decodes[row] * steps.num_steps[row])
        for number in range(count):
            end_ms = math.inf if number == count - 1 else (number + 1) * width_ms
            spent = min(start + length, end_ms) - max(start, number * width_ms)
            if spent > 0 and gaps:
                gap_ms, weight = length / int(steps.num_steps[row]), gaps * spent / length
                sums[number] += weight * gap_ms
                totals[number] += weight
                held[number].append((gap_ms, weight))
    figure = plotly_figure(figures.latency_over_time())
    pairs = zip(sums, totals, strict=True)
    means = [amount / total if total else math.nan for amount, total in pairs]
    assert_drawn(trace_of(figure, "ITL mean"), seconds, means)
    assert_drawn(trace_of(figure, "ITL p99"), seconds, [weighted_p99(part) for part in held])


def weighted_p99(pairs: list[tuple[float, float]]) -> float:
    total, so_far = sum(weight for _, weight in pairs), 0.0
    for value, weight in sorted(pairs):
        so_far += weight
        if so_far >= 0.99 * total * (1 - 1e-12):
            return value
    return math.nan


def test_rates_are_counts_by_the_intervals_length(run: ToyRun, figures: RunFigures) -> None:
    log, figure = run.result.requests, plotly_figure(figures.load())
    width_ms, count, seconds = intervals_of(run)
    last_ms = run.result.end_ms - (count - 1) * width_ms
    lengths = [width_ms / 1000] * (count - 1) + [last_ms / 1000]

    def rates(times_ms: np.ndarray) -> list[float]:
        known = times_ms[~np.isnan(times_ms)].tolist()
        counts = per_interval(run, known, [1.0] * len(known), sum)
        return [
            0.0 if math.isnan(number) else number / length
            for number, length in zip(counts, lengths, strict=True)
        ]

    assert_drawn(trace_of(figure, "arrivals"), seconds, rates(log.arrival_ms))
    assert_drawn(trace_of(figure, "completions"), seconds, rates(log.finish_ms))
    table = timeline_table(run.result)
    for name, column in (
        ("prompt tokens computed", "prefill_tokens"),
        ("output tokens", "output_tokens"),
    ):
        sums = [0.0] * count
        for place, amount in enumerate(table[column].to_list()):
            sums[place % count] += amount
        expected = [amount / length for amount, length in zip(sums, lengths, strict=True)]
        assert_drawn(trace_of(figure, name), seconds, expected)


PANELS = {"": "waiting", "2": "running", "3": "kv_used_share", "4": "busy_share"}


def test_workers_are_drawn_from_their_own_rows(run: ToyRun, figures: RunFigures) -> None:
    _, count, seconds = intervals_of(run)
    table, figure = timeline_table(run.result), plotly_figure(figures.workers())
    drawn = {(trace["yaxis"], trace["name"]): trace for trace in figure.data}
    assert len(drawn) == 12
    for suffix, column in PANELS.items():
        values = table[column].to_list()
        for worker in range(3):
            trace = drawn[f"y{suffix}", f"worker {worker}"]
            assert_drawn(trace, seconds, values[worker * count : (worker + 1) * count])
            assert trace["showlegend"] is (suffix == "")
    titles = [note["text"] for note in figure.layout["annotations"]]
    assert titles[-4:] == [
        "<b>Waiting requests</b>",
        "<b>Running requests</b>",
        "<b>KV blocks in use</b>",
        "<b>Busy share of the time</b>",
    ]


def test_many_workers_are_a_heat_map_of_the_same_numbers() -> None:
    run = toy_run(40, workers=run_figures.MAX_LINES + 1)
    figure = plotly_figure(RunFigures(run.result, {}).workers())
    count = len(set(timeline_table(run.result)["start_ms"].to_list()))
    assert [trace["type"] for trace in figure.data] == ["heatmap"] * 4
    for trace, (suffix, column) in zip(figure.data, PANELS.items(), strict=True):
        values = timeline_table(run.result)[column].to_list()
        assert trace["yaxis"] == f"y{suffix}"
        assert len(trace["z"]) == 9
        for worker, row in enumerate(trace["z"]):
            assert row == short(values[worker * count : (worker + 1) * count])
    few = toy_run(40, workers=run_figures.MAX_LINES)
    assert plotly_figure(RunFigures(few.result, {}).workers()).data[0]["type"] == "scatter"


def test_reuse_is_of_what_was_admitted(run: ToyRun, figures: RunFigures) -> None:
    log, figure = run.result.requests, plotly_figure(figures.cache())
    _, _, seconds = intervals_of(run)
    times = log.scheduled_ms.tolist()
    cached = per_interval(run, times, log.cached_tokens.tolist(), sum)
    inputs = per_interval(run, times, log.input_tokens.tolist(), sum)
    each = [part / whole for part, whole in zip(cached, inputs, strict=True)]
    assert_drawn(trace_of(figure, "per interval"), seconds, each)
    so_far, shares = [0.0, 0.0], []
    for part, whole in zip(cached, inputs, strict=True):
        so_far[0] += 0.0 if math.isnan(part) else part
        so_far[1] += 0.0 if math.isnan(whole) else whole
        shares.append(so_far[0] / so_far[1])
    assert_drawn(trace_of(figure, "since the start"), seconds, shares)


def test_distributions_are_of_completed_requests_and_all_gaps(
    run: ToyRun, figures: RunFigures
) -> None:
    log, steps = run.result.requests, run.result.steps
    done = log.status == RequestStatus.COMPLETED
    gaps = np.where(log.output_tokens > 1, log.output_tokens - 1, np.nan)
    samples = [
        (log.first_token_ms - log.arrival_ms)[done],
        np.concatenate(
            (
                np.repeat(steps.duration_ms / steps.num_steps, steps.num_decodes * steps.num_steps),
                run.result.stalled_gaps_ms,
            )
        ),
        ((log.finish_ms - log.first_token_ms) / gaps)[done & (log.output_tokens > 1)],
        (log.finish_ms - log.arrival_ms)[done],
    ]
    curves = [
        trace for trace in plotly_figure(figures.latencies()).data if trace["mode"] == "lines"
    ]
    for curve, sample in zip(curves, samples, strict=True):
        assert len(curve["x"]) > 20
        assert curve["x"][0] == short([sample.min()])[0]
        assert (curve["x"][-1], curve["y"][-1]) == (short([sample.max()])[0], 1)
        for x, y in zip(curve["x"], curve["y"], strict=True):
            # Values were rounded to six digits before they were drawn.
            shares = [(sample <= x * (1 + side)).mean() for side in (-1e-5, 1e-5)]
            assert shares[0] - 1e-6 <= y <= shares[1] + 1e-6


def test_many_requests_are_thinned_out_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [series.every_nth(count, 10).step for count in (0, 9, 10, 11, 20, 21)] == [
        1, 1, 1, 2, 2, 3,
    ]  # fmt: skip
    run = toy_run(50)
    monkeypatch.setattr(run_figures, "MAX_POINTS", 20)
    figures = RunFigures(run.result, {})
    assert figures.shown_every == 3
    drawn = trace_of(plotly_figure(figures.latency_over_time()), "request")
    assert drawn["x"] == short((run.result.requests.arrival_ms[::3] / 1000).tolist())


@pytest.mark.parametrize(("widest", "kind"), [(300.0, "linear"), (301.0, "log")])
def test_axes_of_wide_distributions_are_logarithmic(widest: float, kind: str) -> None:
    toy = toy_run(3, workers=1)
    log = toy.result.requests
    log = replace(log, arrival_ms=np.zeros(3), first_token_ms=np.array([10.0, 20.0, widest]))
    run = replace(toy.result, requests=log)
    report = {"median_ttft_ms": 20.0, "p90_ttft_ms": 100.0, "p99_ttft_ms": widest}
    figure = plotly_figure(RunFigures(run, report).latencies())
    assert figure.layout["xaxis"]["type"] == kind
    marks = figure.data[1]
    assert marks["x"] == [20.0, 100.0, widest]
    assert marks["y"] == [0.5, 0.9, 0.99]
    assert marks["text"] == ["median 20", "p90 100", f"p99 {widest:.4g}"]
    # Words go where the curve does not: half way is 155, or 55 on a logarithmic axis.
    middle = "bottom right" if kind == "linear" else "top left"
    assert marks["textposition"] == ["bottom right", middle, "top left"]


def test_a_run_of_no_steps_draws_nothing() -> None:
    figures = RunFigures(toy_run(0).result, {"timing_source": "measured"})
    assert figures.interval_s == 0.001
    for figure in (
        plotly_figure(figures.latencies()),
        plotly_figure(figures.latency_over_time()),
        plotly_figure(figures.load()),
    ):
        assert all(set(trace["y"]) <= {None, 0} for trace in figure.data)


def test_row_gaps_are_means_of_rows_that_decode() -> None:
    run = toy_run(20, timing=ToyTiming(per_context_token_ms=-0.0005))
    gaps, weights = series.mean_row_gaps(run.result.steps)
    decoding = run.result.steps.num_decodes > 0
    assert len(gaps) == decoding.sum() < len(decoding)
    assert (gaps * weights).sum() == pytest.approx(run.gaps_ms.sum())
    assert weights.sum() == len(run.gaps_ms)


def test_distributions_are_dense_at_their_upper_end() -> None:
    x, y = series.distribution(np.arange(1e5), np.ones(100_000))
    assert x[0] == 0.0 and (x[-1], y[-1]) == (99_999.0, 1.0)
    assert np.diff(y[y > 0.999]).max() < 1e-4
    assert np.diff(y).max() < 0.006


def test_what_has_no_weight_is_no_part_of_a_distribution() -> None:
    x, y = series.distribution(np.array([1.0, 2.0, 3.0, np.nan]), np.array([0.0, 4.0, 0.0, 1.0]))
    assert (x.tolist(), y.tolist()) == ([2.0], [1.0])


def test_percentiles_of_an_interval_are_reached_not_passed() -> None:
    """At exactly half of the weight the lower value is the median."""
    interval = np.array([1, 1, 1, 1])
    values, weights = np.array([4.0, 3.0, 2.0, 1.0]), np.array([1.0, 1.0, 1.0, 1.0])
    half, quarter, most = series.interval_percentiles(
        interval, values, weights, num_intervals=2, percents=(50, 25, 76)
    )
    assert np.isnan(half[0])
    assert (half[1], quarter[1], most[1]) == (2.0, 1.0, 4.0)


def test_rounding_of_weights_passes_no_percentile_on() -> None:
    """Three of six weights of 0.3 add up to less than half of all six, in floats only."""
    (half,) = series.interval_percentiles(
        np.zeros(6, np.int64), np.arange(6.0), np.full(6, 0.3), num_intervals=1, percents=(50,)
    )
    assert half[0] == 2.0
