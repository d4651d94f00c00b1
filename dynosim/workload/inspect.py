"""What a trace holds: counts, rates, lengths, sessions, and the prefix reuse it allows.

Reuse is that of one cache that never evicts and knows every earlier row of the file, in three
readings:

* `block_reuse`: hash ids that an earlier row has at the same place after the same ids, per hash id.
  A prompt's last block counts as one however full it is. Published reuse figures of Mooncake
  traces are of this kind.
* `token_reuse`: leading prompt tokens that some earlier prompt begins with too, per prompt token.
* `engine_reuse`: what an engine with blocks of `block_size` tokens would take from its cache, per
  prompt token: whole blocks only, and at least one token of each prompt is left to compute.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np

from dynosim.records import NO_REQUEST, Dependencies, FloatArray, IntArray, Trace
from dynosim.workload.trees import tree_numbers

_PERCENTILES = (1, 5, 10, 25, 50, 75, 90, 95, 99)


def inspect_trace(trace: Trace, block_size: int | None = None) -> dict[str, Any]:
    """Statistics of `trace`, ready for JSON. `block_size` in tokens asks for `engine_reuse`."""
    last_ms = float(trace.arrival_ms[-1])
    gaps_ms = np.diff(trace.arrival_ms)
    gap_mean_ms = float(gaps_ms.mean()) if len(gaps_ms) else 0.0
    return {
        "source": trace.source,
        "requests": len(trace),
        **_sent_ahead(trace),
        "skipped_lines": trace.skipped_lines,
        "assumed_lengths": trace.assumed_lengths,
        "duration_s": last_ms / 1000.0,
        "request_rate_rps": len(trace) / last_ms * 1000.0 if last_ms else None,
        "interarrival_cv": float(gaps_ms.std() / gap_mean_ms) if gap_mean_ms else None,
        "input_tokens": describe(trace.input_tokens),
        "output_tokens": describe(trace.output_tokens),
        "sessions": _sessions(trace),
        "graph": _graph(trace),
        "classes": None if trace.classes is None else _counts(filter(None, trace.classes)),
        "reuse": _reuse_summary(trace, block_size),
        "wishes": _wishes(trace),
        "retention": _retention(trace),
    }


def _sent_ahead(trace: Trace) -> dict[str, int | None]:
    """How many rows are no client's, by kind; None: none is."""
    both, prefetch = trace.is_speculative, trace.is_prefetch
    num_prefetches = 0 if prefetch is None else int(prefetch.sum())
    num_speculative = 0 if both is None else int(both.sum()) - num_prefetches
    return {
        "speculative_prefills": num_speculative or None,
        "prefetches": num_prefetches or None,
    }


def describe(values: IntArray | FloatArray) -> dict[str, float]:
    """Total, mean, standard deviation (of the population) and exact percentiles."""
    summary = {
        "total": values.sum().item(),
        "mean": float(values.mean()),
        "std": float(values.std()),
        "min": values.min().item(),
        "max": values.max().item(),
    }
    points = np.percentile(values, _PERCENTILES).tolist()
    return summary | {f"p{name}": point for name, point in zip(_PERCENTILES, points, strict=True)}


def _sessions(trace: Trace) -> dict[str, Any]:
    """Sessions, a request without one counted as a session of one turn.

    Where requests wait for several others a session is a tree of them, and its turns are those of
    the longest way through it.
    """
    if trace.dependencies is not None:
        return _trees(trace, trace.dependencies)
    previous = trace.previous_turn
    if previous is None:
        return {"count": len(trace), "multi_turn": 0, "turns_mean": 1.0, "turns_max": 1}
    turn = np.zeros(len(trace), np.int64)
    for row, before in enumerate(previous.tolist()):
        if before != NO_REQUEST:
            turn[row] = turn[before] + 1
    is_first = previous == NO_REQUEST
    has_next = np.zeros(len(trace), np.bool_)
    has_next[previous[~is_first]] = True
    count = int(is_first.sum())
    summary: dict[str, Any] = {
        "count": count,
        "multi_turn": int((is_first & has_next).sum()),
        "turns_mean": len(trace) / count,
        "turns_max": int(turn.max()) + 1,
    }
    if trace.delay_ms is not None:
        summary["delay_ms"] = describe(trace.delay_ms[~is_first])
    return summary


def _trees(trace: Trace, graph: Dependencies) -> dict[str, Any]:
    assert trace.previous_turn is not None
    sizes = np.bincount(tree_numbers(trace))
    depth = [0] * len(trace)
    starts, rows = graph.offsets.tolist(), graph.rows.tolist()
    plain_ms: list[float] = []
    for row, before in enumerate(trace.previous_turn.tolist()):
        waited = rows[starts[row] : starts[row + 1]]
        if not waited and before != NO_REQUEST:
            waited = [before]
            plain_ms.append(0.0 if trace.delay_ms is None else float(trace.delay_ms[row]))
        depth[row] = max((depth[other] + 1 for other in waited), default=0)
    return {
        "count": len(sizes),
        "multi_turn": int((sizes > 1).sum()),
        "turns_mean": len(trace) / len(sizes),
        "turns_max": max(depth) + 1,
        "delay_ms": describe(np.concatenate((graph.delay_ms, plain_ms))),
    }


