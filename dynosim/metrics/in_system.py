"""How many requests a system holds, and whether they become more: in a window that is measured.

By Little's law a system that keeps up holds as many requests as arrive in the time one takes. So it
falls behind if it holds more at the window's end than at its beginning, and not because more arrive
by then: counted is the growth from the window's first third to its last, less what the rates of
arrival explain. Chance explains three standard deviations of a number that comes and goes by
itself; what is less than 2 % of the arrivals between the middles of the thirds is kept up with.
"""

from math import sqrt

import numpy as np

from dynosim.records import FloatArray, RequestLog, RequestStatus

WARM_UP_SHARE = 0.1
WARM_UP_REQUESTS = 2.0
"""So many times the median request passes before anything is judged."""
GROWTH_SHARE = 0.02
DEVIATIONS = 3.0


def measuring_window(log: RequestLog) -> tuple[float, float]:
    """Start and end of the window in ms; (0, 0) where nothing arrived.

    From the arrival of a tenth of the requests that the trace's clock brings, or from twice the
    median time of a request after the first arrival if that is later (but after a third of the
    arrivals at the latest), to the last of them.
    """
    came = ~np.isnan(log.arrival_ms)
    if log.is_timed is not None and (came & log.is_timed).any():
        came = came & log.is_timed
    arrivals = np.sort(log.arrival_ms[came])
    if len(arrivals) == 0:
        return 0.0, 0.0
    first_ms, last_ms = float(arrivals[0]), float(arrivals[-1])
    tenth_ms = float(arrivals[int(len(arrivals) * WARM_UP_SHARE)])
    done = log.status == RequestStatus.COMPLETED
    if not done.any():
        return tenth_ms, last_ms
    typical_ms = float(np.median((log.finish_ms - log.arrival_ms)[done]))
    filled_ms = first_ms + min(WARM_UP_REQUESTS * typical_ms, (last_ms - first_ms) / 3)
    return max(tenth_ms, filled_ms), last_ms


def growth_in_system(log: RequestLog, start_ms: float, end_ms: float) -> tuple[float | None, float]:
    """How many more requests are in the system in a window's last third than in its first, and how
    many more may be. None in a closed loop, where it says nothing, and in an empty window."""
    is_closed = log.is_timed is not None and not log.is_timed.any()
    if is_closed or end_ms <= start_ms:
        return None, 0.0
    third_ms = (end_ms - start_ms) / 3
    before = mean_in_system(log, start_ms, start_ms + third_ms)
    after = mean_in_system(log, end_ms - third_ms, end_ms)
    came_before = _num_arrived(log, start_ms, start_ms + third_ms)
    came_after = _num_arrived(log, end_ms - third_ms, end_ms)
    explained = before * came_after / came_before if came_before else before
    by_chance = DEVIATIONS * sqrt(max(before, explained, 1.0))
    num_between = _num_arrived(log, start_ms, end_ms) * 2 / 3
    return after - max(before, explained), max(GROWTH_SHARE * num_between, by_chance)


def _num_arrived(log: RequestLog, start_ms: float, end_ms: float) -> int:
    return int(((log.arrival_ms >= start_ms) & (log.arrival_ms <= end_ms)).sum())


def mean_in_system(log: RequestLog, start_ms: float, end_ms: float) -> float:
    """Requests that have arrived and not ended, on average over a time; none that was refused."""
    gone = np.isin(log.status, (RequestStatus.REJECTED, RequestStatus.FAILED))
    counted = ~gone & (log.arrival_ms < end_ms)
    left_ms: FloatArray = np.where(np.isnan(log.finish_ms), np.inf, log.finish_ms)
    if log.gave_up_ms is not None:
        left_ms = np.fmin(left_ms, log.gave_up_ms)
    left_ms = left_ms[counted]
    came_ms = np.maximum(log.arrival_ms[counted], start_ms)
    present_ms = np.maximum(np.minimum(left_ms, end_ms) - came_ms, 0.0)
    return float(present_ms.sum()) / (end_ms - start_ms)
