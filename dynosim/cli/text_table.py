"""Tables and lines that fit a terminal of 80 columns."""

from collections.abc import Sequence
from textwrap import wrap
from typing import Any

WIDTH = 80


def print_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as they must be, the second to the left; those at the right that do not fit
    are left out."""
    widths = [
        max(len(title), *(len(row[place]) for row in rows)) for place, title in enumerate(titles)
    ]
    shown = len(widths)
    while sum(widths[:shown]) + shown - 1 > WIDTH:
        shown -= 1
    for cells in (titles, *rows):
        words = [
            cell.ljust(width) if place == 1 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        print(" ".join(words[:shown]).rstrip())


def short(value: Any) -> str:
    """Three digits, which is more than a bracket of 3 % tells."""
    if value is None:
        return "-"
    number = float(value)
    return f"{number:,.0f}" if abs(number) >= 100 else f"{number:.3g}"


def counted(number: int, noun: str) -> str:
    """A number of things."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def cut(line: str) -> str:
    """The line, or as much of it as fits."""
    return line if len(line) <= WIDTH else line[: WIDTH - 3] + "..."


def print_wrapped(text: str) -> None:
    """The text in as many lines as it takes, the later ones indented."""
    for line in wrap(text, WIDTH, subsequent_indent="  "):
        print(line)
