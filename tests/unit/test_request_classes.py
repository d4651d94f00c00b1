"""Results by class of request, and clients' guesses of how long answers will be, in the twin."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clusters import run_twin

from dynosim.cli import main
from dynosim.engine.spec import EngineSpec
from dynosim.metrics.request_classes import class_rows
from dynosim.records import RunResult, Trace
from dynosim.router.knobs import LoadSpec, RouterSpec
from dynosim.router.spec import RoutingSpec
from dynosim.timing.formulas import FixedModel

ENGINE = EngineSpec(num_gpu_blocks=4000, max_model_len=9000)


def trace_of(prompts: list[int], outputs: list[int], gap_ms: float = 0.0) -> Trace:
    """Prompts of full blocks of 16, all beginning alike."""
    count = len(prompts)
    return Trace(
        arrival_ms=gap_ms * np.arange(count, dtype=np.float64),
        input_tokens=np.array(prompts),
        output_tokens=np.array(outputs),
        hash_ids=np.concatenate([np.arange(tokens // 16) for tokens in prompts]),
        hash_offsets=np.cumsum([0, *(tokens // 16 for tokens in prompts)]),
        trace_block_size=16,
    )


def test_both_hit_rates_are_told_for_each_class() -> None:
    trace = replace(
        trace_of([1600, 1616, 3200], [4, 4, 4], gap_ms=500.0), classes=("lead", "sub", "sub")
    )
    result = run_twin(trace, engine=ENGINE, timing=FixedModel(prefill_ms=10, decode_ms=5))
    rows = class_rows(result, trace)
    assert rows is not None
    lead, sub = rows
    assert (lead["request_class"], lead["num_requests"], lead["mean_request_hit_rate"]) == (
        "lead", 1, 0.0,
    )  # fmt: skip
    assert lead["kv_read_write_ratio"] == 0.0
    assert sub["mean_request_hit_rate"] == (1600 / 1616 + 1616 / 3200) / 2
    assert sub["prefix_cache_reused_ratio"] == (1600 + 1616) / (1616 + 3200)
    assert sub["kv_read_write_ratio"] == (1600 + 1616) / (16 + 1584)
    assert class_rows(result, replace(trace, classes=None)) is None


def test_a_run_of_agents_reports_its_classes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(
        "workload: {agents: {tasks: 2, rate_rps: 1.0, team_share: 1.0}}\n"
        "engine: {num_gpu_blocks: 30000, block_size: 16}\n"
        "timing: {kind: fixed, prefill_ms: 10, decode_ms: 5}\n"
    )
    assert main(["run", "run.yaml", "--out", "result"]) == 0
    printed = capsys.readouterr().out
    assert "hit/call" in printed and "teammate" in printed
    report = json.loads((tmp_path / "result" / "report.json").read_text())
    assert [row["request_class"] for row in report["classes"]] == [
        "lead", "sub_agent", "teammate",
    ]  # fmt: skip
    assert "By class of request" in (tmp_path / "result" / "report.html").read_text()


# ---- guesses of output lengths -----------------------------------------------------------------


def routed(trace: Trace, *, tracks: bool) -> RunResult:
    load = LoadSpec(track_output_blocks=tracks)
    return run_twin(
        trace,
        engine=ENGINE,
        timing=FixedModel(prefill_ms=10, decode_ms=5),
        num_workers=2,
        routing=RoutingSpec(RouterSpec(16, mode="kv", load=load)),
    )


def late_arrival(**changes: Any) -> Trace:
    """Two requests, one a worker, in the middle of their answers; then a third one comes."""
    trace = trace_of([320, 320, 320], [400, 400, 4])
    trace = replace(
        trace,
        arrival_ms=np.array([0.0, 1.0, 1000.0]),
        hash_ids=np.arange(60),  # nothing is shared
    )
    return replace(trace, **changes)


@pytest.mark.parametrize("nearly_done", [0, 1])
def test_a_router_that_tracks_answers_goes_where_one_is_expected_to_end(nearly_done: int) -> None:
    expected = np.array([4000, 4000, 0])
    expected[nearly_done] = 150
    hinted = late_arrival(expected_output_tokens=expected)
    worker = routed(hinted, tracks=True).requests.worker_id
    assert worker[0] != worker[1]
    assert worker[2] == worker[nearly_done]
    # Without tracking, or without guesses, that decides nothing.
    plain = routed(late_arrival(), tracks=False).requests.worker_id
    assert routed(hinted, tracks=False).requests.worker_id.tolist() == plain.tolist()


def test_a_guess_is_the_clients_alone() -> None:
    """The same guesses, other true lengths: the router does the same until they end."""
    expected = np.array([150, 4000, 0])
    first = late_arrival(expected_output_tokens=expected)
    second = replace(first, output_tokens=np.array([900, 700, 90]))
    ours, theirs = (routed(trace, tracks=True).requests.worker_id for trace in (first, second))
    assert ours.tolist() == theirs.tolist()
