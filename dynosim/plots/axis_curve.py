"""What becomes of the SLA along the one setting that a sweep varies: where a cliff is, it shows."""

from typing import TYPE_CHECKING, Any

from dynosim.plots import style
from dynosim.plots import trials as trial_table
from dynosim.plots.chart import Chart, ChartAxis, LineMark, Panel, PointMark
from dynosim.plots.page import number

if TYPE_CHECKING:
    import polars as pl

MIN_POINTS = 3
"""Fewer make no curve."""

_ATTAINMENT = "sla_attainment"
_BELOW = {"p99_ttft_ms": ("TTFT p99 (s)", 1e-3), "gpu_hours": ("GPU hours", 1.0)}
"""What stands below the SLA, where trials tell it and differ in it; by what it is multiplied."""
_UNITS = {"s": "s", "ms": "ms", "gb": "GB", "rps": "requests/s", "tokens": "tokens"}


def varied_axis(trials: "pl.DataFrame") -> str | None:
    """The setting along which the SLA can be drawn; None: none, several, or one of words."""
    keys = trial_table.varied_keys(trials)
    if len(keys) != 1 or not trials[keys[0]].dtype.is_numeric():
        return None
    return keys[0] if len(_rows(trials, keys[0])) >= MIN_POINTS else None


def axis_chart(trials: "pl.DataFrame", key: str) -> Chart:
    """Requests within the SLA along `key`, and below it what that costs."""
    rows = _rows(trials, key)
    told = [
        (name, title, factor)
        for name, (title, factor) in _BELOW.items()
        if len({row.get(name) for row in rows} - {None}) > 1
    ]
    panels = [_panel(rows, key, _ATTAINMENT, "requests within the SLA", 1.0)]
    panels += [_panel(rows, key, *one) for one in told]
    return Chart(
        panels=tuple(panels),
        source=trial_table.common_source(trials),
        note=trial_table.timing_note(trials),
        height=180 + 200 * len(panels),
        shares_x=True,
        has_legend=False,
    )


def _rows(trials: "pl.DataFrame", key: str) -> list[dict[str, Any]]:
    """Finished trials that tell of the SLA, along the setting."""
    if _ATTAINMENT not in trials.columns:
        return []
    rows = trials.filter(trials["status"] == "ok", trials[_ATTAINMENT].is_not_null())
    return rows.filter(rows[key].is_not_null()).sort(key).to_dicts()


def _panel(rows: list[dict[str, Any]], key: str, name: str, title: str, factor: float) -> Panel:
    is_share = name == _ATTAINMENT
    xs = [row[key] for row in rows]
    ys = [None if row.get(name) is None else row[name] * factor for row in rows]
    hover = tuple(
        f"{_axis_title(key)}: {number(x)}\n"
        f"{style.share_text(y) if is_share and y is not None else number(y)} {title}"
        for x, y in zip(xs, ys, strict=True)
    )
    return Panel(
        x=ChartAxis(title=_axis_title(key), from_zero=True),
        y=ChartAxis(
            title=title,
            from_zero=not is_share,
            limits=(0.0, 1.02) if is_share else None,
            is_percent=is_share,
        ),
        marks=(
            LineMark(x=xs, y=ys, color=style.BLUE, width=2.0),
            PointMark(
                x=xs,
                y=ys,
                color=style.BLUE,
                fills=tuple(trial_table.fill_of(row) for row in rows),
                hover=hover,
                rows=tuple(row["trial_id"] for row in rows),
            ),
        ),
    )


def _axis_title(key: str) -> str:
    """A key with its unit apart: `cluster.startup.boot (s)`."""
    stem, _, last = key.rpartition("_")
    return f"{stem} ({_UNITS[last]})" if stem and last in _UNITS else key
