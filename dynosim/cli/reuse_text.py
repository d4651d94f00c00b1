"""`dynosim trace reuse`: capacities as they are written, and its table."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, cast, get_args

from dynosim.cli.text_table import WIDTH, counted, cut, print_wrapped
from dynosim.engine.spec import EvictionPolicy
from dynosim.errors import ConfigError
from dynosim.workload.summary import repair_lines

_UNITS: Final = {"MB": 1e6, "GB": 1e9, "TB": 1e12, "MiB": 2.0**20, "GiB": 2.0**30, "TiB": 2.0**40}
_CAPACITY = re.compile(rf"(\d+(?:\.\d+)?)({'|'.join(_UNITS)})?")


def blocks_of(text: str, option: str, bytes_per_block: int | None) -> int:
    """Blocks of a capacity: `5000`, or `40GB`, which takes the bytes of a block.

    Raises: ConfigError if it is not such, or less than a block.
    """
    found = _CAPACITY.fullmatch(text.strip())
    if found is None or (found[2] is None and "." in found[1]):
        raise ConfigError(
            f"{option} {text.strip()!r}: expected blocks, as in 5000, or bytes, as in 40GB or 2TiB"
        )
    if found[2] is None:
        blocks = int(found[1])
    elif bytes_per_block is None:
        raise ConfigError(f"{option} {text.strip()}: of which model (add --model NAME)")
    else:
        blocks = int(float(found[1]) * _UNITS[found[2]] / bytes_per_block)
    if blocks < 1:
        raise ConfigError(f"{option} {text.strip()}: not one block fits")
    return blocks


def policies_of(text: str) -> tuple[EvictionPolicy, ...]:
    """Policies with commas between them. Raises: ConfigError for one that there is not."""
    known = get_args(EvictionPolicy)
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in known:
            raise ConfigError(f"--policy {name!r}: expected some of {', '.join(known)}")
    return cast(tuple[EvictionPolicy, ...], tuple(dict.fromkeys(names)))


def print_reuse(summary: Mapping[str, Any]) -> None:
    """The table of `reuse_by_capacity`, with `bytes_per_block` if the model is known."""
    print(cut(f"{summary['source']}: {summary['requests']:,} requests"))
    print_wrapped(_frame(summary))
    print()
    _print_rows(summary)
    print()
    print_wrapped(_enough(summary))
    for line in repair_lines(summary):
        print(line)


def _frame(summary: Mapping[str, Any]) -> str:
    text = (
        f"An endless cache has {summary['reusable']:.1%} of {_tokens(summary['prompt_tokens'])} "
        f"prompt tokens (blocks of {summary['block_size']} tokens, requests one after the other)."
    )
    if summary["device_blocks"]:
        text += (
            f" The device holds {_room(summary, summary['device_blocks'])}, which has "
            f"{summary['device']:.1%}; capacities are those of the host behind it."
        )
    return text


def _print_rows(summary: Mapping[str, Any]) -> None:
    rows: Sequence[Mapping[str, Any]] = summary["capacities"]
    policies = [name for name in get_args(EvictionPolicy) if name in rows[0]]
    has_bytes = summary["bytes_per_block"] is not None
    titles = ["blocks", "tokens", *(["GB"] if has_bytes else []), *map(str.upper, policies)]
    titles += ["optimum", f"  # {policies[0].upper()}  . more by foresight"]
    lines = [titles]
    for row in rows:
        cells = [f"{row['blocks']:,}", _tokens(row["tokens"])]
        cells += [_gb(row["blocks"] * summary["bytes_per_block"])] if has_bytes else []
        cells += [f"{row[name]:.1%}" for name in (*policies, "optimal")]
        bar = _bar(row[policies[0]], row["optimal"], summary["reusable"])
        lines.append([*cells, f"  {bar}"])
    widths = [max(len(line[place]) for line in lines) for place in range(len(titles) - 1)]
    for line in lines:
        cells = [cell.rjust(width) for cell, width in zip(line, [*widths, 0], strict=True)]
        print("  ".join(cells)[:WIDTH].rstrip())


def _bar(hit: float, optimal: float, most: float) -> str:
    """What is hit as `#`, what foresight adds to it as `.`."""
    if not most:
        return ""
    hits, foreseen = (round(_BAR * value / most) for value in (hit, optimal))
    return "#" * hits + "." * (foreseen - hits)


_BAR: Final = 30


def _enough(summary: Mapping[str, Any]) -> str:
    enough = summary["enough"]
    share = f"{enough['share']:.0%} of what is reusable"
    if not summary["reusable"]:
        return "No prompt repeats another: no room pays."
    where = " on the host" if summary["device_blocks"] else ""
    if not enough["lru_blocks"]:
        return f"For {share} the device suffices."
    return (
        f"For {share}, LRU needs {_room(summary, enough['lru_blocks'])}{where}, perfect foresight "
        f"{_room(summary, enough['optimal_blocks'])}."
    )


def _room(summary: Mapping[str, Any], blocks: int) -> str:
    if not blocks:
        return "none"
    text = f"{counted(blocks, 'block')} ({_tokens(blocks * summary['block_size'])} tokens"
    if summary["bytes_per_block"] is not None:
        text += f", {_gb(blocks * summary['bytes_per_block'])} GB"
    return text + ")"


def _tokens(count: int) -> str:
    return f"{count / 1e6:.2f} M" if count >= 1e6 else f"{count / 1e3:.1f} k"


def _gb(size: int) -> str:
    gb = size / 1e9
    return f"{gb:,.0f}" if gb >= 100 else f"{gb:.3g}"
