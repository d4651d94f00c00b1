"""The `router:` section: which worker serves a request, and when it may go.

Names are those of NVIDIA Dynamo's router, times in milliseconds. A default stands once: here, or in
the spec that is built from the section, from which it is taken.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from dynosim.config.base import Amount, Count, NotNegative, PositiveMs, Section, Share, check_rules
from dynosim.router.classes import PolicyClass
from dynosim.router.knobs import AffinitySpec, CostSpec, LoadSpec, RouterSpec
from dynosim.router.spec import CachePolicy, DelaySpec, IndexKind, RoutingSpec

_CLASS = PolicyClass()
_COST = CostSpec()
_LOAD = LoadSpec()
_DELAYS = DelaySpec()
_ROUTER = RouterSpec(block_size=1, mode="kv")
_ROUTING = RoutingSpec(_ROUTER)

RouterMode = Literal[
    "round-robin", "random", "power-of-two", "least-loaded", "device-aware-weighted", "kv", "direct"
]
QueuePolicy = Literal["fcfs", "lcfs", "wspt"]


class EventConfig(Section):
    """How KV events travel from engines to frontends: those of a step as one message."""

    delay_ms: NotNegative = _DELAYS.delay_ms
    """Time that every message takes."""
    jitter_ms: NotNegative = _DELAYS.jitter_ms
    """Further time of each message, at most; some overtake others."""
    loss: Annotated[float, Field(ge=0, lt=1)] = _DELAYS.loss
    """Chance that a message gets lost, with all events of its step. Unit: share."""
    recovery_ms: NotNegative = _DELAYS.recovery_ms
    """From noticing a gap to having what was missing."""


class PolicyClassConfig(Section):
    """A kind of requests with a waiting line of its own."""

    name: Annotated[str, Field(min_length=1)]
    """Name of the class."""
    queue_policy: QueuePolicy = _CLASS.queue_policy
    """Order of its line: first come, last come, or short uncached prompts first."""
    quantum: Count = _CLASS.quantum
    """What the class earns in a round: uncached prompt tokens. Unit: tokens."""
    prefill_busy_threshold: Amount | None = None
    """A worker with more prompt tokens in flight is busy; null: none is. Unit: tokens."""
    prefill_busy_threshold_frac: NotNegative | None = None
    """The same as a multiple of the worker's `max_num_batched_tokens`. Unit: factor."""
    busy_worker_ratio: Annotated[float, Field(gt=0, le=1)] = _CLASS.busy_worker_ratio
    """Requests wait while so many of the workers that they could use are busy. Unit: share."""
    request_queue_limit_per_worker: Amount | None = None
    """Most requests that wait, for each worker; null: no limit. Unit: requests."""
    raw_isl_token_queue_limit_per_worker: Amount | None = None
    """Most prompt tokens that wait, for each worker; null: no limit. Unit: tokens."""
    cached_token_queue_limit_per_worker: Amount | None = None
    """Most cached prompt tokens that wait, for each worker; null: no limit. Unit: tokens."""
    policy_family: str | None = None
    """Takes only requests that name this family in their header; null: all."""
    min_uncached_tokens: Amount = _CLASS.min_uncached_tokens
    """Takes only requests with at least so many uncached prompt tokens."""
    max_uncached_tokens: Count | None = None
    """Takes only requests with fewer uncached prompt tokens; null: no limit."""


