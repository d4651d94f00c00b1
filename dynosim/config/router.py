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
    """How KV events travel from engines to frontends."""

    delay_ms: NotNegative = _DELAYS.delay_ms
    jitter_ms: NotNegative = _DELAYS.jitter_ms  # further, of each event: some overtake others
    loss: Annotated[float, Field(ge=0, lt=1)] = _DELAYS.loss  # chance that an event gets lost
    recovery_ms: NotNegative = _DELAYS.recovery_ms  # from noticing a gap to having what was missing


class PolicyClassConfig(Section):
    """A kind of requests with a waiting line of its own."""

    name: Annotated[str, Field(min_length=1)]
    queue_policy: QueuePolicy = _CLASS.queue_policy
    quantum: Count = _CLASS.quantum  # uncached prompt tokens a round
    prefill_busy_threshold: Amount | None = None  # tokens
    prefill_busy_threshold_frac: NotNegative | None = None  # of max_num_batched_tokens
    busy_worker_ratio: Annotated[float, Field(gt=0, le=1)] = _CLASS.busy_worker_ratio
    request_queue_limit_per_worker: Amount | None = None
    raw_isl_token_queue_limit_per_worker: Amount | None = None
    cached_token_queue_limit_per_worker: Amount | None = None
    policy_family: str | None = None  # takes only requests that name it in their header; None: all
    min_uncached_tokens: Amount = _CLASS.min_uncached_tokens
    max_uncached_tokens: Count | None = None


class RouterConfig(Section):
    """Placement, queueing and what the router knows."""

    mode: RouterMode = "round-robin"
    policy: str | None = None  # package.module:Class, in place of the mode's choice
    overlap_score_credit: NotNegative = _COST.overlap_score_credit
    overlap_score_credit_decay: NotNegative = _COST.overlap_score_credit_decay
    prefill_load_scale: NotNegative = _COST.prefill_load_scale
    host_cache_hit_weight: NotNegative = _COST.host_cache_hit_weight
    disk_cache_hit_weight: NotNegative = _COST.disk_cache_hit_weight
    active_request_weight: NotNegative = _COST.active_request_weight
    temperature: NotNegative = _COST.temperature
    load_aware: bool = False  # kv without cache signals: credit 0, no events, no reuse assumed
    assume_kv_reuse: bool = _COST.assume_kv_reuse
    track_prefill_tokens: bool = _COST.track_prefill_tokens
    track_output_blocks: bool = _LOAD.track_output_blocks
    prefill_load_model: Literal["none", "timing"] = "none"
    cuda_to_cpu_ratio: Annotated[float, Field(gt=0)] = _ROUTER.cuda_to_cpu_ratio

    use_kv_events: bool = _ROUTING.use_kv_events  # false: guess caches from own decisions
    approximate_cache_policy: CachePolicy = _ROUTING.approximate_cache_policy
    ttl_ms: PositiveMs = _ROUTING.ttl_ms
    predicted_ttl_ms: PositiveMs | None = None  # such a guess beside the events
    index: IndexKind = _ROUTING.index
    events: EventConfig = EventConfig.model_construct()
    frontends: Annotated[int, Field(ge=1, le=64)] = _ROUTING.frontends
    replica_sync_delay_ms: NotNegative | None = (
        None  # None: frontends publish nothing to each other
    )

    queue_threshold: NotNegative | None = None  # of max_num_batched_tokens; None: no queue
    queue_policy: QueuePolicy = _CLASS.queue_policy
    policy_classes: list[PolicyClassConfig] = Field([])
    active_decode_blocks_threshold: Share | None = None
    active_prefill_tokens_threshold: Amount | None = None
    active_prefill_tokens_threshold_frac: NotNegative | None = None
    session_affinity_ttl_ms: PositiveMs | None = None
    session_affinity_mode: Literal["hard", "soft"] = AffinitySpec(ttl_ms=1.0).mode
    stale_after_ms: PositiveMs = _LOAD.stale_after_ms

    @model_validator(mode="after")
    def _rules(self) -> Self:
        names = [entry.name for entry in self.policy_classes]
        events = self.events
        travels = events.jitter_ms > 0 or events.loss > 0
        conflates = self.index in ("naive", "inverted")
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
                ("index", conflates and travels,
                 f"{self.index} cannot be repaired after lost events", "use compressed or radix"),
            ]
        )  # fmt: skip
        return self
