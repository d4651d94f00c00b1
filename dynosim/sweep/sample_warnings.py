"""What a sweep should be warned of: layouts that too few requests were judged by."""

from collections.abc import Sequence

from dynosim.config.sweep_loading import SweepConfig
from dynosim.metrics.sample_size import requests_wanted, sample_warning
from dynosim.sweep.answer import Answer
from dynosim.sweep.results import Row
from dynosim.sweep.status import OK


def capacity_warnings(sweep: SweepConfig, answer: Answer) -> list[str]:
    """Of layouts whose capacity was measured with too few requests, those with fewest."""
    is_closed = sweep.load.vary == "concurrency"
    few = [row for row in answer.ranked if _is_few(row, is_closed=is_closed)]
    if not few:
        return []
    worst = min(few, key=lambda row: row.report["capacity_requests_per_slot"])
    per_slot = worst.report["capacity_requests_per_slot"]
    slots = max(_slots(row) for row in few)
    key = "requests_per_slot" if is_closed else "min_requests"
    wanted = requests_wanted(1.0 if is_closed else slots, is_closed=is_closed)
    return [
        f"the capacity of {len(few)} of {len(answer.ranked)} layouts was judged by few requests, "
        f"down to {per_slot:.3g} for each in flight: set load.{key} to {wanted:,}"
    ]


def fixed_warnings(rows: Sequence[Row]) -> list[str]:
    """Of closed loops that are run as they are, how many are too short."""
    found = [text for row in rows if row.status == OK and (text := _fixed_warning(row))]
    if not found:
        return []
    more = f", and of {len(found) - 1} more trials" if len(found) > 1 else ""
    return [f"{found[0]} (workload.synthetic.requests, or a longer trace){more}"]


def _fixed_warning(row: Row) -> str:
    concurrency = None if row.trial.config is None else row.trial.config.workload.concurrency
    if concurrency is None:
        return ""
    return sample_warning(row.report["num_requests"], concurrency, is_closed=True)


def _is_few(row: Row, *, is_closed: bool) -> bool:
    per_slot = row.report.get("capacity_requests_per_slot")
    return per_slot is not None and per_slot < requests_wanted(1.0, is_closed=is_closed)


def _slots(row: Row) -> float:
    return float(row.report["capacity_in_flight"])
