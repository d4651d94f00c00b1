"""Every key of a report: what it means, its unit, and whether it will stay as it is.

The one list of them, for those who must know a report without making one: a sweep that seeks a
number, `dynosim explain`, the published schema, the reference. A test holds it equal to what
`dynosim.metrics.summarize` writes. A stable key keeps its name and meaning; an experimental one may
change with any version.
"""

from collections.abc import Iterator
from typing import NamedTuple

NUMBER, INTEGER, TEXT, BOOLEAN, LIST, SECTION = (
    "number",
    "integer",
    "string",
    "boolean",
    "array",
    "object",
)
"""What a key holds, in JSON Schema's words."""


class ReportKey(NamedTuple):
    """One key. `is_sought`: it is a number that a sweep may seek to raise or lower."""

    name: str
    unit: str  # empty: none
    meaning: str
    kind: str = NUMBER
    is_sought: bool = True
    is_stable: bool = True
    is_always_there: bool = False  # never null


def _counts(unit: str, keys: dict[str, str], *, is_stable: bool = True) -> tuple[ReportKey, ...]:
    """Whole numbers that every report has."""
    return tuple(
        ReportKey(name, unit, meaning, INTEGER, is_stable=is_stable, is_always_there=True)
        for name, meaning in keys.items()
    )


def _unsought(
    unit: str, keys: dict[str, str], kind: str = NUMBER, *, is_stable: bool = True
) -> tuple[ReportKey, ...]:
    """What says something about the run or its report, and is no goal."""
    return tuple(
        ReportKey(name, unit, meaning, kind, is_sought=False, is_stable=is_stable)
        for name, meaning in keys.items()
    )


