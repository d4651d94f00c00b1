"""About how many requests a second a layout could carry at best: where a search for it begins."""

import numpy as np

from dynosim.build.engine import Prepared
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
    engine, times = prepared.engine, prepared.timing
    new_tokens = float(trace.input_tokens.mean()) * (1.0 - reusable_share(trace))
    outputs = float(trace.output_tokens.mean())
    context = float(trace.input_tokens.mean()) + outputs / 2
    budget = min(engine.max_num_batched_tokens, engine.max_model_len)
    prompt_ms = times.step_ms(StepShape.of_prompts(1, budget)) / budget * new_tokens
    seats = max(1, min(engine.max_num_seqs, int(engine.capacity_tokens / context)))
    step_ms = times.step_ms(StepShape.of_decodes(seats, int(seats * context)))
    busy_ms = prompt_ms + step_ms / seats * (outputs - 1.0)
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
