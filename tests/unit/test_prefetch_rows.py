"""Prefetches of agents, in files, in runs and live: who asks for them, and where it is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_speculative_prefill import BASE, NEXT, TURN, blocks, written

from dynosim.cli import main
from dynosim.config.schema import RunConfig
from dynosim.errors import ConfigError, TraceError
from dynosim.experiment.run import run
from dynosim.metrics import PROCESS_KEYS
from dynosim.records import Trace
from dynosim.workload.agents import write_agents
from dynosim.workload.inspect import inspect_trace
from dynosim.workload.readers import read_trace
from dynosim.workload.scaling import tiled
from dynosim.workload.writers import write_trace
from dynosim_runtime.dialects.nvext import AgentHints, NvExt
from dynosim_runtime.errors import ApiError
from dynosim_runtime.measure.load import check_sendable

KEYS = ("prefetches", "prefetched_tokens", "prefetch_hit_tokens", "prefetch_wasted_tokens",
        "prefetches_without_room")  # fmt: skip
AHEAD = {"input_tokens": 64, "output_tokens": 1, "prompt_hash_ids": [1, 2, 3, 4], "delay_ms": 700,
         "session_id": "s", "request_id": "a.prefetch", "prefetch": True}  # fmt: skip
OTHER = {"arrival_ms": 200, "input_tokens": 155, "output_tokens": 1,
         "prompt_hash_ids": list(range(20, 30)), "request_id": "c"}  # fmt: skip


def made(**changes: Any) -> Trace:
    return write_agents({**BASE, "prefetch_lead_ms": 1000.0, **changes}, 1)


def waits(trace: Trace, row: int) -> list[tuple[int, float]]:
    """Whom a row waits for, and how long after each."""
    graph = trace.dependencies
    assert graph is not None and trace.previous_turn is not None and trace.delay_ms is not None
    edges = slice(graph.offsets[row], graph.offsets[row + 1])
    found = list(zip(graph.rows[edges].tolist(), graph.delay_ms[edges].tolist(), strict=True))
    return found or [(int(trace.previous_turn[row]), float(trace.delay_ms[row]))]


def delays_ms(trace: Trace) -> tuple[list[float], list[float]]:
    """Of each prefetch: how long after its turn it comes, and how long after that the next turn."""
    assert trace.is_prefetch is not None and trace.is_speculative is not None
    pauses_ms: dict[int, float] = {}
    for row in np.flatnonzero(~trace.is_speculative).tolist():
        pauses_ms |= dict(waits(trace, row))
    ours = [waits(trace, row)[0] for row in np.flatnonzero(trace.is_prefetch).tolist()]
    return [at_ms for _, at_ms in ours], [pauses_ms[turn] for turn, _ in ours]


# ---- agents --------------------------------------------------------------------------------------


def test_each_turn_behind_a_tool_has_one_so_long_before_it() -> None:
    trace = made(team_share=1.0)
    rows = np.flatnonzero(trace.is_prefetch)
    assert trace.previous_turn is not None and trace.classes is not None and len(rows)
    assert {trace.classes[row] for row in rows} == {"prefetch"}
    ours, theirs = delays_ms(trace)
    assert ours == pytest.approx([max(0.0, pause_ms - 1000.0) for pause_ms in theirs])
    for row in rows.tolist():  # its prompt is that of the turn before
        turn = int(trace.previous_turn[row])
        assert trace.input_tokens[row] == trace.input_tokens[turn]
        assert blocks(trace, row) == blocks(trace, turn)


def test_all_else_is_as_without_them() -> None:
    trace, without = made(team_share=1.0), made(team_share=1.0, prefetch_lead_ms=None)
    others = trace.take(np.flatnonzero(np.logical_not(trace.is_prefetch)))
    assert others.is_speculative is None and others.is_prefetch is None
    for name in ("arrival_ms", "input_tokens", "output_tokens", "hash_ids", "previous_turn"):
        np.testing.assert_array_equal(getattr(others, name), getattr(without, name), err_msg=name)
    assert others.request_ids == without.request_ids


def test_a_pause_that_is_misjudged_has_its_prefetch_sooner_or_later_or_not_at_all() -> None:
    changes = {"tasks": 20, "sub_agent_share": 0.0, "team_share": 0.0}
    exact, loose = made(**changes), made(**changes, prefetch_error=0.5)
    ours, theirs = delays_ms(loose)
    foreseen = [(at_ms + 1000.0) / pause_ms for at_ms, pause_ms in zip(ours, theirs, strict=True)]
    assert 0.5 <= min(foreseen) < 0.7 and 1.05 < max(foreseen) <= 1.5
    assert all(at_ms < pause_ms for at_ms, pause_ms in zip(ours, theirs, strict=True))
    assert 0 < np.sum(loose.is_prefetch) < np.sum(exact.is_prefetch)  # who is back needs none


def test_beside_speculative_prefills_they_name_the_answer_as_well() -> None:
    trace = made(speculative_prefill=True)
    names = trace.request_ids
    assert names is not None and trace.is_prefetch is not None
    place = {name: row for row, name in enumerate(names)}
    for row in np.flatnonzero(trace.is_prefetch).tolist():
        twin = place[names[row].replace(".prefetch", ".ahead")]
        assert blocks(trace, row) == blocks(trace, twin)
    told = inspect_trace(trace)
    num_prefetches = int(trace.is_prefetch.sum())
    assert told["prefetches"] == num_prefetches
    assert told["speculative_prefills"] == np.sum(trace.is_speculative) - num_prefetches


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prefetch_lead_ms": -1.0}, "prefetch_lead_ms: expected at least 0"),
        ({"prefetch_error": 1.5}, "prefetch_error: expected at most 1"),
        ({"prefetch_lead_ms": None, "prefetch_error": 0.5}, "prefetch_error: nothing is foreseen"),
    ],
)
def test_what_cannot_be_foreseen_like_that_is_refused(changes: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        made(**changes)


# ---- files ---------------------------------------------------------------------------------------


def test_a_file_keeps_them(tmp_path: Path) -> None:
    trace, path = made(speculative_prefill=True), tmp_path / "agents.jsonl"
    assert write_trace(trace, path) == []
    again = read_trace(path, "jsonl", 16)
    np.testing.assert_array_equal(again.is_prefetch, trace.is_prefetch)
    np.testing.assert_array_equal(again.is_speculative, trace.is_speculative)
    assert "is_prefetch" in write_trace(trace, tmp_path / "a.csv", "azure")
    twice = tiled(trace, 2)
    assert twice.is_prefetch is not None and trace.is_prefetch is not None
    assert twice.is_prefetch.tolist() == [*trace.is_prefetch, *trace.is_prefetch]


def test_the_next_turn_follows_the_turn(tmp_path: Path) -> None:
    trace = read_trace(written(tmp_path / "t.jsonl", TURN, AHEAD, NEXT), "jsonl", 16)
    assert trace.previous_turn is not None and trace.previous_turn.tolist() == [-1, 0, 0]
    assert trace.is_prefetch is not None and trace.is_prefetch.tolist() == [False, True, False]


def test_one_may_come_at_a_time_of_its_own(tmp_path: Path) -> None:
    alone = {**AHEAD, "session_id": None, "delay_ms": None, "arrival_ms": 400}
    trace = read_trace(written(tmp_path / "t.jsonl", TURN, alone), "jsonl", 16)
    assert trace.arrival_ms.tolist() == [0.0, 400.0]
    assert trace.is_prefetch is not None and trace.is_prefetch.tolist() == [False, True]


@pytest.mark.parametrize(
    ("rows", "line", "message"),
    [
        ([TURN, {**AHEAD, "output_tokens": 2}], 2, "output_tokens: expected 1 of a prefetch"),
        ([TURN, AHEAD, {**NEXT, "delay_ms": None, "wait_for": ["a.prefetch"]}], 3,
         "wait_for: 'a.prefetch' is a prefetch"),
        ([TURN, {**AHEAD, "speculative_prefill": True}], 2, "prefetch: a speculative prefill, too"),
        ([TURN, {**AHEAD, "prefetch": "yes"}], 2, "prefetch"),
        ([TURN, {**AHEAD, "session_id": None, "delay_ms": None}], 2, "arrival_ms: missing"),
    ],
)  # fmt: skip
def test_a_row_that_cannot_be_one_is_refused(
    rows: list[dict[str, Any]], line: int, message: str, tmp_path: Path
) -> None:
    with pytest.raises(TraceError, match=message) as caught:
        read_trace(written(tmp_path / "t.jsonl", *rows), "jsonl", 16)
    assert caught.value.line == line


# ---- runs ----------------------------------------------------------------------------------------

HOST = {"num_blocks": 100, "read_gb_s": 1.0, "write_gb_s": 50.0}


def config(path: Path, **changes: Any) -> dict[str, Any]:
    """11 blocks of 16 tokens on the device; a block from the host takes 16 ms."""
    return {
        "workload": {"trace": str(path), "format": "jsonl", "trace_block_size": 16},
        "engine": {"num_gpu_blocks": 12, "block_size": 16, "max_model_len": 176},
        "timing": {"kind": "polynomial"},
        "cluster": {"tiers": {"host": HOST, "kv_bytes_per_token": 1_000_000}},
        **changes,
    }


def test_the_next_turn_finds_what_it_loaded_and_clients_see_nothing_of_it(tmp_path: Path) -> None:
    plain, ahead = (
        run(RunConfig.of(config(written(tmp_path / f"{len(rows)}.jsonl", *rows))), check=True)
        for rows in ((TURN, OTHER, NEXT), (TURN, OTHER, AHEAD, NEXT))
    )
    assert [plain.report[key] for key in KEYS] == [None] * 5
    assert [ahead.report[key] for key in KEYS] == [1, 64, 64, 0, 0]
    assert ahead.requests["request_id"].to_list() == plain.requests["request_id"].to_list()
    onboards = [one.result.requests.onboards for one in (plain, ahead)]
    assert [int(one.num_tokens.sum()) for one in onboards if one is not None] == [64, 0]
    ttft = [one.result.requests.first_token_ms - one.result.requests.arrival_ms
            for one in (plain, ahead)]  # fmt: skip
    assert ttft[0][-1] - ttft[1][-1] == pytest.approx(4 * 16, abs=0.01)


def test_a_run_file_of_agents_has_them_by_a_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        "workload:\n  agents: {tasks: 4, rate_rps: 3, lead_turns: 20, system_tokens: 2048}\n"
        "engine: {num_gpu_blocks: 6000, block_size: 16, max_model_len: 90000}\n"
        "timing: {kind: polynomial}\nrouter: {mode: kv}\n"
        "cluster:\n  tiers: {host: {num_blocks: 100000}, kv_bytes_per_token: 10000}\n"
    )
    reports = []
    for lead_ms in ("null", "1000", "1000"):
        key = f"workload.agents.prefetch_lead_ms={lead_ms}"
        assert main(["run", str(path), "--set", key, "--check", "--json"]) == 0
        reports.append(json.loads(capsys.readouterr().out))
    without, ahead, again = reports
    assert ahead["num_requests"] == without["num_requests"]
    assert ahead["device_reused_ratio"] > without["device_reused_ratio"]
    assert ahead["prefetched_tokens"] > 0
    assert {row["request_class"] for row in ahead["classes"]} == {
        row["request_class"] for row in without["classes"]
    }
    for report in (ahead, again):
        for key in PROCESS_KEYS:
            del report[key]
    assert ahead == again


def test_the_terminal_tells_of_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.json"
    rows = written(tmp_path / "t.jsonl", TURN, OTHER, AHEAD, NEXT)
    path.write_text(json.dumps(config(rows)))
    assert main(["run", str(path)]) == 0
    told = capsys.readouterr().out
    assert "1 prefetches, which loaded 64 tokens, 100.0 % of them hit; 0 had no room" in told
    assert main(["run", str(path), "--reuse-bound"]) == 2
    assert "what prefetches load is found on a device" in capsys.readouterr().err


DISAGG = {"mode": "disagg", "prefill": {"workers": 1}, "decode": {"workers": 1},
          "transfer": {"preset": "ib", "kv_bytes_per_token": 1_000_000}}  # fmt: skip


def test_a_prefill_worker_has_it_loaded(tmp_path: Path) -> None:
    rows = written(tmp_path / "t.jsonl", TURN, OTHER, AHEAD, NEXT)
    plan = config(rows)
    outcome = run(RunConfig.of({**plan, "cluster": {**plan["cluster"], **DISAGG}}), check=True)
    assert [outcome.report[key] for key in KEYS] == [1, 64, 64, 0, 0]
    assert outcome.requests["cached_tokens"].to_list() == [0, 0, 64]


def test_without_tiers_it_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.json"
    for cluster in ({}, DISAGG):
        rows = written(tmp_path / "t.jsonl", TURN, AHEAD, NEXT)
        path.write_text(json.dumps(config(rows, cluster=cluster)))
        assert main(["run", str(path)]) == 2
        assert "there is no tier to load from" in capsys.readouterr().err


# ---- live ----------------------------------------------------------------------------------------


def test_no_live_server_is_sent_them(tmp_path: Path) -> None:
    trace = read_trace(written(tmp_path / "t.jsonl", TURN, AHEAD, NEXT), "jsonl", 16)
    with pytest.raises(ConfigError, match="request 1 is a prefetch: no server can be told"):
        check_sendable(trace)


def test_a_client_that_hints_at_one_hears_that_it_is_of_no_use() -> None:
    with pytest.raises(ApiError, match="not ahead of it") as caught:
        NvExt(agent_hints=AgentHints(prefetch=True)).check_hints()
    assert caught.value.param == "nvext.agent_hints.prefetch"
    NvExt(agent_hints=AgentHints(osl=4)).check_hints()
