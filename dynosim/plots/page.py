"""A self-contained HTML page of figures: no network, one file that opens anywhere.

Figures are plotly specifications as plain dictionaries. plotly's script is copied from the
installed package into the page; the Python side of plotly is never imported.
"""

import html
import importlib.util
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynosim.errors import ConfigError

_STYLE = """
:root { --ink:#1c2024; --soft:#5f6670; --line:#e3e6ea; --bg:#f5f6f8; --accent:#0072B2; }
* { box-sizing: border-box; }
body { margin:0; background:var(--bg); color:var(--ink);
  font:15px/1.5 system-ui,
    -apple-system,"Segoe UI","Helvetica Neue","DejaVu Sans",Arial,sans-serif; }
main { max-width:1240px; margin:0 auto; padding:28px 20px 60px; }
h1 { font-size:26px; margin:0 0 4px; letter-spacing:-.01em; }
h2 { font-size:18px; margin:0 0 2px; }
p.lead { color:var(--soft); margin:0 0 14px; }
section, .cards, .notes { margin-top:18px; }
section { background:#fff; border:1px solid var(--line); border-radius:10px; padding:16px 18px; }
.caption { color:var(--soft); margin:0 0 6px; font-size:13.5px; max-width:95ch; }
.cards { display:grid; grid-template-columns:repeat(auto-fit,minmax(168px,1fr)); gap:10px; }
.card { background:#fff; border:1px solid var(--line); border-radius:10px; padding:11px 14px; }
.card b { display:block; font-size:21px; font-weight:650; font-variant-numeric:tabular-nums; }
.card span { color:var(--soft); font-size:12.5px; }
.notes { display:grid; gap:8px; }
.note { border-left:4px solid var(--accent); background:#fff; border-radius:6px; padding:8px 12px;
  border-top:1px solid var(--line); border-right:1px solid var(--line);
  border-bottom:1px solid var(--line); font-size:14px; }
.note.warn { border-left-color:#D55E00; background:#fff7f1; }
.scroll { overflow-x:auto; }
table { border-collapse:collapse; font-size:13.5px; font-variant-numeric:tabular-nums; width:100%; }
th, td { text-align:right; padding:5px 10px; border-bottom:1px solid var(--line);
  white-space:nowrap; }
th { color:var(--soft); font-weight:600; }
th:first-child, td:first-child { text-align:left; }
td.text, th.text { text-align:left; white-space:normal; }
pre { background:var(--bg); border-radius:8px; padding:12px 14px; overflow-x:auto; font-size:13px; }
details summary { cursor:pointer; color:var(--accent); margin:6px 0; }
footer { color:var(--soft); font-size:12.5px; margin-top:22px; }
@media print { body { background:#fff; } section { break-inside:avoid; } }
"""

_CONFIG = {"responsive": True, "displaylogo": False, "modeBarButtonsToRemove": ["lasso2d"]}


@dataclass(frozen=True, slots=True)
class Figure:
    """A plotly figure: traces and layout as plotly.js takes them."""

    data: list[dict[str, Any]]
    layout: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Note:
    """A sentence the reader must not miss; a warning is coloured."""

    text: str
    is_warning: bool = False


@dataclass(frozen=True, slots=True)
class Part:
    """A titled block of a page; `body` is HTML."""

    title: str
    caption: str = ""
    figure: Figure | None = None
    body: str = ""


@dataclass(frozen=True, slots=True)
class Page:
    """What a page shows, top to bottom."""

    title: str
    lead: str
    notes: Sequence[Note]
    cards: Sequence[tuple[str, str]]  # name, value
    parts: Sequence[Part]


def write_page(path: Path | str, page: Page) -> None:
    """Write the page to `path`."""
    Path(path).write_text(render_page(page), encoding="utf-8")


def render_page(page: Page) -> str:
    """The page as one HTML document."""
    parts = "\n".join(_part(part, index) for index, part in enumerate(page.parts))
    script = ""
    if any(part.figure for part in page.parts):
        script = f"<script>{_plotly_script()}</script>"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(page.title)}</title><style>{_STYLE}</style>{script}</head>\n"
        f"<body><main><h1>{html.escape(page.title)}</h1>"
        f'<p class="lead">{html.escape(page.lead)}</p>'
        f"{_notes(page.notes)}{_cards(page.cards)}\n{parts}\n"
        "<footer>Made by dynosim. All times are virtual time unless said otherwise.</footer>"
        "</main></body></html>\n"
    )


def _plotly_script() -> str:
    spec = importlib.util.find_spec("plotly")
    if spec is None or spec.origin is None:
        raise ConfigError("the HTML report needs plotly (hint: pip install plotly)")
    source = Path(spec.origin).parent / "package_data" / "plotly.min.js"
    return source.read_text(encoding="utf-8")


def _notes(notes: Sequence[Note]) -> str:
    rows = "".join(
        f'<div class="note{" warn" if note.is_warning else ""}">{html.escape(note.text)}</div>'
        for note in notes
    )
    return f'<div class="notes">{rows}</div>' if rows else ""


def _cards(cards: Sequence[tuple[str, str]]) -> str:
    rows = "".join(
        f'<div class="card"><b>{html.escape(value)}</b><span>{html.escape(name)}</span></div>'
        for name, value in cards
    )
    return f'<div class="cards">{rows}</div>' if rows else ""


def _part(part: Part, index: int) -> str:
    caption = f'<p class="caption">{html.escape(part.caption)}</p>' if part.caption else ""
    figure = _figure(part.figure, f"figure-{index}") if part.figure else ""
    return f"<section><h2>{html.escape(part.title)}</h2>{caption}{figure}{part.body}</section>"


def _figure(figure: Figure, name: str) -> str:
    data, layout, config = (_json(value) for value in (figure.data, figure.layout, _CONFIG))
    height = figure.layout["height"]
    return (
        f'<div id="{name}" style="height:{height}px"></div>'
        f'<script>Plotly.newPlot("{name}",{data},{layout},{config});</script>'
    )


def _json(value: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def table(header: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int = 1) -> str:
    """An HTML table; the last columns are numbers, the first `text_columns` words."""

    def line(cells: Sequence[str], tag: str) -> str:
        return "".join(
            f"<{tag}{_text_class(index, text_columns)}>{html.escape(cell)}</{tag}>"
            for index, cell in enumerate(cells)
        )

    body = "".join(f"<tr>{line(row, 'td')}</tr>" for row in rows)
    head = f"<thead><tr>{line(header, 'th')}</tr></thead>"
    return f'<div class="scroll"><table>{head}<tbody>{body}</tbody></table></div>'


def _text_class(index: int, text_columns: int) -> str:
    return ' class="text"' if index < text_columns else ""


def preformatted(text: str) -> str:
    """A block of literal text."""
    return f"<pre>{html.escape(text)}</pre>"


def folded(summary: str, body: str) -> str:
    """A block that opens on a click."""
    return f"<details><summary>{html.escape(summary)}</summary>{body}</details>"


def number(value: float | int | None, digits: int = 3) -> str:
    """A number for people: thousands separated, about `digits` significant; a dash for none."""
    if value is None:
        return "-"
    if isinstance(value, int) or abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    return f"{value:.{digits}g}" if abs(value) >= 1e-3 or value == 0 else f"{value:.1e}"
