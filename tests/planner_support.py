"""What a planner is shown in tests: pools, reports, and a frontend that counts what comes."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from dynosim.planner import frontend_metrics as names
from dynosim.planner.decision import PoolDecision, ScalingDecision
from dynosim.planner.observation import (
    EngineReport,
    Observation,
    Pass,
    PoolCard,
    PoolState,
    Scrape,
    WorkerState,
)
from dynosim.timing.formulas import LinearModel
from dynosim.workers.lifecycle import Phase

LABELS = {"dynamo_namespace": "dynamo", "model": "m"}
_HISTOGRAMS = (names.TTFT, names.ITL, names.INPUT_TOKENS, names.OUTPUT_TOKENS)


def linear(
    base_ms: float = 10.0, prefill: float = 0.1, decode: float = 0.5, context: float = 0.0
) -> LinearModel:
    """Step times that can be worked out by hand."""
    return LinearModel(
        base_ms=base_ms,
        per_prefill_token_ms=prefill,
        per_decode_ms=decode,
        per_context_token_ms=context,
    )


def card(role: str = "agg", name: str | None = None, **limits: int) -> PoolCard:
    """A pool of one-GPU workers of 8 sequences, 1000 tokens a step and 10,000 of KV."""
    given = {
        "gpus_per_worker": 1,
        "max_num_seqs": 8,
        "max_num_batched_tokens": 1000,
        "max_kv_tokens": 10_000,
        "max_model_len": 2000,
    }
    return PoolCard(name=name or role, role=role, **{**given, **limits})


def pool_state(
    name: str, ready: int, starting: int = 0, draining: int = 0, wanted: int | None = None
) -> PoolState:
    """So many workers of each phase, numbered from 0, since the beginning."""
    phases = [Phase.READY] * ready + [Phase.STARTING] * starting + [Phase.DRAINING] * draining
    workers = tuple(WorkerState(index, phase, 0.0) for index, phase in enumerate(phases))
    return PoolState(name, ready + starting if wanted is None else wanted, workers)


def report(
    worker_id: int,
    pool: str = "agg",
    at_ms: float = 0.0,
    *,
    running: int = 0,
    waiting: int = 0,
    queued: int = 0,
    kv: int = 0,
    queued_kv: int = 0,
    passes: Sequence[Pass] = (),
) -> EngineReport:
    """An engine's report, idle where nothing is said."""
    return EngineReport(
        worker_id, pool, at_ms, running, waiting, queued, kv, queued_kv, 0.0, tuple(passes)
    )


@dataclass
class CountingFrontend:
    """A frontend's metrics: tell it what came, then scrape it."""

    cached_tokens: float = 0.0
    active: float = 0.0
    histograms: dict[str, names.BucketCounts] = field(
        default_factory=lambda: {
            name: names.BucketCounts(names.BUCKETS[name]) for name in _HISTOGRAMS
        }
    )

    def serve(
        self,
        num: int,
        *,
        isl: int = 100,
        osl: int = 10,
        cached: int = 0,
        ttft_ms: float = 50.0,
        itl_ms: float = 20.0,
        together: int = 1,
    ) -> None:
        """`num` requests came and ended; answers come `together` tokens at a time."""
        self.histograms[names.INPUT_TOKENS].observe(isl, num)
        self.histograms[names.OUTPUT_TOKENS].observe(osl, num)
        self.histograms[names.TTFT].observe(ttft_ms / 1e3, num)
        deliveries = num * osl // together
        self.histograms[names.ITL].observe(itl_ms / 1e3, deliveries)
        self.histograms[names.ITL].observe(0.0, num * osl - deliveries)
        self.cached_tokens += cached * num

    def scrape(self, at_ms: float) -> Scrape:
        """All metrics as they stand."""
        values = {
            names.sample_name(names.ACTIVE_REQUESTS, LABELS): self.active,
            names.sample_name(names.ROUTER_CACHED_TOKENS + "_total", LABELS): self.cached_tokens,
            names.sample_name(names.PROMPT_TOKENS + "_total", LABELS): self.histograms[
                names.INPUT_TOKENS
            ].total,
        }
        for name, counts in self.histograms.items():
            told = names.HistogramNames(name, LABELS)
            cumulative = counts.cumulative()
            values.update(zip(told.buckets, cumulative, strict=True))
            values[told.sum], values[told.count] = counts.total, cumulative[-1]
        return Scrape(at_ms, values)


def observation(
    now_ms: float,
    pools: Sequence[PoolState],
    scrapes: Sequence[Scrape] = (),
    reports: Sequence[EngineReport] = (),
) -> Observation:
    """What is seen at a moment."""
    return Observation(now_ms, tuple(pools), tuple(scrapes), tuple(reports))


def only(decision: ScalingDecision | None) -> PoolDecision:
    """The decision on the only pool."""
    assert decision is not None
    (pool,) = decision.pools
    return pool
