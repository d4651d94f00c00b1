"""What a run has of no client's requests: speculative prefills and prefetches, counted apart and
left out."""

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from dynosim.experiment.warm_up import result_of
from dynosim.records import IntArray, RequestLog, RequestStatus, RunResult, Trace
from dynosim.router.witness import ChoiceWitness

SPECULATIVE_KEYS = ("speculative_prefills", "speculative_prefill_tokens", "speculative_hit_tokens")
PREFETCH_KEYS = (
    "prefetches",
    "prefetched_tokens",
    "prefetch_hit_tokens",
    "prefetch_wasted_tokens",
    "prefetches_without_room",
)
AHEAD_KEYS = (*SPECULATIVE_KEYS, *PREFETCH_KEYS)


class ClientsRun(NamedTuple):
    """What clients see of a run, and for the report what was done for them ahead."""

    result: RunResult
    trace: Trace
    report: dict[str, Any]


def clients_run(result: RunResult, trace: Trace) -> ClientsRun:
    """The run without what was sent ahead, if anything was; steps are those of all."""
    ahead, prefetch = trace.is_speculative, trace.is_prefetch
    report: dict[str, Any] = dict.fromkeys(AHEAD_KEYS)
    if ahead is None:
        return ClientsRun(result, trace, report)
    speculative = np.flatnonzero(ahead if prefetch is None else ahead & ~prefetch)
    if len(speculative):
        report |= _report(result.requests, trace, speculative)
    if prefetch is not None:
        report |= _prefetch_report(result)
    rows = np.flatnonzero(~ahead)
    return ClientsRun(result_of(result, rows), trace.take(rows), report)


def witness_for(witness: ChoiceWitness | None, trace: Trace) -> ChoiceWitness | None:
    """Who watches the same requests in the run, where they have the numbers of the trace's rows."""
    if witness is None or trace.is_speculative is None:
        return witness
    rows = np.flatnonzero(~trace.is_speculative)
    return ChoiceWitness([int(rows[index]) for index in witness.watched if isinstance(index, int)])


def tell(witness: ChoiceWitness, seen: ChoiceWitness, trace: Trace) -> None:
    """Tell who watched clients' requests what was seen, by the numbers that those have."""
    assert trace.is_speculative is not None
    number = np.cumsum(~trace.is_speculative) - 1
    for choice in seen.choices:
        assert isinstance(choice.request_id, int)
        witness.choices.append(replace(choice, request_id=int(number[choice.request_id])))


def _report(log: RequestLog, trace: Trace, speculative: IntArray) -> dict[str, Any]:
    done = speculative[log.status[speculative] == RequestStatus.COMPLETED]
    computed = log.input_tokens[done] - log.cached_tokens[done]
    followers, workers = _followers(trace), _prefill_workers(log)
    found = 0
    for row in done.tolist():
        assert trace.previous_turn is not None  # a speculative prefill has one
        later = followers.get(int(trace.previous_turn[row]), ())
        found += max(
            (_found_tokens(log, trace, row, one) for one in later if workers[one] == workers[row]),
            default=0,
        )
    values = (len(done), int(computed.sum()), found)
    return dict(zip(SPECULATIVE_KEYS, values, strict=True))


def _prefetch_report(result: RunResult) -> dict[str, Any]:
    """Of loads ahead of requests: a block is of use to the first request that hits it, if any."""
    counts, block_size = result.prefetches, result.block_size
    assert counts is not None
    values = (
        int((result.requests.status == RequestStatus.PREFETCHED).sum()),
        counts.loaded_blocks * block_size,
        counts.used_blocks * block_size,
        (counts.loaded_blocks - counts.used_blocks) * block_size,
        counts.num_without_room,
    )
    return dict(zip(PREFETCH_KEYS, values, strict=True))


def _found_tokens(log: RequestLog, trace: Trace, row: int, later: int) -> int:
    """Tokens of a later request that it found cached where a speculative prefill computed them."""
    known = min(int(log.cached_tokens[later]), _common_tokens(trace, row, later))
    return max(0, known - int(log.cached_tokens[row]))


def _followers(trace: Trace) -> dict[int, list[int]]:
    """By request, those of clients that wait for it."""
    assert trace.previous_turn is not None and trace.is_speculative is not None
    rows, awaited = np.arange(len(trace)), trace.previous_turn
    graph = trace.dependencies
    if graph is not None:
        plain = np.diff(graph.offsets) == 0
        rows = np.concatenate((rows[plain], graph.waiting()))
        awaited = np.concatenate((awaited[plain], graph.rows))
    is_client = ~trace.is_speculative[rows]
    found: dict[int, list[int]] = {}
    for row, other in zip(rows[is_client].tolist(), awaited[is_client].tolist(), strict=True):
        found.setdefault(other, []).append(row)
    return found


def _prefill_workers(log: RequestLog) -> IntArray:
    """The worker that computed each prompt; -1: none."""
    if log.handoffs is None:
        return log.worker_id
    prefill = log.handoffs.prefill_worker_id
    return np.where(prefill >= 0, prefill, log.worker_id)


def _common_tokens(trace: Trace, one: int, other: int) -> int:
    """How long the beginning is that two prompts share, in tokens of whole blocks or prompts."""
    ids, offsets = trace.hash_ids, trace.hash_offsets
    ours, theirs = (ids[offsets[row] : offsets[row + 1]] for row in (one, other))
    length = min(len(ours), len(theirs))
    differs = np.flatnonzero(ours[:length] != theirs[:length])
    num_blocks = int(differs[0]) if len(differs) else length
    lengths = trace.input_tokens[[one, other]]
    return min(num_blocks * trace.trace_block_size, int(lengths.min()))
