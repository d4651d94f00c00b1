"""What a planner knows of the frontend: its metrics, kept for a while, and how old they are."""

from bisect import bisect_left
from math import inf

from msgspec.structs import replace

from dynosim.planner import frontend_metrics as names
from dynosim.planner.arrivals import RecentArrivals
from dynosim.planner.observation import Observation
from dynosim.planner.planner_spec import PlannerSpec
from dynosim.planner.scaled_pool import METRICS_STALE, Ask
from dynosim.planner.series import ScrapeStore
from dynosim.planner.traffic import Traffic, traffic

_OPEN_END_MS = 1e-3  # a window is open to the left: so much more has its first scrape in it
_SEEN_SHARE = 0.5


class FrontendView:
    """The frontend's metrics of the last interval."""

    def __init__(self, spec: PlannerSpec) -> None:
        self._spec = spec
        window_ms = spec.throughput_adjustment_interval_ms
        self._series = ScrapeStore(keep_ms=2 * window_ms, lookback_ms=inf)  # ages: `is_stale`
        self._at_ms: list[float] = []  # the scrapes of the last interval
        self.arrivals = RecentArrivals(window_ms, spec.ttft_ms, spec.attainment_window_ms)
        self._in_time = _in_time_selector(spec.ttft_ms / 1e3)

    def take(self, seen: Observation) -> None:
        """Take in what was scraped."""
        for scrape in seen.scrapes:
            self._series.add(scrape)
            self._at_ms.append(scrape.at_ms)
            if self._spec.optimization_target == "sla":
                self._note_arrivals(scrape.at_ms)
        oldest_ms = seen.now_ms - self._spec.throughput_adjustment_interval_ms
        del self._at_ms[: bisect_left(self._at_ms, oldest_ms)]

    def _note_arrivals(self, at_ms: float) -> None:
        """What this scrape tells of single requests, where it tells of any."""
        came = self._series.sum(names.INPUT_TOKENS + "_count", at_ms)
        if came is None:
            return
        first_tokens = self._series.sum(names.TTFT + "_count", at_ms) or 0.0
        in_time = self._series.sum(self._in_time, at_ms) if self._in_time else None
        self.arrivals.note(at_ms, came, first_tokens, first_tokens if in_time is None else in_time)

    def age_ms(self, now_ms: float) -> float:
        """Age of the latest metrics; infinity: none came yet."""
        return self._series.age_ms(now_ms)

    def is_stale(self, now_ms: float, ask: Ask) -> bool:
        """Whether the frontend's metrics are too old to decide by; then the ask is held."""
        age_ms, limit_ms = self.age_ms(now_ms), self._spec.max_metric_age_ms
        if age_ms <= limit_ms:
            return False
        told = f"the last metrics are {age_ms / 1e3:.4g} s old, {limit_ms / 1e3:.4g} s at most"
        ask.hold(METRICS_STALE, told if age_ms < inf else "no metrics have come yet")
        return True

    def lately(
        self, now_ms: float, tail: float | None = None, *, mix_only: bool = False
    ) -> Traffic | None:
        """The traffic of the interval that ends now, as far as scrapes reach in it; see `traffic`.

        After an outage that is not far, but what came by second is right.
        """
        if len(self._at_ms) < 2:
            return None
        first_ms, last_ms = self._at_ms[0], self._at_ms[-1]
        window_ms = last_ms - first_ms + _OPEN_END_MS
        found = traffic(self._series, last_ms, window_ms, tail, mix_only=mix_only)
        return None if found is None else replace(found, age_ms=self.age_ms(now_ms))

    def is_interval_seen(self) -> bool:
        """Whether scrapes tell of most of the last interval."""
        seen_ms = self._at_ms[-1] - self._at_ms[0] if self._at_ms else 0.0
        return seen_ms >= _SEEN_SHARE * self._spec.throughput_adjustment_interval_ms

    def num_routing(self, now_ms: float) -> float:
        """Requests that wait for a worker to be chosen, at the last scrape."""
        return self._series.sum(f'{names.STAGE_REQUESTS}{{stage="route"}}', now_ms) or 0.0

    def num_active(self, now_ms: float) -> float:
        """Requests under way at the last scrape; 0 where it does not tell."""
        return self._series.sum(names.ACTIVE_REQUESTS, now_ms) or 0.0


def _in_time_selector(ttft_s: float) -> str | None:
    """The bucket that counts first tokens in time, by the first bound that is no less."""
    place = bisect_left(names.TTFT_BUCKETS, ttft_s)
    if place == len(names.TTFT_BUCKETS):
        return None
    return f'{names.TTFT}_bucket{{le="{names.le_text(names.TTFT_BUCKETS[place])}"}}'
