"""A self-contained HTML page of figures and tables: no network, one file that opens anywhere.

The page is made of templates (`templates/`, jinja2, every text escaped). Figures are plotly
specifications as plain dictionaries; plotly's script is copied from the installed package into the
page, the Python side of plotly is never imported. Tables of many rows are written once, as JSON;
the page shows a hundred of them at a time. Rows have numbers (of trials): points of figures that
carry the same number are chosen together with them.
"""

import importlib.util
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynosim.errors import ConfigError
from dynosim.plots import style

if TYPE_CHECKING:
    from jinja2 import Environment

_TEMPLATES = Path(__file__).parent / "templates"
_SCRIPTS = ("theme.js", "figures.js", "tables.js", "selection.js")
_COLUMN_FIELDS = ("key", "title", "is_text", "is_hidden", "is_setting", "hint")
NUM_PLAIN_ROWS = 20
"""Of a table of many rows, shown where there is no JavaScript."""

Cell = float | int | str | None | tuple[float | int | None, str]
"""A number, words, nothing, or a number and the words that show in its place."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A plotly figure: traces and layout as plotly.js takes them, the layout for telephones, and
    the line below it. `at` are the keys of a table's columns that its two axes show."""

    data: list[dict[str, Any]]
    layout: dict[str, Any]
    narrow_layout: dict[str, Any] | None = None
    note: str = ""
    at: tuple[str, ...] = ()
    min_width_px: int = 0  # narrower windows scroll it


@dataclass(frozen=True, slots=True)
class FigureChoice:
    """One of several figures, chosen by switches: (title, options) each. The last switch changes
    fastest in the order of `figures`."""

    figures: Sequence[Figure]
    switches: Sequence[tuple[str, Sequence[str]]] = ()
    label: str = ""

    def document(self) -> str:
        """What the page's script reads."""
        names = ("data", "layout", "narrow_layout", "at")
        return _json([{name: getattr(figure, name) for name in names} for figure in self.figures])


@dataclass(frozen=True, slots=True)
class DataColumn:
    """A column of a `DataTable`. Hidden ones are there for figures and commands."""

    key: str
    title: str
    is_text: bool = False
    is_hidden: bool = False
    is_setting: bool = False  # a number as one would type it: no thousands separated
    hint: str = ""


@dataclass(frozen=True, slots=True)
class DataTable:
    """Many rows. The first column is the number that figures and tables know the row by."""

    name: str
    columns: Sequence[DataColumn]
    rows: Sequence[Sequence[Cell]]

    def document(self) -> str:
        """What the page's script reads."""
        columns = [
            {name: getattr(column, name) for name in _COLUMN_FIELDS} for column in self.columns
        ]
        return _json({"columns": columns, "rows": self.rows})

    def first_rows(self) -> str:
        """The first rows as a plain table."""
        shown = [place for place, column in enumerate(self.columns) if not column.is_hidden]
        rows = [
            [_plain(row[place], self.columns[place]) for place in shown]
            for row in self.rows[:NUM_PLAIN_ROWS]
        ]
        return table([self.columns[place].title for place in shown], rows)


@dataclass(frozen=True, slots=True)
class RunFiles:
    """How a row is run: its own run file, or that of the first of its mode with other values of
    `keys`.

    Run files have the load of their row. Another one, and the `capacity_key` of a row without a
    file, times `load_unit` is the value of `load_key`.
    """

    files: Mapping[int, str]
    keys: Sequence[str]
    load_key: str | None = None
    capacity_key: str | None = None
    load_unit: float = 1.0

    def document(self) -> dict[str, Any]:
        """What the page's script reads."""
        names = ("files", "keys", "load_key", "capacity_key", "load_unit")
        return {name: getattr(self, name) for name in names} | {"bases": list(self.files)}


@dataclass(frozen=True, slots=True)
class Note:
    """A sentence the reader must not miss; a warning is coloured."""

    text: str
    is_warning: bool = False


