"""The verdict on a run's load computed a second time, plainly; see `dynosim.metrics.saturation`.

The rule in short: cut the time of arrivals into 20 slices, take the mean wait of each, and the
median of the slopes between all pairs of them. More than 1/19 ms of wait gained per ms, with 2 % of
the requests still waiting at the last arrival, is saturation.
"""

from typing import Any

from naive_run import Request, Row, Run


def saturation_keys(run: Run) -> dict[str, Any]:
    """The `saturat*` keys of the report."""
    verdict = _verdict(run)
    sustained, collapse_ms = _sustained(run, is_saturated=verdict["saturated"])
    return {
        **verdict,
        "saturation_sustained_tok_s": sustained,
        "saturation_collapse_ms": collapse_ms,
    }


def _keys(
    saturated: bool,
    reason: str,
    growth: float | None = None,
    backlog: float | None = None,
    drain_ms: float | None = None,
    more: float | None = None,
) -> dict[str, Any]:
    return {
        "saturated": saturated,
        "saturation_reason": reason,
        "saturation_wait_growth": growth,
        "saturation_backlog_share": backlog,
        "saturation_drain_ms": drain_ms,
        "saturation_more_in_system": more,
    }


def _verdict(run: Run) -> dict[str, Any]:
    came = [r for r in run.requests if r.status != "rejected" and r.arrival_ms is not None]
    if not came:
        return _keys(False, "no load was offered")
    offered = [request for request in came if request.is_timed]
    if not offered:
        return _keys(False, "closed loop: the load follows the cluster")
    last_ms = max(request.arrival_ms for request in offered)
    late = [r for r in offered if r.scheduled_ms is None or r.scheduled_ms > last_ms]
    backlog = len(late) / len(offered)
    drain_ms = _drain_ms(run, last_ms)
    growth = _wait_growth([r for r in offered if r.scheduled_ms is not None])
    if growth is None:
        return _keys(*_judge_bursts(run, offered), None, backlog, drain_ms)
    kept = 1 / (1 + max(growth, 0.0))
    words = f"{100 * kept:.0f}% of the offered load was served as it came"
    more, limit = _growth_in_system(run)
    rest = (growth, backlog, drain_ms, more)
    if growth > 1 / 0.95 - 1 and backlog >= 0.02:
        return _keys(True, f"the queue kept growing: {words}", *rest)
    if more is not None and more > limit:
        return _keys(True, f"{more:.0f} more requests were in the system at the end", *rest)
    if growth <= 1 / 0.95 - 1:
        return _keys(False, f"the wait did not grow steadily: {words}", *rest)
    return _keys(False, "a backlog was worked off before the last arrival", *rest)


