"""Who decides how many workers there are, `planner:` or `hpa:`; `scaling:`, what it sees when."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from dynosim.config.base import Amount, Count, NotNegative, PositiveMs, Section, Share, check_rules


class OutageConfig(Section):
    """A time without metrics."""

    from_ms: NotNegative
    """When metrics fail."""
    to_ms: PositiveMs
    """When they are back."""

    @model_validator(mode="after")
    def _rules(self) -> Self:
        check_rules([("to_ms", self.to_ms <= self.from_ms, "not after from_ms", "raise it")])
        return self


class ScalingConfig(Section):
    """What lies between a cluster and who decides on its size."""

    scrape_interval_ms: PositiveMs = 10_000.0
    """How often the frontend's metrics are read."""
    metric_lag_ms: NotNegative = 0.0
    """How much later what was read can be seen."""
    outages: Annotated[tuple[OutageConfig, ...], Field(strict=False)] = ()
    """Times in which metrics are not read."""
    actuation_delay_ms: NotNegative = 0.0
    """From a decision until workers are launched or drained."""
    wait_for_workers: bool = True
    """While there is no worker at all requests wait for one; else they are refused."""


class LoadPredictorConfig(Section):
    """How a planner foresees the load of the next interval."""

    method: Literal["constant", "moving_average", "arima", "kalman", "seasonal"] = "arima"
    """What is made of the intervals so far."""
    log1p: bool = False
    """Whether the logarithm of 1 + value is forecast, which suits what grows by factors."""
    min_points: Count = 5
    """With fewer intervals the last value is forecast. Unit: intervals."""
    window_points: Annotated[int, Field(ge=5)] = 50
    """How far `arima` looks back. Unit: intervals."""
    average_points: Count = 5
    """What `moving_average` is over. Unit: intervals."""
    season_points: Annotated[int, Field(ge=2)] = 480
    """Length of a season of `seasonal`. Unit: intervals."""
    kalman_q_level: NotNegative = 1.0
    """Variance of what moves the level of `kalman` in an interval. Unit: squares of the series."""
    kalman_q_trend: NotNegative = 0.1
    """Variance of what moves its trend. Unit: squares of the series."""
    kalman_r: Annotated[float, Field(gt=0)] = 10.0
    """Variance of what disturbs single values. Unit: squares of the series."""


