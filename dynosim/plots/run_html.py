"""The HTML report of one run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dynosim.metrics.percentiles import STATISTICS
from dynosim.plots import style
from dynosim.plots.page import Note, Page, Part, folded, number, preformatted, table, write_page
from dynosim.plots.plotly_chart import plotly_figure as drawn
from dynosim.plots.run_figures import RunFigures
from dynosim.plots.slow_requests import CAPTION, HEADER, TEXT_COLUMNS, TITLE, slow_requests
from dynosim.records import RunResult, Trace, WorkerLog

Report = Mapping[str, Any]

_LATENCIES = {
    "ttft_ms": "Time to first token (ms)",
    "ttst_ms": "First to second token (ms)",
    "itl_ms": "Inter-token latency, all gaps (ms)",
    "tpot_ms": "Time per output token, per request (ms)",
    "e2e_latency_ms": "End to end (ms)",
    "output_token_throughput_per_user": "Output tokens/s per user",
}


def write_run_html(
    path: Path | str,
    *,
    title: str,
    config_yaml: str,
    report: Report,
    result: RunResult,
    trace: Trace,
) -> None:
    """Write one self-contained page about a run: numbers, distributions, behaviour over time.

    Raises: ConfigError when plotly is not installed; OSError when the file cannot be written.
    """
    write_page(path, run_page(title, config_yaml, report, result, trace))


def run_page(title: str, config_yaml: str, report: Report, result: RunResult, trace: Trace) -> Page:
    """What the report of a run shows."""
    figures = RunFigures(result, report)
    latency_table = table(("", *STATISTICS), _latency_rows(report))
    parts = [
        Part("Latency", _LATENCY_CAPTION, drawn(figures.latencies()), latency_table),
        Part("Latency over time", _over_time_caption(figures), drawn(figures.latency_over_time())),
        Part("Load and throughput", "Rates per interval.", drawn(figures.load())),
        *_parts_of(report),
        *_classes_of(report),
        Part("Workers", _WORKER_CAPTION, drawn(figures.workers())),
        Part("Prefix cache", _CACHE_CAPTION, drawn(figures.cache())),
        Part(TITLE, CAPTION, body=table(HEADER, slow_requests(result, trace), TEXT_COLUMNS)),
        Part("Configuration", body=preformatted(config_yaml)),
        Part("All numbers", body=folded("report.json as a table", _report_table(report))),
    ]
    lead = f"{_workers_text(result.workers)} · workload {trace.source}"
    return Page(title, lead, run_notes(report, trace), _cards(report), parts)


_PARTS = {"stages": "By load stage", "windows": "By window of time"}
_PARTS_CAPTION = (
    "Requests belong to the part in which they were sent; the served rate is of those that ended "
    "within its time. Latencies are means, ms."
)
_PART_COLUMNS = {
    "start_s": "from s",
    "end_s": "to s",
    "num_requests": "requests",
    "timed_out_requests": "given up",
    "offered_rps": "sent/s",
    "served_rps": "served/s",
    "mean_ttft_ms": "TTFT",
    "p99_ttft_ms": "TTFT p99",
    "mean_itl_ms": "ITL",
    "mean_e2e_latency_ms": "E2E",
    "p99_e2e_latency_ms": "E2E p99",
    "sla_attainment": "within SLA",
}


def _parts_of(report: Report) -> list[Part]:
    """Tables of the run by load stages and by windows, where the report has them."""
    header = ("part", *_PART_COLUMNS.values(), "saturated")
    parts = []
    for key, title in _PARTS.items():
        rows = [
            [
                str(place),
                *(number(row[column], 4) for column in _PART_COLUMNS),
                "yes" if row["saturated"] else "no",
            ]
            for place, row in enumerate(report.get(key) or ())
        ]
        parts += [Part(title, _PARTS_CAPTION, body=table(header, rows))] if rows else []
    return parts


_CLASS_CAPTION = (
    "Hit rate per call: the mean of the cached parts of prompts; per token: all cached tokens over "
    "all prompt tokens. Read/write: cached prompt tokens for one that was computed. Times in ms."
)
_CLASS_COLUMNS = {
    "num_requests": "requests",
    "completed_requests": "completed",
    "mean_request_hit_rate": "hit rate per call",
    "prefix_cache_reused_ratio": "per token",
    "kv_read_write_ratio": "read/write",
    "mean_ttft_ms": "TTFT",
    "p99_ttft_ms": "TTFT p99",
    "mean_tpot_ms": "TPOT",
    "mean_e2e_latency_ms": "E2E",
}


def _classes_of(report: Report) -> list[Part]:
    """A table of the run by classes of requests, where the report has them."""
    rows = [
        [row["request_class"], *(number(row[column], 4) for column in _CLASS_COLUMNS)]
        for row in report.get("classes") or ()
    ]
    header = ("class", *_CLASS_COLUMNS.values())
    return [Part("By class of request", _CLASS_CAPTION, body=table(header, rows))] if rows else []


_LATENCY_CAPTION = (
    "Cumulative distributions over completed requests. Circles and the table are exact "
    "percentiles; the ITL curve uses the mean step time of each run of decode steps with an "
    "unchanged batch."
)
_WORKER_CAPTION = (
    "Means over each interval; an idle worker counts as zero, one that is not there not at all."
)
_CACHE_CAPTION = "Prompt tokens found in the cache at first admission, over all prompt tokens."


def _over_time_caption(figures: RunFigures) -> str:
    every = figures.shown_every
    shown = "every completed request" if every == 1 else f"one in {every} completed requests"
    return (
        f"Lines are per interval of {figures.interval_s:g} s; points are {shown}. "
        "TTFT on a logarithmic axis."
    )


def run_notes(report: Report, trace: Trace) -> list[Note]:
    """What the reader must know before believing the numbers."""
    source = report.get("timing_source")
    share = report.get("timing_in_range_share")
    shaky = source != "measured" or (share is not None and share < 1)
    plain = {k: v for k, v in report.items() if k != "saturated"}
    notes = [Note(style.timing_note(plain), is_warning=shaky)]
    if report.get("timing_notes"):
        notes.append(Note(f"Timing: {report['timing_notes']}", is_warning=True))
    if report.get("saturated"):
        notes.append(
            Note(
                f"Saturated: {report.get('saturation_reason')}. TTFT and end-to-end times depend "
                f"on how long the trace is{_sustained(report)}.",
                is_warning=True,
            )
        )
    notes += _loss_notes(report)
    if trace.skipped_lines:
        text = f"{trace.skipped_lines} bad lines of the trace were skipped, as asked"
        notes.append(Note(text, is_warning=True))
    if trace.assumed_lengths:
        text = (
            f"{trace.assumed_lengths} prompts were taken to be as long as their hash ids, as asked"
        )
        notes.append(Note(text, is_warning=True))
    return notes


def _sustained(report: Report) -> str:
    """What a saturated cluster makes and since when it is full, as far as the report knows."""
    text = ""
    if report.get("saturation_sustained_tok_s") is not None:
        text += f"; it sustains {_value(report, 'saturation_sustained_tok_s')} output tokens/s"
    if report.get("saturation_collapse_ms") is not None:
        text += f"; the queue never emptied after {report['saturation_collapse_ms'] / 1e3:,.1f} s"
    return text


def _loss_notes(report: Report) -> list[Note]:
    kinds = ("rejected", "failed", "unfinished", "timed_out", "unsent")
    lost = {kind: report.get(f"{kind}_requests") or 0 for kind in kinds}
    if not any(lost.values()):
        return []
    text = ", ".join(f"{count:,} {kind.replace('_', ' ')}" for kind, count in lost.items() if count)
    return [Note(f"Not completed: {text}. Latencies are of completed requests.", is_warning=True)]


def _cards(report: Report) -> list[tuple[str, str]]:
    cards = [
        ("output tokens/s per GPU", number(report.get("output_tok_s_per_gpu"))),
        ("output tokens/s per user, mean", _value(report, "mean_output_token_throughput_per_user")),
        ("TTFT mean / p99 (ms)", _pair(report, "mean_ttft_ms", "p99_ttft_ms")),
        ("ITL mean / p99 (ms)", _pair(report, "mean_itl_ms", "p99_itl_ms")),
        _completed_card(report),
        ("requests/s", _value(report, "request_throughput_rps")),
        _reuse_card(report),
        ("peak KV use", _share(report, "peak_kv_usage_share")),
        ("preemptions", _value(report, "preemptions")),
        ("GPUs / GPU hours", _pair(report, "num_gpus", "gpu_hours")),
    ]
    if report.get("kv_transfers") is not None:
        cards.append((f"KV transfer mean / p99 (ms), {report['layout']}",
                      _pair(report, "mean_transfer_ms", "p99_transfer_ms")))  # fmt: skip
    if report.get("saturated"):
        cards[2] = (
            "output tokens/s sustained (saturated: TTFT has no steady value)",
            _value(report, "saturation_sustained_tok_s"),
        )
    if report.get("sla_attainment") is not None:
        cards.insert(4, ("requests within the SLA", _share(report, "sla_attainment")))
    return cards


def _reuse_card(report: Report) -> tuple[str, str]:
    reused, bound = _share(report, "prefix_cache_reused_ratio"), report.get("reuse_bound")
    if bound is None:
        return "prefix cache reuse", reused
    return "prefix cache reuse / with perfect foresight", f"{reused} / {_share(bound, 'optimal')}"


def _completed_card(report: Report) -> tuple[str, str]:
    name = f"of {_value(report, 'num_requests')} requests completed"
    return name, _value(report, "completed_requests")


def _workers_text(workers: WorkerLog) -> str:
    """How many there ever were, and of how many GPUs each."""
    ranks = workers.ranks_per_worker
    least, most = int(workers.gpus.min()) * ranks, int(workers.gpus.max()) * ranks
    each = _count(most, "GPU") if least == most else f"{least:,} to {_count(most, 'GPU')}"
    parts = "" if ranks == 1 else f" in {ranks} ranks"
    return f"{_count(len(workers) // ranks, 'worker')} of {each}{parts}"


def _count(amount: int, noun: str) -> str:
    return f"{amount:,} {noun}" if amount == 1 else f"{amount:,} {noun}s"


def _value(report: Report, key: str) -> str:
    return number(report.get(key))


def _pair(report: Report, first: str, second: str) -> str:
    return f"{_value(report, first)} / {_value(report, second)}"


def _share(report: Report, key: str) -> str:
    value = report.get(key)
    return "-" if value is None else style.share_text(value)


def _latency_rows(report: Report) -> list[list[str]]:
    """The statistics of each latency and, where they are known, their intervals."""
    intervals: Mapping[str, Any] = (report.get("intervals") or {}).get("metrics", {})
    rows = []
    for metric, name in _LATENCIES.items():
        keys = [f"{statistic}_{metric}" for statistic in STATISTICS]
        rows.append([name, *(number(report.get(key), 4) for key in keys)])
        if any(key in intervals for key in keys):
            rows.append(["95 % of replays", *(_span(intervals.get(key)) for key in keys)])
    return rows


def _span(bounds: Sequence[float] | None) -> str:
    return "-" if bounds is None else " to ".join(number(bound, 4) for bound in bounds)


def _report_table(report: Report) -> str:
    rows = [[key, "null" if value is None else str(value)] for key, value in report.items()]
    return table(("key", "value"), rows, text_columns=2)
