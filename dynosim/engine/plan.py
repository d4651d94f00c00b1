"""What one scheduling decision produced."""

from dataclasses import dataclass

from dynosim.engine.block_pool import Extent
from dynosim.engine.host_cache import Span
from dynosim.engine.sequence import Sequence
from dynosim.timing.step import StepShape


@dataclass(frozen=True, slots=True)
class ScheduledRow:
    """One request's share of a step, for step logs."""

    sequence: Sequence
    num_tokens: int
    is_decode: bool
    num_computed_before: int
    num_new_blocks: int
    hit_tokens: int  # prefix hit if (re)admitted in this step, else -1


class KvLoad:
    """A transfer that brings KV from elsewhere: blocks are taken when it starts."""

    __slots__ = ("hit_tokens", "job", "num_new_blocks", "num_tokens", "sequence")

    def __init__(
        self, sequence: Sequence, hit_tokens: int, num_tokens: int, num_new_blocks: int
    ) -> None:
        self.sequence = sequence
        self.hit_tokens = hit_tokens  # found here
        self.num_tokens = num_tokens  # to come from elsewhere
        self.num_new_blocks = num_new_blocks
        self.job: CopyJob | None = None  # None: not from a tier


class CopySource:
    """Blocks of the device that are being copied: those `first` to before `end` of an extent."""

    __slots__ = ("end", "extent", "first")

    def __init__(self, extent: Extent, first: int, end: int) -> None:
        self.extent = extent
        self.first = first
        self.end = end


class LoadPart:
    """Chunks that a load takes from a tier beyond the nearest; `tier` counts from that, at 0."""

    __slots__ = ("span", "tier")

    def __init__(self, tier: int, span: Span) -> None:
        self.tier = tier
        self.span = span


class CopyJob:
    """A copy of chunks between a device and its nearest tier; a load may have parts from others.

    `num_blocks` are those of the nearest tier.
    """

    __slots__ = (
        "beyond",
        "blank_sources",
        "ends_ms",
        "is_load",
        "mark",
        "num_blocks",
        "num_left",
        "num_lost",
        "number",
        "sequence",
        "sources",
        "spans",
        "starts_ms",
    )

    def __init__(
        self,
        number: int,
        sequence: Sequence,
        spans: list[Span],
        num_blocks: int,
        *,
        is_load: bool,
    ) -> None:
        self.number = number
        self.sequence = sequence
        self.spans = spans
        self.num_blocks = num_blocks
        self.beyond: tuple[LoadPart, ...] = ()  # of a load
        self.num_left = 1  # of a load: copies under way that it consists of
        self.starts_ms = 0.0  # of a load
        self.ends_ms = 0.0  # of what goes over a lane
        self.sources: tuple[CopySource, ...] = ()  # of a store whose request has ended
        self.mark = 0  # of a store whose request has ended: see `HostOffload.safe_blocks`
        self.num_lost = 0  # of their blocks, those that have been handed out since
        self.blank_sources = 0  # blocks up to the last of them that cannot be hit; none of those: 0
        self.is_load = is_load

    def count_lost(self) -> int:
        """Blocks of its sources that have been handed out again."""
        return sum(
            [one.end - max(one.first, min(one.extent.num_cached, one.end)) for one in self.sources]
        )


class Write:
    """Chunks on their way from one tier to the next; `tier` is where they go."""

    __slots__ = ("num_blocks", "spans", "tier")

    def __init__(self, tier: int, spans: list[Span], num_blocks: int) -> None:
        self.tier = tier
        self.spans = spans
        self.num_blocks = num_blocks


class HostWork:
    """What a step has to do with the host tier."""

    __slots__ = ("asked_later", "evicted", "flushed", "loads", "refused", "stores")

    def __init__(self) -> None:
        # Tuples, for most are empty.
        self.loads: tuple[CopyJob, ...] = ()  # start with the step
        self.stores: tuple[CopyJob, ...] = ()  # start with the next one
        self.flushed: tuple[int, ...] = ()  # jobs that must be done before the step runs
        self.evicted: tuple[Span, ...] = ()  # told where extents are single blocks
        self.refused: tuple[Sequence, ...] = ()  # whose chunks found no room
        self.asked_later: tuple[Sequence, ...] = ()  # passed over: their chunks are on their way