class RouterKnobs(Section):
    """The keys of a router. A pool states those in which its router differs from the other one."""

    mode: RouterMode = "round-robin"
    """How a worker is chosen."""
    policy: str | None = None
    """Your own `package.module:Class`, which chooses in place of the `kv` mode's cost."""
    overlap_score_credit: NotNegative = _COST.overlap_score_credit
    """Blocks of prefill work saved by a cached block on the GPU. Unit: factor."""
    overlap_score_credit_decay: NotNegative = _COST.overlap_score_credit_decay
    """How much less that credit is for workers with more prefill in flight. Unit: factor."""
    prefill_load_scale: NotNegative = _COST.prefill_load_scale
    """Weight of prefill work in the cost. Unit: factor."""
    host_cache_hit_weight: NotNegative = _COST.host_cache_hit_weight
    """Blocks of prefill work saved by a cached block in host memory. Unit: factor."""
    disk_cache_hit_weight: NotNegative = _COST.disk_cache_hit_weight
    """Blocks of prefill work saved by a cached block on disk. Unit: factor."""
    shared_cache_multiplier: NotNegative = _COST.shared_cache_multiplier
    """Blocks of prefill work saved by a block in the remote store that all workers share, behind
    what the worker has itself; 0: the router does not ask the store. Unit: factor."""
    active_request_weight: NotNegative = _COST.active_request_weight
    """Cost of a request in flight at the worker. Unit: blocks."""
    temperature: NotNegative = _COST.temperature
    """How near the choice is to a uniform draw; 0: the cheapest worker. Unit: factor."""
    load_aware: bool = False
    """Whether `kv` goes without signals of caches: credit 0, no events, no reuse assumed."""
    assume_kv_reuse: bool = _COST.assume_kv_reuse
    """Whether active requests with a common prefix count its blocks once."""
    track_prefill_tokens: bool = _COST.track_prefill_tokens
    """Whether prompt tokens in flight count as load."""
    track_output_blocks: bool = _LOAD.track_output_blocks
    """Whether blocks of answers count as load while they grow."""
    track_active_blocks: bool = _LOAD.track_active_blocks
    """Whether blocks of active requests count as load; false among prefill workers, unless
    `cluster.prefill.router` says otherwise."""
    prefill_load_model: Literal["none", "timing"] = "none"
    """How prefill in flight shrinks before its first token: not at all, or by the step times."""
    cuda_to_cpu_ratio: Annotated[float, Field(gt=0)] = _ROUTER.cuda_to_cpu_ratio
    """How many times as much a GPU takes as a CPU, in device-aware-weighted mode. Unit: factor."""

    use_kv_events: bool = _ROUTING.use_kv_events
    """Whether the router follows the engines' KV events; if not, it guesses caches from its own
    decisions."""
    approximate_cache_policy: CachePolicy = _ROUTING.approximate_cache_policy
    """How such guesses are forgotten: after a time, or when the cache would be full."""
    ttl_ms: PositiveMs = _ROUTING.ttl_ms
    """Time after which such a guess is forgotten."""
    predicted_ttl_ms: PositiveMs | None = None
    """Time for which a guess counts beside the events; null: events alone."""
    index: IndexKind = _ROUTING.index
    """Kind of index of cached blocks; all exact ones answer the same."""
    events: EventConfig = EventConfig.model_construct()
    """How KV events travel to the frontends."""
    frontends: Annotated[int, Field(ge=1, le=64)] = _ROUTING.frontends
    """Frontends, each with a router and a view of its own. Unit: frontends."""
    replica_sync_delay_ms: NotNegative | None = None
    """Time after which frontends know each other's decisions; null: never."""

    queue_threshold: NotNegative | None = None
    """Requests wait in the router while every worker has more prompt tokens in flight than this
    multiple of its `max_num_batched_tokens`; null: none waits. Unit: factor."""
    queue_policy: QueuePolicy = _CLASS.queue_policy
    """Order of that queue: first come, last come, or short uncached prompts first."""
    policy_classes: list[PolicyClassConfig] = Field([])
    """Kinds of requests with waiting lines of their own."""
    active_decode_blocks_threshold: Share | None = None
    """A worker with more of its KV blocks in use gets no requests; null: no limit. Unit: share."""
    active_prefill_tokens_threshold: Amount | None = None
    """A worker with more prompt tokens in flight gets no requests; null: no limit. Unit: tokens."""
    active_prefill_tokens_threshold_frac: NotNegative | None = None
    """The same as a multiple of the worker's `max_num_batched_tokens`. Unit: factor."""
    session_affinity_ttl_ms: PositiveMs | None = None
    """Time after its last request for which a session stays with its worker; null: none does."""
    session_affinity_mode: Literal["hard", "soft"] = AffinitySpec(ttl_ms=1.0).mode
    """Whether such requests are refused where the worker cannot take them, or go elsewhere."""
    stale_after_ms: PositiveMs = _LOAD.stale_after_ms
    """A request that was not heard of for so long no longer counts as load."""


class RouterConfig(RouterKnobs):
    """Placement, queueing and what the router knows."""

    hop_ms: NotNegative = _ROUTING.hop_ms
    """Time that asking a router outside the frontend adds to every request, as a gateway's endpoint
    picker does; in simulations, whatever the mode."""

    @property
    def deafness(self) -> tuple[str, str] | None:
        """Why lost KV events would change nothing here, and the remedy; None: they would."""
        if self.mode != "kv":
            return f"router.mode {self.mode} gets no KV events", "set router.mode: kv"
        if self.load_aware or not self.use_kv_events:
            key = "load_aware: true" if self.load_aware else "use_kv_events: false"
            return f"with router.{key} routers get no KV events", "remove it"
        if self._conflates:
            return (
                f"router.index {self.index} cannot be repaired after lost events",
                "use compressed or radix",
            )
        return None

    @property
    def _conflates(self) -> bool:
        """Whether the index knows less than what a repair needs."""
        return self.index in ("naive", "inverted")

    @model_validator(mode="after")
    def _rules(self) -> Self:
        names = [entry.name for entry in self.policy_classes]
        events = self.events
        travels = events.jitter_ms > 0 or events.loss > 0
        check_rules(
            [
                ("queue_threshold", self.queue_threshold is not None and bool(names),
                 "given next to policy_classes, which have thresholds of their own",
                 "remove one of them"),
                ("policy_classes", len(set(names)) < len(names), "two classes share a name",
                 "give each a name of its own"),
                ("policy", self.policy is not None and self.policy.count(":") != 1,
                 f"{self.policy!r} is not package.module:Class", "write it with one colon"),
                ("policy", self.policy is not None and self.mode != "kv",
                 f"takes the place of the kv mode, but mode is {self.mode}", "set mode: kv"),
                ("load_aware", self.load_aware and self.mode != "kv",
                 f"belongs to mode kv, but mode is {self.mode}", "set mode: kv"),
                ("predicted_ttl_ms", self.predicted_ttl_ms is not None and not self.use_kv_events,
                 "adds to KV events, but use_kv_events is false", "use ttl_ms instead"),
                ("events", travels and not self.use_kv_events,
                 "set, but use_kv_events is false", "remove them"),
                ("index", self._conflates and travels,
                 f"{self.index} cannot be repaired after lost events", "use compressed or radix"),
            ]
        )  # fmt: skip
        return self
