"""Colours, fonts and the notes that every plot carries.

Colours are Okabe and Ito's, which readers with colour vision deficiency tell apart. A plot whose
numbers rest on anything but measured step times says so across its middle, and every plot names the
source of its step times beneath the axes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

BLUE, ORANGE, GREEN, VERMILLION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, BLACK, GREY = "#CC79A7", "#56B4E9", "#222222", "#8A8F98"
PALETTE: tuple[str, ...] = (BLUE, ORANGE, GREEN, VERMILLION, PURPLE, SKY, BLACK, GREY)
SEQUENTIAL = "Cividis"  # even in lightness, made for colour vision deficiency
GRID = "#E6E8EB"
FONT = "system-ui, -apple-system, 'Segoe UI', 'Helvetica Neue', 'DejaVu Sans', Arial, sans-serif"

_BOTTOM_MARGIN = 76  # pixels: tick labels, axis title, footnote
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


def plotly_layout(*, source: str | None, note: str, height: int) -> dict[str, Any]:
    """The layout every plotly figure starts from, with its footnote and its watermark."""
    annotations: list[dict[str, Any]] = [
        {
            "text": note,
            "xref": "paper",
            "yref": "paper",
            "x": 0,
            "y": 0,
            "xshift": -48,
            "yshift": 10 - _BOTTOM_MARGIN,
            "xanchor": "left",
            "yanchor": "bottom",
            "showarrow": False,
            "font": {"size": 10.5, "color": GREY},
        }
    ]
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
                "font": {"size": 46, "color": "rgba(213, 94, 0, 0.22)", "weight": 700},
            }
        )
    return {
        "height": height,
        "margin": {"l": 68, "r": 24, "t": 52, "b": _BOTTOM_MARGIN},
        "font": {"family": FONT, "size": 12.5, "color": BLACK},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "colorway": list(PALETTE),
        "hoverlabel": {"font": {"family": FONT, "size": 12}},
        "legend": {
            "orientation": "h",
            "yref": "container",
            "y": 0.995,
            "yanchor": "top",
            "x": 0,
            "xanchor": "left",
        },
        "annotations": annotations,
    }


def axis(title: str = "", **more: Any) -> dict[str, Any]:
    """A quiet axis: light grid, ticks outside, no box."""
    return {
        "title": {"text": title, "standoff": 8},
        "gridcolor": GRID,
        "zeroline": False,
        "linecolor": "#B9BEC5",
        "ticks": "outside",
        "tickcolor": "#B9BEC5",
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
        "font": {"size": 12.5, "color": BLACK},
    }


def stack_panels(
    layout: dict[str, Any], panels: Sequence[tuple[str, Mapping[str, Any]]], *, x_title: str
) -> None:
    """Give `layout` one panel per (title, options of its y axis), top to bottom, on one x axis.

    Panel i has the axes `x` and `y`, `x2` and `y2`, ...; their ticks are under the last one.
    """
    margin = layout["margin"]
    title_share = 28 / (layout["height"] - margin["t"] - margin["b"])  # 28 pixels per title
    slot = 1 / len(panels)
    for index, (title, options) in enumerate(panels):
        suffix = axis_suffix(index)
        top = 1 - index * slot - title_share * 0.8
        is_last = index == len(panels) - 1
        layout[f"xaxis{suffix}"] = axis(
            x_title if is_last else "",
            domain=[0, 1],
            anchor=f"y{suffix}",
            showticklabels=is_last,
            **({} if is_last else {"matches": f"x{axis_suffix(len(panels) - 1)}"}),
        )
        bottom = max(0.0, 1 - (index + 1) * slot + (0 if is_last else title_share * 0.2))
        layout[f"yaxis{suffix}"] = axis(
            **{"domain": [bottom, top], "anchor": f"x{suffix}", **options}
        )
        layout["annotations"].append(panel_title(title, 0, top + title_share * 0.1))


def axis_suffix(index: int) -> str:
    """What plotly appends to the names of the axes of panel `index`."""
    return "" if index == 0 else str(index + 1)
