"""The request table: one record per request, with the fields that the live layer writes too."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dynosim.blocks.tier import Tier
from dynosim.metrics.handoffs import handoff_ms, prefill_time_ms, transfer_ms
from dynosim.metrics.report import Latencies
from dynosim.metrics.tiers import onboard_ms
from dynosim.records import IntArray, KvEventLog, RequestLog, RequestStatus, RunResult, Trace

if TYPE_CHECKING:
    import polars as pl

RECORD_FIELDS: tuple[str, ...] = (
    "request_id",
    "session_id",
    "arrival_ms",
    "dispatch_ms",
    "first_token_ms",
    "finish_ms",
    "input_tokens",
    "output_tokens",
    "cached_tokens",
    "prefill_worker_id",
    "decode_worker_id",
    "prefill_wait_time_ms",
    "prefill_time_ms",
    "transfer_ms",
    "handoff_ms",
    "onboarded_tokens",
    "onboard_ms",
    "ttft_ms",
    "itl_mean_ms",
    "tpot_ms",
    "e2e_ms",
    "preemptions",
    "migrations",
    "status",
    "error",
    "prefill_dp_rank",
    "decode_dp_rank",
    "kv_hit_rate",
    "total_time_ms",
)


def request_table(result: RunResult, trace: Trace) -> "pl.DataFrame":
    """One row per request in trace order, columns RECORD_FIELDS; null where a value does not exist.

    `prefill_wait_time_ms` is from arrival to the start of the first step that computed one of the
    request's tokens, `prefill_time_ms` from there to the end of its prompt, `handoff_ms` from there
    to the first token, where that comes from a decode worker: they add up to `ttft_ms`.
    `transfer_ms` is the part of a handoff in which KV was on its way; `onboard_ms` that of the wait
    in which `onboarded_tokens` of the prompt were loaded from slower memory. `itl_mean_ms` equals
    `tpot_ms`: a mean over the gaps of one request. One worker does both phases in an aggregated
    cluster, and of what a decode worker computes itself: the last that had the request.
    `output_tokens` are those produced, not those asked for. The last four are named as answers'
    `nvext` has it: `total_time_ms` is `e2e_ms`, ranks are those of the workers' ids, which number
    all ranks of a cluster, and `kv_hit_rate` is the share of the prompt that a router took to be
    cached; null where none kept an index.
    """
    import polars as pl

    log = result.requests
    latencies = Latencies.of(log)
    worker_id = pl.Series(log.worker_id, dtype=pl.Int64)
    worker_id = worker_id.set(worker_id < 0, None)
    prefill_worker_id, num_ranks = (
        _prefill_worker_id(log, worker_id),
        result.workers.ranks_per_worker,
    )
    columns: dict[str, pl.Series | NDArray[np.float64] | IntArray | list[str | None]] = {
        "request_id": _request_ids(trace),
        "session_id": _session_ids(trace),
        "arrival_ms": log.arrival_ms,
        "dispatch_ms": log.dispatch_ms,
        "first_token_ms": log.first_token_ms,
        "finish_ms": log.finish_ms,
        "input_tokens": log.input_tokens,
        "output_tokens": log.output_tokens,
        "cached_tokens": log.cached_tokens,
        "prefill_worker_id": prefill_worker_id,
        "decode_worker_id": worker_id,
        "prefill_wait_time_ms": log.scheduled_ms - log.arrival_ms,
        "prefill_time_ms": prefill_time_ms(log),
        "transfer_ms": transfer_ms(log),
        "handoff_ms": handoff_ms(log),
        "onboarded_tokens": _onboarded_tokens(log),
        "onboard_ms": onboard_ms(log),
        "ttft_ms": latencies.ttft_ms,
        "itl_mean_ms": latencies.tpot_ms,
        "tpot_ms": latencies.tpot_ms,
        "e2e_ms": latencies.e2e_ms,
        "preemptions": log.preemptions,
        "migrations": log.migrations,
        "status": _status_names(log.status),
        "error": [log.errors.get(index) for index in range(len(log.status))],
        "prefill_dp_rank": prefill_worker_id % num_ranks,
        "decode_dp_rank": worker_id % num_ranks,
        "kv_hit_rate": _kv_hit_rate(result),
        "total_time_ms": latencies.e2e_ms,
    }
    text = dict.fromkeys(("request_id", "session_id", "status", "error"), pl.String)
    return pl.DataFrame(
        {name: columns[name] for name in RECORD_FIELDS}, schema_overrides=text, nan_to_null=True
    )


def _onboarded_tokens(log: RequestLog) -> "pl.Series":
    import polars as pl

    if log.onboards is None:
        return pl.Series([None] * len(log.status), dtype=pl.Int64)
    return pl.Series(log.onboards.num_tokens, dtype=pl.Int64)


def _kv_hit_rate(result: RunResult) -> "pl.Series | NDArray[np.float64]":
    import polars as pl

    log, routing = result.requests, result.routing
    if routing is None:
        return pl.Series([None] * len(log.status), dtype=pl.Float64)
    cached_tokens = np.rint(routing.overlap_blocks * result.block_size)
    share = np.minimum(cached_tokens / log.input_tokens, 1.0)
    return np.where(np.isnan(log.dispatch_ms), np.nan, share)


def _prefill_worker_id(log: RequestLog, worker_id: "pl.Series") -> "pl.Series":
    import polars as pl

    if log.handoffs is None:
        return worker_id
    ours = pl.Series(log.handoffs.prefill_worker_id, dtype=pl.Int64)
    return ours.zip_with(ours >= 0, worker_id)


def event_table(log: KvEventLog) -> "pl.DataFrame":
    """KV events in order of workers' telling: time, worker, blocks stored (+) or evicted (-).

    Where there are tiers slower than devices, also the tier.
    """
    import polars as pl

    columns: dict[str, Any] = {
        "time_ms": log.time_ms, "worker_id": log.worker_id, "num_blocks": log.num_blocks
    }  # fmt: skip
    if log.tier is not None:
        columns["tier"] = [Tier(tier).name.lower() for tier in log.tier.tolist()]
    return pl.DataFrame(columns)


def _request_ids(trace: Trace) -> list[str | None]:
    if trace.request_ids is not None:
        return list(trace.request_ids)
    return [str(index) for index in range(len(trace))]


def _session_ids(trace: Trace) -> list[str | None]:
    return [None] * len(trace) if trace.session_ids is None else list(trace.session_ids)


def _status_names(status: IntArray) -> list[str | None]:
    names = {int(member): member.name.lower() for member in RequestStatus}
    return [names[code] for code in status.tolist()]
