"""What came, and how it was served, in a window before now: from the frontend's own metrics."""

from dataclasses import dataclass
from math import isfinite

import msgspec
from msgspec.structs import replace

from dynosim.planner import frontend_metrics as names
from dynosim.planner.engine_model import RequestMix
from dynosim.planner.series import ScrapeStore

_TOGETHER = f'{names.ITL}_bucket{{le="{names.le_text(names.ITL_BUCKETS[0])}"}}'
"""Tokens that came with the one before: speculative decoding delivers several at a time."""


class Traffic(msgspec.Struct, frozen=True):
    """A window's requests as means, and latencies; what nothing was observed of is None.

    `num_requests` are those that came, `rps` that by second of the window. `isl` is of those,
    `osl` of those that ended. `ttft_ms` and `itl_ms` are means, with `_tail` the asked percentile.
    `num_active`: requests under way, at the last scrape. `age_ms`: of that scrape.
    """

    age_ms: float
    num_requests: float
    rps: float
    isl: float | None = None
    osl: float | None = None
    hit_rate: float | None = None
    accept_length: float | None = None
    ttft_ms: float | None = None
    itl_ms: float | None = None
    ttft_ms_tail: float | None = None
    itl_ms_tail: float | None = None
    num_active: float | None = None

    def figures(self) -> dict[str, float]:
        """What is known, by name."""
        known = {name: getattr(self, name) for name in self.__struct_fields__}
        return {name: float(value) for name, value in known.items() if value is not None}


def traffic(
    series: ScrapeStore,
    now_ms: float,
    window_ms: float,
    tail: float | None = None,
    *,
    mix_only: bool = False,
) -> Traffic | None:
    """The traffic of a window; None if no counter was scraped in it twice.

    Counters that began again, with their process, are followed. `tail` is the quantile of the
    latencies with `_tail`, from their buckets; None, where nobody asks, saves the time, as does
    `mix_only`: nothing is told of latencies and of who is under way.
    """
    num_requests = series.increase(names.INPUT_TOKENS + "_count", window_ms, now_ms)
    if num_requests is None:
        return None
    mix = Traffic(
        age_ms=series.age_ms(now_ms),
        num_requests=num_requests,
        rps=num_requests / window_ms * 1e3,
        isl=_told(series.mean(names.INPUT_TOKENS, window_ms, now_ms)),
        osl=_told(series.mean(names.OUTPUT_TOKENS, window_ms, now_ms)),
        hit_rate=_hit_rate(series, now_ms, window_ms),
        accept_length=_accept_length(series, now_ms, window_ms),
    )
    if mix_only:
        return mix
    return replace(
        mix,
        ttft_ms=_ms(series.mean(names.TTFT, window_ms, now_ms)),
        itl_ms=_ms(series.mean(names.ITL, window_ms, now_ms)),
        ttft_ms_tail=_tail(series, tail, names.TTFT, now_ms, window_ms),
        itl_ms_tail=_tail(series, tail, names.ITL, now_ms, window_ms),
        num_active=series.sum(names.ACTIVE_REQUESTS, now_ms),
    )


@dataclass(slots=True)
class LastMix:
    """The last that was known of requests: a window in which nobody came changes nothing."""

    isl: float | None = None
    osl: float | None = None
    hit_rate: float = 0.0
    accept_length: float = 1.0

    def take(self, seen: Traffic, most_accepted: int) -> None:
        """Take in a window; `most_accepted`: tokens that a step can yield for a sequence."""
        self.isl = self.isl if seen.isl is None else seen.isl
        self.osl = self.osl if seen.osl is None else seen.osl
        if seen.hit_rate is not None:
            self.hit_rate = seen.hit_rate
        if seen.accept_length is not None:
            self.accept_length = min(float(most_accepted), max(1.0, seen.accept_length))

    def mix(self) -> RequestMix | None:
        """As a mix; None before any request was seen. Before one has ended its answer counts 1."""
        if self.isl is None:
            return None
        osl = 1.0 if self.osl is None else max(1.0, self.osl)
        return RequestMix(max(1.0, self.isl), osl, self.hit_rate, self.accept_length)


def _hit_rate(series: ScrapeStore, now_ms: float, window_ms: float) -> float | None:
    """Cached prompt tokens by all. What engines report goes before what the router took."""
    prompts = series.increase(names.PROMPT_TOKENS + "_total", window_ms, now_ms)
    if not prompts:
        return None
    cached = series.increase(names.ENGINE_CACHED_TOKENS + "_total", window_ms, now_ms)
    if not cached:
        cached = series.increase(names.ROUTER_CACHED_TOKENS + "_total", window_ms, now_ms)
    return None if cached is None else min(1.0, cached / prompts)


def _accept_length(series: ScrapeStore, now_ms: float, window_ms: float) -> float | None:
    """Tokens by deliveries, as gaps tell of them."""
    tokens = series.increase(names.ITL + "_count", window_ms, now_ms)
    together = series.increase(_TOGETHER, window_ms, now_ms)
    if tokens is None or together is None or tokens <= together:
        return None
    return tokens / (tokens - together)


def _tail(
    series: ScrapeStore, tail: float | None, histogram: str, now_ms: float, window_ms: float
) -> float | None:
    if tail is None:
        return None
    return _ms(series.histogram_quantile(tail, histogram, window_ms, now_ms))


def _told(value: float | None) -> float | None:
    return value if value is not None and isfinite(value) else None


def _ms(seconds: float | None) -> float | None:
    value = _told(seconds)
    return None if value is None else value * 1e3