def _graph(trace: Trace) -> dict[str, int] | None:
    """What requests wait for, where some wait for more than their previous turn."""
    if trace.dependencies is None:
        return None
    counts = np.diff(trace.dependencies.offsets)
    return {
        "dependencies": len(trace.dependencies.rows),
        "waiting_requests": int((counts > 0).sum()),
        "joins": int((counts > 1).sum()),
        "from_start": int(trace.dependencies.from_start.sum()),
        "tree_requests_max": int(np.bincount(tree_numbers(trace)).max()),
    }


def _wishes(trace: Trace) -> dict[str, Any] | None:
    """How many requests say what of the worker they want; None: none says anything."""
    if trace.wishes is None:
        return None
    stated = [wishes for wishes in trace.wishes if wishes is not None]
    return {
        "requests": len(stated),
        "worker_id": sum(wishes.worker_id is not None for wishes in stated),
        "required_taints": _counts(taint for one in stated for taint in one.required_taints),
        "preferred_taints": _counts(taint for one in stated for taint, _ in one.preferred_taints),
        "router_config_override": _counts(key for one in stated for key, _ in one.overrides),
    }


def _retention(trace: Trace) -> dict[str, int] | None:
    """How many requests say what of their KV blocks; None: none says anything."""
    if trace.retention is None:
        return None
    stated = [said for said in trace.retention if said is not None]
    return {
        "requests": len(stated),
        "ranges": sum(len(said.ranges) > 0 for said in stated),
        "pinned": sum(said.pin_ttl_ms is not None for said in stated),
        "ephemeral": sum(said.is_ephemeral for said in stated),
    }


def _counts(names: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(names).items()))


def _reuse_summary(trace: Trace, block_size: int | None) -> dict[str, Any]:
    if not len(trace.hash_ids):
        return {"known": False}
    hits, shared = shared_prefixes(trace)
    prompts = trace.input_tokens
    total = int(prompts.sum())
    summary: dict[str, Any] = {
        "known": True,
        "trace_block_size": trace.trace_block_size,
        "blocks": len(trace.hash_ids),
        "reused_blocks": int(hits.sum()),
        "block_reuse": int(hits.sum()) / len(trace.hash_ids),
        "token_reuse": int(shared.sum()) / total,
    }
    if block_size is not None:
        cached = engine_cached_tokens(shared, prompts, block_size)
        summary |= {"block_size": block_size, "engine_reuse": int(cached.sum()) / total}
    return summary


def engine_cached_tokens(shared_tokens: IntArray, prompts: IntArray, block_size: int) -> IntArray:
    """Tokens (n,) that an engine takes from an endless cache: whole blocks, one token left."""
    cached: IntArray = np.minimum(shared_tokens, prompts - 1) // block_size * block_size
    return cached


def shared_prefixes(trace: Trace) -> tuple[IntArray, IntArray]:
    """For each request (n,): leading hash ids, and leading tokens, that an earlier row has too."""
    counts = np.diff(trace.hash_offsets)
    nodes = _prefix_nodes(trace.hash_ids, trace.hash_offsets)
    row = np.repeat(np.arange(len(counts)), counts)
    _, first, node_of = np.unique(nodes, return_index=True, return_inverse=True)
    is_hit = row[first][node_of] < row
    hits = np.bincount(row[is_hit], minlength=len(counts))
    # Tokens of each block: full ones, but for the last of each prompt.
    tokens = np.full(len(nodes), trace.trace_block_size, np.int64)
    has_ids = counts > 0
    last = trace.hash_offsets[1:][has_ids] - 1
    tokens[last] = (trace.input_tokens - (counts - 1) * trace.trace_block_size)[has_ids]
    held = _most_tokens_before(node_of, tokens, trace.trace_block_size)
    shared_tokens = np.minimum(tokens, held)[is_hit]
    shared = np.bincount(row[is_hit], weights=shared_tokens, minlength=len(counts))
    return hits, shared.astype(np.int64)


def _most_tokens_before(node_of: IntArray, tokens: IntArray, block_tokens: int) -> IntArray:
    """For each visit of a node, the most tokens that an earlier visit had there; 0 at the first."""
    order = np.argsort(node_of, kind="stable")
    sorted_nodes = node_of[order]
    # Nodes are kept apart by an offset larger than any token count, so one running maximum does.
    offset = sorted_nodes * (block_tokens + 1)
    most = np.maximum.accumulate(tokens[order] + offset)
    before = np.zeros(len(order), np.int64)
    before[1:] = np.maximum(most[:-1] - offset[1:], 0)
    result = np.empty(len(order), np.int64)
    result[order] = before
    return result


def _prefix_nodes(hash_ids: IntArray, offsets: IntArray) -> IntArray:
    """A number for each visited place: equal where the ids up to and with this one are equal."""
    parents = np.empty(len(hash_ids), np.int64)
    parents[1:] = hash_ids[:-1]
    starts = offsets[:-1][np.diff(offsets) > 0]
    parents[starts] = NO_REQUEST
    _, first, id_index = np.unique(hash_ids, return_index=True, return_inverse=True)
    if np.array_equal(parents[first][id_index], parents):
        return id_index  # every id has one parent, so the id alone tells the place
    return _interned_nodes(id_index, set(starts.tolist()))


def _interned_nodes(ids: IntArray, starts: set[int]) -> IntArray:
    nodes: dict[tuple[int, int], int] = {}
    visited = []
    node = NO_REQUEST
    for position, value in enumerate(ids.tolist()):
        parent = NO_REQUEST if position in starts else node
        node = nodes.setdefault((parent, value), len(nodes))
        visited.append(node)
    return np.array(visited, dtype=np.int64)
