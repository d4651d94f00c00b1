"""About how many requests a second a layout could carry at best: where a search for it begins."""

import numpy as np

from dynosim.build.engine import Prepared
from dynosim.config.cluster import PoolRole
from dynosim.config.schema import RunConfig
from dynosim.records import Trace
from dynosim.timing.step import StepShape
from dynosim.workload.scaling import is_start

MS_PER_S = 1000.0


def rate_bound_rps(trace: Trace, prepared: Prepared, num_workers: int) -> float:
    """Requests per second of workers whose ranks are never idle and whose batches are always full.

    Prompts are computed in steps as large as the token budget, but for what an endless prefix cache
    would hold; tokens in steps of as many sequences as seats and blocks allow. Queues, waves of
    arrivals and mixed steps take their share of that.
    """
    busy_ms = _prompt_ms(trace, prepared) + _answer_ms(trace, prepared)
    return _rps(busy_ms, prepared, num_workers)


def plan_bound_rps(trace: Trace, config: RunConfig, prepared: Prepared) -> float:
    """Likewise of a whole cluster: where each phase has a pool, what the slower one takes."""
    cluster = config.cluster
    if prepared.prefill is None:
        return rate_bound_rps(trace, prepared, cluster.workers)
    return min(
        pool_bound_rps(trace, prepared.prefill, cluster.prefill.workers, role="prefill"),
        pool_bound_rps(trace, prepared, cluster.decode.workers, role="decode"),
    )


def pool_bound_rps(trace: Trace, prepared: Prepared, num_workers: int, *, role: PoolRole) -> float:
    """Likewise of workers that compute prompts only, or answers only."""
    busy_ms = _prompt_ms(trace, prepared) if role == "prefill" else _answer_ms(trace, prepared)
    return _rps(busy_ms, prepared, num_workers)


def _prompt_ms(trace: Trace, prepared: Prepared) -> float:
    """What a mean prompt takes of a rank."""
    engine = prepared.engine
    new_tokens = float(trace.input_tokens.mean()) * (1.0 - reusable_share(trace))
    budget = min(engine.max_num_batched_tokens, engine.max_model_len)
    return prepared.timing.step_ms(StepShape.of_prompts(1, budget)) / budget * new_tokens


def _answer_ms(trace: Trace, prepared: Prepared) -> float:
    """What a mean answer behind its first token takes of a rank."""
    engine, outputs = prepared.engine, float(trace.output_tokens.mean())
    context = float(trace.input_tokens.mean()) + outputs / 2
    seats = max(1, min(engine.max_num_seqs, int(engine.capacity_tokens / context)))
    step_ms = prepared.timing.step_ms(StepShape.of_decodes(seats, int(seats * context)))
    return step_ms / seats * (outputs - 1.0)


def _rps(busy_ms: float, prepared: Prepared, num_workers: int) -> float:
    return num_workers * prepared.ranks.number * MS_PER_S / busy_ms if busy_ms > 0 else float("inf")


def reusable_share(trace: Trace) -> float:
    """Of the prompt blocks that a trace names, the share that came up before."""
    num_ids = len(trace.hash_ids)
    return 1.0 - len(np.unique(trace.hash_ids)) / num_ids if num_ids else 0.0


def scheduled_rps(trace: Trace) -> float:
    """Requests per second of a trace's own load: all of them over the time in which sessions start.

    Infinite where all start at once.
    """
    return _over_starts(trace, len(trace))


def scheduled_sessions_per_s(trace: Trace) -> float:
    """Likewise the sessions that start per second."""
    return _over_starts(trace, int(is_start(trace).sum()))


def _over_starts(trace: Trace, number: int) -> float:
    starts_ms = trace.arrival_ms[is_start(trace)]
    span_ms = float(starts_ms.max() - starts_ms.min())
    return number * MS_PER_S / span_ms if span_ms > 0 else float("inf")