_REQUESTS = (
    *_counts(
        "requests",
        {
            "num_requests": "Requests of the workload.",
            "completed_requests": "Requests that got all their tokens.",
            "rejected_requests": "Requests that were refused before they were served.",
            "failed_requests": "Requests that were lost while they were served.",
            "migrated_requests": "Requests that lost a worker and were placed anew.",
            "unfinished_requests": "Requests that a cut-off left without an end.",
            "timed_out_requests": "Requests that their clients gave up.",
            "unsent_requests": "Later turns that were never sent, as the client had given up.",
        },
    ),
    *_counts(
        "tokens",
        {
            "total_input_tokens": "Prompt tokens of completed requests.",
            "total_output_tokens": "Output tokens of completed requests.",
        },
    ),
    ReportKey("duration_ms", "ms", "From the first arrival to the last completion."),
)
_THROUGHPUT = (
    ReportKey("request_throughput_rps", "requests/s", "Completed requests over the duration."),
    ReportKey("input_throughput_tok_s", "tokens/s", "Their prompt tokens over the duration."),
    ReportKey("output_throughput_tok_s", "tokens/s", "Their output tokens over the duration."),
    ReportKey("total_throughput_tok_s", "tokens/s", "Prompt and output tokens over the duration."),
    ReportKey("output_tok_s_per_gpu", "tokens/s/GPU", "Output tokens per GPU held on average."),
    ReportKey("total_tok_s_per_gpu", "tokens/s/GPU", "All tokens per GPU held on average."),
)
_CLUSTER = (
    *_counts("GPUs", {"num_gpus": "Most GPUs held at once."}),
    *_counts("workers", {"num_workers": "Most workers at once."}),
    *_unsought("GPUs", {"gpus_per_worker": "GPUs of a worker; null where they differ."}, INTEGER),
    *_unsought("ranks", {"ranks_per_worker": "Data-parallel ranks of a worker."}, INTEGER),
    ReportKey("gpu_hours", "GPU hours", "GPUs held, over the time that they were."),
    ReportKey(
        "num_gpu_blocks",
        "blocks",
        "Usable KV blocks of a worker, of each of its ranks; null where they differ.",
        INTEGER,
    ),
    *_unsought("tokens", {"block_size": "Size of a KV block."}, INTEGER),
    ReportKey("peak_kv_usage_share", "share", "Most of a worker's KV blocks in use at once."),
    ReportKey("worker_busy_share", "share", "Part of the workers' time in which a step ran."),
    ReportKey(
        "dummy_step_share",
        "share",
        "Part of the steps of ranks in lock step that were dummies; null without such ranks.",
    ),
    ReportKey(
        "rank_waiting_share",
        "share",
        "Part of the time in steps that ranks with work lose to others'; null without lock step.",
    ),
    *_counts("preemptions", {"preemptions": "How often a running request lost its blocks."}),
)
_SCALING = (
    ReportKey(
        "num_scale_ups",
        "changes",
        "Times a pool was given more workers; null where nobody controls their number.",
        INTEGER,
        is_stable=False,
    ),
    ReportKey("num_scale_downs", "changes", "Times it was given fewer.", INTEGER, is_stable=False),
    ReportKey(
        "mean_workers",
        "workers",
        "Workers held on average, those that start and drain included.",
        is_stable=False,
    ),
)
_HANDOFFS = (
    *_unsought("", {"layout": "Workers: `2P1D` of prefill and decode, `4x` of equal ones."}, TEXT),
    *(
        ReportKey(f"{part}_{name}_ms", "ms", meaning)
        for name, meaning in (
            ("transfer", "KV on its way to a decode worker; null without such workers."),
            ("handoff", "From the end of a prefill to the first token, from a decode worker."),
        )
        for part in ("mean", "median", "p99")
    ),
    ReportKey("prefill_busy_share", "share", "Prefill workers' time in which a step ran."),
    ReportKey("decode_busy_share", "share", "Decode workers' time in which a step ran."),
    ReportKey("kv_transfers", "transfers", "Transfers of KV between workers.", INTEGER),
    ReportKey("cancelled_kv_transfers", "transfers", "Of them, cut off by a loss.", INTEGER),
    ReportKey("kv_bytes_moved", "bytes", "KV that arrived at decode workers.", INTEGER),
    ReportKey("local_prefill_share", "share", "Requests whose decode worker computed the prompt."),
    ReportKey("decode_held_ratio", "share", "Prompt tokens that decode workers had cached."),
    ReportKey(
        "cross_generation_requests",
        "requests",
        "Completed by a prefill and a decode worker of two generations; null without updates.",
        INTEGER,
        is_stable=False,
    ),
)
_TIERS = (
    ReportKey(
        "device_reused_ratio",
        "share",
        "Prompt tokens found on the device; null without tiers below it.",
    ),
    ReportKey("onboarded_ratio", "share", "Prompt tokens loaded from tiers below the device."),
    ReportKey("beyond_onboarded_ratio", "share", "Of all, those loaded from beyond the nearest."),
    ReportKey("onboarded_requests", "requests", "Requests that loaded anything.", INTEGER),
    *(
        ReportKey(f"{part}_onboard_ms", "ms", "A request's load, from its beginning to its end.")
        for part in ("mean", "median", "p99")
    ),
    *(
        ReportKey(f"{name}_{count}_blocks", "blocks", f"{what} {place}.", INTEGER)
        for name, place in (
            ("host", "the hosts' memory"),
            ("peers", "other workers' hosts"),
            ("disk", "disks"),
            ("remote", "the remote store"),
        )
        for count, what in (
            ("stored", "KV blocks ever given a place in"),
            ("evicted", "Of them, thrown out of"),
            ("resident", "At the end of the run in"),
            ("loaded", "KV blocks loaded from"),
        )
    ),
)
_STARTUPS = (
    ReportKey(
        "num_startups",
        "workers",
        "Workers that started during the run and came up; null if none was launched.",
        INTEGER,
        is_sought=False,
        is_stable=False,
    ),
    ReportKey("mean_startup_ms", "ms", "From a launch until the worker serves.", is_stable=False),
    ReportKey("max_startup_ms", "ms", "The same of the slowest.", is_stable=False),
    *(
        ReportKey(f"mean_startup_{phase}_ms", "ms", f"Of it, {what}.", is_stable=False)
        for phase, what in (
            ("schedule", "until a node was found"),
            ("node", "until a new node had joined"),
            ("image", "until the image was there"),
            ("wait_checkpoint", "waiting for a checkpoint"),
            ("restore", "restoring a checkpoint"),
            ("boot", "imports and the engine's processes"),
            ("wait_source", "waiting for a worker that has the weights"),
            ("weights", "reading weights"),
            ("compile", "compiling"),
            ("warm_up", "profiling, graph capture, first steps"),
            ("checkpoint", "making a checkpoint"),
            ("probe", "until the probe saw it"),
        )
    ),
)
_CACHE = (
    ReportKey(
        "prefix_cache_reused_ratio",
        "share",
        "Prompt tokens found in the prefix cache, of completed requests' at first admission.",
    ),
    *_unsought(
        "share",
        {"first_admission_prefix_cache_reused_ratio": "The same, under Dynamo's name."},
    ),
    *_counts("tokens", {"committed_prefill_tokens": "Prompt tokens that were computed."}),
    ReportKey("mean_request_hit_rate", "share", "Cached part of a prompt, mean over requests."),
    ReportKey("requests_with_hit_share", "share", "Requests with any cached prompt token."),
    ReportKey(
        "kv_read_write_ratio", "tokens/token", "Prompt tokens read from the cache per computed one."
    ),
    ReportKey(
        "peak_pinned_blocks",
        "blocks",
        "Most pinned blocks of a worker that nobody used; null: no request says what to keep.",
        INTEGER,
        is_stable=False,
    ),
    ReportKey(
        "evicted_pinned_blocks",
        "blocks",
        "Evicted although they were pinned, as nothing else was left.",
        INTEGER,
        is_stable=False,
    ),
)
_ROUTING = (
    ReportKey(
        "busiest_worker_request_share", "share", "Requests placed on the worker that got most."
    ),
    ReportKey(
        "worker_request_cv", "ratio", "Standard deviation over mean of the workers' requests."
    ),
    ReportKey(
        "router_overlap_ratio",
        "share",
        "Prompt tokens that the router believed to be cached; null where load alone decided.",
        is_stable=False,
    ),
    ReportKey(
        "mean_overlap_error_tokens",
        "tokens",
        "Mean distance of that belief from what the engine found.",
        is_stable=False,
    ),
    ReportKey("router_queued_requests", "requests", "Requests that waited in a router.", INTEGER),
    ReportKey("mean_router_queue_ms", "ms", "Their mean wait there."),
    ReportKey("p99_router_queue_ms", "ms", "The 99th percentile of that wait."),
    ReportKey("refused_busy_requests", "requests", "Refused as all workers were busy.", INTEGER),
    ReportKey(
        "refused_queue_full_requests", "requests", "Refused as their queue was full.", INTEGER
    ),
    ReportKey(
        "index_blocks", "blocks", "Blocks in the first frontend's index.", INTEGER, is_stable=False
    ),
    *_unsought(
        "blocks",
        {
            "index_stored_blocks": "Blocks that became known to the index.",
            "index_removed_blocks": "Blocks that it dropped again.",
            "index_duplicate_blocks": "Stored blocks that it had already.",
            "index_unknown_parents": "Events dropped as the block before theirs was unknown.",
            "index_unknown_blocks": "Removed blocks that it did not know.",
        },
        INTEGER,
        is_stable=False,
    ),
    *_unsought(
        "lookups",
        {
            "index_queries": "Prompts looked up in the index.",
            "index_lookups": "Table look-ups made for them.",
        },
        INTEGER,
        is_stable=False,
    ),
    *_unsought(
        "events",
        {
            "kv_events_lost": "KV events that got lost.",
            "kv_event_gaps": "Gaps in their numbers that were noticed.",
            "kv_event_replays": "Times that missing events were sent again.",
            "kv_event_dumps": "Times that a whole cache was told anew.",
        },
        INTEGER,
        is_stable=False,
    ),
)
_LATENCY_METRICS = {
    "ttft_ms": ("ms", "time from arrival to the first token"),
    "ttst_ms": ("ms", "time from the first token to the second"),
    "tpot_ms": ("ms", "mean time between a request's output tokens"),
    "itl_ms": ("ms", "time between two output tokens, over all such times"),
    "e2e_latency_ms": ("ms", "time from arrival to the last token"),
    "output_token_throughput_per_user": ("tokens/s", "speed at which a user's tokens come"),
}
METRICS = tuple(_LATENCY_METRICS)
STEADY_METRICS = ("ttft_ms", "tpot_ms", "e2e_latency_ms")
_STATISTICS = {
    "mean": "Mean",
    "min": "Least",
    "max": "Greatest",
    "median": "Median",
    "p75": "75th percentile",
    "p90": "90th percentile",
    "p95": "95th percentile",
    "p99": "99th percentile",
    "std": "Standard deviation",
}
STATISTICS = tuple(_STATISTICS)
STEADY_STATISTICS = ("mean", "median", "p90", "p99")


