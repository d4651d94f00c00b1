"""The fewest KV blocks that a log's own concurrency needs.

At any moment, the requests between their first and last token held their tokens' blocks. A
preempted one did not for a while, so that this may be a few percent over the capacity of an engine
that was full; it is never far from it, and never without an end.
"""

from math import ceil

import numpy as np

from dynosim.fit.measurements import Measurements

_MOST_MOMENTS = 512  # looked at; spread over the log


def needed_blocks(measured: Measurements, block_size: int, *, num_engines: int = 1) -> int:
    """Blocks of an engine, as vLLM prints them, at the fullest moment of the log."""
    starts_ms = measured.arrival_ms + measured.ttft_ms
    ends_ms = measured.end_ms
    moments = np.sort(ends_ms)
    if len(moments) > _MOST_MOMENTS:
        moments = moments[np.linspace(0, len(moments) - 1, _MOST_MOMENTS).astype(int)]
    most = 0
    for moment_ms in moments.tolist():
        rows = np.flatnonzero((starts_ms <= moment_ms) & (ends_ms >= moment_ms))
        passed_ms = moment_ms - starts_ms[rows]
        done = passed_ms / np.maximum(measured.decode_ms[rows], 1e-9)
        made = np.minimum(done, 1.0) * measured.output_tokens[rows]
        blocks = np.ceil((measured.input_tokens[rows] + made) / block_size).sum()
        most = max(most, int(blocks) - _shared_blocks(measured, rows.tolist(), block_size))
    return max(ceil(most / num_engines) + 1, longest_blocks(measured, block_size))


def longest_blocks(measured: Measurements, block_size: int) -> int:
    """Blocks without which the longest request could not have been served."""
    longest = int((measured.input_tokens + measured.output_tokens).max())
    return -(-longest // block_size) + 2  # one is never handed out, one is for the next token


def _shared_blocks(measured: Measurements, rows: list[int], block_size: int) -> int:
    """Blocks that requests served together have in common, and hold once."""
    if not measured.block_tokens:
        return 0
    every = [block for row in rows for block in measured.hashes[row]]
    return (len(every) - len(set(every))) * measured.block_tokens // block_size