@dataclass(frozen=True, slots=True)
class Headline:
    """The answer, before anything else: one sentence, facts by name, commands by purpose."""

    text: str
    facts: Sequence[tuple[str, str]] = ()
    commands: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True, slots=True)
class Part:
    """A titled block of a page; `body` comes from `table`, `preformatted` or `folded`."""

    title: str
    caption: str = ""
    figure: Figure | FigureChoice | None = None
    body: str = ""
    table: DataTable | None = None

    def choice(self) -> FigureChoice | None:
        """The figure with its switches, if there is one."""
        if isinstance(self.figure, Figure):
            return FigureChoice([self.figure], label=self.title)
        return self.figure


@dataclass(frozen=True, slots=True)
class Page:
    """What a page shows, top to bottom."""

    title: str
    lead: str
    notes: Sequence[Note]
    cards: Sequence[tuple[str, str]]  # name, value
    parts: Sequence[Part]
    headline: Headline | None = None
    run: RunFiles | None = field(default=None)


def write_page(path: Path | str, page: Page) -> None:
    """Write the page to `path`."""
    Path(path).write_text(render_page(page), encoding="utf-8")


def render_page(page: Page) -> str:
    """The page as one HTML document."""
    from markupsafe import Markup

    has_figures = any(part.figure for part in page.parts)
    run = None if page.run is None else page.run.document()
    return (
        _templates()
        .get_template("page.html.jinja")
        .render(
            page=page,
            css=Markup(_template("page.css")),
            plotly=Markup(_plotly_script()) if has_figures else None,
            scripts=[Markup(_template(name)) for name in _SCRIPTS],
            page_data=_json({"dark_colors": style.DARK_COLORS, "run": run}),
        )
    )


def _template(name: str) -> str:
    return (_TEMPLATES / name).read_text(encoding="utf-8")


@cache
def _templates() -> "Environment":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _plotly_script() -> str:
    spec = importlib.util.find_spec("plotly")
    if spec is None or spec.origin is None:
        raise ConfigError("the HTML report needs plotly (hint: pip install plotly)")
    source = Path(spec.origin).parent / "package_data" / "plotly.min.js"
    return source.read_text(encoding="utf-8")


def _json(value: Any) -> str:
    """JSON that cannot end the script element it stands in, and that no template escapes."""
    from markupsafe import Markup

    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    text = text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    return Markup(text)


def _block(name: str, *arguments: Any) -> str:
    blocks: Any = _templates().get_template("blocks.jinja").module
    text: str = getattr(blocks, name)(*arguments)
    return text


def table(header: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int = 1) -> str:
    """An HTML table; the last columns are numbers, the first `text_columns` words."""
    return _block("table", header, rows, text_columns)


def preformatted(text: str) -> str:
    """A block of literal text."""
    return _block("preformatted", text)


def folded(summary: str, body: str) -> str:
    """A block that opens on a click; `body` comes from `table` or `preformatted`."""
    return _block("folded", summary, body)


def number(value: float | int | None, digits: int = 3) -> str:
    """A number for people: thousands separated, about `digits` significant; a dash for none."""
    if value is None:
        return "-"
    if isinstance(value, int) or abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    return f"{value:.{digits}g}" if abs(value) >= 1e-3 or value == 0 else f"{value:.1e}"


def rounded(value: float | int | None, digits: int = 4) -> float | int | None:
    """The number that `number` would show, for a cell; None for what is no number."""
    if value is None or value != value or value in (float("inf"), float("-inf")):
        return None
    if isinstance(value, int) or abs(value) >= 10 ** (digits - 1):
        return round(value)
    return float(f"{value:.{digits}g}")


def _plain(cell: Cell, column: DataColumn) -> str:
    if isinstance(cell, tuple):
        return cell[1]
    if column.is_setting and cell is not None:
        return str(cell)
    return cell if isinstance(cell, str) else number(cell, 4)
