"""What layouts do over the load: interactivity curves, and attainment against load per GPU.

A family is a mode and a tensor parallelism; its curve is that of its best layout. Where the load is
carried the curve is thick; behind its capacity, marked by a diamond, thin and pale, and it ends
before the first load that piles up: throughput of an overloaded cluster promises nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import exp, floor, log
from typing import TYPE_CHECKING

from dynosim.metrics.carried import OVERLOADED
from dynosim.plots import style
from dynosim.plots import trials as trial_table
from dynosim.plots.chart import (
    Chart,
    ChartAxis,
    Fill,
    Label,
    LineMark,
    Mark,
    Panel,
    PointMark,
    RuleMark,
)
from dynosim.plots.families import FamilyStyle, LayoutFamily, family_of, family_styles
from dynosim.plots.page import number

if TYPE_CHECKING:
    import polars as pl

OWN_LOAD = 1.0
OWN_LOAD_NAME = "the workload's own load (1x)"


@dataclass(frozen=True, slots=True)
class CurveMetric:
    """A key of reports that an axis can show. `power` is how it goes with the load where all of it
    is carried: 1 grows with it, -1 falls."""

    key: str
    title: str
    short: str
    power: int = 0


X_METRICS = (
    CurveMetric(
        "median_output_token_throughput_per_user", "output tokens/s per user (median)", "tok/s/user"
    ),
    CurveMetric("p95_ttft_ms", "TTFT p95 (ms)", "ms TTFT p95"),
    CurveMetric("p95_e2e_latency_ms", "end to end p95 (ms)", "ms end to end p95"),
)
Y_METRICS = (
    CurveMetric("output_tok_s_per_gpu", "output tokens/s per GPU", "tok/s/GPU", 1),
    CurveMetric("total_tok_s_per_gpu", "total tokens/s per GPU", "total tok/s/GPU", 1),
    CurveMetric(
        "gpu_hours_per_m_output_tokens", "GPU hours per million output tokens", "GPU-h/M", -1
    ),
    CurveMetric("cost_per_m_output_tokens", "cost per million output tokens", "per M output", -1),
    CurveMetric("energy_j_per_output_token", "J per output token (estimated)", "J/token", -1),
)
X, Y = X_METRICS[0].key, Y_METRICS[0].key


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """A layout at one load."""

    values: Mapping[str, float | None]  # by key of a `CurveMetric`
    load: float
    offered_rps: float
    num_gpus: int
    attainment: float | None
    is_carried: bool
    is_overloaded: bool
    fill: Fill

    def at(self, x: CurveMetric, y: CurveMetric) -> tuple[float, float] | None:
        """Where it is drawn; None where it has no such numbers."""
        across, up = self.values.get(x.key), self.values.get(y.key)
        return None if across is None or up is None else (across, up)


@dataclass(frozen=True, slots=True)
class Curve:
    """A family's best layout, by rising load. `points[at_capacity]` is its capacity."""

    family: LayoutFamily
    row: int  # its trial
    layout: str
    look: FamilyStyle
    points: tuple[CurvePoint, ...]
    at_capacity: int
    interval: tuple[float, float] | None = None  # of the capacity, as loads

    @property
    def name(self) -> str:
        """For the legend."""
        if self.family.is_disaggregated:  # whose layout names both pools
            return f"disagg {self.layout}"
        return f"{self.family.name}: {self.layout}"

    @property
    def capacity(self) -> CurvePoint:
        """The largest load that it carries."""
        return self.points[self.at_capacity]

    @property
    def carried(self) -> tuple[CurvePoint, ...]:
        """The loads that it carries."""
        return self.points[: self.at_capacity + 1]

    @property
    def beyond(self) -> tuple[CurvePoint, ...]:
        """Its capacity and the loads behind it that do not pile up."""
        behind = self.points[self.at_capacity + 1 :]
        end = next((i for i, point in enumerate(behind) if point.is_overloaded), len(behind))
        return (self.capacity, *behind[:end])

    @property
    def shown(self) -> tuple[CurvePoint, ...]:
        """All that is drawn of it."""
        return (*self.carried, *self.beyond[1:])


@dataclass(frozen=True, slots=True)
class LoadCurves:
    """The curves of a sweep, and what pictures of them must say."""

    curves: tuple[Curve, ...]
    source: str | None
    note: str
    best: int | None = None  # the trial to deploy
    target: float | None = None  # attainment that is asked for
    load_word: str = "x"  # behind a load: a multiple, or requests in flight

    def choices(self) -> tuple[list[CurveMetric], list[CurveMetric]]:
        """What the two axes can show: metrics that some point has; the first ones always."""
        points = [point for curve in self.curves for point in curve.shown]
        across, up = (
            [
                metric
                for metric in metrics
                if metric is metrics[0]
                or any(point.values.get(metric.key) is not None for point in points)
            ]
            for metrics in (X_METRICS, Y_METRICS)
        )
        return across, up


