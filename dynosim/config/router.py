"""The `router:` section: which worker serves a request, and when it may go.

Names are those of NVIDIA Dynamo's router, times in milliseconds.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from dynosim.config.base import Amount, Count, NotNegative, PositiveMs, Section, Share, check_rules

RouterMode = Literal[
    "round-robin", "random", "power-of-two", "least-loaded", "device-aware-weighted", "kv", "direct"
]
QueuePolicy = Literal["fcfs", "lcfs", "wspt"]
IndexKind = Literal[
    "extents", "radix", "compressed", "positional", "positional-binary", "naive", "inverted"
]


class EventConfig(Section):
    """How KV events travel from engines to frontends."""

    delay_ms: NotNegative = 0.0
    jitter_ms: NotNegative = 0.0  # further delay of each event, so that some overtake others
    loss: Annotated[float, Field(ge=0, lt=1)] = 0.0  # chance that an event gets lost
    recovery_ms: NotNegative = 10.0  # from noticing a gap to having what was missing


class PolicyClassConfig(Section):
    """A kind of requests with a waiting line of its own."""

    name: Annotated[str, Field(min_length=1)]
    queue_policy: QueuePolicy = "fcfs"
    quantum: Count = 8192  # uncached prompt tokens a round
    prefill_busy_threshold: Amount | None = None  # tokens
    prefill_busy_threshold_frac: NotNegative | None = None  # of max_num_batched_tokens
    busy_worker_ratio: Annotated[float, Field(gt=0, le=1)] = 1.0
    request_queue_limit_per_worker: Amount | None = None
    raw_isl_token_queue_limit_per_worker: Amount | None = None
    cached_token_queue_limit_per_worker: Amount | None = None
    policy_family: str | None = None  # takes only requests that name it in their header; None: all
    min_uncached_tokens: Amount = 0
    max_uncached_tokens: Count | None = None


class RouterConfig(Section):
    """Placement, queueing and what the router knows."""

    mode: RouterMode = "round-robin"
    policy: str | None = None  # package.module:Class, in place of the mode's choice
    overlap_score_credit: NotNegative = 1.0
    overlap_score_credit_decay: NotNegative = 0.0
    prefill_load_scale: NotNegative = 1.0
    host_cache_hit_weight: NotNegative = 0.75
    disk_cache_hit_weight: NotNegative = 0.25
    active_request_weight: NotNegative = 0.0
    temperature: NotNegative = 0.0
    load_aware: bool = False  # kv without cache signals: credit 0, no events, no reuse assumed
    assume_kv_reuse: bool = True
    track_prefill_tokens: bool = True
    track_output_blocks: bool = False
    prefill_load_model: Literal["none", "timing"] = "none"
    cuda_to_cpu_ratio: Annotated[float, Field(gt=0)] = 8.0

    use_kv_events: bool = True  # false: guess the caches from the router's own decisions
    approximate_cache_policy: Literal["ttl", "lru"] = "ttl"
    ttl_ms: PositiveMs = 120_000.0
    predicted_ttl_ms: PositiveMs | None = None  # such a guess beside the events
    index: IndexKind = "extents"
    events: EventConfig = EventConfig()
    frontends: Annotated[int, Field(ge=1, le=64)] = 1
    replica_sync_delay_ms: NotNegative | None = None  # None: frontends do not tell each other

    queue_threshold: NotNegative | None = None  # of max_num_batched_tokens; None: no queue
    queue_policy: QueuePolicy = "fcfs"
    policy_classes: list[PolicyClassConfig] = Field(default_factory=list)
    active_decode_blocks_threshold: Share | None = None
    active_prefill_tokens_threshold: Amount | None = None
    active_prefill_tokens_threshold_frac: NotNegative | None = None
    session_affinity_ttl_ms: PositiveMs | None = None
    session_affinity_mode: Literal["hard", "soft"] = "hard"
    stale_after_ms: PositiveMs = 300_000.0

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
