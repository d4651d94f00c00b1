"""From a finished run to numbers: the report, the tables, and the laws a run must obey.

Importing this package loads numpy and nothing heavier; the tables import polars when called.
"""

from dynosim.metrics.conservation import check_conservation
from dynosim.metrics.report import WALL_CLOCK_KEYS, summarize
from dynosim.metrics.tables import RECORD_FIELDS, request_table
from dynosim.metrics.timeline import timeline_table

__all__ = [
    "RECORD_FIELDS",
    "WALL_CLOCK_KEYS",
    "check_conservation",
    "request_table",
    "summarize",
    "timeline_table",
]
