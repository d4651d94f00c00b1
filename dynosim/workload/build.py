"""From the workload section of a run to its trace."""

from collections.abc import Callable
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Protocol

from dynosim.errors import ConfigError
from dynosim.records import Trace
from dynosim.workload.readers import read_trace


class WorkloadLike(Protocol):
    """What the workload section of a run states; exactly one of `trace` and `synthetic` is set."""

    @property
    def trace(self) -> str | None: ...
    @property
    def synthetic(self) -> object | None: ...
    @property
    def format(self) -> str | None: ...
    @property
    def trace_block_size(self) -> int: ...
    @property
    def speedup(self) -> float: ...
    @property
    def limit(self) -> int | None: ...
    @property
    def concurrency(self) -> int | None: ...
    @property
    def skip_bad_lines(self) -> bool: ...
    @property
    def lengths_from_hash_ids(self) -> bool: ...
    @property
    def sort(self) -> bool: ...


def build_trace(workload: WorkloadLike, *, seed: int, resolve: Callable[[str], Path]) -> Trace:
    """The requests of `workload`, read from its trace file or drawn from its description.

    `speedup` divides arrivals and delays. `concurrency` does not shape the trace, but a closed loop
    may do without arrivals. Raises: TraceError, ConfigError.
    """
    if (workload.trace is None) == (workload.synthetic is None):
        raise ConfigError("workload: give exactly one of trace and synthetic")
    if workload.trace is not None:
        trace = read_trace(
            resolve(workload.trace),
            workload.format,
            workload.trace_block_size,
            workload.limit,
            workload.skip_bad_lines,
            workload.sort,
            needs_arrival=workload.concurrency is None,
            lengths_from_hash_ids=workload.lengths_from_hash_ids,
        )
    else:
        from dynosim.workload.synthetic import synthesize

        trace = first_requests(
            synthesize(workload.synthetic, seed, resolve=resolve), workload.limit
        )
    return _speed_up(trace, workload.speedup)


def first_requests(trace: Trace, limit: int | None) -> Trace:
    """The first `limit` requests of `trace`; all of them if None or more than there are.

    Raises: ConfigError if `limit` is below 1.
    """
    if limit is None or limit >= len(trace):
        return trace
    if limit < 1:
        raise ConfigError(f"limit: expected an integer >= 1, got {limit}")
    return replace(
        trace,
        arrival_ms=trace.arrival_ms[:limit],
        input_tokens=trace.input_tokens[:limit],
        output_tokens=trace.output_tokens[:limit],
        hash_ids=trace.hash_ids[: trace.hash_offsets[limit]],
        hash_offsets=trace.hash_offsets[: limit + 1],
        previous_turn=None if trace.previous_turn is None else trace.previous_turn[:limit],
        delay_ms=None if trace.delay_ms is None else trace.delay_ms[:limit],
        priority=None if trace.priority is None else trace.priority[:limit],
        session_ids=None if trace.session_ids is None else trace.session_ids[:limit],
        request_ids=None if trace.request_ids is None else trace.request_ids[:limit],
    )


def _speed_up(trace: Trace, speedup: float) -> Trace:
    if not 0.0 < speedup < inf:
        raise ConfigError(f"workload.speedup: expected a number > 0, got {speedup}")
    if speedup == 1.0:
        return trace
    delay_ms = None if trace.delay_ms is None else trace.delay_ms / speedup
    return replace(trace, arrival_ms=trace.arrival_ms / speedup, delay_ms=delay_ms)
