"""Messages that cross module borders. Plain data: no behaviour beyond trivial derivations.

Requests travel in columns (one numpy array per field), because a replay of a million requests must
not cost a million Python objects; single-request messages are frozen dataclasses.
"""

from array import array
from dataclasses import dataclass, field, replace
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

NO_REQUEST = -1
"""Index that stands for "none" in integer columns of requests."""


def packed(column: IntArray) -> "array[int]":
    """A column to take single numbers of: faster than numpy's, and smaller than a list."""
    return array("q", column.astype(np.int64).tobytes())


@dataclass(frozen=True, slots=True)
class Wishes:
    """Where a request wants to be served, and what is to count when its worker is chosen.

    `overrides` are fields of the router's cost function with the values that this request has them
    at; weights of preferred taints attract if positive.
    """

    worker_id: int | None = None  # None: any
    required_taints: tuple[str, ...] = ()
    preferred_taints: tuple[tuple[str, float], ...] = ()
    overrides: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Dependencies:
    """What rows of a trace wait for that wait for other than the end of their previous turn alone.

    Row i waits for `rows[offsets[i]:offsets[i + 1]]`, all of them earlier rows of the trace, and
    arrives when the last of their delays is over. One is counted from the end of the request, or
    with `from_start` from its arrival. An empty range: `previous_turn` says it all. Otherwise
    `previous_turn` is one of them, which joins the row to its tree, and the trace's `delay_ms` of
    the row means nothing.
    """

    offsets: IntArray  # (n + 1,)
    rows: IntArray  # (m,)
    delay_ms: FloatArray  # (m,)
    from_start: NDArray[np.bool_]  # (m,)

    def waiting(self) -> IntArray:
        """The row that has each of them. (m,)"""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))

    def take(self, rows: IntArray, size: int) -> "Dependencies | None":
        """Those of some rows of a trace of `size`, without those on rows left out; None: none."""
        place = np.full(size, NO_REQUEST, np.int64)
        place[rows] = np.arange(len(rows))
        starts, counts = self.offsets[rows], np.diff(self.offsets)[rows]
        chosen = gather_runs(np.arange(len(self.rows)), starts, counts)
        waiting = np.repeat(np.arange(len(rows)), counts)
        kept = place[self.rows[chosen]] != NO_REQUEST
        if not kept.any():
            return None
        chosen, per_row = chosen[kept], np.bincount(waiting[kept], minlength=len(rows))
        return Dependencies(
            offsets=np.concatenate(([0], np.cumsum(per_row))),
            rows=place[self.rows[chosen]],
            delay_ms=self.delay_ms[chosen],
            from_start=self.from_start[chosen],
        )


@dataclass(frozen=True, slots=True)
class RetentionRange:
    """A priority, 0 (its blocks go first) to 100, for tokens `start` to `end` of a request.

    A block is of the range that holds its first token. The first token is 0, and the answer's come
    after the prompt's; `end` None: to the last one.
    """

    start: int
    end: int | None
    priority: int
    duration_ms: float | None = None  # once nobody uses it any more; None: for good


@dataclass(frozen=True, slots=True)
class Retention:
    """What a request says of the KV blocks that it uses. Ranges come in order and do not overlap.

    `pin_ttl_ms` keeps the full blocks of its prompt above all priorities, for so long after its
    end; `pin_ends_with_session`: no longer than its session. `is_ephemeral`: the blocks of no range
    are of no use once its session is over.
    """

    ranges: tuple[RetentionRange, ...] = ()
    pin_ttl_ms: float | None = None
    is_ephemeral: bool = False
    pin_ends_with_session: bool = False


