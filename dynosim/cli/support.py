"""`dynosim support`: the catalogue of what can be timed how, as a table or JSON."""

import json
import sys
from dataclasses import asdict

from dynosim.silicon.support import support

_COLUMNS = ("model", "hardware", "engine", "source", "kind", "note")


def support_command(
    model: str | None, hardware: str | None, engine: str | None, *, as_json: bool
) -> None:
    """Print one row per known combination. Raises: ConfigError for an unknown name."""
    rows = [asdict(row) for row in support(model, hardware, engine)]
    if as_json:
        sys.stdout.write(json.dumps({"support": rows}, indent=2) + "\n")
        return
    texts = [[str(row[name] or "-") for name in _COLUMNS] for row in rows]
    widths = [max(map(len, column)) for column in zip(_COLUMNS, *texts, strict=True)]
    for line in ([name.upper() for name in _COLUMNS], *texts):
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        print("  ".join(cells).rstrip())
