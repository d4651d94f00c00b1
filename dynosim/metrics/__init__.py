"""From a finished run to numbers: the report, the tables, and the laws a run must obey.

Importing this package loads numpy and nothing heavier. What a plain run does not need is imported
when first asked for; the tables import polars when called.
"""

import importlib
from typing import TYPE_CHECKING, Any

from dynosim.metrics.report import PROCESS_KEYS, summarize

if TYPE_CHECKING:
    from dynosim.metrics.conservation import check_conservation
    from dynosim.metrics.tables import RECORD_FIELDS, request_table
    from dynosim.metrics.timeline import timeline_table

__all__ = [
    "PROCESS_KEYS",
    "RECORD_FIELDS",
    "check_conservation",
    "request_table",
    "summarize",
    "timeline_table",
]

_LATER = {
    "check_conservation": "conservation",
    "RECORD_FIELDS": "tables",
    "request_table": "tables",
    "timeline_table": "timeline",
}


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(importlib.import_module(f"dynosim.metrics.{_LATER[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