class DraftWork:
    """What a step has to do with drafts, by request.

    The core says which it verifies. Whoever runs the step says, before it is finished, how many of
    them were `accepted` and how many are `offered` for the request's next step; none where nothing
    is said. With asynchronous scheduling nothing is offered, since there are always drafts.
    """

    __slots__ = ("accepted", "delivered", "loaded", "offered", "padded", "scheduled")

    def __init__(self) -> None:
        self.scheduled: dict[Sequence, int] = {}  # in the order of the step
        self.padded: list[Sequence] = []  # admitted with placeholders, which are all rejected
        self.loaded: list[Sequence] = []  # admitted after a load
        self.accepted: dict[Sequence, int] = {}
        self.offered: dict[Sequence, int] = {}
        self.delivered: dict[Sequence, int] = {}  # tokens, once the step is finished


class StepPlan(StepShape):
    """One engine step: its composition (for timing) and who is in it.

    `rows` is filled only for step-by-step runs; bulk runs know decoding sequences by number.
    `chunked` is filled where there is a host tier.
    """

    __slots__ = (
        "admitted",
        "chunked",
        "deferred",
        "drafts",
        "emitting",
        "end_ms",
        "host",
        "loads",
        "num_resumed_decodes",
        "preempted",
        "prefilled",
        "rows",
        "start_ms",
        "step",
    )

    def __init__(self, step: int) -> None:
        self.step = step  # the scheduler's step counter when it was formed
        self.num_prefills = 0
        self.prefill_tokens = 0
        self.prefix_tokens = 0
        self.num_decodes = 0
        self.decode_context_tokens = 0
        self.num_resumed_decodes = 0  # of num_decodes, those coming back from a preemption
        self.admitted: list[Sequence] = []  # got a seat in this step
        self.prefilled: list[Sequence] = []  # all known tokens computed: yield one token
        self.preempted: tuple[Sequence, ...] = ()  # rare, hence no list from the start
        self.deferred: tuple[Sequence, ...] = ()  # decoding, but left out of this step
        self.loads: tuple[KvLoad, ...] = ()  # start with this step, even if it is empty of tokens
        self.emitting: list[Sequence] = []  # yield a token; in a pipeline, or if asked for
        self.rows: list[ScheduledRow] = []
        self.chunked: tuple[Sequence, ...] = ()  # computes known tokens, in order of service
        self.host: HostWork | None = None  # None: there is no host tier
        self.drafts: DraftWork | None = None  # None: nobody drafts
        self.start_ms = 0.0  # when it executes: the engine's business, not the scheduler's
        self.end_ms = 0.0

    def take_chunk(self, sequence: Sequence, num_tokens: int) -> bool:
        """Enter a chunk of known tokens, blocks already taken; returns whether it is a decode.

        One last token of a request that has produced some already runs as a decode does; so does
        that of a prompt, where its owner says so.
        """
        before = sequence.num_computed
        sequence.last_chunk_step = self.step
        if self.host is not None:
            self.chunked += (sequence,)
        known = sequence.prompt_tokens + sequence.generated_tokens
        is_decode = before + 1 == known and (sequence.generated_tokens > 0 or sequence.decodes_last)
        if is_decode:
            self.num_decodes += 1
            self.num_resumed_decodes += 1
            self.decode_context_tokens += known
        else:
            self.num_prefills += 1
            self.prefill_tokens += num_tokens
            self.prefix_tokens += before
        sequence.num_computed = before + num_tokens
        if sequence.num_computed == known:
            self.prefilled.append(sequence)
        return is_decode

    @property
    def is_empty(self) -> bool:
        """Whether no token is computed."""
        return self.num_prefills == 0 and self.num_decodes == 0

    def decodes_all(self, num_decoding: int) -> bool:
        """Whether it computes one token for each of so many decoding sequences and no other."""
        is_pure = self.num_prefills == 0 and self.num_resumed_decodes == 0
        return is_pure and self.num_decodes == num_decoding and not self.deferred
