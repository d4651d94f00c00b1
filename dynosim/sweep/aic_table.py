"""Trials under the names of AIConfigurator's columns, beside our own.

As there, a row is a replica (here a worker) times `replicas`: rates, tokens, GPUs and requests in
flight are one replica's, `tokens/s/gpu_cluster` and `total_gpus_used` the cluster's. What it has a
column for and we have no number is empty; it is never a silent 0.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

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


def aic_table(sweep: SweepConfig, rows: Sequence[Row]) -> "pl.DataFrame":
    """The rows' trials, AIConfigurator's columns first, then all of ours."""
    import polars as pl

    cells = [aic_cells(row) for row in rows]
    columns = [pl.Series(name, [cell.get(name) for cell in cells]) for name in AIC_COLUMNS]
    return pl.DataFrame(columns).hstack(trials_table(sweep, rows).get_columns())


def aic_cells(row: Row) -> dict[str, Any]:
    """A trial's values of those columns of AIConfigurator's that we have a number for."""
    config, report = row.trial.config, row.report
    if config is None:
        return {}
    workers, tp = config.cluster.workers, config.engine.tensor_parallel
    dp, gpus = config.engine.data_parallel, config.engine.gpus_per_worker
    rps, e2e_ms = report.get("request_throughput_rps"), report.get("mean_e2e_latency_ms")
    in_flight = None if rps is None or e2e_ms is None else rps * e2e_ms / 1e3 / workers
    completed = report.get("completed_requests")
    isl = _share(report.get("total_input_tokens"), completed)
    tokens_s = _share(report.get("output_throughput_tok_s"), workers)
    timing = config.timing
    tables = timing if isinstance(timing, AiconfiguratorTiming) else None
    return {
        "model": config.model,
        "isl": isl,
        "osl": _share(report.get("total_output_tokens"), completed),
        "prefix": _times(isl, report.get("prefix_cache_reused_ratio")),
        "concurrency": in_flight,
        "request_rate": _share(rps, workers),
        "bs": in_flight,
        "global_bs": in_flight,
        "ttft": report.get("mean_ttft_ms"),
        "tpot": report.get("mean_tpot_ms"),
        "request_latency": e2e_ms,
        "seq/s": _share(rps, workers),
        "seq/s/gpu": _share(rps, workers * gpus),
        "tokens/s": tokens_s,
        "tokens/s/gpu": _share(tokens_s, gpus),
        "tokens/s/user": report.get("mean_output_token_throughput_per_user"),
        "num_total_gpus": gpus,
        "tp": tp,
        "pp": 1,
        "dp": dp,
        "parallel": f"tp{tp}pp1" + (f"dp{dp}" if dp > 1 else ""),
        "gemm": config.engine.quantization,
        "kvcache": config.engine.kv_cache_dtype,
        "backend": config.engine.kind if tables is None else tables.backend,
        "version": None if tables is None else tables.backend_version,
        "system": config.hardware,
        "tokens/s/gpu_cluster": report.get("output_tok_s_per_gpu"),
        "replicas": workers,
        "total_gpus_used": config.num_gpus,
    }


def _share(value: Any, of: Any) -> float | None:
    return None if value is None or not of else float(value) / float(of)


def _times(value: float | None, share: Any) -> float | None:
    return None if value is None or share is None else value * float(share)
