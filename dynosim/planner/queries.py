"""Figures of a service that autoscalers aim at: what to ask the frontend's metrics, and the target.

What a cluster's metric adapters do to a figure on its way is here too: they read it now and then,
and hand it on in thousandths.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import floor, isnan
from typing import Protocol

from dynosim.planner.series import LOOKBACK_MS, ScrapeStore


class Query(Protocol):
    """A figure that can be told from scrapes of the last `window_ms`, or the latest one at 0."""

    @property
    def window_ms(self) -> float:
        """How far back it looks."""
        ...

    def value(self, seen: ScrapeStore, now_ms: float) -> float | None:
        """Its value as of `now_ms`; None: not known; NaN: nothing was observed."""
        ...


@dataclass(frozen=True, slots=True)
class SumQuery:
    """Gauges that a selector names, added up."""

    selector: str

    @property
    def window_ms(self) -> float:
        """See `Query`."""
        return 0.0

    def value(self, seen: ScrapeStore, now_ms: float) -> float | None:
        """See `ScrapeStore.sum`."""
        return seen.sum(self.selector, now_ms)


@dataclass(frozen=True, slots=True)
class RateQuery:
    """Counters that a selector names, per second."""

    selector: str
    window_ms: float

    def value(self, seen: ScrapeStore, now_ms: float) -> float | None:
        """See `ScrapeStore.rate`."""
        return seen.rate(self.selector, self.window_ms, now_ms)


@dataclass(frozen=True, slots=True)
class QuantileQuery:
    """A quantile (0 to 1) of what a histogram observed in a window."""

    quantile: float
    histogram: str
    window_ms: float

    def value(self, seen: ScrapeStore, now_ms: float) -> float | None:
        """See `ScrapeStore.histogram_quantile`."""
        return seen.histogram_quantile(self.quantile, self.histogram, self.window_ms, now_ms)


TTFT_P95_S = QuantileQuery(0.95, "dynamo_frontend_time_to_first_token_seconds", 300_000.0)
"""The 95th percentile of TTFT over five minutes, in seconds."""

PENDING_REQUESTS = SumQuery(
    'dynamo_frontend_stage_requests{stage=~"preprocess|route|dispatch"}',
)
"""Requests that came to the frontend and have no first token yet."""

WAITING_REQUESTS = SumQuery('dynamo_frontend_stage_requests{stage=~"preprocess|route"}')
"""Requests that no worker has yet: what waits for the first one to start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceMetric:
    """One figure of the whole service, and what it should be.

    With `is_average` the target is one worker's share of the figure (Kubernetes: AverageValue),
    without the figure itself (Value). The adapter reads at multiples of `poll_ms` only; 0: whenever
    it is asked.
    """

    name: str
    query: Query
    target: float
    is_average: bool = False
    poll_ms: float = 0.0

    def __post_init__(self) -> None:
        """Raises: ValueError if no share of the target could be told."""
        if in_thousandths(self.target) < 1:
            raise ValueError(f"metric {self.name}: target {self.target}: expected at least 0.001")

    def read(self, seen: ScrapeStore, now_ms: float) -> float | None:
        """What the adapter has at `now_ms`; None: it has nothing.

        Of nothing observed it makes 0, as Prometheus' adapter does of NaN: an idle service shrinks.
        """
        as_of_ms = floor(now_ms / self.poll_ms) * self.poll_ms if self.poll_ms > 0 else now_ms
        value = self.query.value(seen, as_of_ms)
        if value is None:
            return None
        return 0.0 if isnan(value) else in_thousandths(value) / 1e3


def in_thousandths(value: float) -> int:
    """What is left of a figure in Kubernetes' units, whose smallest is a thousandth."""
    return int(round(value * 1e3, 6))


WORKER_FIGURES = (
    "num_running",
    "num_waiting",
    "queued_prefill_tokens",
    "decode_kv_tokens",
    "queued_decode_kv_tokens",
    "used_kv_share",
)
"""What an engine's report says that a worker can be measured by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerMetric:
    """One figure of each worker's report, and what it should be on average.

    A report older than `max_age_ms` counts as missing.
    """

    figure: str
    target: float
    max_age_ms: float = 60_000.0

    def __post_init__(self) -> None:
        """Raises: ValueError if reports have no such figure."""
        if self.figure not in WORKER_FIGURES:
            raise ValueError(
                f"no figure {self.figure}: expected one of {', '.join(WORKER_FIGURES)}"
            )
        if in_thousandths(self.target) < 1:
            raise ValueError(f"figure {self.figure}: target {self.target}: expected at least 0.001")

    @property
    def name(self) -> str:
        """What reasons call it."""
        return self.figure


Metric = ServiceMetric | WorkerMetric


def store_for(metrics: Iterable[Metric]) -> ScrapeStore:
    """A store that keeps what these metrics look back on."""
    reach_ms = (
        metric.query.window_ms + metric.poll_ms
        for metric in metrics
        if isinstance(metric, ServiceMetric)
    )
    return ScrapeStore(keep_ms=LOOKBACK_MS + max(reach_ms, default=0.0))
