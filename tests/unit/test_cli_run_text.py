"""What `dynosim run` prints: every figure is the report's, under its own name."""

from dataclasses import replace
from typing import Any

import pytest

from dynosim.cli.run import report_document
from dynosim.cli.run_text import print_table
from dynosim.config import RunConfig
from dynosim.experiment.intervals import Intervals
from dynosim.experiment.run import RunOutcome, run

FIGURES = {
    "completed_requests": 1234,
    "num_requests": 5678,
    "duration_ms": 98_765.4,
    "request_throughput_rps": 12.345,
    "output_throughput_tok_s": 4321.06,
    "total_throughput_tok_s": 8765.04,
    "output_tok_s_per_gpu": 77.777,
    "num_gpus": 24,
    "num_workers": 8,
    "gpus_per_worker": 3,
    "ranks_per_worker": 1,
    "mean_output_token_throughput_per_user": 55.555,
    "prefix_cache_reused_ratio": 0.1234,
    "num_gpu_blocks": 4096,
    "block_size": 32,
    "kv_capacity_source": "told",
    "kv_capacity_low_blocks": 4000,
    "kv_capacity_high_blocks": 4200,
    "peak_kv_usage_share": 0.875,
    "busiest_worker_request_share": 0.3125,
    "router_overlap_ratio": 0.2345,
    "router_queued_requests": 1111,
    "mean_router_queue_ms": 222.22,
    "preemptions": 2222,
    "timing_source": "derived",
    "timing_description": "some line",
    "timing_in_range_share": 0.5,
    "timing_in_range_share_prefill_tokens": 0.61,
    "timing_in_range_share_prefix_tokens": 1.0,
    "timing_in_range_share_num_decodes": None,
    "timing_in_range_share_mean_context": 0.83,
    "sla_attainment": 0.456,
    "goodput_rps": 6.543,
    "saturated": False,
    "rejected_requests": 3,
    "failed_requests": 0,
    "unfinished_requests": 4000,
    "skipped_lines": 6,
    "wall_time_ms": 7654.3,
    "core": "compiled",
}
STATISTICS = ("mean", "median", "p90", "p95", "p99")
LATENCIES = {"ttft_ms": 10.5, "itl_ms": 20.5, "tpot_ms": 30.5, "e2e_latency_ms": 1040.5}
TABLE = """\
                 mean         p50         p90         p95         p99
TTFT ms         10.50       11.50       12.50       13.50       14.50
ITL ms          20.50       21.50       22.50       23.50       24.50
TPOT ms         30.50       31.50       32.50       33.50       34.50
E2E ms        1,040.5     1,041.5     1,042.5     1,043.5     1,044.5
requests     1,234 of 5,678 completed in 98.8 s (12.35/s)
throughput   4,321.1 output tok/s, 8,765.0 in all
per GPU      77.78 output tok/s on each of 24 GPUs (8 workers of 3)
per user     55.55 output tok/s
cache reuse  12.3 % of prompt tokens
KV cache     4,096 blocks of 32 per worker (told, 4,000 to 4,200), peak use 87.5 %
routing      kv, busiest worker 31.2 % of requests; 23.4 % of prompt tokens expected in cache; \
1,111 waited 222.2 ms
preemptions  2,222
step times   derived, 50.0 % of steps inside the measured range (by prompt tokens 61.0 %, \
mean context 83.0 %): some line
SLA          45.6 % of requests within it, 6.54 good requests/s
took         7.65 s (compiled core)
warning: 3 requests were rejected (see `error` in requests.parquet)
warning: 4,000 requests were unfinished when the run was cut off
warning: 6 bad trace lines were left out
"""


@pytest.fixture
def outcome() -> RunOutcome:
    """A run whose report has a number of its own for every figure."""
    config = RunConfig.model_validate(
        {
            "workload": {"synthetic": {"requests": 2, "isl": 8, "osl": 2, "rate_rps": 5}},
            "engine": {"num_gpu_blocks": 100},
            "timing": {"kind": "fixed", "prefill_ms": 10.0, "decode_ms": 10.0},
            "router": {"mode": "kv"},
        }
    )
    made = run(config)
    latencies = {
        f"{statistic}_{metric}": first + step
        for metric, first in LATENCIES.items()
        for step, statistic in enumerate(STATISTICS)
    }
    assert set(FIGURES) | set(latencies) <= set(made.report)
    return replace(made, report={**made.report, **FIGURES, **latencies})


def changed(outcome: RunOutcome, **figures: Any) -> RunOutcome:
    return replace(outcome, report={**outcome.report, **figures})


