"""A run on the terminal."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dynosim.experiment.run import RunOutcome
from dynosim.metrics.sample_size import sample_warning

if TYPE_CHECKING:
    from dynosim.experiment.intervals import Intervals

_LATENCIES = {
    "TTFT ms": "ttft_ms",
    "ITL ms": "itl_ms",
    "TPOT ms": "tpot_ms",
    "E2E ms": "e2e_latency_ms",
}
_STATISTICS = {"mean": "mean", "p50": "median", "p90": "p90", "p95": "p95", "p99": "p99"}
_GROWING = ("ttft_ms", "e2e_latency_ms")  # latencies that contain the wait of a saturated run
_AXES = {
    "prefill_tokens": "prompt tokens",
    "prefix_tokens": "cached tokens of a prompt",
    "num_decodes": "decoding sequences",
    "mean_context": "mean context",
}


def print_table(
    outcome: RunOutcome,
    intervals: "Intervals | None" = None,
    reuse_bound: Mapping[str, Any] | None = None,
) -> None:
    """The run at a glance, on stdout. Plain text: loading rich would cost a tenth of the time."""
    if outcome.config.name:
        print(outcome.config.name)
    print(f"{'':<9}" + "".join(f"{name:>12}" for name in _STATISTICS))
    for title, metric in _LATENCIES.items():
        for line in _latency_lines(title, metric, outcome.report, intervals):
            print(line)
    for name, text in _facts(outcome, intervals):
        print(f"{name:<13}{text}")
        if name == "cache reuse" and reuse_bound is not None:
            print(f"{'':<13}{_reuse_bound(reuse_bound)}")
    for warning in _warnings(outcome):
        print(f"warning: {warning}")


def print_parts(title: str, rows: Sequence[Mapping[str, Any]] | None) -> None:
    """The run by load stages or windows of time: a line for each."""
    if not rows:
        return
    heads = ("from s", "to s", "requests", "sent/s", "served/s", "TTFT ms", "ITL ms", "E2E ms")
    has_sla = any(row["sla_attainment"] is not None for row in rows)
    print(
        f"{title:<9}" + "".join(f"{head:>9}" for head in heads) + ("   in SLA" if has_sla else "")
    )
    for place, row in enumerate(rows):
        cells = [
            f"{row['start_s']:,.0f}",
            f"{row['end_s']:,.0f}",
            f"{row['num_requests']:,}",
            _number(row["offered_rps"]),
            _number(row["served_rps"]),
            _number(row["mean_ttft_ms"]),
            _number(row["mean_itl_ms"]),
            _number(row["mean_e2e_latency_ms"]),
            *([_percent(row["sla_attainment"])] if has_sla else []),
        ]
        end = "  saturated" if row["saturated"] else ""
        print(f"{place:<9}" + "".join(f"{cell:>9}" for cell in cells) + end)


def print_classes(rows: Sequence[Mapping[str, Any]] | None) -> None:
    """The run by classes of requests: a line for each."""
    if not rows:
        return
    heads = ("requests", "hit/call", "hit/token", "TTFT ms", "TPOT ms", "E2E ms")
    print(f"{'class':<13}" + "".join(f"{head:>11}" for head in heads))
    for row in rows:
        cells = [
            f"{row['num_requests']:,}",
            _percent(row["mean_request_hit_rate"]),
            _percent(row["prefix_cache_reused_ratio"]),
            _number(row["mean_ttft_ms"]),
            _number(row["mean_tpot_ms"]),
            _number(row["mean_e2e_latency_ms"]),
        ]
        print(f"{row['request_class']:<13}" + "".join(f"{cell:>11}" for cell in cells))


def _latency_lines(
    title: str, metric: str, report: Mapping[str, Any], intervals: "Intervals | None"
) -> list[str]:
    """The statistics of one latency and, below, their intervals as distances from them."""
    if report.get("saturated") and metric in _GROWING:
        return [f"{title:<9}{_growth(report)}"]
    keys = [f"{statistic}_{metric}" for statistic in _STATISTICS.values()]
    cells = "".join(f"{_number(report.get(key)):>12}" for key in keys)
    lines = [f"{title:<9}{cells}"]
    if intervals is not None and any(key in intervals.metrics for key in keys):
        spans = "".join(f"{_span(key, report, intervals):>12}" for key in keys)
        lines.append(f"{'  95 %':<9}{spans}")
    return lines


def _growth(report: Mapping[str, Any]) -> str:
    """What a saturated run has in place of a latency that waiting makes."""
    growth = report.get("saturation_wait_growth")
    if growth is None:
        return "   no steady value: the backlog makes it (see saturated)"
    return f"   no steady value: {1e3 * growth:,.0f} ms more with every second of arrivals"


def _span(key: str, report: Mapping[str, Any], intervals: "Intervals") -> str:
    """How far an interval reaches below and above the value, in percent of it."""
    bounds, value = intervals.metrics.get(key), report.get(key)
    if bounds is None or not value:
        return "-"
    low, high = (100 * (bound / value - 1) for bound in bounds)
    digits = 1 if max(abs(low), abs(high)) < 10 else 0
    return f"{low:+.{digits}f}/{high:+.{digits}f} %"


def _reuse_bound(bound: Mapping[str, Any]) -> str:
    return (
        f"({_percent(bound['optimal'])} with perfect foresight and as many blocks, "
        f"{_percent(bound['endless'])} in an endless cache)"
    )


def _facts(outcome: RunOutcome, intervals: "Intervals | None") -> list[tuple[str, str]]:
    r = outcome.report
    rates = [f"{key}_throughput_tok_s" for key in ("output", "total")]
    made, total = (_number(r[key]) + _between(key, intervals) for key in rates)
    facts = [
        ("requests", f"{r['completed_requests']:,} of {r['num_requests']:,} completed in "
         f"{r['duration_ms'] / 1e3:,.1f} s ({_number(r['request_throughput_rps'])}/s)"),
        ("throughput", f"{made} output tok/s, {total} in all"),
        ("per GPU", f"{_number(r['output_tok_s_per_gpu'])} output tok/s on each of "
         f"{_size(r)}"),
        ("per user", f"{_number(r['mean_output_token_throughput_per_user'])} output tok/s"),
        ("cache reuse", f"{_percent(r['prefix_cache_reused_ratio'])} of prompt tokens"),
        ("KV cache", f"{_blocks(r)} of {r['block_size']} per {_holder(r)} "
         f"({_capacity_source(r)}), peak use {_percent(r['peak_kv_usage_share'])}"),
        ("routing", _routing_fact(outcome)),
        ("preemptions", f"{r['preemptions']:,}"),
        ("step times", f"{r['timing_source']}{_in_range(r)}: {r['timing_description']}"),
    ]  # fmt: skip
    if r.get("kv_transfers") is not None:
        facts.append(("handoffs", _handoffs(r)))
    if r.get("onboarded_ratio") is not None:
        facts.append(("tiers", _tiers(r)))
    if r.get("mean_workers") is not None:
        facts.append(("scaling", _scaling(r)))
    if r.get("num_startups"):
        facts.append(("start-up", _startups(r)))
    if r.get("speculative_prefills") is not None:
        facts.append(("sent ahead", _sent_ahead(r)))
    if r.get("dummy_step_share") is not None:
        facts.append(("ranks", _ranks(r)))
    if r.get("sla_attainment") is not None:
        goodput = f"{_number(r['goodput_rps'])} good requests/s"
        facts.append(("SLA", f"{_percent(r['sla_attainment'])} of requests within it, {goodput}"))
    if r.get("saturated"):
        facts.insert(0, ("SATURATED", _saturation(r)))
    if intervals is not None:
        facts.append(
            ("intervals", f"95 % of {intervals.num_replays} replays with other "
             f"{', '.join(intervals.varied)}")
        )  # fmt: skip
    facts.append(("took", f"{r['wall_time_ms'] / 1e3:,.2f} s ({r['core']} core)"))
    return facts


def _saturation(r: Mapping[str, Any]) -> str:
    """What a run that did not keep up says instead of latencies."""
    parts = [r["saturation_reason"]]
    if r.get("saturation_sustained_tok_s") is not None:
        parts.append(f"sustained {_number(r['saturation_sustained_tok_s'])} output tok/s")
    if r.get("saturation_collapse_ms") is not None:
        parts.append(f"collapse after {r['saturation_collapse_ms'] / 1e3:,.1f} s")
    return "; ".join(parts)


def _between(key: str, intervals: "Intervals | None") -> str:
    bounds = None if intervals is None else intervals.metrics.get(key)
    return "" if bounds is None else f" ({_number(bounds[0])} to {_number(bounds[1])})"


def _in_range(r: Mapping[str, Any]) -> str:
    """Share of steps inside the measured range, and the axes on which some were not."""
    if r["timing_source"] == "estimated":  # a formula was measured nowhere
        return ""
    outside = [
        f"{name} {_percent(share)}"
        for axis, name in _AXES.items()
        if (share := r.get(f"timing_in_range_share_{axis}")) is not None and share < 1
    ]
    by_axis = f" (by {', '.join(outside)})" if outside else ""
    return (
        f", {_percent(r.get('timing_in_range_share'))} of steps inside the measured range{by_axis}"
    )


def _tiers(r: Mapping[str, Any]) -> str:
    """How much came from slower memory, and how long that took."""
    loaded = f"{_percent(r['onboarded_ratio'])} of prompt tokens loaded"
    if r["onboarded_requests"]:
        loaded += f" (mean {_number(r['mean_onboard_ms'])} ms)"
    return f"{loaded}, {_percent(r['device_reused_ratio'])} found on the device"


def _scaling(r: Mapping[str, Any]) -> str:
    changes = f"{r['num_scale_ups']:,} times up, {r['num_scale_downs']:,} times down"
    return f"{r['mean_workers']:,.2f} workers on average, {r['num_workers']:,} at most; {changes}"


def _startups(r: Mapping[str, Any]) -> str:
    """How long workers took to come up, and with what most of all."""
    means = {
        key.removeprefix("mean_startup_").removesuffix("_ms").replace("_", " "): value
        for key, value in r.items()
        if key.startswith("mean_startup_") and key != "mean_startup_ms" and value
    }
    times = f"mean {r['mean_startup_ms'] / 1e3:,.1f} s, slowest {r['max_startup_ms'] / 1e3:,.1f} s"
    most = max(means, key=lambda phase: means[phase], default=None)
    longest = "" if most is None else f"; longest: {most}, {means[most] / 1e3:,.1f} s"
    return f"{r['num_startups']:,} workers, {times}{longest}"


def _holder(r: Mapping[str, Any]) -> str:
    return "worker" if r["ranks_per_worker"] == 1 else "rank"


def _ranks(r: Mapping[str, Any]) -> str:
    """How much ranks in lock step lose to each other."""
    return (
        f"lock step; {_percent(r['dummy_step_share'])} of steps are dummies, "
        f"{_percent(r['rank_waiting_share'])} of their time goes to other ranks' work"
    )


def _routing_fact(outcome: RunOutcome) -> str:
    r, router = outcome.report, outcome.config.router
    text = router.policy or router.mode
    text += f", busiest worker {_percent(r['busiest_worker_request_share'])} of requests"
    if router.mode == "kv":
        text += f"; {_percent(r['router_overlap_ratio'])} of prompt tokens expected in cache"
    if r.get("router_queued_requests"):
        text += f"; {r['router_queued_requests']:,} waited {_number(r['mean_router_queue_ms'])} ms"
    return text


def _warnings(outcome: RunOutcome) -> list[str]:
    r = outcome.report
    counted = (
        ("rejected_requests", "requests were rejected (see `error` in requests.parquet)"),
        ("failed_requests", "requests failed"),
        ("unfinished_requests", "requests were unfinished when the run was cut off"),
        ("timed_out_requests", "requests were given up by their clients"),
        ("unsent_requests", "later turns were never sent: their clients had given up"),
        ("skipped_lines", "bad trace lines were left out"),
        ("assumed_lengths", "prompts were taken to be as long as their hash ids"),
    )
    warnings = [f"{r[key]:,} {text}" for key, text in counted if r.get(key)]
    concurrency = outcome.config.workload.concurrency
    if concurrency is not None:
        short = sample_warning(r["num_requests"], concurrency, is_closed=True)
        warnings += [short] if short else []
    return [*warnings, *_scaling_warnings(outcome), *outcome.timing.notes]


def _scaling_warnings(outcome: RunOutcome) -> list[str]:
    """What whoever scales said cannot be had: the last of each pool, and how often it said so."""
    by_pool: dict[str, list[str]] = {}
    for look in outcome.looks:
        for pool in () if look.decision is None else look.decision.pools:
            by_pool.setdefault(pool.pool, []).extend(pool.warnings)
    return [
        f"scaling of {pool}: {told[-1]} (the last of {len(told):,} such decisions)"
        for pool, told in by_pool.items()
        if told
    ]


def _number(value: float | int | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.1f}" if abs(value) >= 100 else f"{value:,.2f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _size(report: Mapping[str, Any]) -> str:
    """GPUs and workers, at most at once."""
    each = report["gpus_per_worker"]
    workers = f"{report['num_workers']} workers" + ("" if each is None else f" of {each}")
    if report.get("kv_transfers") is not None:
        workers = f"{report['layout']}, {workers}"
    if report["ranks_per_worker"] > 1:
        workers += f" in {report['ranks_per_worker']} ranks"
    return f"{report['num_gpus']} GPUs ({workers})"


def _sent_ahead(r: Mapping[str, Any]) -> str:
    computed, found = r["speculative_prefill_tokens"], r["speculative_hit_tokens"]
    share = f", {_percent(found / computed)} of them found by next turns" if computed else ""
    return (
        f"{r['speculative_prefills']:,} speculative prefills, which computed {computed:,} "
        f"tokens{share}"
    )


def _handoffs(report: Mapping[str, Any]) -> str:
    """How long requests were between prefill and decode workers, and how busy those were."""
    local = report["local_prefill_share"]
    stayed = f"; {_percent(local)} of prompts computed by decode workers" if local else ""
    after = report["mean_handoff_ms"]
    told = "" if after is None else f"{_number(after)} ms from prefill to first token, "
    return (
        f"{told}{_number(report['mean_transfer_ms'])} ms of it KV on its way "
        f"({report['kv_bytes_moved'] / 1e9:,.1f} GB in all); prefill workers "
        f"{_percent(report['prefill_busy_share'])} busy, decode workers "
        f"{_percent(report['decode_busy_share'])}{stayed}"
    )


def _capacity_source(report: Mapping[str, Any]) -> str:
    """Where the number of blocks comes from, and between which it may be."""
    low, high = (report[f"kv_capacity_{end}_blocks"] for end in ("low", "high"))
    return f"{report['kv_capacity_source']}" + ("" if low == high else f", {low:,} to {high:,}")


def _blocks(report: Mapping[str, Any]) -> str:
    number = report["num_gpu_blocks"]
    return "different numbers of blocks" if number is None else f"{number:,} blocks"
