"""Published case of tiers: what four compute, one computes and three load if they share a store."""

from dataclasses import replace

from dynosim.cluster import ClusterSpec, PoolSpec, simulate
from dynosim.compare.case_kit import Outcome, equal, large_engine, near, prompts
from dynosim.engine.spec import HostCacheSpec
from dynosim.memory.tiers import Scope, TierName, TierSpec, TiersSpec
from dynosim.records import RunResult
from dynosim.timing.formulas import LinearModel

BLOCK, PREFIX_BLOCKS, AGENTS = 16, 2000, 4
PREFIX = BLOCK * PREFIX_BLOCKS
_BYTES_PER_TOKEN = 131_072  # Llama-3.1-8B, of which the published step times are
_TOKEN_MS = 0.0216  # of prefill there (V1)
_TIMES = LinearModel(
    base_ms=0.0, per_prefill_token_ms=_TOKEN_MS, per_decode_ms=1.0, per_context_token_ms=0.0
)
_PUBLISHED_GB_S, _SLOW_GB_S = 9.6, 3.0


def one_compute_three_loads() -> list[Outcome]:
    """Prefills and loads with and without a store that all share, and when a load pays."""
    alone = _run("host", "worker", _PUBLISHED_GB_S)
    shared = _run("remote", "cluster", _PUBLISHED_GB_S)
    chosen = _run("remote", "cluster", _PUBLISHED_GB_S, is_choosy=True)
    slow = _run("remote", "cluster", _SLOW_GB_S, is_choosy=True)
    own = AGENTS * BLOCK  # the last block is everyone's own
    times_ms = shared.requests.first_token_ms - shared.requests.arrival_ms
    load_ms = PREFIX * _BYTES_PER_TOKEN / (_PUBLISHED_GB_S * 1e6)
    return [
        equal("prefix tokens computed, no shared tier", AGENTS * PREFIX, _computed(alone) - own),
        equal("prefix tokens computed, shared store", PREFIX, _computed(shared) - own),
        equal("prefix tokens loaded", (AGENTS - 1) * PREFIX, _loaded(shared)),
        near("TTFT of who computes, to who loads, at 9.6 GB/s (derived: 21.6 to 13.7 us a token)",
             PREFIX * _TOKEN_MS / load_ms, float(times_ms[0] / times_ms[1]), 0.01),
        equal("loaded where only what is sooner there is: 9.6 GB/s", (AGENTS - 1) * PREFIX,
              _loaded(chosen)),
        equal("... 3 GB/s", 0, _loaded(slow)),
    ]  # fmt: skip


def _run(name: TierName, scope: Scope, gb_s: float, *, is_choosy: bool = False) -> RunResult:
    """Sub-agents on workers of their own, each a while after the one before."""
    tier = TierSpec(name=name, num_blocks=100_000, read_gb_s=gb_s, write_gb_s=gb_s, scope=scope)
    engine = replace(large_engine(), host_cache=HostCacheSpec(num_chunks=tier.num_blocks))
    tiers = TiersSpec(tiers=(tier,), block_bytes=BLOCK * _BYTES_PER_TOKEN, is_choosy=is_choosy)
    pool = PoolSpec(engine=engine, times=_TIMES, workers=AGENTS, tiers=tiers)
    shared = list(range(PREFIX_BLOCKS))
    ids = [[*shared, 10_000 + agent] for agent in range(AGENTS)]
    trace = prompts(ids, block_tokens=BLOCK, outputs=1, gap_ms=10_000.0)
    return simulate(trace, ClusterSpec(pools=(pool,)))


def _computed(result: RunResult) -> int:
    return int(result.steps.prefill_tokens.sum())


def _loaded(result: RunResult) -> int:
    assert result.requests.onboards is not None
    return int(result.requests.onboards.num_tokens.sum())
