"""Published cache statistics of agents at work: leads, their sub-agents, and teams beside them."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from dynosim.cluster import ClusterSpec, PoolSpec, simulate
from dynosim.compare.case_kit import Outcome
from dynosim.engine.spec import EngineSpec, HostCacheSpec
from dynosim.memory.tiers import TierSpec, TiersSpec
from dynosim.metrics.request_classes import class_rows
from dynosim.records import IntArray, RunResult, Trace
from dynosim.router.knobs import AffinitySpec, RouterSpec
from dynosim.router.spec import RoutingSpec
from dynosim.timing.formulas import LinearModel
from dynosim.workload.agent_tasks import LEAD, SUB_AGENT, TEAMMATE
from dynosim.workload.agents import write_agents
from dynosim.workload.inspect import engine_cached_tokens, shared_prefixes

TASKS, WORKERS, SEED, BLOCK = 12, 512, 5, 16
STORE = TierSpec(
    name="remote", num_blocks=10_000_000, read_gb_s=1000.0, write_gb_s=1000.0, scope="cluster"
)
AGENTS = {"tasks": TASKS, "rate_rps": 2.0, "team_share": 1.0}
_TIMES = LinearModel(
    base_ms=5.0, per_prefill_token_ms=0.02, per_decode_ms=0.1, per_context_token_ms=1e-5
)


def agents_on_own_workers(trace: Trace, *, have_store: bool = False) -> RunResult:
    """A run in which sessions go to any worker and stay there, so that each starts a cold one.

    Sub-agents are of their lead's session and find its prompt, teammates are not. `have_store`: all
    workers share one, from which KV comes in next to no time.
    """
    engine = EngineSpec(num_gpu_blocks=60_001, max_model_len=262_144, max_num_batched_tokens=8192)
    tiers = None
    if have_store:
        engine = replace(engine, host_cache=HostCacheSpec(num_chunks=STORE.num_blocks))
        tiers = TiersSpec(tiers=(STORE,), block_bytes=1)
    affinity = AffinitySpec(ttl_ms=6e5)
    routing = RoutingSpec(RouterSpec(BLOCK, mode="random", affinity=affinity, seed=SEED))
    pool = PoolSpec(engine=engine, times=_TIMES, workers=WORKERS, tiers=tiers)
    return simulate(trace, ClusterSpec(pools=(pool,), routing=routing))


def agent_caches() -> list[Outcome]:
    """Hit rates per call and per token, and what is read for what is written, by class."""
    trace = write_agents(AGENTS, SEED)
    result = agents_on_own_workers(trace)
    rows = {row["request_class"]: row for row in class_rows(result, trace) or ()}
    cached = result.requests.cached_tokens
    shared = engine_cached_tokens(shared_prefixes(trace)[1], trace.input_tokens, BLOCK)
    sub, team = rows[SUB_AGENT], rows[TEAMMATE]
    gap = _per_call(sub) - _per_call(team)
    closed = _mean_hits(trace, shared, SUB_AGENT) - _mean_hits(trace, shared, TEAMMATE)
    stored = agents_on_own_workers(trace, have_store=True).requests.cached_tokens
    with_store = _mean_hits(trace, stored, SUB_AGENT) - _mean_hits(trace, stored, TEAMMATE)
    later = _later_hits(trace, cached, LEAD)
    return [
        _within("lead, per call after the first (published 85 to 97 %)", 0.85, 0.97, later),
        _within("sub-agents, per call (published 91.3 %)", 0.85, 0.97, _per_call(sub)),
        _within("teammates, per call (published 79.4 %)", 0.74, 0.85, _per_call(team)),
        Outcome("teammates find less than sub-agents (published 11.9 points)", "> 8 points",
                f"{100 * gap:.1f} points", gap > 0.08),
        Outcome("... for their first calls alone: later ones", "within 3 points",
                f"{_later_hits(trace, cached, TEAMMATE):.1%}",
                abs(_later_hits(trace, cached, TEAMMATE) - _per_call(sub)) < 0.03),
        Outcome("read per written token, sub-agents to teammates (published 11.7 to 5.0)",
                "> 1.5 times", f"{_ratio(sub):.1f} to {_ratio(team):.1f}",
                _ratio(sub) > 1.5 * _ratio(team)),
        Outcome("teammates, per token (5.0 read per written is 83.3 %, at 79.4 % per call)",
                "more than per call", f"{_per_token(team):.1%} against {_per_call(team):.1%}",
                _per_token(team) > _per_call(team) + 0.02),
        Outcome("one cache for all workers would close the gap", "< 3 points",
                f"{100 * closed:.1f} points", abs(closed) < 0.03),
        Outcome("a store that all workers share closes it", "< 3 points",
                f"{100 * with_store:.1f} points", abs(with_store) < 0.03),
    ]  # fmt: skip


def _per_call(row: Mapping[str, Any]) -> float:
    return float(row["mean_request_hit_rate"])


def _ratio(row: Mapping[str, Any]) -> float:
    return float(row["kv_read_write_ratio"])


def _within(claim: str, least: float, most: float, got: float) -> Outcome:
    return Outcome(claim, f"{least:.0%} to {most:.0%}", f"{got:.1%}", least <= got <= most)


def _per_token(row: Mapping[str, Any]) -> float:
    return float(row["prefix_cache_reused_ratio"])


def _mean_hits(trace: Trace, cached: IntArray, kind: str) -> float:
    mine = np.array(trace.classes) == kind
    return float((cached[mine] / trace.input_tokens[mine]).mean())


def _later_hits(trace: Trace, cached: IntArray, kind: str) -> float:
    """Mean hit of the calls of a kind that are not the first of their session."""
    assert trace.classes is not None and trace.session_ids is not None
    seen: set[str] = set()
    rows = []
    for row, (name, session) in enumerate(zip(trace.classes, trace.session_ids, strict=True)):
        if name == kind and session in seen:
            rows.append(row)
        seen.add(session)
    return float((cached[rows] / trace.input_tokens[rows]).mean())
