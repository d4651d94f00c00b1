"""Keys as text for a terminal."""

import textwrap
from collections.abc import Iterator, Sequence

from dynosim.reference.catalogue import KeyFact

WIDTH = 80


def key_text(fact: KeyFact) -> str:
    """All there is to say of a key."""
    rows = {
        "values": "" if fact.is_section and fact.values == "section" else fact.values,
        "unit": fact.unit,
        "default": fact.default or ("none: it must be given" if fact.is_required else ""),
        "only with": fact.where,
        "also": ", ".join(fact.also),
        "in": fact.home,
        "": fact.stability,
    }
    lines = [fact.key, *textwrap.wrap(fact.meaning, WIDTH, initial_indent="  ",
                                      subsequent_indent="  ")]  # fmt: skip
    for title, value in rows.items():
        if value:
            lines += textwrap.wrap(
                value,
                WIDTH,
                initial_indent=f"  {title:<10}",
                subsequent_indent=" " * 12,
                break_long_words=False,
            )
    return "\n".join(lines)


def tree_lines(
    facts: Sequence[KeyFact], *, base: str = "", width: int | None = None
) -> Iterator[str]:
    """A line for every key below `base`, indented by its section: default, unit and meaning.

    A section of a shape that was told before names it. Lines are cut at `width`; None: not at all.
    """
    rows = [fact for fact in facts if not fact.same_as]
    depth = base.count(".") + 1 if base else 0
    heads = [_head(fact, fact.key.count(".") - depth) for fact in rows]
    column = max(map(len, heads), default=0) + 2
    shapes = {fact.key.rpartition(".")[0]: fact.same_as for fact in facts if fact.same_as}
    for fact, head in zip(rows, heads, strict=True):
        line = f"{head:<{column}}{_told(fact)}"
        if fact.key in shapes:
            line += f" Keys as those of {shapes[fact.key].rpartition('.')[0]}."
        yield line.rstrip() if width is None or len(line) <= width else f"{line[: width - 1]}…"


def _head(fact: KeyFact, depth: int) -> str:
    name = fact.key.rpartition(".")[2]
    return f"{'  ' * depth}{name}: {fact.default}".rstrip()


def _told(fact: KeyFact) -> str:
    unit = f"[{fact.unit}] " if fact.unit else ""
    where = f" (with {fact.where})" if fact.where else ""
    return f"{unit}{fact.meaning}{where}"
