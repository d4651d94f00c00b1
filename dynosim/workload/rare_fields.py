"""Fields of a row that few traces have: looked for by name before rows are decoded with them.

Decoding a field costs time in every row, whether it is there or not; a chunk of text without any of
their names is decoded without them.
"""

from dynosim.workload.retention_fields import RETENTION_FIELDS
from dynosim.workload.wait_fields import WAIT_FIELDS
from dynosim.workload.wish_fields import WISH_FIELDS

RARE_FIELDS = (*WISH_FIELDS, *WAIT_FIELDS, *RETENTION_FIELDS)
_MARKS = (*(name.encode() for name in RARE_FIELDS), b"\\")  # what is escaped may be a name


def may_have_rare_fields(data: bytes) -> bool:
    """Whether any row of this text can have one of the fields."""
    return any(mark in data for mark in _MARKS)
