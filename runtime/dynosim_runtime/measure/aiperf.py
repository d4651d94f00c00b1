"""Results that NVIDIA AIPerf has exported, as records or as a report.

`profile_export.jsonl` has one line per request and gives everything; `profile_export_aiperf.json`
alone has summaries only: no inter-token gaps pooled over requests, and percentiles interpolated
instead of by nearest rank. Read with AIPerf 0.13.
"""

from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from dynosim.errors import TraceError
from dynosim_runtime.measure.load import LoadRun
from dynosim_runtime.requests import RequestRecord

RECORDS_FILE = "profile_export.jsonl"
SUMMARY_FILE = "profile_export_aiperf.json"
_NS_PER_MS = 1e6
_STATISTICS = {"mean": "avg", "median": "p50", "p90": "p90", "p95": "p95", "p99": "p99",
               "min": "min", "max": "max", "std": "std"}  # fmt: skip
_METRICS = {
    "ttft_ms": "time_to_first_token",
    "ttst_ms": "time_to_second_token",
    "tpot_ms": "inter_token_latency",
    "e2e_latency_ms": "request_latency",
}
_RATES = {
    "request_throughput_rps": "request_throughput",
    "output_throughput_tok_s": "output_token_throughput",
    "total_throughput_tok_s": "total_token_throughput",
}


@dataclass(slots=True)
class AiperfResults:
    """What was found: `run` with the records of every request, or only a `report`."""

    run: LoadRun | None
    report: dict[str, Any] = field(default_factory=dict)  # from the summary; empty with `run`
    source: str = ""


class _Metadata(msgspec.Struct):
    request_start_ns: int
    request_end_ns: int
    session_num: int = 0
    x_request_id: str | None = None
    conversation_id: str | None = None
    benchmark_phase: str = "profiling"
    was_cancelled: bool = False


class _Error(msgspec.Struct):
    message: str = ""
    code: int | None = None
    type: str | None = None


class _Metric(msgspec.Struct):
    value: float | list[float] | None = None


class _Line(msgspec.Struct):
    metadata: _Metadata
    metrics: dict[str, _Metric] = {}
    error: _Error | None = None

    def number(self, *names: str) -> float | None:
        """The first of these metrics that the request has."""
        for name in names:
            metric = self.metrics.get(name)
            if metric is not None and isinstance(metric.value, int | float):
                return float(metric.value)
        return None

    def gaps_ms(self) -> list[float]:
        """Times between chunks that brought tokens."""
        metric = self.metrics.get("inter_chunk_latency")
        return metric.value if metric is not None and isinstance(metric.value, list) else []


def read_aiperf(path: Path) -> AiperfResults:
    """The results in a folder or file of AIPerf's. Raises: TraceError naming file and line."""
    records, summary = path, path
    if path.is_dir():
        records, summary = path / RECORDS_FILE, path / SUMMARY_FILE
    if records.suffix == ".jsonl" and records.exists():
        return AiperfResults(_read_records(records), source=str(records))
    if summary.suffix == ".json" and summary.exists():
        return AiperfResults(None, _read_summary(summary), source=str(summary))
    raise TraceError(
        f"no results of AIPerf there (a folder with {RECORDS_FILE} or {SUMMARY_FILE}, or one of "
        "these files)",
        path=str(path),
    )


def _read_records(path: Path) -> LoadRun:
    decode = msgspec.json.Decoder(_Line).decode
    lines: list[_Line] = []
    with path.open("rb") as file:
        for number, text in enumerate(file, start=1):
            if not text.strip():
                continue
            try:
                line = decode(text)
            except msgspec.DecodeError as error:
                raise TraceError(
                    f"no record of an AIPerf request: {error}", path=str(path), line=number
                ) from None
            if line.metadata.benchmark_phase == "profiling":
                lines.append(line)
    if not lines:
        raise TraceError("no request of the profiling phase", path=str(path))
    lines.sort(key=lambda line: (line.metadata.request_start_ns, line.metadata.session_num))
    start_ns = lines[0].metadata.request_start_ns
    records = [_record(line, start_ns) for line in lines]
    token_ms = [_token_ms(line, record) for line, record in zip(lines, records, strict=True)]
    return LoadRun(records, token_ms, np.full(len(records), np.nan))


