"""Laws that every finished run obeys, whatever its configuration; a breach is our bug."""

import numpy as np
from numpy.typing import NDArray

from dynosim.errors import InvariantError
from dynosim.records import FloatArray, RequestLog, RequestStatus, RunResult, StepLog, Trace

TOLERANCE_MS = 1e-6  # rounding of sums of many step times

BoolArray = NDArray[np.bool_]


def check_conservation(result: RunResult, trace: Trace) -> None:
    """Nothing is lost and nothing happens before its cause.

    Raises: InvariantError naming the law and the first request or step row that breaks it.
    """
    _check_requests(result, trace)
    _check_times(result.requests)
    _check_steps(result)
    _check_lives(result)
    _check_blocks(result)
    _check_tokens(result)
    _check_prefill(result)
    _check_handoffs(result)
    _check_tiers(result)


def _fail(law: str, detail: str) -> None:
    raise InvariantError(f"{law}: {detail}; this is a bug of dynosim, please report it")


def _check_all(law: str, holds: BoolArray, what: str) -> None:
    if not holds.all():
        index = int(np.argmin(holds))
        _fail(law, f"{what} {index} breaks it ({int((~holds).sum())} in all)")


def _check_requests(result: RunResult, trace: Trace) -> None:
    log = result.requests
    if len(log.status) != len(trace):
        _fail("every request is accounted for", f"{len(trace)} came, {len(log.status)} logged")
    known = np.isin(log.status, [int(member) for member in RequestStatus])
    _check_all("a request completes, is rejected, fails or is cut off", known, "request")
    completed = log.status == RequestStatus.COMPLETED
    given_up = np.isin(log.status, (RequestStatus.TIMED_OUT, RequestStatus.NOT_SENT))
    _check_all("who is given up never ends", ~given_up | np.isnan(log.finish_ms), "request")
    _check_all(
        "what arrives was sent",
        (log.status != RequestStatus.NOT_SENT) | np.isnan(log.arrival_ms),
        "request",
    )
    _check_all("prompts keep their length", log.input_tokens == trace.input_tokens, "request")
    _check_all(
        "a completed request produced at least one token and no more than asked",
        ~completed | ((log.output_tokens >= 1) & (log.output_tokens <= trace.output_tokens)),
        "request",
    )
    _check_all(
        "no more of a prompt is cached than it has",
        (log.cached_tokens >= 0) & (log.cached_tokens <= log.input_tokens),
        "request",
    )
    if int(log.preemptions.sum()) != result.num_preemptions:
        _fail(
            "preemptions of requests add up",
            f"{int(log.preemptions.sum())} in the requests, {result.num_preemptions} in the run",
        )


def _check_times(log: RequestLog) -> None:
    completed = log.status == RequestStatus.COMPLETED
    chain: tuple[tuple[str, FloatArray], ...] = (
        ("arrival_ms", log.arrival_ms),
        ("dispatch_ms", log.dispatch_ms),
        ("scheduled_ms", log.scheduled_ms),
        ("first_token_ms", log.first_token_ms),
        ("second_token_ms", log.second_token_ms),
        ("finish_ms", log.finish_ms),
    )
    latest = np.full(len(log.status), -np.inf)
    for name, times in chain:
        needed = completed & (log.output_tokens > 1) if name == "second_token_ms" else completed
        _check_all(f"a completed request has {name}", ~(needed & np.isnan(times)), "request")
        in_order = np.isnan(times) | (times >= latest - TOLERANCE_MS)
        _check_all(f"{name} is not before the times it follows from", in_order, "request")
        latest = np.fmax(latest, times)


def _check_steps(result: RunResult) -> None:
    steps = result.steps
    _check_all("a step row stands for a step", steps.num_steps >= 1, "step row")
    _check_all("a step row lasts no negative time", steps.duration_ms >= 0, "step row")
    mixed = (steps.num_prefills > 0) & (steps.num_steps != 1)
    _check_all("a row with prefill work is one step", ~mixed, "step row")
    _check_all(
        "no more KV blocks are used than there are",
        (steps.used_blocks >= 0)
        & (steps.used_blocks <= result.workers.usable_blocks[steps.worker_id]),
        "step row",
    )
    _check_no_overlap(steps)


def _check_lives(result: RunResult) -> None:
    """Nothing is asked of a worker that is not there, and it does nothing."""
    workers, steps, log = result.workers, result.steps, result.requests
    _check_all(
        "a worker is launched, gets ready and ends, in this order",
        ~(workers.ready_ms < workers.launched_ms)
        & ~(workers.ended_ms < workers.launched_ms)
        & ~(workers.ended_ms < workers.ready_ms),
        "worker",
    )
    from_ms = np.where(np.isnan(workers.ready_ms), np.inf, workers.ready_ms) - TOLERANCE_MS
    until_ms = np.where(np.isnan(workers.ended_ms), np.inf, workers.ended_ms) + TOLERANCE_MS
    _check_all(
        "a worker steps while it lives",
        (steps.start_ms >= from_ms[steps.worker_id])
        & (steps.start_ms + steps.duration_ms <= until_ms[steps.worker_id]),
        "step row",
    )
    first_worker, from_when_ms = log.worker_id, log.dispatch_ms
    if log.handoffs is not None:  # a decode worker may have been chosen before the prefill worker
        prefill = log.handoffs.prefill_worker_id
        first_worker = np.where(prefill >= 0, prefill, first_worker)
        from_when_ms = np.where(prefill >= 0, log.scheduled_ms, from_when_ms)
    is_placed = (first_worker >= 0) & (log.migrations == 0) & ~np.isnan(from_when_ms)
    placed = np.flatnonzero(is_placed)
    worker, at_ms = first_worker[placed], from_when_ms[placed]
    is_there = np.ones(len(log.worker_id), np.bool_)
    is_there[placed] = (at_ms >= from_ms[worker]) & (at_ms <= until_ms[worker])
    _check_all("requests go to workers that are ready", is_there, "request")