class PlannerConfig(Section):
    """A planner like Dynamo's, with its names and defaults."""

    mode: Literal["agg", "prefill", "decode", "disagg"] | None = None
    """Which pools it scales; null: all."""
    optimization_target: Literal["throughput", "latency", "load", "sla"] = "throughput"
    """What it aims at: thresholds on what engines report, early or late or stated; or latencies."""
    ttft_ms: PositiveMs | None = None
    """Target of the time to the first token, with `sla`; null: as the section `sla`, or 500."""
    itl_ms: PositiveMs | None = None
    """Target of the time between tokens, with `sla`; null: as the section `sla`, or 50."""
    throughput_adjustment_interval_ms: PositiveMs = 180_000.0
    """How often, and over which window, demand decides."""
    load_adjustment_interval_ms: PositiveMs = 5_000.0
    """How often what engines report decides."""
    enable_throughput_scaling: bool = True
    """Whether demand decides; with `sla` only."""
    enable_load_scaling: bool = False
    """Whether engines' reports decide; always but with `sla`."""
    max_throughput_scaling_replicas: Count = 8
    """How far demand moves a pool at a time. Unit: workers."""
    max_load_scaling_replicas: Count = 8
    """How far engines' reports move a pool up at a time, with `sla`; at 1 they ask for no more
    while one starts. Unit: workers."""
    burst_memory_ms: NotNegative = 300_000.0
    """How long workers are kept for a burst where too many first tokens were late, with `sla`; 0:
    no worker is kept for bursts."""
    attainment: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """Share of first tokens that are to be in time, with `sla`. Unit: share."""
    attainment_window_ms: PositiveMs = 3_600_000.0
    """Over which time that is looked at, and bursts are compared."""
    spread_prompts: bool = False
    """Whether a worker is taken to compute a part of prompts in each step, not whole ones."""
    max_gpu_budget: Count | None = 8
    """Most GPUs of all its pools together; null: no limit. Unit: GPUs."""
    min_gpu_budget: Count | None = None
    """Fewest GPUs of all its pools together; null: no limit. Unit: GPUs."""
    min_endpoint: Amount = 1
    """Fewest workers of each pool; at 0 there are none while nobody comes. Unit: workers."""
    max_endpoint: Count | None = None
    """Most workers of each pool; null: no limit. Unit: workers."""
    prefill_min_endpoint: Amount | None = None
    """Fewest prefill workers; null: as `min_endpoint`. Unit: workers."""
    prefill_max_endpoint: Count | None = None
    """Most prefill workers; null: as `max_endpoint`. Unit: workers."""
    decode_min_endpoint: Amount | None = None
    """Fewest decode workers; null: as `min_endpoint`. Unit: workers."""
    decode_max_endpoint: Count | None = None
    """Most decode workers; null: as `max_endpoint`. Unit: workers."""
    load_predictor: LoadPredictorConfig = LoadPredictorConfig.model_construct()
    """How demand is foreseen."""
    max_utilization: Annotated[float, Field(gt=0, le=1)] = 0.9
    """How much of a worker's capacity demand may take. Unit: share."""
    latency_correction: bool = False
    """Whether capacities follow what was observed beside what was expected."""
    correct_by_tail: bool = False
    """Whether that goes by the tail of latencies, not by means."""
    tail_quantile: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """Which quantile the tail is. Unit: share."""
    step_times: Literal["plan", "learned"] = "plan"
    """Whence it knows how long steps take: `plan`, from `timing`; `learned`, from steps that
    engines tell of, with the `fpm` keys."""
    max_num_fpm_samples: Count = 64
    """Engine steps that are kept to learn step times from. Unit: steps."""
    fpm_sample_bucket_size: Count = 16
    """Kinds of steps that are kept apart, a square number. Unit: kinds."""
    load_min_observations: Count = 5
    """Steps without which nothing is told from them. Unit: steps."""
    fpm_warmup_ms: NotNegative = 30_000.0
    """How long steps of a new worker tell nothing."""
    load_scaling_down_sensitivity: Annotated[float, Field(gt=0)] = 80.0
    """Percent of a target that fewer workers must stay below. Unit: percent."""
    prefill_scale_up_queue_tokens: NotNegative | None = None
    """Queued prompt tokens of a worker from which on there are to be more, with `load`."""
    prefill_scale_down_queue_tokens: NotNegative | None = None
    """Queued prompt tokens of a worker below which there are to be fewer, with `load`."""
    decode_scale_up_kv_rate: NotNegative | None = None
    """Percent of a worker's KV from which on there are to be more, with `load`. Unit: percent."""
    decode_scale_down_kv_rate: NotNegative | None = None
    """Percent of a worker's KV below which there are to be fewer, with `load`. Unit: percent."""
    speculative_nextn: Amount = 0
    """Drafts of a decode step. Unit: tokens."""
    scale_down_stabilization_ms: NotNegative = 0.0
    """How long fewer workers must have been wanted."""
    max_metric_age_ms: PositiveMs = 60_000.0
    """Metrics that are older decide nothing."""
    advisory: bool = False
    """Whether decisions are noted only, not carried out."""


class HpaConfig(Section):
    """A Kubernetes HPA of one pool on one metric of the frontend."""

    pool: str | None = None
    """Pool that it scales, `prefill` or `decode`; null: the only one."""
    metric: Literal["ttft_p95_s", "pending_requests"] = "ttft_p95_s"
    """What it looks at: the 95th percentile of the time to the first token over five minutes, or
    the requests under way for each worker."""
    target: Annotated[float, Field(ge=0.001)]
    """What that should be. Unit: s, or requests for each worker."""
    min_replicas: Amount = 1
    """Fewest workers. Unit: workers."""
    max_replicas: Count
    """Most workers. Unit: workers."""
    tolerance: Share = 0.1
    """Deviation from the target that changes nothing. Unit: share."""
    sync_ms: PositiveMs = 15_000.0
    """How often it looks."""
    scale_down_window_ms: NotNegative = 300_000.0
    """How long fewer workers must have been wanted."""

    @model_validator(mode="after")
    def _rules(self) -> Self:
        is_crossed = self.min_replicas > self.max_replicas
        check_rules(
            [
                ("min_replicas", is_crossed, f"more than max_replicas, {self.max_replicas}",
                 "lower it"),
            ]
        )  # fmt: skip
        return self