def _latency(statistic: str, metric: str, *, prefix: str = "", of: str = "") -> ReportKey:
    unit, meaning = _LATENCY_METRICS[metric]
    return ReportKey(
        f"{prefix}{statistic}_{metric}", unit, f"{_STATISTICS[statistic]}: {meaning}{of}."
    )


_LATENCIES = (
    *(_latency(statistic, metric) for metric in METRICS for statistic in STATISTICS),
    *_unsought(
        "samples",
        {
            "num_ttft_samples": "Requests behind the statistics of TTFT.",
            "num_tpot_samples": "Requests behind those of TPOT.",
            "num_itl_samples": "Times between tokens behind those of ITL.",
            "num_e2e_latency_samples": "Requests behind those of the whole latency.",
        },
        INTEGER,
    ),
)
_IN_WINDOW = ", of requests that arrive in the steady window"
_STEADY = (
    *_unsought(
        "ms",
        {
            "steady_start_ms": "Start of the steady window: a tenth of the requests has arrived.",
            "steady_end_ms": "Its end: the last arrival.",
        },
    ),
    *_unsought("requests/s", {"steady_offered_rps": "Arrivals in the steady window."}),
    ReportKey("steady_request_throughput_rps", "requests/s", "Completions in the steady window."),
    ReportKey("steady_output_throughput_tok_s", "tokens/s", "Output tokens in the steady window."),
    ReportKey("steady_output_tok_s_per_gpu", "tokens/s/GPU", "The same per GPU held on average."),
    *_unsought(
        "requests", {"steady_num_requests": "Completed requests that arrived in it."}, INTEGER
    ),
    ReportKey("steady_mean_itl_ms", "ms", f"Mean: time between output tokens{_IN_WINDOW}."),
    *(
        _latency(statistic, metric, prefix="steady_", of=_IN_WINDOW)
        for metric in STEADY_METRICS
        for statistic in STEADY_STATISTICS
    ),
)
_SLA = (
    ReportKey(
        "goodput_completed_requests",
        "requests",
        "Completed requests that kept every bound of the SLA; null without one.",
        INTEGER,
    ),
    ReportKey("goodput_rps", "requests/s", "The same over the duration."),
    ReportKey("goodput_output_throughput_tok_s", "tokens/s", "Their output tokens."),
    ReportKey("sla_attainment", "share", "The same of all requests: one not served is a miss."),
)
_COST = (
    ReportKey("gpu_hours_per_m_output_tokens", "GPU hours", "For a million output tokens."),
    ReportKey(
        "gpu_hours_per_m_good_output_tokens",
        "GPU hours",
        "For a million output tokens of requests within the SLA.",
    ),
    ReportKey("gpu_hours_per_m_tokens", "GPU hours", "For a million tokens, prompts' included."),
    ReportKey("cost_per_m_output_tokens", "currency", "The same hours at `cost.gpu_hour`."),
    ReportKey("cost_per_m_good_output_tokens", "currency", "Of tokens within the SLA."),
    ReportKey("cost_per_m_tokens", "currency", "Of prompts' and output tokens."),
    ReportKey(
        "energy_j_per_output_token",
        "J",
        "Idle power, and what is missing to the limit while GPUs compute, times `cost.pue`.",
        is_stable=False,
    ),
    ReportKey(
        "output_tok_s_per_mw",
        "tokens/s/MW",
        "Output tokens a second for each megawatt of that.",
        is_stable=False,
    ),
    *_unsought("", {"energy_source": "`estimated`; null: the power is not known."}, TEXT),
)
_SATURATION = (
    *_unsought("", {"saturated": "Whether more load was offered than sustained."}, BOOLEAN),
    *_unsought("", {"saturation_reason": "What that verdict rests on."}, TEXT),
    *_unsought(
        "ms/ms",
        {"saturation_wait_growth": "Waiting that a request gains for every ms of arrivals."},
        is_stable=False,
    ),
    *_unsought(
        "share",
        {"saturation_backlog_share": "Requests that still waited at the last arrival."},
        is_stable=False,
    ),
    *_unsought(
        "ms",
        {"saturation_drain_ms": "From the last arrival to the last completion."},
        is_stable=False,
    ),
    *_unsought(
        "requests",
        {"saturation_more_in_system": "How many more are in the system at the arrivals' end."},
        is_stable=False,
    ),
    ReportKey(
        "saturation_sustained_tok_s",
        "tokens/s",
        "Output tokens that the workers make while something waits; null: nothing ever did.",
        is_stable=False,
    ),
    ReportKey(
        "saturation_collapse_ms",
        "ms",
        "Since when a queue did not empty any more; null: none grew.",
        is_stable=False,
    ),
)
_AXES = {
    "prefill_tokens": "prompt tokens of a step",
    "prefix_tokens": "tokens before them",
    "num_decodes": "decoding sequences",
    "mean_context": "their mean context",
}
_TIMING = (
    *_unsought(
        "",
        {
            "timing_source": "Whether step times were measured, derived or estimated.",
            "timing_description": "Where they come from.",
            "timing_notes": "What limits them; null: nothing known.",
        },
        TEXT,
    ),
    ReportKey("timing_in_range_share", "share", "Steps inside what was measured."),
    *(
        ReportKey(
            f"timing_in_range_share_{axis}",
            "share",
            f"The same for {words} alone; null: not known.",
            is_stable=False,
        )
        for axis, words in _AXES.items()
    ),
)
_EFFORT = (
    *_unsought("steps", {"num_steps": "Engine steps."}, INTEGER),
    *_unsought(
        "events",
        {"num_scheduling_events": "Events that the simulation went through."},
        INTEGER,
        is_stable=False,
    ),
    *_unsought(
        "ms",
        {
            "wall_time_ms": "Real time of the whole job.",
            "simulate_wall_ms": "Real time of the simulation alone.",
        },
    ),
    *_unsought("", {"core": "Whether the core ran compiled or interpreted."}, TEXT),
)
PREPARED_KEYS = (
    *_unsought(
        "lines", {"skipped_lines": "Bad lines of the trace that were left out, as asked."}, INTEGER
    ),
    *_unsought(
        "prompts",
        {"assumed_lengths": "Prompts taken to be as long as their hash ids, as asked."},
        INTEGER,
    ),
    *_unsought(
        "requests",
        {
            "speculative_prefills": "Sent ahead so that next turns find more cached, and served; "
            "no other count of requests has them; null: the load has none."
        },
        INTEGER,
        is_stable=False,
    ),
    *_unsought(
        "tokens",
        {
            "speculative_prefill_tokens": "Prompt tokens that they computed.",
            "speculative_hit_tokens": "Of these, what the next turn had at the same place, and "
            "found cached on the same worker.",
        },
        INTEGER,
        is_stable=False,
    ),
    *_unsought(
        "requests",
        {
            "prefetches": "Prompts whose KV was to be loaded ahead of their requests, over by the "
            "end; no other count of requests has them; null: the load has none.",
            "prefetches_without_room": "Of these, those that found KV in a tier and too few free "
            "blocks to load it.",
        },
        INTEGER,
        is_stable=False,
    ),
    *_unsought(
        "tokens",
        {
            "prefetched_tokens": "Prompt tokens whose KV prefetches loaded from tiers.",
            "prefetch_hit_tokens": "Of these, what a request has hit on the device.",
            "prefetch_wasted_tokens": "Of these, the others: evicted before, or still unused.",
        },
        INTEGER,
        is_stable=False,
    ),
    *_unsought(
        "",
        {
            "kv_capacity_source": "Whether the KV blocks were given, derived or estimated.",
            "kv_capacity_basis": "What their number and its interval come from.",
        },
        TEXT,
    ),
    *_unsought(
        "blocks",
        {
            "kv_capacity_low_blocks": "KV blocks of a rank by the low end of their interval.",
            "kv_capacity_high_blocks": "The same by its high end.",
        },
        INTEGER,
    ),
    *_unsought("tokens", {"max_model_len": "Most tokens of a request."}, INTEGER),
)
"""What a run adds to it: how its workload and engines were made ready."""