def lines_of(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """The lines by the words they begin with; labels of latencies are shorter."""
    lines = {}
    for line in capsys.readouterr().out.splitlines():
        width = 9 if line[:9].strip().endswith(" ms") else 13
        lines[line[:width].strip()] = line[width:].strip()
    return lines


def test_every_figure_is_the_reports(
    outcome: RunOutcome, capsys: pytest.CaptureFixture[str]
) -> None:
    print_table(outcome)
    assert capsys.readouterr().out == TABLE


def test_sizes_in_which_workers_differ_are_not_told(
    outcome: RunOutcome, capsys: pytest.CaptureFixture[str]
) -> None:
    print_table(changed(outcome, gpus_per_worker=None, num_gpu_blocks=None))
    lines = lines_of(capsys)
    assert lines["per GPU"] == "77.78 output tok/s on each of 24 GPUs (8 workers)"
    assert lines["KV cache"].startswith("different numbers of blocks of 32 per worker (told, 4,000")


def test_a_name_comes_first(outcome: RunOutcome, capsys: pytest.CaptureFixture[str]) -> None:
    named = outcome.config.model_copy(update={"name": "my run"})
    print_table(replace(outcome, config=named))
    assert capsys.readouterr().out == "my run\n" + TABLE


def test_what_was_not_there_is_not_told(
    outcome: RunOutcome, capsys: pytest.CaptureFixture[str]
) -> None:
    nothing = {"rejected_requests": 0, "unfinished_requests": 0, "skipped_lines": 0}
    plain = changed(
        outcome,
        **nothing,
        failed_requests=7,
        sla_attainment=None,
        router_queued_requests=0,
        timing_source="estimated",
        prefix_cache_reused_ratio=None,
        mean_ttft_ms=None,
    )
    load_only = plain.config.model_copy(
        update={"router": plain.config.router.model_copy(update={"mode": "least-loaded"})}
    )
    print_table(replace(plain, config=load_only))
    lines = lines_of(capsys)
    assert lines["routing"] == "least-loaded, busiest worker 31.2 % of requests"
    assert lines["step times"] == "estimated: some line"
    assert lines["cache reuse"] == "- of prompt tokens"
    assert lines["TTFT ms"].split() == ["-", "11.50", "12.50", "13.50", "14.50"]
    assert "SLA" not in lines
    assert lines["warning: 7 re"] == "quests failed"
    assert sum(name.startswith("warning") for name in lines) == 1


def test_a_saturated_run_tells_what_it_sustained_in_place_of_latencies(
    outcome: RunOutcome, capsys: pytest.CaptureFixture[str]
) -> None:
    full = {
        "saturated": True,
        "saturation_reason": "the queue kept growing",
        "saturation_wait_growth": 0.25,
        "saturation_sustained_tok_s": 3333.33,
        "saturation_collapse_ms": 4567.8,
    }
    print_table(changed(outcome, **full))
    lines = lines_of(capsys)
    words = "no steady value: 250 ms more with every second of arrivals"
    assert lines["TTFT ms"] == lines["E2E ms"] == words
    assert lines["ITL ms"].split()[0] == "20.50"
    assert lines["SATURATED"] == (
        "the queue kept growing; sustained 3,333.3 output tok/s; collapse after 4.6 s"
    )
    names = ("wait_growth", "sustained_tok_s", "collapse_ms")
    print_table(changed(outcome, **full | {f"saturation_{name}": None for name in names}))
    lines = lines_of(capsys)
    assert lines["TTFT ms"] == "no steady value: the backlog makes it (see saturated)"
    assert lines["SATURATED"] == "the queue kept growing"


def test_intervals_are_told_as_distances_from_their_value(
    outcome: RunOutcome, capsys: pytest.CaptureFixture[str]
) -> None:
    bounds = {
        "mean_ttft_ms": (10.5 * 0.9, 10.5 * 1.25),
        "p99_ttft_ms": (14.5 * 0.985, 14.5 * 1.0),
        "output_throughput_tok_s": (4300.0, 4400.0),
        "total_throughput_tok_s": (8000.0, 9000.06),
    }
    print_table(outcome, Intervals(12, ("arrivals", "seed of the router"), bounds))
    text = capsys.readouterr().out
    lines = text.splitlines()
    spans = [lines[2][9 + 12 * column :][:12].strip() for column in range(5)]
    assert lines[2][:9].strip() == "95 %"
    assert spans == ["-10/+25 %", "-", "-", "-", "-1.5/+0.0 %"]
    assert "4,321.1 (4,300.0 to 4,400.0) output tok/s, 8,765.0 (8,000.0 to 9,000.1) in all" in text
    assert "intervals    95 % of 12 replays with other arrivals, seed of the router" in text
    assert [line[:9].strip() for line in lines].count("95 %") == 1


def test_the_document_is_the_report_and_what_made_it(outcome: RunOutcome) -> None:
    config = outcome.config.model_copy(update={"name": "my run", "seed": 7})
    found = Intervals(12, ("arrivals",), {"mean_ttft_ms": (1.0, 2.0)})
    named = replace(outcome, config=config)
    document = report_document(named, found)
    more = {
        "intervals": found.to_dict(),
        "name": "my run",
        "seed": 7,
        "notes": list(outcome.timing.notes),
        "trace_source": outcome.trace.source,
        "stages": None,
        "windows": None,
        "reuse_bound": None,
        "classes": None,
        "kv_cache_breakdown": outcome.capacity.breakdown,
        "config": config.model_dump(mode="json", exclude_none=True),
    }
    assert document.pop("dynosim_version") != ""
    assert document.pop("schema") == "dynosim.report/1"
    assert document == {**outcome.report, **more}
    assert report_document(named)["intervals"] is None
    assert RunConfig.model_validate(document["config"]) == config
