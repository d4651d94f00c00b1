"""`dynosim run`: the terminal table, the JSON document and the files of one run."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dynosim.atomic import check_folder, text_writer, write_files
from dynosim.config import dump_run, load_run
from dynosim.errors import ConfigError
from dynosim.runner import RunOutcome, run

_LATENCIES = {
    "TTFT ms": "ttft_ms",
    "ITL ms": "itl_ms",
    "TPOT ms": "tpot_ms",
    "E2E ms": "e2e_latency_ms",
}
_STATISTICS = {"mean": "mean", "p50": "median", "p90": "p90", "p95": "p95", "p99": "p99"}


def run_command(
    path: Path,
    overrides: Sequence[str],
    *,
    out: Path | None,
    as_json: bool,
    exact_stepping: bool,
    check: bool,
    router_log: Path | None = None,
    kv_events: bool = False,
) -> None:
    """Run the file and show the result; with `out`, write it too. Raises: DynosimError."""
    config = load_run(path, overrides)
    if out is not None:
        check_folder(out)
    elif kv_events:
        raise ConfigError("--kv-events: needs --out, the folder to write them to")
    outcome = run(
        config,
        exact_stepping=exact_stepping,
        check=check,
        router_log=router_log,
        record_kv_events=kv_events,
    )
    document = report_document(outcome)
    if out is not None:
        write_run(out, outcome, document)
    if as_json:
        sys.stdout.write(json.dumps(document, indent=2, allow_nan=False) + "\n")
    else:
        print_table(outcome)
        if out is not None:
            print(f"report: {out / 'report.html'}", file=sys.stderr)


def report_document(outcome: RunOutcome) -> dict[str, Any]:
    """report.json: the report, and what is needed to run it again."""
    trace = outcome.trace
    return {
        **outcome.report,
        "name": outcome.config.name,
        "seed": outcome.config.seed,
        "notes": list(outcome.timing.notes),
        "trace_source": trace.source,
        "kv_cache_breakdown": outcome.capacity.breakdown,
        "dynosim_version": _installed_version(),
        "config": outcome.config.model_dump(mode="json", exclude_none=True),
    }


def _installed_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("dynosim")
    except PackageNotFoundError:
        return "unknown"


def write_run(out: Path, outcome: RunOutcome, document: Mapping[str, Any]) -> None:
    """Write all files of a run to the folder `out`, or none."""
    from dynosim.metrics import request_table, timeline_table
    from dynosim.plots.run_html import write_run_html

    config_yaml = dump_run(outcome.config)
    write_files(
        out,
        {
            **_event_files(outcome),
            "report.json": text_writer(json.dumps(document, indent=2, allow_nan=False) + "\n"),
            "requests.parquet": lambda path: request_table(
                outcome.result, outcome.trace
            ).write_parquet(path),
            "timeline.parquet": lambda path: timeline_table(outcome.result).write_parquet(path),
            "report.html": lambda path: write_run_html(
                path,
                title=outcome.config.name or "run",
                config_yaml=config_yaml,
                report=document,
                result=outcome.result,
                trace=outcome.trace,
            ),
            "config.yaml": text_writer(config_yaml),
        },
    )


def _event_files(outcome: RunOutcome) -> dict[str, Callable[[Path], None]]:
    """The KV events as a table and as a picture, if they were recorded."""
    log = outcome.result.kv_events
    if log is None:
        return {}
    from dynosim.metrics.tables import event_table
    from dynosim.plots.event_density import write_event_density_png

    num_workers = outcome.result.num_workers
    return {
        "kv_events.parquet": lambda path: event_table(log).write_parquet(path),
        "kv_events.png": lambda path: write_event_density_png(path, log, num_workers),
    }


def print_table(outcome: RunOutcome) -> None:
    """The run at a glance, on stdout. Plain text: loading rich would cost a tenth of the time."""
    if outcome.config.name:
        print(outcome.config.name)
    print(f"{'':<9}" + "".join(f"{name:>12}" for name in _STATISTICS))
    for title, metric in _LATENCIES.items():
        values = (outcome.report.get(f"{key}_{metric}") for key in _STATISTICS.values())
        print(f"{title:<9}" + "".join(f"{_number(value):>12}" for value in values))
    for name, text in _facts(outcome):
        print(f"{name:<13}{text}")
    for warning in _warnings(outcome):
        print(f"warning: {warning}")


def _facts(outcome: RunOutcome) -> list[tuple[str, str]]:
    r = outcome.report
    share = _percent(r.get("timing_in_range_share"))
    has_range = r["timing_source"] != "estimated"  # a formula was measured nowhere
    in_range = f", {share} of steps inside the measured range" if has_range else ""
    facts = [
        ("requests", f"{r['completed_requests']:,} of {r['num_requests']:,} completed in "
         f"{r['duration_ms'] / 1e3:,.1f} s ({_number(r['request_throughput_rps'])}/s)"),
        ("throughput", f"{_number(r['output_throughput_tok_s'])} output tok/s, "
         f"{_number(r['total_throughput_tok_s'])} in all"),
        ("per GPU", f"{_number(r['output_tok_s_per_gpu'])} output tok/s on each of "
         f"{r['num_gpus']} GPUs ({r['num_workers']} workers of {r['gpus_per_worker']})"),
        ("per user", f"{_number(r['mean_output_token_throughput_per_user'])} output tok/s"),
        ("cache reuse", f"{_percent(r['prefix_cache_reused_ratio'])} of prompt tokens"),
        ("KV cache", f"{r['num_gpu_blocks']:,} blocks of {r['block_size']} per worker "
         f"({r['kv_capacity_source']}), peak use {_percent(r['peak_kv_usage_share'])}"),
        ("routing", _routing_fact(outcome)),
        ("preemptions", f"{r['preemptions']:,}"),
        ("step times", f"{r['timing_source']}{in_range}: {r['timing_description']}"),
    ]  # fmt: skip
    if r.get("sla_attainment") is not None:
        goodput = f"{_number(r['goodput_rps'])} good requests/s"
        facts.append(("SLA", f"{_percent(r['sla_attainment'])} of requests within it, {goodput}"))
    facts.append(("took", f"{r['wall_time_ms'] / 1e3:,.2f} s"))
    return facts


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
        ("skipped_lines", "bad trace lines were left out"),
    )
    warnings = [f"{r[key]:,} {text}" for key, text in counted if r.get(key)]
    if r.get("saturated"):
        warnings.append(f"saturated: {r['saturation_reason']}")
    return [*warnings, *outcome.timing.notes]


def _number(value: float | int | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.1f}" if abs(value) >= 100 else f"{value:,.2f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"
