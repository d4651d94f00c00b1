"""Numbers on the page of a run are the report's, each under its own name."""

import re
from dataclasses import replace
from typing import Any

import pytest
from toy_runs import ToyRun, ToyTiming, toy_run

from dynosim.metrics import summarize
from dynosim.metrics.percentiles import STATISTICS
from dynosim.plots.page import number
from dynosim.plots.run_html import run_notes, run_page
from dynosim.records import WorkerLog

METRICS = {
    "ttft_ms": "Time to first token (ms)",
    "ttst_ms": "First to second token (ms)",
    "itl_ms": "Inter-token latency, all gaps (ms)",
    "tpot_ms": "Time per output token, per request (ms)",
    "e2e_latency_ms": "End to end (ms)",
    "output_token_throughput_per_user": "Output tokens/s per user",
}
FIGURES = {
    "output_tok_s_per_gpu": 111.1,
    "request_throughput_rps": 2.345,
    "prefix_cache_reused_ratio": 0.1234,
    "peak_kv_usage_share": 0.567,
    "preemptions": 1789,
    "num_gpus": 24,
    "gpu_hours": 3.21,
    "num_requests": 4567,
    "completed_requests": 3210,
    "saturated": False,
    "sla_attainment": 0.42,
}


def told(run: ToyRun, **figures: Any) -> dict[str, Any]:
    """A report with a number of its own for everything that a page shows."""
    report = summarize(run.result, run.timing, sla=None, wall_time_ms=0.0)
    latencies = {
        f"{statistic}_{metric}": 10.0 * place + column + 0.25
        for place, metric in enumerate(METRICS, start=1)
        for column, statistic in enumerate(STATISTICS, start=1)
    }
    assert set(FIGURES) | set(latencies) <= set(report)
    return {**report, **FIGURES, **latencies, **figures}


def cards_of(**figures: Any) -> dict[str, str]:
    run = toy_run(5)
    return dict(run_page("t", "", told(run, **figures), run.result, run.trace).cards)


def rows_of(body: str) -> list[list[str]]:
    """Cells of an HTML table, row by row, the header first."""
    rows = re.findall(r"<tr>(.*?)</tr>", body)
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in rows]


def test_cards_show_the_reports_figures() -> None:
    assert cards_of() == {
        "output tokens/s per GPU": "111",
        "output tokens/s per user, mean": "61.2",
        "TTFT mean / p99 (ms)": "11.2 / 18.2",
        "ITL mean / p99 (ms)": "31.2 / 38.2",
        "requests within the SLA": "42.0 %",
        "of 4,567 requests completed": "3,210",
        "requests/s": "2.35",
        "prefix cache reuse": "12.3 %",
        "peak KV use": "56.7 %",
        "preemptions": "1,789",
        "GPUs / GPU hours": "24 / 3.21",
    }


def test_cards_of_a_saturated_run_show_what_was_sustained_for_its_ttft() -> None:
    cards = cards_of(saturated=True, saturation_sustained_tok_s=98.76, sla_attainment=None)
    assert "TTFT mean / p99 (ms)" not in cards
    assert "requests within the SLA" not in cards
    assert cards["output tokens/s sustained (saturated: TTFT has no steady value)"] == "98.8"
    assert list(cards)[2].startswith("output tokens/s sustained")


def test_the_table_holds_every_statistic_and_its_interval() -> None:
    run = toy_run(5)
    bounds = {"mean_ttft_ms": [1.5, 22.25], "std_itl_ms": [0.125, 3.0]}
    report = told(run, intervals={"metrics": bounds})
    table = rows_of(run_page("t", "", report, run.result, run.trace).parts[0].body)
    assert table[0] == ["", *STATISTICS]
    expected = []
    for metric, name in METRICS.items():
        expected.append([name, *(f"{report[f'{s}_{metric}']:.2f}" for s in STATISTICS)])
        if metric == "ttft_ms":
            expected.append(["95 % of replays", "1.5 to 22.25", *["-"] * 8])
        if metric == "itl_ms":
            expected.append(["95 % of replays", *["-"] * 8, "0.125 to 3"])
    assert table[1:] == expected


