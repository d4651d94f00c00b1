"""Colours, fonts and the notes that every plot carries.

Colours are Okabe and Ito's, which readers with colour vision deficiency tell apart. A plot whose
numbers rest on anything but measured step times says so across its middle, and every plot names the
source of its step times beneath the axes.
"""

from collections.abc import Mapping
from typing import Any

BLUE, ORANGE, GREEN, VERMILLION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, BLACK, GREY = "#CC79A7", "#56B4E9", "#222222", "#8A8F98"
PALETTE: tuple[str, ...] = (BLUE, ORANGE, GREEN, VERMILLION, PURPLE, SKY, BLACK, GREY)
SEQUENTIAL = "Cividis"  # even in lightness, made for colour vision deficiency
GRID = "#E6E8EB"
FONT = "system-ui, -apple-system, 'Segoe UI', 'Helvetica Neue', 'DejaVu Sans', Arial, sans-serif"

BLUE_TONES = ("#86BBE3", "#3F93CF", BLUE, "#005080", "#002F4D")
ORANGE_TONES = ("#F2B879", "#E98F2E", VERMILLION, "#9C4500", "#5E2900")
DARK_COLORS = {
    "#86BBE3": "#2F6E9E", "#3F93CF": "#3F8CC4", "#005080": "#93CDF3", "#002F4D": "#CFE9FB",
    "#F2B879": "#A85A1B", "#E98F2E": "#CC7022", "#9C4500": "#F9B48C", "#5E2900": "#FDDCC8",
    BLUE: "#56B0E8", ORANGE: "#F0B840", GREEN: "#3CC79B", VERMILLION: "#F4874B",
    PURPLE: "#DD9CC0", SKY: "#8CCDF2", BLACK: "#E6E8EB", GREY: "#9AA1AB",
}  # fmt: skip
"""What each colour becomes on a dark page."""

_WATERMARKS = {
    "estimated": "ESTIMATED TIMING",
    "derived": "DERIVED TIMING",
    "mixed": "MIXED TIMING",
}


def timing_note(report: Mapping[str, Any]) -> str:
    """One line about the step times of a run and whether it kept up with its load."""
    parts = [f"Step times {report.get('timing_source') or 'of unknown source'}"]
    if report.get("timing_description"):
        parts[0] += f": {report['timing_description']}"
    share = report.get("timing_in_range_share")
    if report.get("timing_source") == "estimated":
        parts.append("nothing was measured")
    elif share is not None:
        parts.append(f"{share_text(share)} of steps inside the measured range")
    if report.get("saturated"):
        parts.append("SATURATED: more load offered than sustained")
    return " · ".join(parts)


def share_text(share: float) -> str:
    """A share in percent that reads 100 % only when it is all."""
    percent = 100 * share
    if percent in (0.0, 100.0):
        return f"{percent:.0f} %"
    return f"{min(max(percent, 0.1), 99.9):.1f} %"


def watermark(source: str | None) -> str | None:
    """The words across a plot whose step times were not measured; None when they were."""
    return None if source == "measured" else _WATERMARKS.get(source or "", "UNKNOWN TIMING")


def plotly_layout(*, source: str | None, height: int, is_narrow: bool = False) -> dict[str, Any]:
    """The layout every plotly figure starts from, with its watermark. Colours are the page's."""
    annotations: list[dict[str, Any]] = []
    words = watermark(source)
    if words:
        annotations.append(
            {
                "text": words,
                "xref": "paper",
                "yref": "paper",
                "x": 0.5,
                "y": 0.5,
                "showarrow": False,
                "textangle": -18,
                "font": {
                    "size": 24 if is_narrow else 46,
                    "color": "rgba(213, 94, 0, 0.22)",
                    "weight": 700,
                },
            }
        )
    legend = {"orientation": "h", "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom"}
    return {
        "height": height,
        "margin": {"l": 48 if is_narrow else 68, "r": 14 if is_narrow else 24, "t": 30, "b": 56},
        "font": {"family": FONT, "size": 11 if is_narrow else 12.5},
        "colorway": list(PALETTE),
        "hoverlabel": {"font": {"family": FONT, "size": 12}, "align": "left"},
        "legend": legend,
        "annotations": annotations,
    }


def axis(title: str = "", **more: Any) -> dict[str, Any]:
    """A quiet axis: light grid, ticks outside, no box."""
    return {
        "title": {"text": title, "standoff": 8},
        "zeroline": False,
        "ticks": "outside",
        "ticklen": 4,
        "automargin": True,
        **more,
    }


def panel_title(text: str, x: float, y: float) -> dict[str, Any]:
    """A bold title above one panel of a figure, at the panel's left corner in paper units."""
    return {
        "text": f"<b>{text}</b>",
        "xref": "paper",
        "yref": "paper",
        "x": x,
        "y": y,
        "xanchor": "left",
        "yanchor": "bottom",
        "showarrow": False,
        "font": {"size": 12.5},
    }


def axis_suffix(index: int) -> str:
    """What plotly appends to the names of the axes of panel `index`."""
    return "" if index == 0 else str(index + 1)
