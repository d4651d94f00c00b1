"""Published gain of routing by caches: sessions that share prompts, kv against round-robin.

What was published names no workload, number of workers or baseline. So it is asked at which load of
a stated workload each of the published factors appears.
"""

from typing import NamedTuple

import numpy as np

from dynosim.cluster import ClusterSpec, PoolSpec, RunOptions, simulate
from dynosim.compare.case_kit import Outcome
from dynosim.engine.spec import EngineSpec
from dynosim.router.knobs import RouterSpec
from dynosim.router.spec import RoutingSpec
from dynosim.timing.formulas import LinearModel
from dynosim.workload.distributions import Distribution
from dynosim.workload.spec import SyntheticSpec
from dynosim.workload.synthetic import synthesize

WORKERS, COMMON_PROMPTS, COMMON_TOKENS, TURNS = 8, 64, 6000, 15
CLIENTS = (24, 64, 128, 192, 256, 320)
STATED_CLIENTS = 192
PUBLISHED_TTFT, PUBLISHED_THROUGHPUT = 2.0, 1.6
_SESSIONS_PER_CLIENT, _SEED = 2, 1
_ENGINE = EngineSpec(num_gpu_blocks=60_001, max_model_len=131_072, max_num_batched_tokens=8192)
_TIMES = LinearModel(
    base_ms=12.0, per_prefill_token_ms=0.05, per_decode_ms=0.2, per_context_token_ms=1e-5
)


class Gain(NamedTuple):
    """Round-robin's mean TTFT to kv's, and kv's output tokens a second to round-robin's."""

    ttft: float
    throughput: float


def gain_of_cache_routing() -> list[Outcome]:
    """What kv gains in TTFT and throughput, by clients in a closed loop."""
    gains = {clients: _gain_at(clients) for clients in CLIENTS}
    ttft = {clients: gain.ttft for clients, gain in gains.items()}
    throughput = {clients: gain.throughput for clients, gain in gains.items()}
    stated, of_all = STATED_CLIENTS, ", ".join(str(clients) for clients in CLIENTS)
    return [
        Outcome(f"TTFT, {stated} clients", "at least 1.5x", f"{ttft[stated]:.2f}x",
                ttft[stated] >= 1.5),
        Outcome(f"throughput, {stated} clients", "more than 1x", f"{throughput[stated]:.2f}x",
                throughput[stated] > 1),
        _never_worse(f"TTFT, {of_all} clients", ttft),
        _never_worse(f"throughput, {of_all} clients", throughput),
        _reached("TTFT", PUBLISHED_TTFT, ttft),
        _reached("throughput", PUBLISHED_THROUGHPUT, throughput),
    ]  # fmt: skip


def _gain_at(clients: int) -> Gain:
    """What kv gains with so many clients, each with a session after the other."""
    ttft_ms, rate = _measured("round-robin", clients)
    kv_ttft_ms, kv_rate = _measured("kv", clients)
    return Gain(ttft_ms / kv_ttft_ms, kv_rate / rate)


def _measured(mode: str, clients: int) -> tuple[float, float]:
    """Mean TTFT in ms, and output tokens per ms from the first arrival to the last token."""
    trace = synthesize(_sessions(clients), _SEED)
    pool = PoolSpec(engine=_ENGINE, times=_TIMES, workers=WORKERS)
    routing = RoutingSpec(RouterSpec(_ENGINE.block_size, mode=mode))
    cluster = ClusterSpec(pools=(pool,), routing=routing)
    log = simulate(trace, cluster, RunOptions(concurrency=clients)).requests
    ttft_ms = float(np.mean(log.first_token_ms - log.arrival_ms))
    return ttft_ms, float(log.output_tokens.sum() / log.finish_ms.max())


def _sessions(clients: int) -> SyntheticSpec:
    """Agents at work on code: long common prompts, many turns, short answers, short pauses."""
    return SyntheticSpec(
        sessions=_SESSIONS_PER_CLIENT * clients,
        arrival="closed",
        isl=Distribution("lognormal", mean=COMMON_TOKENS + 2000, std=800, min=COMMON_TOKENS + 500),
        turn_isl=Distribution("lognormal", mean=1500, std=800, min=20),
        osl=Distribution("lognormal", mean=150, std=100, min=10),
        turns=Distribution("geometric", mean=TURNS, max=40),
        think_time_ms=Distribution("exponential", mean=3000),
        shared_prefix_tokens=COMMON_TOKENS,
        prefix_groups=COMMON_PROMPTS,
        block_size=64,
    )


def _never_worse(claim: str, gains: dict[int, float]) -> Outcome:
    got = ", ".join(f"{gain:.2f}x" for gain in gains.values())
    return Outcome(claim, "more than 1x at each", got, min(gains.values()) > 1)


def _reached(what: str, published: float, gains: dict[int, float]) -> Outcome:
    """At which loads a published factor was reached."""
    loads = [str(clients) for clients, gain in gains.items() if gain >= published]
    got = ", ".join(loads) or f"nowhere (at most {max(gains.values()):.2f}x)"
    claim = f"clients at whose load {what} gains {published:g}x, as published"
    return Outcome(claim, "some of these", got, bool(loads))
