"""What a picture shows, in plain values: panels, axes and the marks inside them.

A chart knows no plotting library. `plotly_chart` turns it into what a page draws, `png_chart` into
a picture file, so that both show the same. Colours are those of the light theme (`style`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Values = Sequence[float | int | None]
"""Coordinates; None is a gap in a line."""

Fill = Literal["full", "half", "hollow"]
Dash = Literal["solid", "dash", "dot"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChartAxis:
    """One axis of a panel. `names` make it one of words, in their order from the origin."""

    title: str = ""
    is_log: bool = False
    is_decades: bool = False  # a logarithmic axis with a tick for each power of ten alone
    from_zero: bool = False
    limits: tuple[float, float] | None = None
    is_percent: bool = False  # of shares: 1 reads 100 %
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LineMark:
    """A line through points. `hover` tells of each point; `format` tells it for all of them, with
    plotly's `%{x}` and `%{y}`."""

    x: Values
    y: Values
    color: str
    name: str = ""  # in the legend; none: not there
    group: str = ""  # goes on and off with others of the same name
    in_legend: bool = True
    width: float = 1.8
    dash: Dash = "solid"
    opacity: float = 1.0
    is_stepped: bool = False
    hover: tuple[str, ...] = ()
    format: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PointMark:
    """Single points. `rows` are the rows of the page's table that they belong to, `loads` the load
    at which the row was tried; `words` stand beside them."""

    x: Values
    y: Values
    color: str
    name: str = ""
    group: str = ""
    symbol: str = "circle"
    sizes: tuple[float, ...] = (8.0,)  # in pixels: of each, or one for all
    fills: tuple[Fill, ...] = ("full",)
    opacity: float = 1.0
    hover: tuple[str, ...] = ()
    format: str = ""
    rows: tuple[int, ...] = ()
    loads: tuple[float, ...] = ()
    words: tuple[str, ...] = ()
    words_below: tuple[bool, ...] = ()  # to the right below the point, else to the left above


@dataclass(frozen=True, slots=True, kw_only=True)
class BandMark:
    """The area between two lines."""

    x: Values
    low: Values
    high: Values
    color: str
    name: str = ""
    opacity: float = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class BarMark:
    """Horizontal bars from zero, one per name of the y axis, with the interval of each."""

    values: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    colors: tuple[str, ...]
    hover: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxMark:
    """The spread of values by the names of the x axis: `at[i]` is the place of `values[i]`."""

    at: Sequence[int]
    values: Sequence[float]
    color: str
    hover: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class HeatMark:
    """A value for every x and row: `values[row][column]`, from zero."""

    x: Values
    values: Sequence[Values]
    format: str = ""
    is_percent: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleMark:
    """A dashed line across the panel at a value of one axis."""

    at: float
    axis: Literal["x", "y"] = "y"
    text: str = ""
    color: str = ""


@dataclass(frozen=True, slots=True)
class Label:
    """Words beside a point: above to the right, or below to the left near the right edge."""

    text: str
    x: float
    y: float
    is_left: bool


Mark = LineMark | PointMark | BandMark | BarMark | BoxMark | HeatMark | RuleMark


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One pair of axes with its marks, drawn in their order."""

    x: ChartAxis
    y: ChartAxis
    marks: tuple[Mark, ...]
    title: str = ""
    labels: tuple[Label, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """Panels row by row in `columns`, with what must be known of the numbers' source.

    `source` is where step times come from (`style.watermark`), `note` the line about it. With
    `shares_x` panels stand on each other over one x axis.
    """

    panels: tuple[Panel, ...]
    source: str | None
    note: str
    height: int  # pixels on the screen
    columns: int = 1
    shares_x: bool = False
    has_legend: bool = True
    empty: str = ""  # stands in the middle when there is nothing to draw
