"""All that a planner is built from. Names and defaults are Dynamo's (planner 1.6), our units."""

from dataclasses import dataclass, field
from typing import Literal

from dynosim.planner.forecast import ForecastSpec

PlannerMode = Literal["disagg", "prefill", "decode", "agg"]
OptimizationTarget = Literal["throughput", "latency", "load", "sla"]

ROLES: dict[str, tuple[str, ...]] = {
    "disagg": ("prefill", "decode"),
    "prefill": ("prefill",),
    "decode": ("decode",),
    "agg": ("agg",),
}
"""The roles of the pools that a mode scales."""


@dataclass(frozen=True, slots=True)
class PlannerSpec:
    """How a planner decides.

    mode: which pools it scales, see `ROLES`.
    optimization_target: "sla": the targets below, by step times. Others: thresholds on what engines
        report, without targets or step times: "throughput" (late), "latency" (early), or "load",
        whose thresholds are `prefill_scale_*` and `decode_scale_*`.
    ttft_ms, itl_ms: targets of "sla".
    throughput_adjustment_interval_ms: how often, and over which window, demand decides.
    load_adjustment_interval_ms: how often what engines report decides.
    enable_throughput_scaling: whether demand decides; with "sla" only.
    enable_load_scaling: whether engines' reports decide; always but with "sla". With both, demand
        gives the least number and reports move within it.
    max_throughput_scaling_replicas: how far demand moves a pool at a time.
    max_load_scaling_replicas: how far load moves a pool up at a time, with "sla"; 1: as Dynamo's,
        which asks for no more while one starts.
    burst_memory_ms: how long workers are kept for a burst where too many requests were late, with
        "sla" (longer where bursts came farther apart); else as long as a start takes, if that is
        less. 0: as Dynamo's, nothing is kept.
    attainment, attainment_window_ms: share of first tokens that are to be in time, and over which
        time that is looked at.
    spread_prompts: whether an aggregated engine is taken to compute a part of prompts in each step,
        as Dynamo's does; else as much of a prompt at a time as fits, as engines do.
    max_gpu_budget, min_gpu_budget: GPUs of all its pools together; None: no limit.
    min_endpoint, max_endpoint: replicas of each pool, but where prefill or decode has its own. A
        minimum of 0 scales to none while nobody comes.
    load_predictor: how demand is foreseen.
    max_utilization: how much of an engine's capacity demand may take; below 1 leaves room for
        arrivals that come together, of which a mean knows nothing. Dynamo's takes all of it.
    scale_down_headroom: by what share demand may grow before fewer replicas, by demand, would not
        do; what noise brings back at once is not given up. Of few requests the noise of their
        number (2.8 roots of it) is a larger share, and counts.
    latency_correction: whether capacities follow what was observed beside what was expected,
        within a factor of 2.
    tail_quantile: which quantile of latencies the figures show, and the correction goes by where
        `correct_by_tail` says so, else by means.
    max_num_fpm_samples, fpm_sample_bucket_size, load_min_observations, fpm_warmup_ms: see
        `PassSamples`.
    load_scaling_down_sensitivity: percent of a target that fewer engines must stay below.
    prefill_scale_up_queue_tokens, prefill_scale_down_queue_tokens: queued prompt tokens of an
        engine. decode_scale_up_kv_rate, decode_scale_down_kv_rate: percent of its KV.
    speculative_nextn: drafts of a decode step; the accept length is at most one more.
    scale_down_stabilization_ms: how long fewer must have been wanted at every look.
    max_metric_age_ms: older ones decide nothing.
    start_ms: when its first interval begins.
    advisory: its decisions are noted, not carried out.
    """

    name: str = "planner"
    mode: PlannerMode = "disagg"
    optimization_target: OptimizationTarget = "throughput"
    ttft_ms: float = 500.0
    itl_ms: float = 50.0
    throughput_adjustment_interval_ms: float = 180_000.0
    load_adjustment_interval_ms: float = 5_000.0
    enable_throughput_scaling: bool = True
    enable_load_scaling: bool = False
    max_throughput_scaling_replicas: int = 8
    max_load_scaling_replicas: int = 8
    burst_memory_ms: float = 300_000.0
    attainment: float = 0.95
    attainment_window_ms: float = 3_600_000.0
    spread_prompts: bool = False
    max_gpu_budget: int | None = 8
    min_gpu_budget: int | None = None
    min_endpoint: int = 1
    max_endpoint: int | None = None
    prefill_min_endpoint: int | None = None
    prefill_max_endpoint: int | None = None
    decode_min_endpoint: int | None = None
    decode_max_endpoint: int | None = None
    load_predictor: ForecastSpec = field(default_factory=ForecastSpec)
    max_utilization: float = 0.9
    scale_down_headroom: float = 0.1
    latency_correction: bool = False
    correct_by_tail: bool = False
    tail_quantile: float = 0.95
    max_num_fpm_samples: int = 64
    fpm_sample_bucket_size: int = 16
    load_min_observations: int = 5
    fpm_warmup_ms: float = 30_000.0
    load_scaling_down_sensitivity: float = 80.0
    prefill_scale_up_queue_tokens: float | None = None
    prefill_scale_down_queue_tokens: float | None = None
    decode_scale_up_kv_rate: float | None = None
    decode_scale_down_kv_rate: float | None = None
    speculative_nextn: int = 0
    scale_down_stabilization_ms: float = 0.0
    max_metric_age_ms: float = 60_000.0
    start_ms: float = 0.0
    advisory: bool = False

    @property
    def scales_by_demand(self) -> bool:
        """Whether throughput scaling acts."""
        return self.enable_throughput_scaling and self.optimization_target == "sla"

    @property
    def scales_by_load(self) -> bool:
        """Whether load scaling acts."""
        return self.enable_load_scaling or self.optimization_target != "sla"

    def min_replicas(self, role: str) -> int:
        """The fewest replicas of a pool of a role."""
        own = {"prefill": self.prefill_min_endpoint, "decode": self.decode_min_endpoint}.get(role)
        return self.min_endpoint if own is None else own

    def max_replicas(self, role: str) -> int | None:
        """The most replicas of a pool of a role; None: no limit."""
        own = {"prefill": self.prefill_max_endpoint, "decode": self.decode_max_endpoint}.get(role)
        return self.max_endpoint if own is None else own
