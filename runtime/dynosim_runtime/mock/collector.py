"""What a mock engine counts, shown under the names of vLLM's metrics."""

from collections.abc import Iterator

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from dynosim_runtime.mock.engine import MockEngine
from dynosim_runtime.mock.stats import Histogram


class EngineCollector(Collector):
    """Shows an engine's state and counters to Prometheus."""

    def __init__(self, engine: MockEngine, model: str) -> None:
        self._engine = engine
        self._labels = {"model_name": model, "engine": "0"}

    def collect(self) -> Iterator[Metric]:
        """All metrics, now."""
        yield from self._gauges()
        yield from self._counters()
        yield from self._histograms()

    def _gauges(self) -> Iterator[Metric]:
        core, spec = self._engine.core, self._engine.spec
        used = core.used_blocks / spec.usable_blocks
        yield self._gauge("num_requests_running", "Requests in the batch", core.num_running)
        yield self._gauge("num_requests_waiting", "Requests in the queue", self._engine.num_waiting)
        yield self._gauge("kv_cache_usage_perc", "Share of KV blocks in use, 0 to 1", used)
        info = {
            "block_size": str(spec.block_size),
            "num_gpu_blocks": str(spec.num_gpu_blocks),
            "enable_prefix_caching": str(spec.enable_prefix_caching),
            "engine": "0",
        }
        family = GaugeMetricFamily(
            "dynosim:mock_speedup", "Times faster than its step times", labels=list(self._labels)
        )
        family.add_metric(list(self._labels.values()), self._engine.stats.speedup)
        yield family
        family = GaugeMetricFamily("vllm:cache_config_info", "KV cache", labels=list(info))
        family.add_metric(list(info.values()), 1)
        yield family

    def _counters(self) -> Iterator[Metric]:
        stats = self._engine.stats
        external = "vllm:external_prefix_cache_hits", "Tokens whose KV came from elsewhere"
        failed = "vllm:nixl_num_failed_transfers", "Transfers whose source was lost"
        preemptions = self._engine.core.num_preemptions
        for name, text, value in (
            ("vllm:num_preemptions", "Preemptions", preemptions),
            ("vllm:prefix_cache_queries", "Tokens looked up in the cache", stats.prefix_queries),
            ("vllm:prefix_cache_hits", "Tokens found in the cache", stats.prefix_hits),
            ("vllm:prompt_tokens", "Prompt tokens processed", stats.prompt_tokens),
            ("vllm:prompt_tokens_cached", "Prompt tokens from the cache", stats.cached_tokens),
            ("vllm:generation_tokens", "Tokens generated", stats.generation_tokens),
            *([(*external, stats.external_hits)] if self._engine.spec.takes_kv else []),
            *([(*failed, stats.num_failed_transfers)] if self._engine.spec.takes_kv else []),
            ("dynosim:mock_steps", "Engine steps completed", stats.num_steps),
            ("dynosim:mock_slipped_seconds", "Time lost to a slow machine", stats.slipped_s),
        ):
            family = CounterMetricFamily(name, text, labels=list(self._labels))
            family.add_metric(list(self._labels.values()), value)
            yield family
        family = CounterMetricFamily(
            "vllm:request_success", "Requests ended", labels=[*self._labels, "finished_reason"]
        )
        for reason, count in (stats.num_finished | {"abort": stats.num_aborted}).items():
            family.add_metric([*self._labels.values(), reason], count)
        yield family

    def _histograms(self) -> Iterator[Metric]:
        stats = self._engine.stats
        for name, text, histogram in (
            ("vllm:time_to_first_token_seconds", "Arrival to first token", stats.ttft),
            ("vllm:inter_token_latency_seconds", "Token to token", stats.itl),
            ("vllm:e2e_request_latency_seconds", "Arrival to last token", stats.e2e),
            *self._transfers(),
        ):
            family = HistogramMetricFamily(name, text, labels=list(self._labels))
            family.add_metric(list(self._labels.values()), *histogram.buckets())
            yield family

    def _transfers(self) -> list[tuple[str, str, Histogram]]:
        stats = self._engine.stats
        if not self._engine.spec.takes_kv:
            return []
        return [
            ("vllm:nixl_xfer_time_seconds", "Transfers of KV to here", stats.transfer),
            ("vllm:nixl_bytes_transferred", "Bytes of each of them", stats.transfer_bytes),
        ]

    def _gauge(self, name: str, text: str, value: float) -> Metric:
        family = GaugeMetricFamily(f"vllm:{name}", text, labels=list(self._labels))
        family.add_metric(list(self._labels.values()), value)
        return family
