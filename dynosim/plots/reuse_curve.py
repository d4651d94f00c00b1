"""Draws how much of a trace's prompts caches have, over their size."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from dynosim.engine.spec import EvictionPolicy
from dynosim.plots import style
from dynosim.plots.chart import Chart, ChartAxis, LineMark, Mark, Panel, PointMark, RuleMark
from dynosim.plots.png_chart import write_chart_png

_COLORS: Mapping[EvictionPolicy, str] = {"lru": style.BLUE, "arc": style.GREEN}
_HEIGHT_PX = 420


def write_reuse_png(
    path: Path, summary: Mapping[str, Any], curve: Sequence[Mapping[str, Any]]
) -> None:
    """Write a PNG of `reuse_by_capacity`'s summary; `curve` are its rows for the lines."""
    title = f"{Path(summary['source']).name}: {summary['requests']:,} requests"
    write_chart_png(path, reuse_chart(summary, curve), title=title)


def reuse_chart(summary: Mapping[str, Any], curve: Sequence[Mapping[str, Any]]) -> Chart:
    """Hit share by capacity: LRU and the optimum as lines, other policies as points, and what an
    endless cache has."""
    block_bytes, block_size = summary["bytes_per_block"], summary["block_size"]
    scale = block_size if block_bytes is None else block_bytes / 1e9
    rows = summary["capacities"]
    lines = [("optimal", "perfect foresight", style.ORANGE), ("lru", "LRU", _COLORS["lru"])]
    marks: list[Mark] = [
        LineMark(
            x=[row["blocks"] * scale for row in curve],
            y=[row[key] for row in curve],
            color=color,
            name=name,
        )
        for key, name, color in lines
    ]
    marks += [
        PointMark(
            x=[row["blocks"] * scale for row in rows],
            y=[row[policy] for row in rows],
            color=_COLORS[policy],
            name=policy.upper(),
        )
        for policy in get_args(EvictionPolicy)
        if policy in rows[0] and policy != "lru"
    ]
    marks.append(RuleMark(at=summary["reusable"], text="an endless cache"))
    unit = "tokens" if block_bytes is None else "GB"
    what = "host tier behind the device" if summary["device_blocks"] else "cache"
    panel = Panel(
        x=ChartAxis(title=f"{what} ({unit})", is_log=True),
        y=ChartAxis(title="prompt tokens found", from_zero=True, is_percent=True),
        marks=tuple(marks),
    )
    note = f"Blocks of {block_size} tokens, one request after the other, in no time."
    return Chart(panels=(panel,), source="measured", note=note, height=_HEIGHT_PX)
