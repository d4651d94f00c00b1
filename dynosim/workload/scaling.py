"""The same sessions, started faster or slower, and as many times over as a measurement needs."""

from dataclasses import replace

import numpy as np

from dynosim.records import NO_REQUEST, Dependencies, IntArray, Trace

NUM_SLICES = 10
COMMON_SLICES = 5
"""A prompt's beginning that comes up in half of a trace's slices belongs to no single session."""


def start_sessions_faster(trace: Trace, factor: float) -> Trace:
    """The trace with `factor` times as many sessions started per second.

    Pauses between turns, lengths and contents stay, and so does the order: what differs between two
    factors is the load and nothing else. In a trace without turns every request is a session.
    """
    return trace if factor == 1.0 else trace.at(trace.arrival_ms / factor)


def tiled(trace: Trace, num_tiles: int) -> Trace:
    """The trace so many times, one after the other, each time with tokens of its own.

    A tile starts one mean gap between sessions after the last session of the one before. Prompts'
    beginnings that all of the trace uses (system prompts) are the same in all tiles.
    """
    if num_tiles == 1:
        return trace
    size, tiles = len(trace), np.arange(num_tiles)
    starts_ms = trace.arrival_ms[is_start(trace)]
    period_ms = float(starts_ms.max()) * (1.0 + 1.0 / max(len(starts_ms) - 1, 1))
    num_ids = int(trace.hash_ids.max(initial=-1)) + 1
    own = np.where(common_ids(trace), 0, num_ids)[trace.hash_ids]
    hash_ids = np.concatenate([trace.hash_ids + tile * own for tile in tiles])
    num_hashes = len(trace.hash_ids)
    offsets = (trace.hash_offsets[:-1] + num_hashes * tiles[:, None]).ravel()
    previous, graph = trace.previous_turn, trace.dependencies
    sessions, names = trace.session_ids, trace.request_ids
    expected, speculative = trace.expected_output_tokens, trace.is_speculative
    return replace(
        trace,
        arrival_ms=(trace.arrival_ms + period_ms * tiles[:, None]).ravel(),
        input_tokens=np.tile(trace.input_tokens, num_tiles),
        output_tokens=np.tile(trace.output_tokens, num_tiles),
        hash_ids=hash_ids,
        hash_offsets=np.append(offsets, num_hashes * num_tiles),
        previous_turn=None if previous is None else _in_tiles(previous, size, tiles),
        delay_ms=None if trace.delay_ms is None else np.tile(trace.delay_ms, num_tiles),
        priority=None if trace.priority is None else np.tile(trace.priority, num_tiles),
        stages=None if trace.stages is None else np.tile(trace.stages, num_tiles),
        session_ids=None if sessions is None else _named(sessions, num_tiles),
        request_ids=None if names is None else _named(names, num_tiles),
        wishes=None if trace.wishes is None else trace.wishes * num_tiles,
        dependencies=None if graph is None else _tiled_dependencies(graph, size, tiles),
        classes=None if trace.classes is None else trace.classes * num_tiles,
        expected_output_tokens=None if expected is None else np.tile(expected, num_tiles),
        is_speculative=None if speculative is None else np.tile(speculative, num_tiles),
        is_prefetch=None if trace.is_prefetch is None else np.tile(trace.is_prefetch, num_tiles),
        retention=None if trace.retention is None else trace.retention * num_tiles,
    )


def is_start(trace: Trace) -> "np.ndarray[tuple[int], np.dtype[np.bool_]]":
    """Which requests start a session: those that wait for no other one. (n,)"""
    if trace.previous_turn is None:
        return np.ones(len(trace), np.bool_)
    return np.asarray(trace.previous_turn == NO_REQUEST)


def common_ids(trace: Trace) -> "np.ndarray[tuple[int], np.dtype[np.bool_]]":
    """By hash id whether sessions of at least half of the trace's ten slices use it.

    Slices hold equally many requests. A session of which more than that lasts as long shares its
    ids with its tiles, which is its own reuse and no one else's.
    """
    num_ids = int(trace.hash_ids.max(initial=-1)) + 1
    counts = np.diff(trace.hash_offsets)
    slices = np.arange(len(trace)) * NUM_SLICES // max(len(trace), 1)
    used = np.zeros((num_ids, NUM_SLICES), np.bool_)
    used[trace.hash_ids, np.repeat(slices, counts)] = True
    return np.asarray(used.sum(axis=1) >= COMMON_SLICES)


def _in_tiles(previous: IntArray, size: int, tiles: IntArray) -> IntArray:
    shifted = previous + size * tiles[:, None]
    return np.where(previous == NO_REQUEST, NO_REQUEST, shifted).ravel()


def _tiled_dependencies(graph: Dependencies, size: int, tiles: IntArray) -> Dependencies:
    num_tiles, num_edges = len(tiles), len(graph.rows)
    return Dependencies(
        offsets=np.append((graph.offsets[:-1] + num_edges * tiles[:, None]).ravel(),
                          num_edges * num_tiles),
        rows=(graph.rows + size * tiles[:, None]).ravel(),
        delay_ms=np.tile(graph.delay_ms, num_tiles),
        from_start=np.tile(graph.from_start, num_tiles),
    )  # fmt: skip


def _named(names: tuple[str, ...], num_tiles: int) -> tuple[str, ...]:
    """Names of all tiles; an empty one (of no session) stays empty."""
    later = [f"{name}+{tile}" if name else "" for tile in range(1, num_tiles) for name in names]
    return (*names, *later)