def _growth_in_system(run: Run) -> tuple[float | None, float]:
    """Requests there in the last third of the window less those there in the first and those that
    more arrivals explain; and how many more there may be."""
    came = [r.arrival_ms for r in run.requests if r.arrival_ms is not None]
    arrivals = sorted(r.arrival_ms for r in run.requests if r.is_timed and r.arrival_ms is not None)
    first_ms, end_ms = arrivals[0], arrivals[-1]
    start_ms = arrivals[len(arrivals) // 10]
    took_ms = [r.finish_ms - r.arrival_ms for r in run.requests if r.status == "completed"]
    if took_ms:
        passed_ms = min(2 * middle(took_ms), (end_ms - first_ms) / 3)
        start_ms = max(start_ms, first_ms + passed_ms)
    if end_ms <= start_ms:
        return None, 0.0
    third_ms = (end_ms - start_ms) / 3
    came_before = sum(start_ms <= ms <= start_ms + third_ms for ms in came)
    came_after = sum(end_ms - third_ms <= ms <= end_ms for ms in came)
    came_all = sum(start_ms <= ms <= end_ms for ms in came)
    before = _held(run, start_ms, start_ms + third_ms)
    after = _held(run, end_ms - third_ms, end_ms)
    expected = max(before, before * came_after / came_before) if came_before else before
    by_chance = 3 * max(expected, 1.0) ** 0.5
    return after - expected, max(0.02 * came_all * 2 / 3, by_chance)


def _held(run: Run, start_ms: float, end_ms: float) -> float:
    """Requests in the system, on average from `start_ms` to `end_ms`."""
    total_ms = 0.0
    for request in run.requests:
        if request.arrival_ms is None or request.status in ("rejected", "failed"):
            continue
        left_ms = end_ms if request.finish_ms is None else min(request.finish_ms, end_ms)
        total_ms += max(0.0, left_ms - max(request.arrival_ms, start_ms))
    return total_ms / (end_ms - start_ms)


def _drain_ms(run: Run, last_ms: float) -> float:
    """Last arrival to last answer, or to the end of a run in which some did not finish."""
    finishes = [request.finish_ms for request in run.requests if request.finish_ms is not None]
    is_cut = any(request.status == "unfinished" for request in run.requests)
    end_ms = run.end_ms if is_cut or not finishes else max(finishes)
    return max(0.0, end_ms - last_ms)


def middle(values: list[float]) -> float:
    ordered = sorted(values)
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


def _wait_growth(requests: list[Request]) -> float | None:
    """Wait gained per ms of arrivals; None where arrivals fill fewer than six of 20 slices."""
    if len(requests) < 6:
        return None
    first_ms = min(request.arrival_ms for request in requests)
    span_ms = max(request.arrival_ms for request in requests) - first_ms
    if span_ms == 0:
        return None
    slices: dict[int, list[Request]] = {}
    for request in requests:
        number = int(20 * (request.arrival_ms - first_ms) / span_ms)
        slices.setdefault(min(number, 19), []).append(request)
    if len(slices) < 6:
        return None
    points = []
    for _, members in sorted(slices.items()):
        time_ms = sum(r.arrival_ms for r in members) / len(members)
        wait_ms = sum(r.scheduled_ms - r.arrival_ms for r in members) / len(members)
        points.append((time_ms, wait_ms))
    slopes = []
    for later in range(len(points)):
        for earlier in range(later):
            (t0, w0), (t1, w1) = points[earlier], points[later]
            slopes.append((w1 - w0) / (t1 - t0))
    return middle(slopes)


def _judge_bursts(run: Run, offered: list[Request]) -> tuple[bool, str]:
    """Whether the median request waited longer than arrivals lasted and longer than serving took.

    Whoever was not served waited until the end.
    """
    waits = []
    for request in offered:
        start_ms = run.end_ms if request.scheduled_ms is None else request.scheduled_ms
        waits.append(start_ms - request.arrival_ms)
    done = [r for r in run.requests if r.finish_ms is not None and r.scheduled_ms is not None]
    served_ms = middle([r.finish_ms - r.scheduled_ms for r in done]) if done else 0.0
    arrivals = [request.arrival_ms for request in offered]
    if middle(waits) > max(max(arrivals) - min(arrivals), served_ms):
        return True, "arrivals in a few bursts: most requests waited longer than they were served"
    return False, "arrivals in a few bursts, served without a long wait"


# ---- what was sustained ----------------------------------------------------------------------


def _sustained(run: Run, *, is_saturated: bool) -> tuple[float | None, float | None]:
    """Tokens a second that workers made while something waited, and since when it always did."""
    rows = {worker: [r for r in run.rows if r.worker == worker] for worker in _workers(run)}
    waited = {worker: _waited_for(run, of_worker) for worker, of_worker in rows.items()}
    if not any(flag for flags in waited.values() for flag in flags):
        return None, None
    arrivals = [request.arrival_ms for request in run.requests if request.arrival_ms is not None]
    rate, since = 0.0, []
    for worker, of_worker in rows.items():
        stepping_ms = max(row.end_ms for row in run.rows)
        lived_ms = run.workers[worker].lived_ms(0.0, stepping_ms)
        of_its_life = _rate_of_worker(run, worker, of_worker, waited[worker], lived_ms)
        rate += of_its_life * lived_ms / stepping_ms if stepping_ms > 0 else 0.0
        ended_ms = run.workers[worker].ended_ms
        if ended_ms is not None and ended_ms <= max(arrivals):
            continue  # nothing is in its queue any more
        full_ms = _full_since_ms(of_worker, waited[worker], max(arrivals))
        since += [] if full_ms is None else [full_ms]
    return rate, min(since) if since and is_saturated else None


def _workers(run: Run) -> list[int]:
    return sorted({row.worker for row in run.rows})


def _waited_for(run: Run, rows: list[Row]) -> list[bool]:
    """Row by row of one worker: did something wait for it all through the row?

    In its own queue: at the end of the row and at the end of the one before. In the router: when
    the row began.
    """
    flags = []
    for number, row in enumerate(rows):
        at_worker = number > 0 and row.waiting > 0 and rows[number - 1].waiting > 0
        flags.append(at_worker or _waits_in_router(run, row.start_ms))
    return flags


def _waits_in_router(run: Run, at_ms: float) -> bool:
    if run.routing is None:
        return False
    for request in run.requests:
        if request.dispatch_ms is not None and request.queued_ms > 0:
            if request.dispatch_ms - request.queued_ms <= at_ms < request.dispatch_ms:
                return True
        is_queued_still = request.status == "unfinished" and request.worker is None
        if is_queued_still and request.arrival_ms is not None and request.arrival_ms <= at_ms:
            return True
    return False


def _rate_of_worker(
    run: Run, worker: int, rows: list[Row], flags: list[bool], lived_ms: float
) -> float:
    """Output tokens a second in the rows that something waited for; else over all of its life.

    A chunk of a prompt counts as the share of a token that chunks of this worker make on average.
    """
    chosen = [row for row, flag in zip(rows, flags, strict=True) if flag]
    if chosen:
        busy_ms = sum(row.duration_ms for row in chosen)
    else:
        chosen, busy_ms = rows, lived_ms
    answered = [r for r in run.requests if r.worker == worker and r.token_ms]
    chunks = sum(row.num_prefills for row in rows)
    per_chunk = min(1.0, len(answered) / chunks) if chunks else 1.0
    tokens = sum(row.num_prefills for row in chosen) * per_chunk
    tokens += sum(row.num_decodes * row.num_steps for row in chosen)
    return tokens / (busy_ms / 1000) if busy_ms else 0.0


def _full_since_ms(rows: list[Row], flags: list[bool], last_arrival_ms: float) -> float | None:
    """Start of the first row behind the last one, up to the last arrival, that nothing waited for.

    None where that row is not there, or nothing waits for it either.
    """
    since = 0
    for number, (row, flag) in enumerate(zip(rows, flags, strict=True)):
        if row.start_ms <= last_arrival_ms and not flag:
            since = number + 1
    if since == len(rows) or not flags[since]:
        return None
    return rows[since].start_ms
