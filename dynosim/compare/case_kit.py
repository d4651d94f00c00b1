"""What validation cases are made of: outcomes, and the small workloads they run."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from dynosim.engine.spec import EngineSpec
from dynosim.records import NO_REQUEST, Trace


@dataclass(frozen=True, slots=True)
class Outcome:
    """One claim checked."""

    claim: str
    expected: str
    got: str
    holds: bool


@dataclass(frozen=True, slots=True)
class Case:
    """A published case in the twin's domain."""

    name: str
    title: str
    setup: str
    check: Callable[[], list[Outcome]]


def near(claim: str, expected: float, got: float, tolerance: float, unit: str = "") -> Outcome:
    """A number within a relative tolerance."""
    return Outcome(
        claim,
        f"{expected:.7g}{unit} ± {100 * tolerance:g} %",
        f"{got:.7g}{unit}",
        abs(got / expected - 1) <= tolerance,
    )


def equal(claim: str, expected: object, got: object) -> Outcome:
    """Exactly the same."""
    return Outcome(claim, str(expected), str(got), expected == got)


def prompts(
    ids: Sequence[Sequence[int]], *, block_tokens: int, outputs: int, gap_ms: float
) -> Trace:
    """Requests with those chains of block ids, each block full, one every `gap_ms`."""
    count = len(ids)
    return Trace(
        arrival_ms=gap_ms * np.arange(count, dtype=np.float64),
        input_tokens=np.array([len(row) * block_tokens for row in ids], np.int64),
        output_tokens=np.full(count, outputs, np.int64),
        hash_ids=np.array([one for row in ids for one in row], np.int64),
        hash_offsets=np.cumsum([0, *(len(row) for row in ids)]),
        trace_block_size=block_tokens,
    )


def alike(count: int, *, inputs: int, outputs: int, gap_ms: float = 0.0) -> Trace:
    """Equal requests that share nothing."""
    return Trace(
        arrival_ms=gap_ms * np.arange(count, dtype=np.float64),
        input_tokens=np.full(count, inputs, np.int64),
        output_tokens=np.full(count, outputs, np.int64),
        hash_ids=np.zeros(0, np.int64),
        hash_offsets=np.zeros(count + 1, np.int64),
        trace_block_size=16,
    )


def two_turns(sessions: int, *, gap_ms: float) -> Trace:
    """Sessions of two turns; the second repeats the first prompt and adds to it."""
    ids: list[int] = []
    offsets, lengths = [0], []
    for turn in (0, 1):
        for session in range(sessions):
            mine = [1000 * session + k for k in range(4 + 2 * turn)]
            ids += mine
            offsets.append(len(ids))
            lengths.append(64 * len(mine))
    first = np.full(sessions, NO_REQUEST, np.int64)
    return Trace(
        arrival_ms=np.concatenate(
            [gap_ms * np.arange(sessions, dtype=np.float64), np.zeros(sessions)]
        ),
        input_tokens=np.array(lengths, np.int64),
        output_tokens=np.full(2 * sessions, 4, np.int64),
        hash_ids=np.array(ids, np.int64),
        hash_offsets=np.array(offsets, np.int64),
        trace_block_size=64,
        previous_turn=np.concatenate([first, np.arange(sessions)]),
        delay_ms=np.full(2 * sessions, 500.0),
    )


def large_engine(*, max_num_seqs: int = 256, max_num_batched_tokens: int = 131_072) -> EngineSpec:
    """An engine whose memory and budgets do not bind."""
    return EngineSpec(
        num_gpu_blocks=60_001,
        max_model_len=131_072,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
    )
