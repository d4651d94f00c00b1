"""Names of the numbers in a report, for those who must know them without making one.

A test holds the list equal to what `dynosim.metrics.summarize` writes.
"""

STATISTICS = ("mean", "min", "max", "median", "p75", "p90", "p95", "p99", "std")
METRICS = (
    "ttft_ms",
    "ttst_ms",
    "tpot_ms",
    "itl_ms",
    "e2e_latency_ms",
    "output_token_throughput_per_user",
)
SCALARS = (
    "num_requests",
    "completed_requests",
    "rejected_requests",
    "failed_requests",
    "unfinished_requests",
    "total_input_tokens",
    "total_output_tokens",
    "duration_ms",
    "request_throughput_rps",
    "input_throughput_tok_s",
    "output_throughput_tok_s",
    "total_throughput_tok_s",
    "output_tok_s_per_gpu",
    "total_tok_s_per_gpu",
    "num_gpus",
    "num_workers",
    "gpu_hours",
    "num_gpu_blocks",
    "peak_kv_usage_share",
    "worker_busy_share",
    "preemptions",
    "prefix_cache_reused_ratio",
    "committed_prefill_tokens",
    "mean_request_hit_rate",
    "requests_with_hit_share",
    "kv_read_write_ratio",
    "busiest_worker_request_share",
    "worker_request_cv",
    "router_overlap_ratio",
    "mean_overlap_error_tokens",
    "router_queued_requests",
    "mean_router_queue_ms",
    "p99_router_queue_ms",
    "refused_busy_requests",
    "refused_queue_full_requests",
    "index_blocks",
    "goodput_rps",
    "goodput_completed_requests",
    "goodput_output_throughput_tok_s",
    "sla_attainment",
    "gpu_hours_per_m_output_tokens",
    "gpu_hours_per_m_good_output_tokens",
    "gpu_hours_per_m_tokens",
    "timing_in_range_share",
    "timing_in_range_share_prefill_tokens",
    "timing_in_range_share_prefix_tokens",
    "timing_in_range_share_num_decodes",
    "timing_in_range_share_mean_context",
    "saturation_sustained_tok_s",
    "saturation_collapse_ms",
    "steady_request_throughput_rps",
    "steady_output_throughput_tok_s",
    "steady_output_tok_s_per_gpu",
    "steady_mean_itl_ms",
)
STEADY_STATISTICS = ("mean", "median", "p90", "p99")
STEADY_METRICS = ("ttft_ms", "tpot_ms", "e2e_latency_ms")


def known_report_keys() -> tuple[str, ...]:
    """Every number of a report that a sweep may seek to raise or lower."""
    steady = (f"steady_{s}_{m}" for m in STEADY_METRICS for s in STEADY_STATISTICS)
    return (*SCALARS, *(f"{s}_{m}" for m in METRICS for s in STATISTICS), *steady)


def is_report_key(key: str) -> bool:
    """Whether a report has the number `key`."""
    return key in known_report_keys()
