"""What a report says of requests that go from prefill to decode workers. All None without pools."""

from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynosim.metrics.lives import lived_shares
from dynosim.metrics.percentiles import summarize_sample
from dynosim.records import FloatArray, RequestLog, RunResult, WorkerLog

BoolArray = NDArray[np.bool_]

_ROLE_LETTERS = (("prefill", "P"), ("decode", "D"))


def layout(workers: WorkerLog) -> str:
    """The workers of the run's start in the field's short form: `2P1D`, or `4x` of equal ones."""
    at_start = [role for role, launched in zip(workers.role, workers.launched_ms, strict=True)
                if launched == 0]  # fmt: skip
    counts = Counter(at_start)
    if counts.keys() & {"prefill", "decode"}:
        return "".join(f"{counts[role]}{letter}" for role, letter in _ROLE_LETTERS)
    return f"{len(at_start) // workers.ranks_per_worker}x"


def transfer_ms(log: RequestLog) -> FloatArray:
    """From the beginning of a transfer, its set-up included, to its last byte."""
    if log.handoffs is None:
        return np.full(len(log.status), np.nan)
    return log.handoffs.transfer_end_ms - log.handoffs.transfer_start_ms


def handoff_ms(log: RequestLog) -> FloatArray:
    """From the end of a prefill to the first token, of requests that get it from a decode worker.

    So TTFT is the wait for the prefill, its time and this. NaN where the prefill worker's token is
    the first.
    """
    if log.handoffs is None:
        return np.full(len(log.status), np.nan)
    after_ms = log.first_token_ms - log.handoffs.prefill_end_ms
    return np.where(after_ms > 0, after_ms, np.nan)


def prefill_time_ms(log: RequestLog) -> FloatArray:
    """From the first step that computed a prompt's tokens to its end: the first token's, or that of
    the prefill worker."""
    whole_ms = log.first_token_ms - log.scheduled_ms
    return whole_ms - np.nan_to_num(handoff_ms(log))


def handoff_keys(result: RunResult, completed: BoolArray) -> dict[str, Any]:
    """Times of handoffs, what was moved, and how busy each pool was."""
    log, links = result.requests, result.links
    keys: dict[str, Any] = {"layout": layout(result.workers)}
    shares = {f"{role}_busy_share": _busy_share(result, role) for role, _ in _ROLE_LETTERS}
    for name, values in (("transfer_ms", transfer_ms(log)), ("handoff_ms", handoff_ms(log))):
        sample = summarize_sample(values[completed])
        keys |= {f"{part}_{name}": sample.statistics[part] for part in ("mean", "median", "p99")}
    if log.handoffs is None or links is None:
        return keys | shares | dict.fromkeys(
            ("kv_transfers", "cancelled_kv_transfers", "kv_bytes_moved", "local_prefill_share",
             "decode_held_ratio", "cross_generation_requests")
        )  # fmt: skip
    ours = log.handoffs
    inputs = int(log.input_tokens[completed].sum())
    return (
        keys
        | shares
        | {
            "kv_transfers": links.num_transfers,
            "cancelled_kv_transfers": links.num_cancelled,
            "kv_bytes_moved": links.bytes_received,
            "local_prefill_share": (ours.prefill_worker_id[completed] < 0).mean()
            if completed.any()
            else None,
            "decode_held_ratio": int(ours.held_tokens[completed].sum()) / inputs
            if inputs
            else None,
            "cross_generation_requests": _across_generations(result, completed),
        }
    )


def _across_generations(result: RunResult, completed: BoolArray) -> int | None:
    """Requests whose prompt workers before an update computed, and their answer those after it, or
    the other way round; None if there was no update."""
    generation, handoffs = result.workers.generation, result.requests.handoffs
    if generation is None or handoffs is None:
        return None
    went_over = completed & (handoffs.prefill_worker_id >= 0)
    prefill = generation[handoffs.prefill_worker_id[went_over]]
    return int((prefill != generation[result.requests.worker_id[went_over]]).sum())


def _busy_share(result: RunResult, role: str) -> float | None:
    """Part of the time of a role's workers in which a step ran; None without such."""
    workers, steps = result.workers, result.steps
    is_of_role = np.array([one == role for one in workers.role])
    if not is_of_role.any():
        return None
    lived = lived_shares(workers, 0.0, result.end_ms)[is_of_role]
    provisioned_ms = result.end_ms * float(lived.sum())
    busy_ms = float(steps.duration_ms[is_of_role[steps.worker_id]].sum())
    return busy_ms / provisioned_ms if provisioned_ms else None
