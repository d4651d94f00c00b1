"""Speculative prefills: what loads of agents have of them, what files say, what they are worth."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dynosim.cli import main
from dynosim.config.schema import RunConfig
from dynosim.errors import ConfigError, TraceError
from dynosim.experiment.run import RunOutcome, run
from dynosim.metrics import PROCESS_KEYS
from dynosim.metrics.carried import Bounds, SlaTarget
from dynosim.metrics.hopeless import HopelessLoad
from dynosim.records import Trace
from dynosim.workload.agents import write_agents
from dynosim.workload.inspect import inspect_trace, shared_prefixes
from dynosim.workload.readers import read_trace
from dynosim.workload.scaling import tiled
from dynosim.workload.writers import write_trace
from dynosim_runtime.measure.load import check_sendable

BASE = {"tasks": 3, "rate_rps": 1.0, "block_size": 16, "system_tokens": 1024, "lead_turns": 5,
        "compact_at_tokens": None}  # fmt: skip


def made(**changes: Any) -> Trace:
    return write_agents({**BASE, "speculative_prefill": True, **changes}, 1)


def speculative(trace: Trace) -> list[int]:
    assert trace.is_speculative is not None
    return np.flatnonzero(trace.is_speculative).tolist()


def blocks(trace: Trace, row: int) -> list[int]:
    ids: list[int] = trace.hash_ids[trace.hash_offsets[row] : trace.hash_offsets[row + 1]].tolist()
    return ids


# ---- agents ----------------------------------------------------------------------------------


def test_each_turn_that_another_follows_has_one_the_moment_it_has_ended() -> None:
    trace = made(team_share=1.0)
    rows = speculative(trace)
    assert trace.previous_turn is not None and trace.classes is not None
    assert (trace.output_tokens[rows] == 1).all()
    assert {trace.classes[row] for row in rows} == {"speculative_prefill"}
    turns = trace.previous_turn[rows]
    assert len(set(turns.tolist())) == len(rows)
    last = {name: row for row, name in enumerate(trace.session_ids or ())}
    assert not {turn for task in ("t0", "t1", "t2") if (turn := last[task]) in turns}
    # The prompt is that of the turn, and its answer as the next turn has it.
    grown = trace.input_tokens[rows] - trace.input_tokens[turns]
    assert grown.tolist() == trace.output_tokens[turns].tolist()
    for row, turn in zip(rows, turns.tolist(), strict=True):
        whole = trace.input_tokens[turn] // 16
        assert blocks(trace, row)[:whole] == blocks(trace, turn)[:whole]


def test_nobody_waits_for_them_and_all_else_is_as_without() -> None:
    trace, without = made(team_share=1.0), made(team_share=1.0, speculative_prefill=False)
    rows = speculative(trace)
    graph = trace.dependencies
    assert graph is not None and not set(graph.rows.tolist()) & set(rows)
    others = trace.take(np.flatnonzero(np.logical_not(trace.is_speculative)))
    assert others.is_speculative is None and without.is_speculative is None
    for name in ("arrival_ms", "input_tokens", "output_tokens", "hash_offsets", "previous_turn"):
        np.testing.assert_array_equal(getattr(others, name), getattr(without, name), err_msg=name)
    assert others.request_ids == without.request_ids
    shared = [shared_prefixes(one)[1].tolist() for one in (others, without)]
    assert shared[0] == shared[1]


def test_the_next_turn_begins_with_it_unless_its_thinking_is_dropped() -> None:
    def kept(policy: str) -> set[bool]:
        trace = made(tasks=1, team_share=0, sub_agent_share=0, loop_turns=1, history_policy=policy)
        assert trace.dependencies is not None
        rows = speculative(trace)
        found = set()
        for row in rows:
            edges = np.flatnonzero(trace.dependencies.rows == trace.previous_turn[row])  # type: ignore[index]
            following = int(trace.dependencies.waiting()[edges[-1]])
            whole = int(trace.input_tokens[row]) // 16
            found.add(blocks(trace, row)[:whole] == blocks(trace, following)[:whole])
        return found

    assert kept("keep") == {True}
    assert kept("drop_thinking") == {False}


def test_of_lives_that_began_before_only_turns_to_come_have_one() -> None:
    for warm_up in (False, True):
        trace = made(tasks=40, lead_turns=5, snapshot_tasks=40, warm_up=warm_up)
        assert trace.previous_turn is not None and trace.request_ids is not None
        for row in speculative(trace):
            turn = trace.request_ids[trace.previous_turn[row]]
            assert trace.request_ids[row] == f"{turn}.ahead"


# ---- files -----------------------------------------------------------------------------------


def test_a_file_keeps_them(tmp_path: Path) -> None:
    trace, path = made(), tmp_path / "agents.jsonl"
    assert write_trace(trace, path) == []
    again = read_trace(path, "jsonl", 16)
    np.testing.assert_array_equal(again.is_speculative, trace.is_speculative)
    np.testing.assert_array_equal(again.previous_turn, trace.previous_turn)
    assert inspect_trace(again)["speculative_prefills"] == len(speculative(trace))
    assert write_trace(trace, tmp_path / "a.csv", "azure")[-1] == "is_speculative"
    twice = tiled(trace, 2)
    assert twice.is_speculative is not None
    assert twice.is_speculative.tolist() == [*trace.is_speculative, *trace.is_speculative]  # type: ignore[misc]


TURN = {"arrival_ms": 0, "input_tokens": 64, "output_tokens": 8, "prompt_hash_ids": [1, 2, 3, 4],
        "session_id": "s", "request_id": "a"}  # fmt: skip
AHEAD = {"input_tokens": 96, "output_tokens": 1, "prompt_hash_ids": [1, 2, 3, 4, 5, 6],
         "session_id": "s", "request_id": "a.ahead", "speculative_prefill": True}  # fmt: skip
NEXT = {"input_tokens": 128, "output_tokens": 8, "prompt_hash_ids": [1, 2, 3, 4, 5, 6, 7, 8],
        "session_id": "s", "request_id": "b", "delay_ms": 1000}  # fmt: skip


def written(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_next_turn_of_a_session_follows_the_turn_and_not_what_was_sent_ahead(
    tmp_path: Path,
) -> None:
    trace = read_trace(written(tmp_path / "t.jsonl", TURN, AHEAD, NEXT), "jsonl", 16)
    assert trace.previous_turn is not None and trace.previous_turn.tolist() == [-1, 0, 0]
    assert trace.is_speculative is not None
    assert trace.is_speculative.tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("rows", "line", "message"),
    [
        ([TURN, {**AHEAD, "output_tokens": 2}], 2, "output_tokens: expected 1 of a speculative"),
        ([TURN, {**AHEAD, "session_id": "other", "arrival_ms": 5}], 2,
         "speculative_prefill: follows no turn"),
        ([TURN, AHEAD, {**NEXT, "delay_ms": None, "wait_for": ["a.ahead"]}], 3,
         "wait_for: 'a.ahead' is a speculative prefill"),
        ([TURN, {**AHEAD, "speculative_prefill": 1}], 2, "speculative_prefill"),
    ],
)  # fmt: skip
def test_a_row_that_cannot_be_one_is_refused(
    rows: list[dict[str, Any]], line: int, message: str, tmp_path: Path
) -> None:
    with pytest.raises(TraceError, match=message) as caught:
        read_trace(written(tmp_path / "t.jsonl", *rows), "jsonl", 16)
    assert caught.value.line == line


# ---- runs ------------------------------------------------------------------------------------


def run_of(trace: Trace, **changes: Any) -> RunOutcome:
    config = {
        "workload": {"agents": {"tasks": 1, "arrival": "closed"}, "concurrency": 4},
        "engine": {"num_gpu_blocks": 4000, "block_size": 16, "max_num_batched_tokens": 512},
        "timing": {"kind": "polynomial"},
        **changes,
    }
    return run(RunConfig.of(config), trace=trace, check=True)


def chain(tmp_path: Path, *rows: dict[str, Any]) -> Trace:
    return read_trace(written(tmp_path / "t.jsonl", *rows), "jsonl", 16)


def test_the_next_turn_finds_what_it_computed_and_clients_see_nothing_of_it(
    tmp_path: Path,
) -> None:
    plain = run_of(chain(tmp_path, TURN, NEXT))
    ahead = run_of(chain(tmp_path, TURN, AHEAD, NEXT))
    assert plain.result.requests.cached_tokens.tolist() == [0, 64]
    assert ahead.result.requests.cached_tokens.tolist() == [0, 96]
    assert ahead.requests["request_id"].to_list() == ["a", "b"]
    assert ahead.report["num_requests"] == ahead.report["num_ttft_samples"] == 2
    keys = ("speculative_prefills", "speculative_prefill_tokens", "speculative_hit_tokens")
    assert [ahead.report[key] for key in keys] == [1, 32, 32]
    assert [plain.report[key] for key in keys] == [None, None, None]
    # The same is computed, but earlier, and the engine was busy with it.
    prefilled = [one.report["committed_prefill_tokens"] for one in (plain, ahead)]
    assert prefilled == [128, 128]
    assert ahead.report["num_steps"] == plain.report["num_steps"] + 1
    ttft = [one.report["max_ttft_ms"] for one in (plain, ahead)]
    assert ttft[1] <= ttft[0]
    first, second = (one.result.requests for one in (plain, ahead))
    gained = (first.first_token_ms - first.arrival_ms) - (second.first_token_ms - second.arrival_ms)
    assert gained[1] > 0


def test_what_another_worker_computed_is_found_by_nobody(tmp_path: Path) -> None:
    def found(**changes: Any) -> list[int]:
        trace = chain(tmp_path, {**TURN, "worker_id": 0}, {**AHEAD, "worker_id": 1},
                      {**NEXT, "worker_id": 0})  # fmt: skip
        report = run_of(trace, cluster={"workers": 2}, router={"mode": "kv"}, **changes).report
        return [report[f"speculative_{name}_tokens"] for name in ("prefill", "hit")]

    assert found() == [96, 0]


def test_a_prompt_that_goes_on_otherwise_finds_only_what_it_shares(tmp_path: Path) -> None:
    other = {**NEXT, "prompt_hash_ids": [1, 2, 3, 4, 5, 16, 17, 18]}
    report = run_of(chain(tmp_path, TURN, AHEAD, other)).report
    assert report["speculative_hit_tokens"] == 16


def test_they_are_no_reason_to_give_up_a_load(tmp_path: Path) -> None:
    trace = chain(tmp_path, TURN, AHEAD, NEXT)
    target = SlaTarget(Bounds(ttft_ms=400.0), attainment=0.5)
    assert HopelessLoad(trace, target)._allowed == pytest.approx(1.0)


def test_the_reuse_that_could_have_been_is_refused_beside_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path / "t.jsonl", TURN, AHEAD, NEXT)
    config = tmp_path / "run.yaml"
    config.write_text(
        f"workload: {{trace: {path}, format: jsonl, trace_block_size: 16}}\n"
        "engine: {num_gpu_blocks: 400, block_size: 16}\ntiming: {kind: polynomial}\n"
    )
    assert main(["run", str(config)]) == 0
    told = capsys.readouterr().out
    assert "1 speculative prefills, which computed 32 tokens, 100.0 % of them found" in told
    assert main(["run", str(config), "--reuse-bound"]) == 2
    assert "speculative prefills leave in the caches" in capsys.readouterr().err


def test_why_tells_of_the_request_that_was_asked_about(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path / "t.jsonl", TURN, AHEAD, NEXT)
    config, out = tmp_path / "run.yaml", tmp_path / "out"
    config.write_text(
        f"workload: {{trace: {path}, format: jsonl, trace_block_size: 16}}\n"
        "engine: {num_gpu_blocks: 400, block_size: 16}\ntiming: {kind: polynomial}\n"
        "cluster: {workers: 2}\nrouter: {mode: kv}\n"
    )
    assert main(["run", str(config), "--out", str(out)]) == 0
    capsys.readouterr()
    assert main(["why", str(out), "b", "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)["requests"]
    assert told["request_id"] == "b"
    assert told["choice"] == "the router sent it there for 96 cached tokens"
    (routed,) = [one for one in told["timeline"] if one["kind"] == "routed"]
    assert sorted(one["cached_tokens"] for one in routed["candidates"]) == [0, 96]


def test_a_run_file_of_agents_has_them_by_a_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(
        "workload:\n  agents: {tasks: 2, rate_rps: 2, lead_turns: 20, system_tokens: 2048}\n"
        "engine: {num_gpu_blocks: 60000, block_size: 16}\ntiming: {kind: polynomial}\n"
        "router: {mode: kv}\n"
    )
    reports = []
    for is_ahead in ("false", "true", "true"):
        key = f"workload.agents.speculative_prefill={is_ahead}"
        assert main(["run", str(config), "--set", key, "--check", "--json"]) == 0
        reports.append(json.loads(capsys.readouterr().out))
    without, ahead, again = reports
    assert ahead["num_requests"] == without["num_requests"]
    assert ahead["prefix_cache_reused_ratio"] > without["prefix_cache_reused_ratio"]
    lost = ahead["speculative_prefill_tokens"] - ahead["speculative_hit_tokens"]
    assert 0 <= lost < 16 * ahead["speculative_prefills"]  # of blocks that were not full
    assert {row["request_class"] for row in ahead["classes"]} == {
        row["request_class"] for row in without["classes"]
    }
    for report in (ahead, again):
        for key in PROCESS_KEYS:
            del report[key]
    assert ahead == again


def test_no_live_server_is_sent_them(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="request 1 is a speculative prefill"):
        check_sendable(chain(tmp_path, TURN, AHEAD, NEXT))
