"""What an engine counts of its prefix cache, read from its Prometheus page."""

from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

from dynosim_runtime.errors import LiveError
from dynosim_runtime.measure.client import CompletionsClient

_QUERIES = "vllm:prefix_cache_queries_total"
_HITS = "vllm:prefix_cache_hits_total"
_CONFIG = "vllm:cache_config_info"
_SPEEDUP = "dynosim:mock_speedup"
_BUSY = ("vllm:num_requests_running", "vllm:num_requests_waiting")


@dataclass(frozen=True, slots=True)
class EngineCounters:
    """A reading. Tokens since the engine was started; requests now."""

    cache_queries_tokens: float
    cache_hits_tokens: float
    num_requests: float  # running and waiting
    cache_config: dict[str, str]  # block_size, num_gpu_blocks, enable_prefix_caching, ...
    speedup: float | None = None  # of a simulated engine

    def hit_rate_since(self, before: "EngineCounters") -> float | None:
        """Share of prompt tokens found in the cache since then; None without any prompt."""
        queries = self.cache_queries_tokens - before.cache_queries_tokens
        return (self.cache_hits_tokens - before.cache_hits_tokens) / queries if queries else None


async def read_counters(client: CompletionsClient) -> EngineCounters | None:
    """The counters of the server; None if it has none that we know (it is not an engine's)."""
    try:
        text = await client.get_text("/metrics")
    except LiveError:
        return None
    return parse_counters(text)


def parse_counters(text: str) -> EngineCounters | None:
    """The counters on a Prometheus page; None if they are not there, or it is no such page."""
    sums: dict[str, float] = {}
    config: dict[str, str] = {}
    try:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                sums[sample.name] = sums.get(sample.name, 0.0) + sample.value
                if sample.name == _CONFIG:
                    config = dict(sample.labels)
    except ValueError:
        return None
    if _QUERIES not in sums:
        return None
    return EngineCounters(
        cache_queries_tokens=sums[_QUERIES],
        cache_hits_tokens=sums.get(_HITS, 0.0),
        num_requests=sum(sums.get(name, 0.0) for name in _BUSY),
        cache_config=config,
        speedup=sums.get(_SPEEDUP),
    )
