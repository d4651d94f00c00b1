"""Statistics of traces, among them the published reuse figures."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from shared_data import shared_path

from dynosim.records import Trace
from dynosim.workload.figure import plot_trace
from dynosim.workload.inspect import inspect_trace
from dynosim.workload.readers import read_trace
from dynosim.workload.synthetic import synthesize


def trace_of(prompts: list[tuple[int, list[int]]], block_tokens: int = 8) -> Trace:
    """Prompts as (tokens, hash ids), one arrival per second."""
    size = len(prompts)
    counts = [len(ids) for _, ids in prompts]
    return Trace(
        arrival_ms=np.arange(size) * 1000.0,
        input_tokens=np.array([tokens for tokens, _ in prompts]),
        output_tokens=np.ones(size, np.int64),
        hash_ids=np.array([value for _, ids in prompts for value in ids], dtype=np.int64),
        hash_offsets=np.concatenate(([0], np.cumsum(counts))),
        trace_block_size=block_tokens,
    )


@pytest.mark.parametrize(
    ("name", "reused", "blocks", "percent"),
    [
        ("mooncake_conversation", 105_710, 288_500, "36.6%"),
        ("mooncake_synthetic", 77_953, 121_877, "64.0%"),
    ],
)
def test_public_traces_show_their_published_reuse(
    name: str, reused: int, blocks: int, percent: str
) -> None:
    summary = inspect_trace(read_trace(shared_path(f"traces/{name}.jsonl.gz")), 16)
    reuse = summary["reuse"]
    assert (reuse["reused_blocks"], reuse["blocks"]) == (reused, blocks)
    assert f"{reuse['block_reuse']:.1%}" == percent
    assert reuse["engine_reuse"] == pytest.approx(reuse["token_reuse"], abs=2e-4)


def test_reuse_counts_blocks_tokens_and_what_an_engine_would_take() -> None:
    trace = trace_of([(12, [1, 2]), (16, [1, 2]), (16, [1, 2]), (8, [2])])
    reuse = inspect_trace(trace, 4)["reuse"]
    assert (reuse["reused_blocks"], reuse["blocks"]) == (4, 7)
    assert reuse["token_reuse"] == (12 + 16) / 52  # id 2 at another place is another prefix
    assert reuse["engine_reuse"] == (12 + 12) / 52  # one token of the third prompt is computed


def test_a_trace_without_hash_ids_has_unknown_reuse() -> None:
    empty = trace_of([(5, []), (6, [])])
    assert inspect_trace(empty)["reuse"] == {"known": False}


def test_lengths_rates_and_sessions_are_described() -> None:
    trace = trace_of([(8, [1]), (16, [1, 2]), (24, [1, 2, 3]), (8, [9])])
    trace = replace(
        trace,
        previous_turn=np.array([-1, 0, 1, -1]),
        delay_ms=np.array([0.0, 10.0, 30.0, 0.0]),
    )
    summary = inspect_trace(trace)
    assert summary["requests"] == 4
    assert summary["request_rate_rps"] == pytest.approx(4 / 3)
    assert summary["interarrival_cv"] == 0
    assert (summary["input_tokens"]["mean"], summary["input_tokens"]["p50"]) == (14, 12)
    sessions = summary["sessions"]
    assert (sessions["count"], sessions["multi_turn"], sessions["turns_max"]) == (2, 1, 3)
    assert (sessions["turns_mean"], sessions["delay_ms"]["mean"]) == (2, 20)


def test_requests_that_come_at_once_have_no_rate() -> None:
    closed = synthesize({"requests": 3, "isl": 9, "osl": 2, "arrival": "closed"}, 0)
    summary = inspect_trace(closed)
    assert (summary["request_rate_rps"], summary["interarrival_cv"]) == (None, None)


@pytest.mark.parametrize("has_ids", [True, False])
def test_the_figure_is_a_png(tmp_path: Path, has_ids: bool) -> None:
    trace = trace_of([(8, [1] if has_ids else [])] * 3)
    plot_trace(trace, tmp_path / "out.png")
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["out.png"]
