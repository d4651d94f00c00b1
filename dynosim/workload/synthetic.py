"""Synthetic workloads: sessions of one or more turns, shared prefixes, seeded.

A session's first prompt has `isl` tokens. Turn n + 1 asks with the prompt of turn n, its answer and
a new user part of `turn_isl` tokens, as soon as turn n has finished and `think_time_ms` has passed.
The leading blocks of the first prompt are shared by all sessions of the same prefix group. A
session ends early rather than grow beyond `max_context_tokens`. Sessions start at the rate that
makes `rate_rps` requests per second in the long run, all turns counted.

The same spec and seed give the same trace on every platform. Each quantity has its own random
stream: another arrival process, say, leaves all lengths as they were.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dynosim.errors import ConfigError
from dynosim.records import NO_REQUEST, FloatArray, IntArray, Trace
from dynosim.workload.arrivals import draw_arrivals
from dynosim.workload.assemble import first_appearance_ids
from dynosim.workload.distributions import Resolve, draw_ms, draw_tokens
from dynosim.workload.priorities import draw_priorities
from dynosim.workload.spec import REQUESTS_MAX, SyntheticSpec, as_spec, check_size
from dynosim.workload.stages import Stage, draw_stages, stage_windows_s
from dynosim.workload.streams import stream

NOMINAL_TOKEN_MS = 20.0
"""Assumed ms per output token where a later turn's arrival must be guessed for the file's order."""

HASH_IDS_MAX = 500_000_000
"""More would need over 20 GB while they are made."""

_SPARE_SESSIONS = 1.25


def synthesize(
    spec: object, seed: int, *, resolve: Resolve = Path, stages: Sequence[Stage] = ()
) -> Trace:
    """The trace that `spec` describes: a `SyntheticSpec`, a mapping, or an object like one.

    With `stages` they say how many sessions start and when; a rate counts all turns.

    Later turns carry a nominal arrival, as if every answer took `NOMINAL_TOKEN_MS` per token; it
    orders the rows and serves tools that know no sessions, a simulation ignores it.

    Raises: ConfigError for a spec that cannot be drawn; TraceError of an empirical length's file.
    """
    checked = as_spec(spec, is_staged=bool(stages))
    if stages:
        turns, starts_ms, of_starts = _draw_staged(checked, stages, seed, resolve)
    else:
        turns = _draw_turns(checked, seed, resolve)
        starts_ms, of_starts = _starts_ms(checked, turns, seed), None
    delay_ms = draw_ms(
        checked.think_time_ms, len(turns.session), stream(seed, "think"), key="think_time_ms"
    )
    delay_ms[turns.first] = 0.0
    return _trace(checked, turns, starts_ms, delay_ms, seed, of_starts)


@dataclass(frozen=True, slots=True)
class _Turns:
    """All requests, session by session: n requests in s sessions."""

    session: IntArray  # (n,) index of the session
    first: IntArray  # (s,) index of each session's first request
    input_tokens: IntArray  # (n,) whole prompt
    output_tokens: IntArray  # (n,)


def _starts_ms(spec: SyntheticSpec, turns: _Turns, seed: int) -> FloatArray:
    """When each session starts, at the rate that makes the rate of requests."""
    return draw_arrivals(
        spec.arrival,
        len(turns.first),
        stream(seed, "arrivals"),
        rate_per_s=(spec.rate_rps or 1.0) * len(turns.first) / len(turns.session),
        burstiness=spec.burstiness,
    )


def _draw_staged(
    spec: SyntheticSpec, stages: Sequence[Stage], seed: int, resolve: Resolve
) -> tuple[_Turns, FloatArray, IntArray]:
    """As many sessions as make the stages' requests, when each starts, and in which stage."""
    stage_windows_s(stages)
    requests = sum(stage.requests for stage in stages)
    check_size("stages", requests, REQUESTS_MAX, "requests")
    drawn = _draw_sessions(spec, requests, seed, resolve)
    starts_ms, of_starts = draw_stages(
        spec.arrival,
        stages,
        stream(seed, "arrivals"),
        burstiness=spec.burstiness,
        sessions_per_request=len(drawn.first) / len(drawn.session),
    )
    if len(starts_ms) != requests:
        drawn = _draw_sessions(spec, len(starts_ms), seed, resolve)
    return drawn, starts_ms, of_starts


