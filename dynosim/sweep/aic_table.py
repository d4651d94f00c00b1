"""Trials under the names of AIConfigurator's columns, beside our own.

As there, a row is a replica (here a worker) times `replicas`: rates, tokens, GPUs and requests in
flight are one replica's, `tokens/s/gpu_cluster` and `total_gpus_used` the cluster's. What it has a
column for and we have no number is empty; it is never a silent 0.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dynosim.config.cluster import POOL_ROLES
from dynosim.config.schema import RunConfig
from dynosim.config.sweep_loading import SweepConfig
from dynosim.config.timing import AiconfiguratorTiming
from dynosim.sweep.results import Row, trials_table

if TYPE_CHECKING:
    import polars as pl

AIC_COLUMNS = (
    "model", "isl", "osl", "prefix", "concurrency", "request_rate", "bs", "global_bs", "ttft",
    "tpot", "request_latency", "seq/s", "seq/s/gpu", "tokens/s", "tokens/s/gpu", "tokens/s/user",
    "num_total_gpus", "tp", "pp", "dp", "moe_tp", "moe_ep", "parallel", "gemm", "kvcache", "fmha",
    "moe", "comm", "memory", "balance_score", "num_ctx_reqs", "num_gen_reqs", "num_tokens",
    "ctx_tokens", "gen_tokens", "backend", "version", "system", "power_w", "tokens/s/gpu_cluster",
    "replicas", "total_gpus_used",
)  # fmt: skip
"""Of its table of aggregated layouts, 2026."""
AIC_DISAGG_COLUMNS = (
    "model", "isl", "osl", "prefix", "concurrency", "request_rate", "(p)bs", "(p)global_bs",
    "(p)workers", "(d)bs", "(d)global_bs", "(d)workers", "ttft", "tpot", "request_latency",
    "encoder_latency", "seq/s", "seq/s/gpu", "tokens/s", "tokens/s/gpu", "tokens/s/user",
    "(p)seq/s/worker", "(d)seq/s/worker", "num_total_gpus", "(p)tp", "(p)pp", "(p)dp", "(p)moe_tp",
    "(p)moe_ep", "(p)cp", "(p)parallel", "(p)gemm", "(p)kvcache", "(p)fmha", "(p)moe", "(p)comm",
    "(p)memory", "(p)backend", "(p)version", "(p)system", "(d)tp", "(d)pp", "(d)dp", "(d)moe_tp",
    "(d)moe_ep", "(d)parallel", "(d)gemm", "(d)kvcache", "(d)fmha", "(d)moe", "(d)comm",
    "(d)memory", "(d)backend", "(d)version", "(d)system", "(e)workers", "(e)tp", "(e)pp", "(e)bs",
    "(e)parallel", "(e)memory", "power_w", "tokens/s/gpu_cluster", "replicas", "total_gpus_used",
)  # fmt: skip
"""Of its table of disaggregated ones."""


def aic_table(sweep: SweepConfig, rows: Sequence[Row]) -> "pl.DataFrame":
    """The rows' trials, AIConfigurator's columns first, then all of ours.

    Rows of both modes have the columns of both of its tables.
    """
    import polars as pl

    cells = [aic_cells(row) for row in rows]
    modes = {is_split_row(row) for row in rows} or {False}
    tables = (AIC_COLUMNS if False in modes else (), AIC_DISAGG_COLUMNS if True in modes else ())
    names = dict.fromkeys(name for table in tables for name in table)
    columns = [pl.Series(name, [cell.get(name) for cell in cells]) for name in names]
    return pl.DataFrame(columns).hstack(trials_table(sweep, rows).get_columns())


def is_split_row(row: Row) -> bool:
    """Whether a trial has a pool for each phase; one that cannot be run counts as aggregated."""
    return row.trial.config is not None and row.trial.config.cluster.is_disagg


def aic_cells(row: Row) -> dict[str, Any]:
    """A trial's values of those columns of AIConfigurator's that we have a number for."""
    config = row.trial.config
    if config is None:
        return {}
    if config.cluster.is_disagg:
        return _split_cells(row, config)
    report, workers = row.report, config.cluster.workers
    in_flight = _in_flight(report, "mean_e2e_latency_ms", workers)
    return {
        **_shared_cells(row, config, replicas=workers),
        **_pool_cells(config, ""),
        "concurrency": in_flight,
        "bs": in_flight,
        "global_bs": in_flight,
    }


def _split_cells(row: Row, config: RunConfig) -> dict[str, Any]:
    """Of a disaggregated cluster, which is one replica: any of its workers serves any other.

    `(p)bs` and `(d)bs` are the requests of a worker that wait for their first token, or have it.
    """
    report, rps = row.report, row.report.get("request_throughput_rps")
    prefill, decode = (config.for_pool(role) for role in POOL_ROLES)
    num_prefill, num_decode = prefill.cluster.workers, decode.cluster.workers
    in_flight = _in_flight(report, "mean_e2e_latency_ms", 1)
    before = _in_flight(report, "mean_ttft_ms", 1)
    after = None if in_flight is None or before is None else in_flight - before
    return {
        **_shared_cells(row, config, replicas=1),
        **_pool_cells(prefill, "(p)"),
        **_pool_cells(decode, "(d)"),
        "concurrency": in_flight,
        "(p)bs": _share(before, num_prefill),
        "(p)global_bs": _share(before, num_prefill),
        "(p)workers": num_prefill,
        "(p)seq/s/worker": _share(rps, num_prefill),
        "(d)bs": _share(after, num_decode),
        "(d)global_bs": _share(after, num_decode),
        "(d)workers": num_decode,
        "(d)seq/s/worker": _share(rps, num_decode),
    }


def _shared_cells(row: Row, config: RunConfig, *, replicas: int) -> dict[str, Any]:
    """What both tables have."""
    report, rps = row.report, row.report.get("request_throughput_rps")
    gpus = config.num_gpus // replicas
    completed = report.get("completed_requests")
    isl = _share(report.get("total_input_tokens"), completed)
    tokens_s = _share(report.get("output_throughput_tok_s"), replicas)
    return {
        "model": config.model,
        "isl": isl,
        "osl": _share(report.get("total_output_tokens"), completed),
        "prefix": _times(isl, report.get("prefix_cache_reused_ratio")),
        "request_rate": _share(rps, replicas),
        "ttft": report.get("mean_ttft_ms"),
        "tpot": report.get("mean_tpot_ms"),
        "request_latency": report.get("mean_e2e_latency_ms"),
        "seq/s": _share(rps, replicas),
        "seq/s/gpu": _share(rps, config.num_gpus),
        "tokens/s": tokens_s,
        "tokens/s/gpu": _share(tokens_s, gpus),
        "tokens/s/user": report.get("mean_output_token_throughput_per_user"),
        "num_total_gpus": gpus,
        "tokens/s/gpu_cluster": report.get("output_tok_s_per_gpu"),
        "replicas": replicas,
        "total_gpus_used": config.num_gpus,
    }


def _pool_cells(pool: RunConfig, role: str) -> dict[str, Any]:
    """A worker's engine, its columns behind the role."""
    tp, dp = pool.engine.tensor_parallel, pool.engine.data_parallel
    tables = pool.timing if isinstance(pool.timing, AiconfiguratorTiming) else None
    cells = {
        "tp": tp,
        "pp": 1,
        "dp": dp,
        "parallel": f"tp{tp}pp1" + (f"dp{dp}" if dp > 1 else ""),
        "gemm": pool.engine.quantization,
        "kvcache": pool.engine.kv_cache_dtype,
        "backend": pool.engine.kind if tables is None else tables.backend,
        "version": None if tables is None else tables.backend_version,
        "system": pool.hardware,
    }
    return {f"{role}{name}": value for name, value in cells.items()}


def _in_flight(report: Mapping[str, Any], latency: str, workers: int) -> float | None:
    """Requests in a latency's part of the system, each of so many (Little's law)."""
    rps, spent_ms = report.get("request_throughput_rps"), report.get(latency)
    return None if rps is None or spent_ms is None else rps * spent_ms / 1e3 / workers


def _share(value: Any, of: Any) -> float | None:
    return None if value is None or not of else float(value) / float(of)


def _times(value: float | None, share: Any) -> float | None:
    return None if value is None or share is None else value * float(share)