def test_all_numbers_of_the_report_are_on_the_page() -> None:
    run = toy_run(5)
    report = told(run)
    body = run_page("t", "x: 1\n", report, run.result, run.trace).parts[-1].body
    rows = rows_of(body)[1:]
    expected = [[key, "null" if value is None else str(value)] for key, value in report.items()]
    assert [[cell.replace("&#x27;", "'") for cell in row] for row in rows] == expected


def test_the_lead_counts_workers_and_their_gpus() -> None:
    one = toy_run(5, workers=1)
    page = run_page("t", "", told(one), replace(one.result, workers=WorkerLog.equal(1)), one.trace)
    assert page.lead == "1 worker of 1 GPU · workload toy"
    many = toy_run(5, workers=3)
    page = run_page("t", "", told(many), many.result, many.trace)
    assert page.lead == "3 workers of 2 GPUs · workload toy"


def notes_of(**figures: Any) -> list[tuple[str, bool]]:
    run = toy_run(5)
    return [(note.text, note.is_warning) for note in run_notes(told(run, **figures), run.trace)]


@pytest.mark.parametrize(
    ("source", "share", "words", "warns"),
    [
        ("measured", 1.0, "100 % of steps inside the measured range", False),
        ("measured", 0.9999, "99.9 % of steps inside the measured range", True),
        ("measured", None, "toy line", False),
        ("derived", 1.0, "100 % of steps inside the measured range", True),
        ("estimated", 1.0, "nothing was measured", True),
    ],
)
def test_the_first_note_says_what_step_times_rest_on(
    source: str, share: float | None, words: str, warns: bool
) -> None:
    (note,) = notes_of(timing_source=source, timing_in_range_share=share)
    assert note[0].startswith(f"Step times {source}: toy line")
    assert note[0].endswith(words)
    assert note[1] is warns


def test_notes_tell_saturation_and_losses() -> None:
    full = {"saturated": True, "saturation_reason": "it grew"}
    rates = {"saturation_sustained_tok_s": 4321.0, "saturation_collapse_ms": 65_432.0}
    words = "Saturated: it grew. TTFT and end-to-end times depend on how long the trace is"
    assert notes_of(**full, **dict.fromkeys(rates))[1] == (f"{words}.", True)
    assert "SATURATED" not in notes_of(**full)[0][0]  # the second note says it at length
    assert notes_of(**full, **rates)[1] == (
        f"{words}; it sustains 4,321 output tokens/s; the queue never emptied after 65.4 s.",
        True,
    )
    lost = {"rejected_requests": 1111, "failed_requests": 0, "unfinished_requests": 3}
    assert notes_of(**lost)[1] == (
        "Not completed: 1,111 rejected, 3 unfinished. Latencies are of completed requests.",
        True,
    )
    assert len(notes_of(failed_requests=2)) == 2


def test_the_caption_says_of_how_many_requests_points_are() -> None:
    run = toy_run(5, timing=ToyTiming(base_ms=200.0))
    page = run_page("t", "", told(run), run.result, run.trace)
    width_s = run_page("t", "", told(run), run.result, run.trace).parts[1].caption
    assert "points are every completed request." in width_s
    assert "Lines are per interval of 0.0" in width_s
    titles = ["Latency", "Latency over time", "Load and throughput", "Workers", "Prefix cache"]
    assert [part.title for part in page.parts][:5] == titles


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (None, 3, "-"),
        (12_345, 3, "12,345"),
        (7, 3, "7"),
        (99.94, 3, "99.9"),
        (99.96, 3, "100"),
        (100.4, 3, "100"),
        (1234.5, 4, "1,234"),
        (999.94, 4, "999.9"),
        (0.0012345, 3, "0.00123"),
        (0.00099, 3, "9.9e-04"),
        (0.0, 3, "0"),
        (-250.6, 3, "-251"),
    ],
)
def test_numbers_for_people(value: float | None, digits: int, text: str) -> None:
    assert number(value, digits) == text