@dataclass(frozen=True, slots=True)
class Trace:
    """A workload in columns: row i is request i, rows in order of arrival (ties: file order).

    A row whose `previous_turn` is a request index has no arrival of its own: it arrives when that
    request has finished, plus `delay_ms`, or as its `dependencies` say. `hash_ids` of row i are
    `hash_ids[hash_offsets[i]:hash_offsets[i + 1]]`; each stands for `trace_block_size` prompt
    tokens, the last one possibly for fewer. Equal ids at equal depth after equal ids mean equal
    tokens. Without prefix information `hash_ids` is empty and no prompt shares anything.
    """

    arrival_ms: FloatArray  # (n,) first is 0; ignored where previous_turn >= 0
    input_tokens: IntArray  # (n,) >= 1
    output_tokens: IntArray  # (n,) >= 1
    hash_ids: IntArray  # (sum of ids,)
    hash_offsets: IntArray  # (n + 1,)
    trace_block_size: int
    previous_turn: IntArray | None = None  # (n,) or None: no row depends on another
    delay_ms: FloatArray | None = None  # (n,) or None: all zero
    priority: IntArray | None = None  # (n,) or None: all zero; lower is served earlier
    session_ids: tuple[str, ...] | None = None  # (n,) or None; "": of no session
    request_ids: tuple[str, ...] | None = None  # (n,) or None: "0", "1", ...
    stages: IntArray | None = None  # (n,) load stage of each, from 0; None: there are none
    wishes: tuple[Wishes | None, ...] | None = None  # (n,) or None: nobody has any
    dependencies: Dependencies | None = None  # None: no row waits for more than its previous turn
    classes: tuple[str, ...] | None = None  # (n,) kind of each, for reports; "": of no kind
    expected_output_tokens: IntArray | None = None  # (n,) the client's guess; 0: it has none
    # (n,) or None: which are no client's, but sent ahead to have the known part of a next turn's
    # prompt computed. Each wants one token, has a previous turn, and nobody waits for it.
    is_speculative: NDArray[np.bool_] | None = None
    # (n,) or None: of these, which have nothing computed: what tiers hold of their prompts is to be
    # loaded to a device. They need no previous turn.
    is_prefetch: NDArray[np.bool_] | None = None
    retention: tuple[Retention | None, ...] | None = None  # (n,) or None: nobody says anything
    source: str = ""  # file or generator, for messages and reports
    skipped_lines: int = 0  # bad lines left out on the user's request
    assumed_lengths: int = 0  # prompts taken to be as long as their hash ids, on the same request
    # What has been worked out from the prompts alone, to be used again by whoever replays them: as
    # they never change, neither does it.
    of_prompts: dict[object, object] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __len__(self) -> int:
        return len(self.input_tokens)

    def at(self, arrival_ms: FloatArray) -> "Trace":
        """The same requests at other times; they share what is worked out from their prompts."""
        moved = replace(self, arrival_ms=arrival_ms)
        object.__setattr__(moved, "of_prompts", self.of_prompts)
        return moved

    def take(self, rows: IntArray) -> "Trace":
        """The trace of some rows, each at most once, in the order given; all columns follow.

        Arrivals are not moved, so the first may lie after 0. A row whose previous turn is left out
        has an arrival of its own from then on: the `arrival_ms` that it was ignored for.
        """
        starts = self.hash_offsets[rows]
        counts = self.hash_offsets[rows + 1] - starts
        chosen: list[int] = rows.tolist()
        sessions, names, wishes = self.session_ids, self.request_ids, self.wishes
        kinds, expected = self.classes, self.expected_output_tokens
        speculative = None if self.is_speculative is None else self.is_speculative[rows]
        prefetch = None if self.is_prefetch is None else self.is_prefetch[rows]
        dependencies = self.dependencies and self.dependencies.take(rows, len(self))
        retention = self.retention
        return replace(
            self,
            arrival_ms=self.arrival_ms[rows],
            input_tokens=self.input_tokens[rows],
            output_tokens=self.output_tokens[rows],
            hash_ids=gather_runs(self.hash_ids, starts, counts),
            hash_offsets=np.concatenate(([0], np.cumsum(counts))),
            previous_turn=self._previous_among(rows, dependencies),
            dependencies=dependencies,
            delay_ms=None if self.delay_ms is None else self.delay_ms[rows],
            priority=None if self.priority is None else self.priority[rows],
            stages=None if self.stages is None else self.stages[rows],
            session_ids=None if sessions is None else tuple(sessions[row] for row in chosen),
            request_ids=None if names is None else tuple(names[row] for row in chosen),
            wishes=None if wishes is None else tuple(wishes[row] for row in chosen),
            classes=None if kinds is None else tuple(kinds[row] for row in chosen),
            expected_output_tokens=None if expected is None else expected[rows],
            is_speculative=None if speculative is None or not speculative.any() else speculative,
            is_prefetch=None if prefetch is None or not prefetch.any() else prefetch,
            retention=None if retention is None else tuple(retention[row] for row in chosen),
        )

    def _previous_among(self, rows: IntArray, dependencies: Dependencies | None) -> IntArray | None:
        """`previous_turn` of some rows, counted among them; a row that waits for more has one."""
        if self.previous_turn is None:
            return None
        place = np.full(len(self) + 1, NO_REQUEST, np.int64)  # the last place: -1 maps to itself
        place[rows] = np.arange(len(rows))
        previous: IntArray = place[self.previous_turn[rows]]
        if dependencies is not None:
            starts = dependencies.offsets[:-1]
            orphans = np.flatnonzero((np.diff(dependencies.offsets) > 0) & (previous == NO_REQUEST))
            previous[orphans] = dependencies.rows[starts[orphans]]
        return previous