_DOCUMENT = (
    *_unsought(
        "",
        {
            "schema": "Name and version of this format.",
            "name": "Name of the run.",
            "trace_source": "Where the workload came from.",
            "dynosim_version": "Version that made the report.",
        },
        TEXT,
    ),
    *_unsought("", {"seed": "Seed of everything that was drawn."}, INTEGER),
    *_unsought("", {"notes": "What limits the step times, one by one."}, LIST),
    *_unsought(
        "",
        {
            "stages": "Results of each load stage; null: the load has none.",
            "windows": "Results by windows of time; null: not asked for.",
            "classes": "Results of each class of requests; null: the trace names none.",
        },
        LIST,
        is_stable=False,
    ),
    *_unsought(
        "",
        {"reuse_bound": "Shares of prompt tokens to be had with such room; null: not asked for."},
        SECTION,
        is_stable=False,
    ),
    *_unsought(
        "",
        {
            "intervals": "95 % intervals of numbers from replays; null: none were made.",
            "kv_cache_breakdown": "What fills a GPU's memory, in bytes; empty: blocks were given.",
            "config": "The configuration as it was run.",
        },
        SECTION,
    ),
)

REPORT_GROUPS: dict[str, tuple[ReportKey, ...]] = {
    "Requests": _REQUESTS,
    "Throughput": _THROUGHPUT,
    "Latency": _LATENCIES,
    "Within the SLA": _SLA,
    "Cost": _COST,
    "Steady window": _STEADY,
    "Saturation": _SATURATION,
    "Cluster": _CLUSTER,
    "Scaling": _SCALING,
    "Prefix cache": _CACHE,
    "Routing": _ROUTING,
    "Handoffs": _HANDOFFS,
    "Tiers": _TIERS,
    "Start-up": _STARTUPS,
    "Step times": _TIMING,
    "Effort": _EFFORT,
}
"""What `summarize` writes, by subject."""

DOCUMENT_KEYS = _DOCUMENT
"""What only report.json has."""


def report_keys() -> Iterator[ReportKey]:
    """Every key that `summarize` writes; a run's report has also `PREPARED_KEYS`."""
    for keys in REPORT_GROUPS.values():
        yield from keys


def known_report_keys() -> tuple[str, ...]:
    """Every number of a report that a sweep may seek to raise or lower."""
    return tuple(key.name for key in report_keys() if key.is_sought)


def is_report_key(key: str) -> bool:
    """Whether a report has the number `key`, and a sweep may seek it."""
    return key in known_report_keys()