def curves_of(
    trials: "pl.DataFrame", probes: "pl.DataFrame", ranked: Sequence[int]
) -> tuple[Curve, ...]:
    """The curves of all families that carry anything; `ranked` are trials, the best first."""
    import polars as pl

    by_trial = {row["trial_id"]: row for row in trials.to_dicts()}
    keys = trial_table.varied_keys(trials)
    best: dict[LayoutFamily, int] = {}
    for index in ranked:
        best.setdefault(family_of(by_trial[index]), index)
    looks = family_styles(best)
    curves = []
    for family, index in sorted(best.items()):
        trial = by_trial[index]
        points = _points(probes.filter(pl.col("trial_id") == index))
        at = next((i for i, p in enumerate(points) if p.load == trial["capacity_load"]), None)
        if at is None:
            continue
        low, high = trial.get("capacity_load_low"), trial.get("capacity_load_high")
        interval = None if low is None or high is None else (low, high)
        name = trial_table.label(trial, keys)
        curves.append(Curve(family, index, name, looks[family], points, at, interval))
    return tuple(curves)


def _points(probes: "pl.DataFrame") -> tuple[CurvePoint, ...]:
    rows = probes.filter(~probes["is_stopped"]).sort("load").to_dicts()
    metrics = (*X_METRICS, *Y_METRICS)
    return tuple(
        CurvePoint(
            {metric.key: row.get(metric.key) for metric in metrics},
            row["load"],
            row["offered_rps"],
            row["num_gpus"],
            row["attainment"],
            row["is_carried"],
            str(row.get("reason") or "").startswith(OVERLOADED),
            trial_table.fill_of(row),
        )
        for row in rows
        if row.get(X) is not None and row.get(Y) is not None
    )


def curves_chart(
    drawn: LoadCurves, x: CurveMetric = X_METRICS[0], y: CurveMetric = Y_METRICS[0]
) -> Chart:
    """Every family's curve, capacities, the workload's own load and the winner."""
    marks: list[Mark] = [mark for curve in drawn.curves for mark in _curve(drawn, curve, x, y)]
    own = sorted(at for curve in drawn.curves if (at := _at_load(curve, OWN_LOAD, x, y)))
    if drawn.load_word == "x" and own:
        marks += _own_load([at[0] for at in own], [at[1] for at in own])
    winner = next((curve for curve in drawn.curves if curve.row == drawn.best), None)
    labels: list[Label] = []
    if winner is not None and (at := winner.capacity.at(x, y)):
        marks.append(
            PointMark(
                x=[at[0]],
                y=[at[1]],
                color=style.ORANGE,
                symbol="star",
                sizes=(13.0,),
                name="the best",
                hover=(_told(drawn, winner, winner.capacity, x, y),),
                rows=(winner.row,),
                loads=(winner.capacity.load,),
            )
        )
    labels += _labels(drawn, x, y)
    panel = Panel(
        x=ChartAxis(title=x.title, from_zero=True),
        y=ChartAxis(title=y.title, from_zero=True),
        marks=tuple(marks),
        labels=tuple(labels),
    )
    empty = "" if drawn.curves else "no layout carries any load"
    return Chart(panels=(panel,), source=drawn.source, note=drawn.note, height=600, empty=empty)


def _curve(drawn: LoadCurves, curve: Curve, x: CurveMetric, y: CurveMetric) -> list[Mark]:
    color, group = curve.look.color, curve.family.name
    marks: list[Mark] = []
    for points, width, opacity, name in (
        (curve.beyond, 1.2, 0.45, ""),
        (curve.carried, 3.2, 1.0, curve.name),
    ):
        ends = [place for point in points if (place := point.at(x, y))]
        xs, ys = [place[0] for place in ends], [place[1] for place in ends]
        marks.append(
            LineMark(x=xs, y=ys, color=color, width=width, opacity=opacity, name=name, group=group)
        )
    marks += _whisker(curve, x, y)
    places = [(point, at) for point in curve.shown if (at := point.at(x, y))]
    is_end = [point is curve.capacity for point, _ in places]
    for picks, symbol, size in (
        ([p for p, end in zip(places, is_end, strict=True) if not end], curve.look.symbol, 7.0),
        ([p for p, end in zip(places, is_end, strict=True) if end], "diamond", 15.0),
    ):
        marks.append(
            PointMark(
                x=[at[0] for _, at in picks],
                y=[at[1] for _, at in picks],
                color=color,
                group=group,
                symbol=symbol,
                sizes=(size,),
                fills=tuple(point.fill for point, _ in picks) or ("full",),
                hover=tuple(_told(drawn, curve, point, x, y) for point, _ in picks),
                rows=(curve.row,) * len(picks),
                loads=tuple(point.load for point, _ in picks),
            )
        )
    return marks


def _own_load(xs: list[float], ys: list[float]) -> list[Mark]:
    """A line through the curves where they pass the workload's own load."""
    color, group = style.GREY, "own load"
    return [
        LineMark(x=xs, y=ys, color=color, group=group, width=1.6, dash="dash", name=OWN_LOAD_NAME),
        PointMark(x=xs, y=ys, color=color, group=group, symbol="circle-open", sizes=(15.0,)),
    ]


