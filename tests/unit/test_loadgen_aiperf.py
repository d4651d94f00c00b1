import json
from pathlib import Path
from typing import Any

import pytest

from dynosim.errors import TraceError
from dynosim_runtime.measure.aiperf import read_aiperf
from dynosim_runtime.measure.measured import measured_report

START_NS = 1_795_630_667_000_000_000


def line(
    start_ms: float,
    ttft_ms: float | None,
    gaps_ms: list[float],
    *,
    tokens: int | None = None,
    phase: str = "profiling",
    error: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """A request as AIPerf 0.13 exports it, without the metrics that are not read."""
    metrics: dict[str, Any] = {}
    if ttft_ms is not None:
        metrics = {
            "time_to_first_token": {"value": ttft_ms, "unit": "ms"},
            "request_latency": {"value": ttft_ms + sum(gaps_ms), "unit": "ms"},
            "inter_chunk_latency": {"value": gaps_ms, "unit": "ms"},
            "output_sequence_length": {"value": tokens or len(gaps_ms) + 1, "unit": "tokens"},
            "input_sequence_length": {"value": 64, "unit": "tokens"},
        }
    return {
        "metadata": {
            "session_num": 0,
            "x_request_id": f"at-{start_ms:g}",
            "conversation_id": "c",
            "request_start_ns": START_NS + int(start_ms * 1e6),
            "request_end_ns": START_NS + int(start_ms * 1e6) + 1,
            "benchmark_phase": phase,
            "was_cancelled": False,
        },
        "metrics": metrics,
        "error": error,
    }


def write_lines(path: Path, *lines: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in lines))
    return path


def test_records_count_from_the_first_request_sent(tmp_path: Path) -> None:
    write_lines(
        tmp_path / "profile_export.jsonl",
        line(50, 10, [2, 4]),
        line(0, 20, [1]),
        line(0, 99, [1], phase="warmup"),
    )
    run = read_aiperf(tmp_path).run
    assert run is not None
    assert [record.arrival_ms for record in run.records] == [0.0, 50.0]
    second = run.records[1]
    assert (second.ttft_ms, second.e2e_ms, second.tpot_ms) == (10.0, 16.0, 3.0)
    assert run.token_ms[1].tolist() == [60.0, 62.0, 66.0]
    report = measured_report(run)
    assert report["mean_ttft_ms"] == 15.0
    assert report["mean_itl_ms"] == pytest.approx(7 / 3)


def test_tokens_that_came_together_leave_no_gap(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "profile_export.jsonl", line(0, 10, [5], tokens=4))
    run = read_aiperf(file).run
    assert run is not None
    assert run.gaps_ms.tolist() == [5.0, 0.0, 0.0]


def test_failed_requests_keep_their_reason(tmp_path: Path) -> None:
    error = {"code": 503, "type": "Unavailable", "message": "all workers busy"}
    file = write_lines(
        tmp_path / "profile_export.jsonl", line(0, None, [], error=error), line(1, 5, [])
    )
    run = read_aiperf(file).run
    assert run is not None
    assert [record.status for record in run.records] == ["failed", "completed"]
    assert run.records[0].error == "503 all workers busy"


def test_summary_alone_gives_a_report(tmp_path: Path) -> None:
    data = {
        "request_throughput": {"unit": "requests/sec", "avg": 2.5},
        "output_token_throughput": {"unit": "tokens/sec", "avg": 20.0},
        "request_latency": {"unit": "ms", "avg": 790.0, "p50": 723.0, "p90": 1178.0, "p99": 1194.0},
        "time_to_first_token": {"unit": "ms", "avg": 463.0, "p50": 379.0},
        "inter_token_latency": {"unit": "ms", "avg": 46.0},
        "request_count": {"unit": "requests", "avg": 8.0},
        "error_summary": [{"error_details": {"message": "no"}, "count": 2}],
    }
    (tmp_path / "profile_export_aiperf.json").write_text(json.dumps(data))
    results = read_aiperf(tmp_path)
    assert results.run is None
    assert results.report["mean_ttft_ms"] == 463.0
    assert results.report["p99_e2e_latency_ms"] == 1194.0
    assert results.report["mean_tpot_ms"] == 46.0
    assert "mean_itl_ms" not in results.report
    assert (results.report["num_requests"], results.report["failed_requests"]) == (10, 2)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("profile_export.jsonl", '{"metadata": 1}\n', "profile_export.jsonl:1: no record"),
        ("profile_export.jsonl", "\n", "no request"),
        ("profile_export_aiperf.json", "{", "not readable"),
        ("profile_export_aiperf.json", "{}", "request_latency is missing"),
        ("something.txt", "", "no results of AIPerf"),
    ],
)
def test_what_is_not_aiperfs_is_refused(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(TraceError, match=message):
        read_aiperf(tmp_path)
