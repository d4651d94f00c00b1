"""Figures of a trace worked out a second time, and which of its blocks others share."""

import random
from itertools import pairwise
from statistics import fmean, pstdev
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import random_trace, with_sessions

from dynosim.blocks.hashing import sequence_hashes
from dynosim.cluster.block_names import ExtentNames, HashNames
from dynosim.records import Trace
from dynosim.workload.extents import prefix_extents
from dynosim.workload.inspect import describe, inspect_trace
from dynosim.workload.summary import summary_lines

SEEDS = st.integers(0, 2**32 - 1)
SHARES = (1, 5, 10, 25, 50, 75, 90, 95, 99)


def naive_percentile(values: list[float], share: int) -> float:
    """Between the two nearest of the sorted values, in proportion."""
    ordered = sorted(values)
    rank = share / 100 * (len(ordered) - 1)
    below = int(rank)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (rank - below) * (ordered[above] - ordered[below])


def naive_description(values: list[float]) -> dict[str, float]:
    found = {
        "total": sum(values),
        "mean": fmean(values),
        "std": pstdev(values),
        "min": min(values),
        "max": max(values),
    }
    return found | {f"p{share}": naive_percentile(values, share) for share in SHARES}


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 1000), min_size=1, max_size=30))
def test_a_description_is_what_it_says(values: list[int]) -> None:
    for kind in (np.int64, np.float64):
        found = describe(np.array(values, kind))
        assert found == pytest.approx(naive_description([float(value) for value in values]))


def tokens_of(trace: Trace, row: int) -> list[int]:
    """The prompt, each token named by its hash id and its place in it."""
    size = trace.trace_block_size
    ids = trace.hash_ids[trace.hash_offsets[row] : trace.hash_offsets[row + 1]].tolist()
    tokens = [value * size + place for value in ids for place in range(size)]
    return tokens[: trace.input_tokens[row]]


def common(one: list[Any], other: list[Any]) -> int:
    length = 0
    while length < min(len(one), len(other)) and one[length] == other[length]:
        length += 1
    return length


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.sampled_from([None, 4, 16, 24]))
def test_every_figure_of_a_trace_is_what_its_rows_say(seed: int, block_size: int | None) -> None:
    rng = random.Random(seed)
    trace = random_trace(rng)
    if rng.random() < 0.7:
        trace = with_sessions(rng, trace)
    summary = inspect_trace(trace, block_size)
    count = len(trace)
    arrivals = trace.arrival_ms.tolist()
    gaps = [later - earlier for earlier, later in pairwise(arrivals)]
    assert summary["requests"] == count
    assert summary["duration_s"] == pytest.approx(arrivals[-1] / 1000)
    if arrivals[-1]:
        assert summary["request_rate_rps"] == pytest.approx(1000 * count / arrivals[-1])
        assert summary["interarrival_cv"] == pytest.approx(pstdev(gaps) / fmean(gaps))
    for name in ("input_tokens", "output_tokens"):
        lengths = [float(length) for length in getattr(trace, name)]
        assert summary[name] == pytest.approx(naive_description(lengths))
    assert summary["sessions"] == pytest.approx(naive_sessions(trace))
    assert summary["reuse"] == pytest.approx(naive_reuse(trace, block_size))


def naive_sessions(trace: Trace) -> dict[str, Any]:
    count = len(trace)
    if trace.previous_turn is None:
        return {"count": count, "multi_turn": 0, "turns_mean": 1.0, "turns_max": 1}
    turns: list[int] = []
    session_of: list[int] = []
    for before in trace.previous_turn.tolist():
        session_of.append(len(turns) if before < 0 else session_of[before])
        turns += [0] if before < 0 else []
        turns[session_of[-1]] += 1
    assert trace.delay_ms is not None
    pauses = trace.delay_ms[trace.previous_turn >= 0].tolist()
    return {
        "count": len(turns),
        "multi_turn": sum(number > 1 for number in turns),
        "turns_mean": count / len(turns),
        "turns_max": max(turns),
        "delay_ms": pytest.approx(naive_description(pauses)),
    }