def gather_runs(values: IntArray, starts: IntArray, counts: IntArray) -> IntArray:
    """`values[starts[i]:starts[i] + counts[i]]` of each i, end to end."""
    before = np.cumsum(counts) - counts
    return values[np.repeat(starts - before, counts) + np.arange(int(counts.sum()))]


class RequestStatus(IntEnum):
    """How a request ended."""

    COMPLETED = 0
    REJECTED = 1  # can never be served (prompt longer than the cache or the model's context)
    FAILED = 2
    UNFINISHED = 3  # still queued or running when the run was cut off
    TIMED_OUT = 4  # given up by its client
    NOT_SENT = 5  # a later turn of a session whose client has given up
    PREFETCHED = 6  # no request: what was to be loaded ahead of one is there, or cannot be


@dataclass(frozen=True, slots=True)
class HandoffLog:
    """How requests went from prefill to decode workers, in columns; NaN where it did not happen.

    Of a request that went more than once, the last time.
    """

    prefill_worker_id: IntArray  # -1: a decode worker computed its prompt
    prefill_end_ms: FloatArray
    transfer_start_ms: FloatArray  # room was made, its set-up began
    transfer_end_ms: FloatArray  # all of its KV is there
    moved_bytes: IntArray
    held_tokens: IntArray  # prompt tokens that the decode worker had cached

    def take(self, rows: IntArray) -> "HandoffLog":
        """Those of some requests, in the order given."""
        return HandoffLog(*[getattr(self, name)[rows] for name in HandoffLog.__slots__])

    def later(self, delay_ms: float) -> "HandoffLog":
        """The same on a clock that was 0 earlier by `delay_ms`."""
        return replace(
            self,
            prefill_end_ms=self.prefill_end_ms + delay_ms,
            transfer_start_ms=self.transfer_start_ms + delay_ms,
            transfer_end_ms=self.transfer_end_ms + delay_ms,
        )


@dataclass(frozen=True, slots=True)
class OnboardLog:
    """What requests loaded from tiers before they were first scheduled, in columns.

    NaN and 0 where a request loaded nothing. Of one that was placed anew, the last time.
    """

    start_ms: FloatArray
    end_ms: FloatArray
    num_tokens: IntArray
    num_beyond: IntArray  # of these, tokens from tiers beyond the nearest

    def take(self, rows: IntArray) -> "OnboardLog":
        """Those of some requests, in the order given."""
        return OnboardLog(*[getattr(self, name)[rows] for name in OnboardLog.__slots__])

    def later(self, delay_ms: float) -> "OnboardLog":
        """The same on a clock that was 0 earlier by `delay_ms`."""
        return replace(self, start_ms=self.start_ms + delay_ms, end_ms=self.end_ms + delay_ms)


@dataclass(frozen=True, slots=True)
class TierLog:
    """What went in and out of a tier, of all workers together, in blocks; stored = evicted + lost +
    resident."""

    name: str
    capacity_blocks: int
    stored_blocks: int
    evicted_blocks: int
    lost_blocks: int  # whose copies were under way when their worker was lost
    resident_blocks: int  # at the end of the run
    loaded_blocks: int


@dataclass(frozen=True, slots=True)
class LinkLog:
    """What went over the links of a run, in bytes; sent = received + lost + in flight."""

    bytes_sent: int
    bytes_received: int
    bytes_lost: int  # of transfers that were cancelled
    bytes_in_flight: int  # at the end of the run
    num_transfers: int
    num_cancelled: int


@dataclass(frozen=True, slots=True)
class RequestLog:
    """What happened to each request, in columns; NaN where a time does not exist. Times in ms."""

    arrival_ms: FloatArray
    dispatch_ms: FloatArray  # first handed to a worker
    scheduled_ms: FloatArray  # start of the step that first computed one of its tokens
    first_token_ms: FloatArray
    second_token_ms: FloatArray
    finish_ms: FloatArray  # last token
    input_tokens: IntArray
    output_tokens: IntArray  # tokens produced
    cached_tokens: IntArray  # prompt tokens found in caches at first admission, not computed
    worker_id: IntArray  # the last that had it; -1: never placed
    preemptions: IntArray
    migrations: IntArray  # times placed anew because its worker failed
    status: IntArray  # RequestStatus
    errors: dict[int, str] = field(default_factory=dict)  # request index -> reason
    # Whether the trace's clock brought it, not the end of another request; None: all of them.
    is_timed: NDArray[np.bool_] | None = None
    gave_up_ms: FloatArray | None = None  # when its client gave up; None: all clients wait for ever
    handoffs: HandoffLog | None = None  # None: no pools of prefill and decode workers
    onboards: OnboardLog | None = None  # None: no tiers below the devices


