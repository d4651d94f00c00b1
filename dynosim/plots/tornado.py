"""What each setting does to the capacity, all others held: bars from the largest effect down."""

from collections.abc import Sequence
from dataclasses import dataclass

from dynosim.plots import style
from dynosim.plots.chart import BarMark, Chart, ChartAxis, Panel

MAX_BARS = 16
_BAR_PX, _FRAME_PX = 30, 110


@dataclass(frozen=True, slots=True)
class TornadoBar:
    """A change of one setting, in shares of the capacity: 0.1 is a tenth more."""

    name: str
    effect: float
    low: float
    high: float
    is_tie: bool
    told: str


def tornado_chart(bars: Sequence[TornadoBar], *, source: str | None, note: str) -> Chart:
    """The bars, the largest on top; grey are those that may be nothing. At most MAX_BARS."""
    shown = sorted(bars, key=lambda bar: -abs(bar.effect))[:MAX_BARS][::-1]  # from below
    colors = {True: style.GREY, False: style.BLUE}
    bar_mark = BarMark(
        values=[bar.effect for bar in shown],
        low=[bar.low for bar in shown],
        high=[bar.high for bar in shown],
        colors=tuple(
            style.VERMILLION if bar.effect < 0 and not bar.is_tie else colors[bar.is_tie]
            for bar in shown
        ),
        hover=tuple(bar.told for bar in shown),
    )
    panel = Panel(
        x=ChartAxis(title="change of the capacity", is_percent=True),
        y=ChartAxis(names=tuple(bar.name for bar in shown)),
        marks=(bar_mark,),
    )
    height = _FRAME_PX + _BAR_PX * max(len(shown), 3)
    empty = "" if shown else "no two layouts differ in one setting alone"
    return Chart(
        panels=(panel,), source=source, note=note, height=height, has_legend=False, empty=empty
    )