def naive_reuse(trace: Trace, block_size: int | None) -> dict[str, Any]:
    prompts = [tokens_of(trace, row) for row in range(len(trace))]
    ids = [
        trace.hash_ids[trace.hash_offsets[row] : trace.hash_offsets[row + 1]].tolist()
        for row in range(len(trace))
    ]
    total = sum(len(prompt) for prompt in prompts)
    blocks = tokens = cached = 0
    for row, prompt in enumerate(prompts):
        blocks += max((common(ids[row], earlier) for earlier in ids[:row]), default=0)
        known = max((common(prompt, earlier) for earlier in prompts[:row]), default=0)
        tokens += known
        if block_size is not None:
            cached += min(known, len(prompt) - 1) // block_size * block_size
    found = {
        "known": True,
        "trace_block_size": trace.trace_block_size,
        "blocks": len(trace.hash_ids),
        "reused_blocks": blocks,
        "block_reuse": blocks / len(trace.hash_ids),
        "token_reuse": tokens / total,
    }
    if block_size is not None:
        found |= {"block_size": block_size, "engine_reuse": cached / total}
    return found


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.sampled_from([4, 16, 24]), st.booleans())
def test_names_of_blocks_are_equal_where_their_contents_are(
    seed: int, block_size: int, single: bool
) -> None:
    """Extents: the leading part that some other prompt has too. Hashes: all of a prompt."""
    trace = random_trace(random.Random(seed))
    extents = prefix_extents(trace, block_size, single_blocks=single)
    sizes = extents.extent_blocks.tolist()
    by_extent, by_hash = ExtentNames(extents), HashNames(trace, extents, block_size)
    assert by_extent.key_blocks == sizes and by_hash.key_blocks is None
    prompts = [tokens_of(trace, row) for row in range(len(trace))]
    hashes = [by_hash.of(row) for row in range(len(trace))]
    for row, prompt in enumerate(prompts):
        path, keys = by_extent.of(row)
        assert path == keys
        most = max(common(prompt, other) for k, other in enumerate(prompts) if k != row)
        assert sum(sizes[extent] for extent in path) == most // block_size
        local, sequence = hashes[row]
        assert len(local) == len(sequence) == len(prompt) // block_size
        assert list(sequence) == sequence_hashes(local)
        other = random.Random(row).randrange(len(trace))
        alike = common(prompt, prompts[other]) // block_size
        assert common(list(sequence), list(hashes[other][1])) == alike
    shared = extents.shared_extents()
    walks = [set(by_extent.of(row)[0]) for row in range(len(trace))]
    assert {extent for extent, is_shared in enumerate(shared) if is_shared} == set().union(*walks)


def test_a_trace_is_summed_up_in_these_lines() -> None:
    lengths = {name: 1234.4 for name in ("mean", "std", "min", "p10", "p50", "p90", "p99", "max")}
    summary: dict[str, Any] = {
        "source": "a.jsonl",
        "requests": 12_345,
        "skipped_lines": 3,
        "moved_rows": 4,
        "plot": "a.png",
        "duration_s": 1500.04,
        "request_rate_rps": 8.2301,
        "interarrival_cv": 1.237,
        "input_tokens": lengths,
        "output_tokens": dict.fromkeys(lengths, 7.0),
        "sessions": {
            "count": 2000,
            "multi_turn": 1500,
            "turns_mean": 6.1725,
            "turns_max": 31,
            "delay_ms": {"mean": 2449.0},
        },
        "reuse": {
            "known": True,
            "block_reuse": 0.3664,
            "token_reuse": 0.3217,
            "blocks": 288_500,
            "trace_block_size": 512,
            "block_size": 16,
            "engine_reuse": 0.3111,
        },
    }
    assert summary_lines(summary) == [
        "a.jsonl",
        "requests        12,345 in 1,500.0 s (8.230 requests/s, gaps vary by 1.24)",
        "sessions        2,000, 1,500 of more than one turn; 6.17 turns on average, 31 at most; "
        "2.4 s before a later turn",
        " " * 16 + "     mean      std      min      p10      p50      p90      p99      max",
        "input tokens    " + 8 * "    1,234",
        "output tokens   " + 8 * "        7",
        "prefix reuse    36.6% of 288,500 blocks of 512 tokens, 32.2% of the prompt tokens "
        "(endless cache)",
        " " * 16 + "31.1% of the prompt tokens for an engine with blocks of 16 tokens",
        "left out        3 bad lines",
        "sorted          4 rows came after a later arrival",
        "drawn           a.png",
    ]
    summary |= {"target": "b.csv", "request_rate_rps": None, "skipped_lines": 0, "moved_rows": 0}
    summary |= {"sessions": {"multi_turn": 0}, "reuse": {"known": False}, "plot": None}
    assert summary_lines(summary)[:3] == [
        "b.csv",
        "requests        12,345 in 1,500.0 s (all at once)",
        "sessions        none: no request waits for another",
    ]
    assert summary_lines(summary)[6:] == ["prefix reuse    unknown: the trace has no hash ids"]