@dataclass(frozen=True, slots=True)
class StepLog:
    """Every engine step of every worker, as runs of steps with an unchanged batch.

    A row stands for `num_steps` consecutive steps of one worker. Rows with prefill work have
    `num_steps == 1`. In a row without prefill work step j (0-based) decodes `num_decodes` sequences
    whose contexts sum to `decode_context_tokens + j * num_decodes` tokens, the token being computed
    included. Rows of one worker are in time order; workers may interleave.
    """

    worker_id: IntArray
    start_ms: FloatArray
    duration_ms: FloatArray  # of the whole row
    num_steps: IntArray
    num_prefills: IntArray  # prompts that got a chunk
    prefill_tokens: IntArray  # new prompt tokens computed
    prefix_tokens: IntArray  # tokens of those prompts already in the cache before the step
    num_decodes: IntArray
    decode_context_tokens: IntArray  # of the row's first step
    num_running: IntArray  # requests holding a seat at the end of the row
    num_waiting: IntArray  # requests queued at the worker then
    used_blocks: IntArray  # KV blocks referenced at the end of the row


@dataclass(frozen=True, slots=True)
class WorkerLog:
    """The workers of a run in columns: row i is worker i. Times in ms.

    Where workers have several data-parallel ranks a row is one rank, and a worker is as many rows
    in succession. A worker holds its GPUs from its launch to its end, and serves from when it is
    ready. Those of the run's start are launched at 0, and ready then unless they start cold.
    """

    pool: tuple[str, ...]  # name
    role: tuple[str, ...]
    gpus: IntArray
    usable_blocks: IntArray  # KV blocks that can hold tokens
    step_time_scale: FloatArray  # how many times as long as the model's its steps take
    launched_ms: FloatArray
    ready_ms: FloatArray  # NaN: not by the end of the run
    ended_ms: FloatArray  # NaN: lives at the end of the run
    seats: IntArray  # requests that may hold one at once
    ranks_per_worker: int = 1
    held_blocks: IntArray | None = None  # KV blocks referred to at the end; None: not known
    generation: IntArray | None = None  # how many updates came before it; None: there were none
    draining_ms: FloatArray | None = None  # NaN: never told to finish; None: not known

    def __len__(self) -> int:
        return len(self.gpus)

    @classmethod
    def equal(
        cls, num_workers: int, *, gpus: int = 1, usable_blocks: int = 1, seats: int = 256
    ) -> "WorkerLog":
        """Equal workers, there all along."""
        start_ms = np.zeros(num_workers)
        return cls(
            pool=("workers",) * num_workers,
            role=("agg",) * num_workers,
            gpus=np.full(num_workers, gpus, np.int64),
            usable_blocks=np.full(num_workers, usable_blocks, np.int64),
            step_time_scale=np.ones(num_workers),
            launched_ms=start_ms,
            ready_ms=start_ms,
            ended_ms=np.full(num_workers, np.nan),
            seats=np.full(num_workers, seats, np.int64),
        )


@dataclass(frozen=True, slots=True)
class StartupLog:
    """What workers did before they served, in columns: a row is a phase of one node. Times in ms.

    Node -1 stands for what all nodes of a worker did together. A row is not complete if its worker
    or what it read from went away, or the run was over (`end_ms` is NaN then).
    """

    worker_id: IntArray  # of the first of its ranks
    node: IntArray
    phase: tuple[str, ...]
    start_ms: FloatArray
    end_ms: FloatArray
    num_bytes: IntArray  # that were read in it
    source: IntArray  # the worker that they came from; -1: none
    is_complete: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.phase)

    def later(self, delay_ms: float) -> "StartupLog":
        """On a clock that shows so much more; what was there from the start still is."""
        start_ms = np.where(self.start_ms > 0, self.start_ms + delay_ms, self.start_ms)
        return replace(self, start_ms=start_ms, end_ms=self.end_ms + delay_ms)