def _check_blocks(result: RunResult) -> None:
    """Once every request has ended, and nothing is on its way, none refers to a block."""
    held, links = result.workers.held_blocks, result.links
    is_under_way = links is not None and links.bytes_in_flight > 0
    has_unfinished = (result.requests.status == RequestStatus.UNFINISHED).any()
    if held is None or is_under_way or has_unfinished:
        return
    _check_all("blocks of requests that have ended are free", held == 0, "worker")


def _check_no_overlap(steps: StepLog) -> None:
    """Rows of one worker, in the order they are logged, follow one another."""
    order = np.argsort(steps.worker_id, kind="stable")
    worker, start = steps.worker_id[order], steps.start_ms[order]
    end = start + steps.duration_ms[order]
    same = worker[1:] == worker[:-1]
    _check_all(
        "the steps of one worker follow one another",
        ~same | (start[1:] >= end[:-1] - TOLERANCE_MS),
        "pair of step rows",
    )


def _check_tokens(result: RunResult) -> None:
    log = result.requests
    produced = log.output_tokens[log.output_tokens > 0]
    gaps = int((produced - 1).sum())
    logged = int((result.steps.num_decodes * result.steps.num_steps).sum())
    if logged + len(result.stalled_gaps_ms) != gaps:
        _fail(
            "gaps of requests are gaps of steps",
            f"{gaps} gaps in the requests, {logged} in the steps and "
            f"{len(result.stalled_gaps_ms)} stretched by preemption",
        )


def _check_prefill(result: RunResult) -> None:
    """Computed plus cached prompt tokens are the prompts; preemption and failures only add.

    A decode worker that has all KV, its own or what has come, computes one token more: the
    prompt's last one, or the one that the client has got from the prefill worker.
    """
    log = result.requests
    served = log.status == RequestStatus.COMPLETED
    has_moved = log.migrations > 0  # and may have hit more the second time
    stayed = served & ~has_moved
    expected = log.input_tokens - log.cached_tokens
    is_unseen = np.isnan(log.scheduled_ms)
    is_regular = ~has_moved & (is_unseen | (served & (log.preemptions == 0)))
    if log.handoffs is not None:
        ours, is_handed = log.handoffs, log.handoffs.prefill_worker_id >= 0
        has_come = ~np.isnan(ours.transfer_end_ms) | (ours.held_tokens == log.input_tokens)
        is_over = log.finish_ms == ours.prefill_end_ms  # with the prefill worker's token
        expected = expected + (is_handed & has_come)
        is_regular &= has_come | ~is_handed | is_over
    computed, needed = int(result.steps.prefill_tokens.sum()), int(expected[stayed].sum())
    if computed < needed or (is_regular.all() and computed != needed):
        _fail(
            "prompt tokens are computed or cached",
            f"{needed} tokens were to be computed, {computed} were",
        )


def _check_handoffs(result: RunResult) -> None:
    """KV comes after it was made, and no byte is lost on the way unnoticed."""
    log, links = result.requests, result.links
    if log.handoffs is None or links is None:
        return
    sent, accounted = links.bytes_sent, links.bytes_received + links.bytes_lost
    if sent != accounted + links.bytes_in_flight:
        _fail(
            "bytes sent are received, lost with a worker, or in flight",
            f"{sent} sent, {accounted} received or lost, {links.bytes_in_flight} in flight",
        )
    ours = log.handoffs
    first_time = log.migrations == 0
    chain = (
        (log.scheduled_ms, ours.prefill_end_ms, "prompts are computed after they are begun"),
        (ours.transfer_start_ms, ours.transfer_end_ms, "KV arrives after it was sent"),
        (ours.transfer_end_ms, log.finish_ms, "requests end after their KV has come"),
    )
    for before_ms, after_ms, law in chain:
        in_order = np.isnan(before_ms) | np.isnan(after_ms) | (after_ms >= before_ms - TOLERANCE_MS)
        _check_all(law, in_order | ~first_time, "request")
    _check_all(
        "no more of a prompt is held than it has",
        (ours.held_tokens >= 0) & (ours.held_tokens <= log.input_tokens),
        "request",
    )


def _check_tiers(result: RunResult) -> None:
    """What was stored in a tier is there, unless it was thrown out or its copy was cut off."""
    for tier in result.tiers:
        if tier.stored_blocks != tier.evicted_blocks + tier.lost_blocks + tier.resident_blocks:
            _fail(
                f"blocks stored in tier {tier.name} are evicted, lost or resident",
                f"{tier.stored_blocks} stored, {tier.evicted_blocks} evicted, {tier.lost_blocks} "
                f"lost, {tier.resident_blocks} resident",
            )
        if tier.name != "peers" and tier.resident_blocks > tier.capacity_blocks:
            _fail(
                f"tier {tier.name} holds no more than it has room for",
                f"{tier.resident_blocks} blocks in {tier.capacity_blocks}",
            )
    log = result.requests
    if log.onboards is not None:
        ours = log.onboards
        in_order = np.isnan(ours.end_ms) | (
            (ours.start_ms >= log.dispatch_ms - TOLERANCE_MS)
            & ~(log.scheduled_ms < ours.end_ms - TOLERANCE_MS)
        )
        _check_all("a request is loaded before it is scheduled", in_order, "request")