def _record(line: _Line, start_ns: int) -> RequestRecord:
    """AIPerf counts latencies from when a request was sent; so that is its arrival here."""
    metadata = line.metadata
    arrival_ms = (metadata.request_start_ns - start_ns) / _NS_PER_MS
    ttft_ms, e2e_ms = line.number("time_to_first_token"), line.number("request_latency")
    error = _error(line, e2e_ms)
    output_tokens = line.number("usage_completion_tokens", "output_sequence_length")
    cached = line.number("usage_prompt_cache_read_tokens")
    return RequestRecord(
        request_id=metadata.x_request_id or str(metadata.session_num),
        session_id=metadata.conversation_id,
        arrival_ms=arrival_ms,
        dispatch_ms=arrival_ms,
        first_token_ms=None if ttft_ms is None else arrival_ms + ttft_ms,
        finish_ms=None if e2e_ms is None or error is not None else arrival_ms + e2e_ms,
        input_tokens=int(line.number("usage_prompt_tokens", "input_sequence_length") or 0),
        output_tokens=int(output_tokens or 0),
        cached_tokens=None if cached is None else int(cached),
        status="completed" if error is None else "failed",
        error=error,
    )


def _error(line: _Line, e2e_ms: float | None) -> str | None:
    if line.error is not None:
        code = "" if line.error.code is None else f"{line.error.code} "
        return f"{code}{line.error.message}".strip() or line.error.type or "failed"
    if line.metadata.was_cancelled:
        return "cancelled by AIPerf"
    return "no request_latency in the record" if e2e_ms is None else None


def _token_ms(line: _Line, record: RequestRecord) -> "array[float]":
    """Arrivals of tokens. Those that came in one chunk with others are put at the last chunk."""
    if record.first_token_ms is None:
        return array("d")
    times = array("d", [record.first_token_ms])
    for gap_ms in line.gaps_ms():
        times.append(times[-1] + gap_ms)
    times.extend([times[-1]] * (record.output_tokens - len(times)))
    return times


def _read_summary(path: Path) -> dict[str, Any]:
    try:
        data = msgspec.json.decode(path.read_bytes())
    except msgspec.DecodeError as error:
        raise TraceError(f"not readable JSON: {error}", path=str(path)) from None
    if not isinstance(data, dict) or "request_latency" not in data:
        raise TraceError("no summary of AIPerf's (request_latency is missing)", path=str(path))
    report: dict[str, Any] = {}
    for metric, name in _METRICS.items():
        for statistic, key in _STATISTICS.items():
            report[f"{statistic}_{metric}"] = _value(data, name, key)
    for metric, name in _RATES.items():
        report[metric] = _value(data, name, "avg")
    completed, failed = _value(data, "request_count", "avg"), _num_errors(data)
    report["completed_requests"] = completed
    report["failed_requests"] = failed
    report["num_requests"] = int(completed or 0) + failed
    duration_s = _value(data, "benchmark_duration", "avg")
    report["duration_ms"] = None if duration_s is None else duration_s * 1e3
    return report


def _value(data: Mapping[str, Any], name: str, key: str) -> float | None:
    metric = data.get(name)
    value = metric.get(key) if isinstance(metric, dict) else None
    return float(value) if isinstance(value, int | float) else None


def _num_errors(data: Mapping[str, Any]) -> int:
    summary = data.get("error_summary")
    entries = summary if isinstance(summary, list) else []
    return sum(int(entry.get("count", 0)) for entry in entries if isinstance(entry, dict))
