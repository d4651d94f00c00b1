"""Whether a measurement is long enough for the requests that are in flight at once.

A slot is one of the requests that are in progress together. The field asks that a closed loop
serves at least forty requests with each (AIConfigurator's guide: "num-requests at least
concurrency x 40"): fewer, and its start, when all slots fill at once, and its end weigh in. Where
arrivals follow a schedule nothing fills at once; there twenty times the mean duration of a request
will do, which by Little's law is twenty requests a slot.
"""

from math import ceil

PER_SLOT_CLOSED = 40
PER_SLOT_OPEN = 20


def requests_wanted(slots: float, *, is_closed: bool) -> int:
    """How many requests a measurement should have."""
    return ceil(slots * (PER_SLOT_CLOSED if is_closed else PER_SLOT_OPEN))


def sample_warning(num_requests: int, slots: float, *, is_closed: bool) -> str:
    """In what a measurement is too short; empty if it is not."""
    wanted = requests_wanted(slots, is_closed=is_closed)
    if num_requests >= wanted or slots <= 0:
        return ""
    per_slot = PER_SLOT_CLOSED if is_closed else PER_SLOT_OPEN
    return (
        f"{num_requests:,} requests are {num_requests / slots:.3g} for each of {slots:,.0f} in "
        f"flight; {per_slot} each ({wanted:,}) would be enough"
    )