def _whisker(curve: Curve, x: CurveMetric, y: CurveMetric) -> list[Mark]:
    """Where the capacity would lie at the ends of its interval, up and down."""
    at = curve.capacity.at(x, y)
    if curve.interval is None or at is None or not y.power:
        return []
    ends = [at[1] * (load / curve.capacity.load) ** y.power for load in curve.interval]
    return [LineMark(x=[at[0]] * 2, y=ends, color=style.GREY, width=2.0, group=curve.family.name)]


def _at_load(
    curve: Curve, load: float, x: CurveMetric, y: CurveMetric
) -> tuple[float, float] | None:
    """Where the curve passes a load, along the logarithm; None where it does not reach it."""
    known = [(point.load, at) for point in curve.shown if (at := point.at(x, y))]
    for (low, start), (high, end) in pairwise(known):
        if low <= load <= high:
            share = log(load / low) / log(high / low)
            return (
                start[0] + share * (end[0] - start[0]),
                start[1] * exp(share * log(end[1] / start[1])) if start[1] > 0 < end[1] else end[1],
            )
    return None


def _told(
    drawn: LoadCurves, curve: Curve, point: CurvePoint, x: CurveMetric, y: CurveMetric
) -> str:
    load = f"{number(point.load)}x" if drawn.load_word == "x" else f"{point.load:,.0f} in flight"
    lines = [
        f"{curve.layout} on {point.num_gpus} GPUs",
        f"{number(point.offered_rps)} requests/s ({load})",
        f"{number(point.values.get(y.key))} {y.short}, {number(point.values.get(x.key))} {x.short}",
    ]
    if point.attainment is not None:
        lines.append(f"{style.share_text(point.attainment)} within the SLA")
    if point is curve.capacity:
        lines.append("the most that it carries")
    elif not point.is_carried:
        lines.append("not carried")
    return "\n".join(lines)


def _labels(drawn: LoadCurves, x: CurveMetric, y: CurveMetric) -> list[Label]:
    """At the capacities; where two would cover each other, that of the best or higher one."""
    found = [(curve, at) for curve in drawn.curves if (at := curve.capacity.at(x, y)) is not None]
    ends = [max((at[axis] for _, at in found), default=1.0) or 1.0 for axis in (0, 1)]
    order = sorted(found, key=lambda each: (each[0].row != drawn.best, -each[1][1]))
    taken: list[tuple[float, float]] = []
    chosen: dict[LayoutFamily, Label] = {}
    for curve, at in order:
        place = at[0] / ends[0], at[1] / ends[1]
        if any(abs(place[0] - u) < 0.2 and abs(place[1] - v) < 0.04 for u, v in taken):
            continue
        taken.append(place)
        text = f"{curve.family.name}  {curve.capacity.offered_rps:.3g}/s"
        chosen[curve.family] = Label(text, *at, False)
    return [chosen[curve.family] for curve in drawn.curves if curve.family in chosen]


def attainment_chart(drawn: LoadCurves) -> Chart:
    """How many requests are within the SLA as the load per GPU grows, and how many should be."""
    marks: list[Mark] = []
    for curve in drawn.curves:
        known = [point for point in curve.points if point.attainment is not None]
        xs, ys = [p.offered_rps / p.num_gpus for p in known], [p.attainment for p in known]
        color, group = curve.look.color, curve.family.name
        marks += [
            LineMark(x=xs, y=ys, color=color, width=2.0, name=curve.name, group=group),
            PointMark(
                x=xs, y=ys, color=color, symbol=curve.look.symbol, group=group,
                fills=tuple(point.fill for point in known) or ("full",),
                sizes=tuple(13.0 if point is curve.capacity else 7.0 for point in known) or (7.0,),
                hover=tuple(_told(drawn, curve, p, X_METRICS[0], Y_METRICS[0]) for p in known),
                rows=(curve.row,) * len(known), loads=tuple(point.load for point in known),
            ),
        ]  # fmt: skip
    if drawn.target is not None:
        text = f"asked for: {100 * drawn.target:g} %"
        marks.append(RuleMark(at=drawn.target, text=text, color=style.VERMILLION))
    panel = Panel(
        x=ChartAxis(title="requests/s offered per GPU", from_zero=True),
        y=ChartAxis(title="requests within the SLA", limits=_limits(marks), is_percent=True),
        marks=tuple(marks),
    )
    return Chart(panels=(panel,), source=drawn.source, note=drawn.note, height=460)


def _limits(marks: Sequence[Mark]) -> tuple[float, float]:
    """Of shares: from the ten percent below the lowest up to all."""
    lines = [mark for mark in marks if isinstance(mark, LineMark)]
    lowest = min((share for line in lines for share in line.y if share is not None), default=0.0)
    return max(0.0, floor(10 * lowest - 0.2) / 10), 1.005
