"""`dynosim support`: the catalogue of what can be timed how, as a table or JSON."""

import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from dynosim.silicon.catalogue import known_models
from dynosim.silicon.hardware import hardware_sheet, known_hardware
from dynosim.silicon.support import NONE, SIMULATED, SupportRow, formulas_row, support
from dynosim.timing.model import DERIVED, ESTIMATED, MEASURED

_COLUMNS = ("model", "hardware", "engine", "source", "kind", "note")
_SOURCES = (MEASURED, DERIVED, ESTIMATED, NONE)


def support_command(
    model: str | None, hardware: str | None, engine: str | None, *, as_json: bool
) -> None:
    """Print one row per known combination, as text the counts by model if nothing is chosen.

    Of one model on one hardware the simulated engine's tables are asked as a run asks them.

    Raises: ConfigError for an unknown name.
    """
    rows = support(model, hardware, engine)
    details: list[str] = []
    if model is not None and hardware is not None:
        rows, details = _asked(rows)
    if as_json:
        document: dict[str, Any] = {"support": [asdict(row) for row in rows]}
        if details:
            document["details"] = details
        sys.stdout.write(json.dumps(document, indent=2) + "\n")
    elif model is None and hardware is None and engine is None:
        _print_counts(rows)
    else:
        _print_table([{name: getattr(row, name) for name in _COLUMNS} for row in rows])
        for line in details:
            print(line)


def _asked(rows: list[SupportRow]) -> tuple[list[SupportRow], list[str]]:
    """The rows, that of the simulated engine by what its tables answer, and the answer in words."""
    from dynosim.silicon.support_probe import probe

    found, details = [], []
    for row in rows:
        if row.engine != SIMULATED or row.source == NONE:
            found.append(row)
            continue
        answer = probe(row.model, row.hardware, row.engine)
        if isinstance(answer, str):
            found.append(formulas_row(row.model, row.hardware, row.engine))
            details = [answer]
        else:
            note = row.note if row.kind == "aiconfigurator" else "silicon tables"
            source = answer.model.source
            found.append(replace(row, source=source, kind="aiconfigurator", note=note))
            details = answer.lines()
    return found, details


def models_command(*, as_json: bool) -> None:
    """Print the names of all known models."""
    names = list(known_models())
    if as_json:
        sys.stdout.write(json.dumps({"models": names}, indent=2) + "\n")
        return
    for name in names:
        print(name)


def hardware_command(*, as_json: bool) -> None:
    """Print what is known of all hardware."""
    sheets = [asdict(hardware_sheet(name)) for name in known_hardware()]
    if as_json:
        sys.stdout.write(json.dumps({"hardware": sheets}, indent=2) + "\n")
        return
    _print_table(
        [
            {
                "name": sheet["name"],
                "GiB": f"{sheet['memory_gib']:g}",
                "memory GB/s": f"{sheet['memory_gb_per_s']:g}",
                "bf16 TFLOPS": f"{sheet['bf16_tflops']:g}",
                "fp8 TFLOPS": f"{sheet['fp8_tflops']:g}",
                "link GB/s": f"{sheet['link_gb_per_s']:g}",
            }
            for sheet in sheets
        ]
    )


def _print_counts(rows: Sequence[SupportRow]) -> None:
    """How many combinations of hardware and engine each model can be timed on, by how well."""
    counts: dict[str, Counter[str]] = {}
    for row in rows:
        counts.setdefault(row.model, Counter())[row.source] += 1
    _print_table([{"model": name, **{s: of[s] for s in _SOURCES}} for name, of in counts.items()])
    print(
        f"{len(rows):,} combinations of model, hardware and engine; their rows: "
        "--model, --hardware, --engine"
    )


def _print_table(rows: Sequence[dict[str, Any]]) -> None:
    titles = list(rows[0])
    texts = [
        [str("-" if row[name] in (None, "") else row[name]) for name in titles] for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(titles, *texts, strict=True)]
    for line in ([name.upper() for name in titles], *texts):
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        print("  ".join(cells).rstrip())
