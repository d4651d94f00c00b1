"""The frontend's metrics by name: what the live one exposes, the twin tells of, and planners read.

Names, labels and bounds of buckets stand here once. They are Dynamo's; what has no counterpart
there begins with `dynosim_`. Durations are in seconds. A counter is exposed as its name and
`_total`, a histogram as `_bucket`, `_sum` and `_count`.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from itertools import accumulate

TTFT_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 1, 1.5, 2, 3, 5, 8, 13, 30, 60, 120)
ITL_BUCKETS = (0.001, 0.002, 0.004, 0.006, 0.01, 0.015, 0.02, 0.03, 0.05, 0.08, 0.13, 0.3, 1, 3)
DURATION_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120, 300, 600)
TOKEN_BUCKETS = (1, 16, 64, 256, 1024, 4096, 16384, 65536, 262144)

# Counters; `REQUESTS` by endpoint, request_type and status, `GENERATIONS` by outcome.
REQUESTS = "dynamo_frontend_requests"
ROUTER_CACHED_TOKENS = "dynosim_router_cached_tokens"
ENGINE_CACHED_TOKENS = "dynosim_engine_cached_tokens"
PROMPT_TOKENS = "dynosim_frontend_prompt_tokens"
MIGRATIONS = "dynosim_frontend_migrations"
GENERATIONS = "dynosim_frontend_generations"

# Gauges; `STAGE_REQUESTS` by stage and phase, and not by model.
ACTIVE_REQUESTS = "dynamo_frontend_active_requests"
STAGE_REQUESTS = "dynamo_frontend_stage_requests"
WORKERS = "dynosim_workers"
WORKERS_FENCED = "dynosim_workers_fenced"
QUEUED_REQUESTS = "dynosim_router_queued_requests"

# Histograms.
TTFT = "dynamo_frontend_time_to_first_token_seconds"
ITL = "dynamo_frontend_inter_token_latency_seconds"
DURATION = "dynamo_frontend_request_duration_seconds"
INPUT_TOKENS = "dynamo_frontend_input_sequence_tokens"
OUTPUT_TOKENS = "dynamo_frontend_output_sequence_tokens"
ROUTER_WAIT = "dynosim_router_wait_seconds"

BUCKETS: dict[str, tuple[float, ...]] = {
    TTFT: TTFT_BUCKETS,
    ITL: ITL_BUCKETS,
    DURATION: DURATION_BUCKETS,
    INPUT_TOKENS: TOKEN_BUCKETS,
    OUTPUT_TOKENS: TOKEN_BUCKETS,
    ROUTER_WAIT: TTFT_BUCKETS,
}
"""Upper bounds of each histogram, but for the last, infinity."""

NAMESPACE_LABEL, MODEL_LABEL = "dynamo_namespace", "model"
COMMON_LABELS = (NAMESPACE_LABEL, MODEL_LABEL)
REQUEST_LABELS = (*COMMON_LABELS, "endpoint", "request_type", "status")
GENERATION_LABELS = (*COMMON_LABELS, "outcome")
STAGE_LABELS = (NAMESPACE_LABEL, "stage", "phase")


def sample_name(name: str, labels: Mapping[str, str]) -> str:
    """A sample as Prometheus' text names it, labels in the order of their names."""
    inner = ",".join(f'{label}="{_escaped(labels[label])}"' for label in sorted(labels))
    return f"{name}{{{inner}}}" if inner else name


def le_text(bound: float) -> str:
    """A bucket's upper bound as its label."""
    return "+Inf" if bound == float("inf") else str(float(bound))


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


class BucketCounts:
    """How many observations lie in each bucket, and their sum. Cheap to add to."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float, count: int = 1) -> None:
        """The same value, `count` times."""
        self.counts[bisect_left(self.bounds, value)] += count
        self.total += value * count

    def cumulative(self) -> list[int]:
        """Observations up to each bound; the last number is that of all."""
        return list(accumulate(self.counts))


class HistogramNames:
    """The names of a histogram's samples, made once."""

    __slots__ = ("buckets", "count", "sum")

    def __init__(self, name: str, labels: Mapping[str, str]) -> None:
        bounds = (*BUCKETS[name], float("inf"))
        self.buckets = [
            sample_name(f"{name}_bucket", {**labels, "le": le_text(bound)}) for bound in bounds
        ]
        self.sum = sample_name(f"{name}_sum", labels)
        self.count = sample_name(f"{name}_count", labels)

    def write(self, cumulative: Sequence[int], total: float, values: dict[str, float]) -> None:
        """All samples; the sum to its sixth digit, as far as the order of adding leaves it."""
        values.update(zip(self.buckets, map(float, cumulative), strict=True))
        values[self.count] = float(cumulative[-1])
        values[self.sum] = round(total, 6)
