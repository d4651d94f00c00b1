"""What every engine core is: a scheduler with its KV cache that decides and knows no time.

The life of a request in a core: `add` queues it; some `plan_step` admits it and gives it tokens,
step by step; `finish_step` of its last step returns it. `abort` ends it at any moment before.

KV may come from elsewhere: a plan names the loads that start with its step, and `loaded` reports
that one has ended. Blocks may be read from elsewhere: those of a request with `is_sent` stay held
after its end until `sent`.

A prefetch (a sequence with `is_prefetch`) is no request: the next plan loads what tiers have of its
prompt, and it ends when that has come, or at once where there is nothing; `take_prefetched` returns
those that have ended.

With a host tier a plan also names copies (`HostWork`); `copied` reports that one has ended. With
drafts it names those that it verifies, and is told before it is handed back what came of them
(`DraftWork`).

A driver (`dynosim.engine.engine`) asks for plans and hands each of them back, in order, once its
time is over; with a pipeline of depth two it may ask for a plan before the one before is back.
While nothing but decoding can happen, `uniform_steps` tells for how many steps; the driver may then
`advance` by so many at once instead, to the same effect, and ask `finish_due` who has ended.
"""

from collections.abc import Iterable, Sized
from typing import Protocol

from dynosim.blocks.kv_event import KvEvent
from dynosim.engine.host_cache import HostCache
from dynosim.engine.plan import HostWork, KvLoad, StepPlan, Write
from dynosim.engine.retaining_pool import RetainingPool
from dynosim.engine.sequence import Sequence
from dynosim.engine.tiers import Beyond
from dynosim.records import PrefetchLog


class DecodeCount(Protocol):
    """The sequences that decode, as sums."""

    step: int  # index of the next step
    count: int
    context_tokens: int  # of all of them in the next step, the tokens it computes included

    def blocks_opened(self, num_steps: int) -> int:
        """Blocks that the next `num_steps` steps open; asked only where there are runs."""
        ...


class EngineCore(Protocol):
    """Decisions of one engine. No method looks at a clock; all take effect at once.

    Where blocks are retained for a time, the driver tells `retention` and the tiers what it is.
    """

    num_waiting: int  # requests without a seat, those that load included
    num_preemptions: int  # so far
    retention: RetainingPool | None  # its cache, if that heeds what requests say of their blocks

    @property
    def decodes(self) -> DecodeCount:
        """Who decodes in the next step."""
        ...

    @property
    def num_running(self) -> int:
        """Requests with a seat."""
        ...

    @property
    def has_work(self) -> bool:
        """Whether a step is worth planning."""
        ...

    @property
    def num_loading(self) -> int:
        """Loads that have not ended, those of requests dropped since included."""
        ...

    @property
    def prefetch_log(self) -> PrefetchLog:
        """What has been loaded ahead of requests so far."""
        ...

    def take_prefetched(self) -> list[Sequence]:
        """The prefetches that have ended since the last call; they belong to the caller."""
        ...

    @property
    def num_held(self) -> int:
        """Requests that have ended but whose blocks have not been sent yet."""
        ...

    @property
    def deferred_blocks(self) -> int:
        """Blocks of requests dropped while a step under way still writes to them."""
        ...

    @property
    def used_blocks(self) -> int:
        """KV blocks that requests refer to."""
        ...

    def add(self, sequence: Sequence) -> bool:
        """Queue a request; returns whether the very next step could admit it."""
        ...

    def abort(self, sequence: Sequence) -> int:
        """Drop a request, if it has not ended; its blocks are free, or will be when its load ends.

        Returns the tokens that were scheduled for it, those of steps under way included.
        """
        ...

    def loaded(self, sequence: Sequence, num_valid_tokens: int) -> bool:
        """A load has ended; returns whether the very next step could admit somebody for that.

        So many of the request's tokens are valid from the start: its hit and what came. If that is
        less than it was to load, the request ends in failure (state FINISHED) or computes the rest,
        as the engine is configured.
        """
        ...

    @property
    def num_host_chunks(self) -> int:
        """Chunks that have a place in the host tier, those on their way to it included."""
        ...

    @property
    def is_copying(self) -> bool:
        """Whether copies between device and host tier are under way, or to be decided on."""
        ...

    @property
    def has_offers(self) -> bool:
        """Whether requests have ended that are yet to offer what they leave to the host tier."""
        ...

    @property
    def awaits_copies(self) -> bool:
        """Whether a request was passed over, as its chunks are on their way to or from a tier."""
        ...

    def use_tiers(self, cache: HostCache, beyond: Beyond) -> None:
        """Use these tiers, some of them perhaps shared with other engines, from the start."""
        ...

    def tell_tiers(self, now_ms: float) -> None:
        """It is this time now, for tiers that retain blocks for a time."""
        ...

    def written(self, write: Write) -> None:
        """Chunks have arrived in a tier beyond the nearest."""
        ...

    def lost(self, write: Write) -> None:
        """Chunks that were to be written will not arrive."""
        ...

    def drop_copies(self) -> None:
        """The engine is gone, and with it all copies under way."""
        ...

    def offer_rest(self) -> HostWork:
        """Offer what the last requests have left, where no step follows."""
        ...

    def copied(self, number: int) -> bool:
        """A copy that a plan named has ended; returns as `loaded` does."""
        ...

    def holds(self, sequence: Sequence) -> bool:
        """Whether a request has ended and `sent` is awaited for it."""
        ...

    def sent(self, sequence: Sequence) -> bool:
        """The blocks held for a request are free, the last one first; returns as `loaded` does."""
        ...

    def plan_step(self) -> StepPlan:
        """Decide the next step; its tokens count as computed and its blocks as taken at once."""
        ...

    def finish_step(self, plan: StepPlan) -> list[Sequence]:
        """Deliver a step's tokens; returns the requests that ended, in order, blocks freed."""
        ...

    def begin_loads(self) -> tuple[KvLoad, ...]:
        """Start loads of the next step ahead of the rest of it; where that is as good as not.

        They are part of no plan then. The next step is planned, or done in bulk, at once.
        """
        ...

    def uniform_steps(self) -> int:
        """Steps from here in which the same sequences decode and nothing else can happen.

        0 or 1 where a core cannot go in bulk.
        """
        ...

    def advance(self, num_steps: int) -> None:
        """Do uniform steps, at most as many as `uniform_steps` allows."""
        ...

    def finish_due(self) -> list[Sequence]:
        """The requests whose last token the steps done in bulk have made, in order."""
        ...

    def overlap(self, plan: StepPlan) -> None:
        """The steps of a run begin to be planned, each while the one before is under way.

        `plan` is the step under way when the first of them is planned.
        """
        ...

    def last_of_run(self, plan: StepPlan) -> StepPlan:
        """The last step that `advance` did, as a plan yet to finish; `plan` as in `overlap`."""
        ...

    def may_publish(self, num_steps: int) -> bool:
        """Whether uniform steps could cause KV events that somebody wants."""
        ...

    def quiet_steps(self, max_steps: int) -> int:
        """Uniform steps, at least 1, of which only the last may cause KV events."""
        ...

    @property
    def events(self) -> Sized:
        """The KV events that nobody has taken yet; the same object at all times."""
        ...

    def take_events(self) -> list[KvEvent]:
        """The KV events since the last call; they belong to the caller."""
        ...

    def decoding(self) -> Iterable[tuple[Sequence, int]]:
        """Every decoding request, with its tokens scheduled so far."""
        ...

    def unfinished(self) -> list[tuple[Sequence, int]]:
        """Every request that has not ended, with its tokens scheduled so far."""
        ...
