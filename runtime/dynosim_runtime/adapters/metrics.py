"""How busy an engine is, from the text that its /metrics answers; each engine has its own names."""

from collections import defaultdict

import msgspec
from prometheus_client.parser import text_string_to_metric_families

from dynosim_runtime.card import EngineKind


class EngineLoad(msgspec.Struct, frozen=True, kw_only=True):
    """An engine's own figures, over all of its ranks; None where it does not tell."""

    num_running: int | None = None  # requests in the batch
    num_waiting: int | None = None  # requests not in it
    kv_usage: float | None = None  # share of KV blocks in use, mean over ranks
    prefix_hit_tokens: int | None = None  # since its start, as the next
    prefix_query_tokens: int | None = None
    preemptions: int | None = None

    @property
    def num_requests(self) -> int | None:
        """Requests in flight; None if it does not tell."""
        if self.num_running is None or self.num_waiting is None:
            return None
        return self.num_running + self.num_waiting


UNTOLD = "(none)"


class _Names(msgspec.Struct, frozen=True, kw_only=True):
    """One engine's names for the figures; a counter's without `_total`."""

    running: str
    waiting: str
    usage: str
    hits: str = UNTOLD
    queries: str = UNTOLD
    preemptions: str = UNTOLD


VLLM = _Names(
    running="vllm:num_requests_running",
    waiting="vllm:num_requests_waiting",
    usage="vllm:kv_cache_usage_perc",
    hits="vllm:prefix_cache_hits",
    queries="vllm:prefix_cache_queries",
    preemptions="vllm:num_preemptions",
)
NAMES: dict[EngineKind, _Names] = {
    "vllm": VLLM,
    "mock": VLLM,
    "sglang": _Names(
        running="sglang:num_running_reqs",
        waiting="sglang:num_queue_reqs",
        usage="sglang:token_usage",
        hits="sglang:cached_tokens",
        queries="sglang:prompt_tokens",
        preemptions="sglang:num_retracted_requests",
    ),
    "trtllm": _Names(  # it counts reused blocks, not tokens
        running="trtllm_num_requests_running",
        waiting="trtllm_num_requests_waiting",
        usage="trtllm_kv_cache_utilization",
    ),
}


def parse_load(kind: EngineKind, text: str) -> EngineLoad:
    """The figures in Prometheus text. Raises: ValueError if it is no such text."""
    names = NAMES[kind]
    values = metric_values(text, msgspec.structs.astuple(names))

    def total(name: str) -> int | None:
        return int(sum(values[name])) if values[name] else None

    usage = values[names.usage]
    return EngineLoad(
        num_running=total(names.running),
        num_waiting=total(names.waiting),
        kv_usage=sum(usage) / len(usage) if usage else None,
        prefix_hit_tokens=total(names.hits),
        prefix_query_tokens=total(names.queries),
        preemptions=total(names.preemptions),
    )


def metric_values(text: str, names: tuple[str, ...]) -> dict[str, list[float]]:
    """The samples of gauges and counters by name; empty lists for what is not there."""
    values: dict[str, list[float]] = defaultdict(list)
    for family in text_string_to_metric_families(_lines_of(text, names)):
        for sample in family.samples:
            name = sample.name.removesuffix("_total")
            if name in names:
                values[name].append(sample.value)
    return values


def metric_labels(text: str, name: str) -> dict[str, str]:
    """The labels of a metric's first sample. Raises: ValueError if it is not there."""
    for family in text_string_to_metric_families(_lines_of(text, (name,))):
        for sample in family.samples:
            return dict(sample.labels)
    raise ValueError(f"no metric {name}")


def _lines_of(text: str, names: tuple[str, ...]) -> str:
    """Only what is asked for is parsed: most of an engine's page is histograms."""
    return "".join(
        line + "\n"
        for line in text.splitlines()
        if line.startswith(names) and not line.split("{")[0].split(" ")[0].endswith("_created")
    )