def _draw_turns(spec: SyntheticSpec, seed: int, resolve: Resolve) -> _Turns:
    """As many sessions as asked for, or as the asked number of requests needs, the last one cut."""
    if spec.sessions is not None:
        return _draw_sessions(spec, spec.sessions, seed, resolve)
    wanted = spec.requests
    assert wanted is not None
    turns_mean = spec.turns.mean or 1.0
    num_sessions = min(wanted, int(wanted / turns_mean * _SPARE_SESSIONS) + 1)
    turns = _draw_sessions(spec, num_sessions, seed, resolve)
    while len(turns.session) < wanted:
        num_sessions = min(wanted, num_sessions * 2)
        turns = _draw_sessions(spec, num_sessions, seed, resolve)
    return _Turns(
        turns.session[:wanted],
        turns.first[turns.first < wanted],
        turns.input_tokens[:wanted],
        turns.output_tokens[:wanted],
    )


def _draw_sessions(spec: SyntheticSpec, num_sessions: int, seed: int, resolve: Resolve) -> _Turns:
    counts = draw_tokens(spec.turns, num_sessions, stream(seed, "turns"), key="turns")
    check_size("turns", float(counts.sum(dtype=np.float64)), REQUESTS_MAX, "requests")
    size = int(counts.sum())
    session = np.repeat(np.arange(num_sessions), counts)
    first = np.cumsum(counts) - counts
    user = np.empty(size, np.int64)
    is_later = np.ones(size, np.bool_)
    is_later[first] = False
    rng = stream(seed, "isl")
    user[first] = draw_tokens(spec.isl, num_sessions, rng, key="isl", resolve=resolve)
    rng, later = stream(seed, "turn_isl"), spec.turn_isl or spec.isl
    num_later = size - num_sessions
    user[is_later] = draw_tokens(later, num_later, rng, key="turn_isl", resolve=resolve)
    rng, column = stream(seed, "osl"), "output_tokens"
    output = draw_tokens(spec.osl, size, rng, key="osl", column=column, resolve=resolve)
    prompt = _sums_within(user, counts) + _sums_within(output, counts) - output
    if spec.max_context_tokens is None:
        return _Turns(session, first, prompt, output)
    fits = prompt + output <= spec.max_context_tokens  # grows inside a session: a prefix of it fits
    if not fits[first].all():
        longest = int((prompt + output)[first].max())
        raise ConfigError(
            f"max_context_tokens: {spec.max_context_tokens} is less than a first turn of {longest} "
            "tokens: bound isl and osl by a max that fits"
        )
    kept = np.bincount(session[fits], minlength=num_sessions)
    return _Turns(session[fits], np.cumsum(kept) - kept, prompt[fits], output[fits])


def _sums_within(values: IntArray, counts: IntArray) -> IntArray:
    """Running sums (n,) of `values` inside runs of `counts` values each."""
    total = np.cumsum(values)
    ends = np.cumsum(counts)
    before = np.concatenate(([0], total[ends[:-1] - 1]))
    sums: IntArray = total - np.repeat(before, counts)
    return sums


def _trace(
    spec: SyntheticSpec,
    turns: _Turns,
    starts_ms: FloatArray,
    delay_ms: FloatArray,
    seed: int,
    of_starts: IntArray | None,
) -> Trace:
    """The requests in order of (nominal) arrival."""
    size = len(turns.session)
    counts = np.diff(np.concatenate((turns.first, [size])))
    # A later turn follows its predecessor's answer and the thinking: sum both inside the session.
    waits_ms = delay_ms.copy()
    waits_ms[1:] += turns.output_tokens[:-1] * NOMINAL_TOKEN_MS
    waits_ms[turns.first] = starts_ms
    arrival_ms = np.round(_float_sums_within(waits_ms, counts), 3)
    order = np.argsort(arrival_ms, kind="stable")
    previous = None
    if size > len(turns.first):
        place = np.empty(size, np.int64)
        place[order] = np.arange(size)
        previous = np.concatenate(([NO_REQUEST], place[:-1]))
        previous[turns.first] = NO_REQUEST
        previous = previous[order]
    hash_ids, hash_offsets = _hash_ids(spec, turns, counts, order, seed)
    sessions = turns.session[order]
    priorities = draw_priorities(spec.priorities, len(turns.first), seed)
    return Trace(
        arrival_ms=arrival_ms[order],
        input_tokens=turns.input_tokens[order],
        output_tokens=turns.output_tokens[order],
        hash_ids=hash_ids,
        hash_offsets=hash_offsets,
        trace_block_size=spec.block_size,
        previous_turn=previous,
        delay_ms=None if previous is None else delay_ms[order],
        session_ids=None if previous is None else _names(sessions, len(turns.first)),
        stages=None if of_starts is None else of_starts[sessions],
        priority=None if priorities is None else priorities[sessions],
        source=f"synthetic, seed {seed}",
    )


