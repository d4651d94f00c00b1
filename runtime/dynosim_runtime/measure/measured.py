"""A measured load in the twin's form: the same table and report, made by the same code."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dynosim.metrics.report import summarize
from dynosim.metrics.tables import RECORD_FIELDS
from dynosim.records import (
    FloatArray,
    IntArray,
    RequestLog,
    RequestStatus,
    RunResult,
    StepLog,
    WorkerLog,
)
from dynosim.timing.formulas import FixedModel
from dynosim_runtime.measure.load import LoadRun
from dynosim_runtime.requests import RequestRecord

if TYPE_CHECKING:
    import polars as pl

STATUSES = {
    "completed": RequestStatus.COMPLETED,
    "rejected": RequestStatus.REJECTED,
    "failed": RequestStatus.FAILED,
    "cancelled": RequestStatus.UNFINISHED,
    "unfinished": RequestStatus.UNFINISHED,
}

_TEXTS = ("request_id", "session_id", "status", "error")
_COUNTS = (
    "input_tokens",
    "output_tokens",
    "cached_tokens",
    "onboarded_tokens",
    "prefill_worker_id",
    "decode_worker_id",
    "preemptions",
    "migrations",
    "prefill_dp_rank",
    "decode_dp_rank",
)

ENGINE_KEYS: tuple[str, ...] = (
    "num_gpu_blocks",
    "block_size",
    "peak_kv_usage_share",
    "worker_busy_share",
    "num_steps",
    "preemptions",
    "committed_prefill_tokens",
    "num_scheduling_events",
    "simulate_wall_ms",
    "core",
    "router_overlap_ratio",
    "kv_read_write_ratio",
    "timing_source",
    "timing_description",
    "timing_notes",
    "timing_in_range_share",
    "timing_in_range_share_prefill_tokens",
    "timing_in_range_share_prefix_tokens",
    "timing_in_range_share_num_decodes",
    "timing_in_range_share_mean_context",
    "saturation_sustained_tok_s",
    "saturation_collapse_ms",
    "steady_output_throughput_tok_s",
    "steady_output_tok_s_per_gpu",
)
"""Keys of the report that tell of engine steps, which a client does not see."""


def record_table(records: list[RequestRecord]) -> "pl.DataFrame":
    """One row per request, columns as in `dynosim.metrics.tables.request_table`."""
    import polars as pl

    tpot_ms = [record.tpot_ms for record in records]
    columns: dict[str, list[Any]] = {"itl_mean_ms": tpot_ms, "tpot_ms": tpot_ms}
    for name in RECORD_FIELDS:
        if name not in columns:
            columns[name] = [getattr(record, name) for record in records]
    types: dict[str, Any] = dict.fromkeys(RECORD_FIELDS, pl.Float64)
    types |= dict.fromkeys(_TEXTS, pl.String) | dict.fromkeys(_COUNTS, pl.Int64)
    return pl.DataFrame(
        {name: pl.Series(name, columns[name], dtype=types[name]) for name in RECORD_FIELDS}
    ).with_columns(pl.col(pl.Float64).fill_nan(None))


def write_records(records: list[RequestRecord], parquet: Path, jsonl: Path) -> None:
    """Write the records as Parquet and as JSON lines."""
    table = record_table(records)
    table.write_parquet(parquet)
    table.write_ndjson(jsonl)


def request_log(run: LoadRun) -> RequestLog:
    """The records in columns."""
    records = run.records
    second_ms = [times[1] if len(times) > 1 else np.nan for times in run.token_ms]
    first_ms = _times(records, "first_token_ms")
    waits_ms = _times(records, "prefill_wait_time_ms")
    arrival_ms = _times(records, "arrival_ms")
    return RequestLog(
        arrival_ms=arrival_ms,
        dispatch_ms=_times(records, "dispatch_ms"),
        scheduled_ms=np.where(np.isnan(waits_ms), first_ms, arrival_ms + waits_ms),
        first_token_ms=first_ms,
        second_token_ms=np.array(second_ms, dtype=np.float64),
        finish_ms=_times(records, "finish_ms"),
        input_tokens=_counts(records, "input_tokens"),
        output_tokens=_counts(records, "output_tokens"),
        cached_tokens=_counts(records, "cached_tokens"),
        worker_id=_worker_numbers(records),
        preemptions=_counts(records, "preemptions"),
        migrations=_counts(records, "migrations"),
        status=np.array([int(STATUSES[record.status]) for record in records], dtype=np.int64),
        errors={i: record.error for i, record in enumerate(records) if record.error is not None},
    )


def measured_report(
    run: LoadRun, *, num_workers: int = 1, gpus_per_worker: int = 1, sla: Any = None
) -> dict[str, Any]:
    """The report of a measured load: keys and definitions of `dynosim.metrics.summarize`.

    Keys that only an engine knows (`ENGINE_KEYS`) are left out. Without a wait told by the server
    a request counts as scheduled when its first token came, which `saturation_*` goes by.
    """
    log = request_log(run)
    result = RunResult(
        requests=log,
        steps=_no_steps(),
        stalled_gaps_ms=run.gaps_ms,
        workers=WorkerLog.equal(num_workers, gpus=gpus_per_worker),
        block_size=1,
        end_ms=_last_ms(log),
        num_preemptions=0,
        num_scheduling_events=0,
        simulate_wall_ms=0.0,
    )
    # No step is left for a model to time: every gap is given as it was measured.
    report = summarize(result, FixedModel(0.0, 0.0), sla=sla, wall_time_ms=result.end_ms)
    report = {key: value for key, value in report.items() if key not in ENGINE_KEYS}
    report["prefix_cache_reused_ratio"] = cache_hit_rate(run)
    report["first_admission_prefix_cache_reused_ratio"] = report["prefix_cache_reused_ratio"]
    return report


def cache_hit_rate(run: LoadRun) -> float | None:
    """Cached over all prompt tokens of completed requests; else the engine's own count, if any."""
    done = [record for record in run.records if record.status == "completed"]
    known = [record for record in done if record.cached_tokens is not None]
    if known and len(known) == len(done):
        cached = sum(record.cached_tokens or 0 for record in known)
        return cached / sum(record.input_tokens for record in known)
    return run.cache_hit_rate


def _times(records: list[RequestRecord], name: str) -> FloatArray:
    values = (getattr(record, name) for record in records)
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def _counts(records: list[RequestRecord], name: str) -> IntArray:
    return np.array([getattr(record, name) or 0 for record in records], dtype=np.int64)


def _worker_numbers(records: list[RequestRecord]) -> IntArray:
    """Workers numbered from 0 in the order of their ids; 0 where the server does not tell."""
    ids = [record.decode_worker_id for record in records]
    known = sorted({worker for worker in ids if worker is not None})
    number = {worker: index for index, worker in enumerate(known)}
    return np.array([0 if i is None else number[i] for i in ids], dtype=np.int64)


def _last_ms(log: RequestLog) -> float:
    known = log.finish_ms[~np.isnan(log.finish_ms)]
    return float(known.max()) if len(known) else 0.0


def _no_steps() -> StepLog:
    none, nothing = np.zeros(0), np.zeros(0, dtype=np.int64)
    return StepLog(
        worker_id=nothing,
        start_ms=none,
        duration_ms=none,
        num_steps=nothing,
        num_prefills=nothing,
        prefill_tokens=nothing,
        prefix_tokens=nothing,
        num_decodes=nothing,
        decode_context_tokens=nothing,
        num_running=nothing,
        num_waiting=nothing,
        used_blocks=nothing,
    )