@dataclass(frozen=True, slots=True)
class RoutingStats:
    """What the routers of a run decided, and what they knew."""

    overlap_blocks: FloatArray  # (n,) leading blocks taken to be cached when placed
    queued_ms: FloatArray  # (n,) waited in the router before being placed
    num_queued: int  # requests that had to wait
    refused: dict[int, int]  # HTTP status -> requests
    index_blocks: int  # (worker, block) pairs in the index at the end, of the first frontend
    counters: dict[str, int]  # of its index, and of the event streams


@dataclass(frozen=True, slots=True)
class KvEventLog:
    """Every KV event of a run: blocks that became cached (positive) or were evicted (negative)."""

    time_ms: FloatArray  # the end of the step in which it happened
    worker_id: IntArray
    num_blocks: IntArray
    tier: IntArray | None = None  # a `Tier`; None: all on devices

    def tiers(self) -> IntArray:
        """The tier of every event."""
        return np.zeros(len(self.time_ms), np.int64) if self.tier is None else self.tier


@dataclass(frozen=True, slots=True)
class ChunkLog:
    """Every part of a prompt that a step computed. Times in ms, of the step.

    After a preemption the tokens that a request has made belong to its prompt.
    """

    request: IntArray  # index
    worker_id: IntArray
    start_ms: FloatArray
    end_ms: FloatArray
    num_tokens: IntArray
    num_computed_before: IntArray  # cached or computed earlier


@dataclass(frozen=True, slots=True)
class SeatLog:
    """When requests got a seat in an engine, and when they lost it to others. Times in ms."""

    request: IntArray  # index
    worker_id: IntArray
    at_ms: FloatArray
    is_taken: NDArray[np.bool_]  # False: preempted


@dataclass(frozen=True, slots=True)
class RequestTrail:
    """What single requests did in the steps of their engines."""

    chunks: ChunkLog
    seats: SeatLog


@dataclass(frozen=True, slots=True)
class LockStepLog:
    """How ranks that step together spent their time: a rank's step is one step of one rank."""

    rank_steps: int
    dummy_rank_steps: int  # without work, because another rank had some
    rank_ms: float  # of all ranks' steps, added up
    waiting_ms: float  # of ranks with work, beyond what theirs alone would have taken

    @property
    def dummy_share(self) -> float | None:
        """Part of the ranks' steps that were dummies; None without a step."""
        return self.dummy_rank_steps / self.rank_steps if self.rank_steps else None

    @property
    def waiting_share(self) -> float | None:
        """Part of the ranks' time in steps that others' work cost them; None without a step."""
        return self.waiting_ms / self.rank_ms if self.rank_ms else None


@dataclass(frozen=True, slots=True)
class RetentionLog:
    """What became of blocks that requests had something to say of."""

    peak_pinned_blocks: int  # idle ones of one worker, at the worst moment
    broken_blocks: int  # evicted although they were pinned


@dataclass(frozen=True, slots=True)
class PrefetchLog:
    """What was loaded ahead of requests, in blocks of engines."""

    loaded_blocks: int
    used_blocks: int  # that a request hit, each once
    num_without_room: int  # prefetches that found something, and too few free blocks to load it


@dataclass(frozen=True, slots=True)
class ScalingLog:
    """How a controller changed the number of workers: a row per pool and change, by time."""

    at_ms: FloatArray
    pool: tuple[str, ...]
    before: IntArray  # workers that were starting or ready
    after: IntArray  # that were to be


@dataclass(frozen=True, slots=True)
class RunResult:
    """One finished simulation: the input of every report."""

    requests: RequestLog
    steps: StepLog
    stalled_gaps_ms: FloatArray  # inter-token gaps that preemption made longer than one step
    workers: WorkerLog
    block_size: int
    end_ms: float  # time of the last event, or of the cut-off
    num_preemptions: int
    num_scheduling_events: int
    simulate_wall_ms: float  # real time of the simulation proper
    routing: RoutingStats | None = None  # None: placed by load alone
    kv_events: KvEventLog | None = None  # None: not asked for
    trail: RequestTrail | None = None  # None: not asked for
    lock_step: LockStepLog | None = None  # None: no ranks that step together
    links: LinkLog | None = None  # None: nothing was moved between workers
    tiers: tuple[TierLog, ...] = ()  # the nearest first; empty: there are none
    prefetches: PrefetchLog | None = None  # None: nothing was asked for ahead of requests
    retention: RetentionLog | None = None  # None: no request said anything of its blocks
    scaling: ScalingLog | None = None  # None: nobody controls the number of workers
    startups: StartupLog | None = None  # None: no worker started during the run