def _float_sums_within(values: FloatArray, counts: IntArray) -> FloatArray:
    """As `_sums_within`, without subtracting large running totals: sessions stay exact."""
    sums = values.copy()
    position = np.arange(len(values)) - np.repeat(np.cumsum(counts) - counts, counts)
    for turn in range(1, int(counts.max(initial=1))):
        rows = np.flatnonzero(position == turn)
        sums[rows] += sums[rows - 1]
    return sums


def _names(sessions: IntArray, num_sessions: int) -> tuple[str, ...]:
    names = [f"s{index}" for index in range(num_sessions)]
    return tuple(names[index] for index in sessions.tolist())


def _hash_ids(
    spec: SyntheticSpec, turns: _Turns, counts: IntArray, order: IntArray, seed: int
) -> tuple[IntArray, IntArray]:
    """Hash ids of the requests in `order`, and their offsets (n + 1,).

    A block keeps its id while its session fills it: the prompt of a turn ends inside a block that
    the next turn's prompt continues.
    """
    block = spec.block_size
    num_sessions = len(turns.first)
    shared = _shared_blocks(spec, turns.input_tokens[turns.first])
    group = _groups(spec, num_sessions, seed)
    blocks = -(-turns.input_tokens // block)
    check_size("block_size", float(blocks.sum(dtype=np.float64)), HASH_IDS_MAX, "hash ids")
    own_blocks = blocks[turns.first + counts - 1] - shared
    shared_max = int(shared.max(initial=0))
    own_base = spec.prefix_groups * shared_max + np.cumsum(own_blocks) - own_blocks
    rows = turns.session[order]
    sizes = blocks[order]
    offsets = np.concatenate(([0], np.cumsum(sizes)))
    depth = np.arange(offsets[-1]) - np.repeat(offsets[:-1], sizes)
    shared_here = np.repeat(shared[rows], sizes)
    in_group = depth + np.repeat(group[rows] * shared_max, sizes)
    in_session = depth - shared_here + np.repeat(own_base[rows], sizes)
    keys = np.where(depth < shared_here, in_group, in_session)
    return first_appearance_ids(keys), offsets


def shared_tokens(spec: SyntheticSpec, trace: Trace) -> IntArray:
    """Leading tokens (n,) of each request that its session shares with its prefix group."""
    first = np.arange(len(trace))
    if trace.previous_turn is not None:
        for row, before in enumerate(trace.previous_turn.tolist()):
            if before != NO_REQUEST:
                first[row] = first[before]
    return _shared_blocks(spec, trace.input_tokens[first]) * spec.block_size


def _shared_blocks(spec: SyntheticSpec, first_prompt_tokens: IntArray) -> IntArray:
    """Leading blocks (s,) that each session shares with its group: full blocks of its prompt."""
    if spec.shared_prefix_tokens is not None:
        wanted = np.full(len(first_prompt_tokens), spec.shared_prefix_tokens // spec.block_size)
    else:
        wanted = np.rint(spec.shared_prefix_ratio * first_prompt_tokens / spec.block_size)
    shared: IntArray = np.minimum(wanted.astype(np.int64), first_prompt_tokens // spec.block_size)
    return shared


def _groups(spec: SyntheticSpec, num_sessions: int, seed: int) -> IntArray:
    """Prefix group (s,) of each session; group g is drawn with weight `(g + 1) ** -skew`."""
    weights = np.arange(1, spec.prefix_groups + 1, dtype=np.float64) ** -spec.prefix_group_skew
    edges = np.cumsum(weights)
    points = stream(seed, "groups").random(num_sessions) * edges[-1]
    group: IntArray = np.searchsorted(edges, points, side="right")
    return np.minimum(group, spec.prefix_groups - 1)
