"""Agents at work: the shape of their tasks, what their prompts share, and what clients say."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dynosim.cli import main
from dynosim.config.schema import RunConfig
from dynosim.errors import ConfigError
from dynosim.experiment.run import run
from dynosim.records import Trace
from dynosim.workload.agents import write_agents
from dynosim.workload.agents_spec import AgentsSpec, as_agents_spec
from dynosim.workload.inspect import shared_prefixes
from dynosim.workload.prompt_pieces import BlockNames
from dynosim.workload.trees import tree_numbers

BASE = {"tasks": 3, "rate_rps": 1.0}
ALONE = {"sub_agent_share": 0, "team_share": 0}


def made(seed: int = 1, **changes: Any) -> Trace:
    return write_agents({**BASE, **changes}, seed)


def rows_of(trace: Trace, kind: str) -> list[int]:
    assert trace.classes is not None
    return [row for row, name in enumerate(trace.classes) if name == kind]


def kept(trace: Trace) -> Any:
    """Leading tokens of each prompt that an earlier one of the file has, too."""
    return shared_prefixes(trace)[1]


def test_a_task_is_a_tree_of_a_lead_its_sub_agents_and_a_team_that_it_waits_for() -> None:
    trace = made(team_share=1.0, sub_agent_share=0.3)
    assert trace.classes is not None and trace.session_ids is not None
    assert len(set(tree_numbers(trace).tolist())) == 3
    assert set(trace.classes) == {"lead", "sub_agent", "teammate"}
    for task in ("t0", "t1", "t2"):
        leads = [row for row in rows_of(trace, "lead") if trace.session_ids[row] == task]
        assert len(leads) >= 20
        members = {
            trace.session_ids[row]
            for row in rows_of(trace, "teammate")
            if trace.session_ids[row].startswith(f"{task}/")
        }
        assert len(members) == 4
        # Sub-agents are of the lead's session.
        assert any(trace.session_ids[row] == task for row in rows_of(trace, "sub_agent"))
    graph = trace.dependencies
    assert graph is not None
    joins = np.flatnonzero(np.diff(graph.offsets) == 5)  # the lead's turn before, and four others
    assert len(joins) >= 3
    assert {trace.classes[row] for row in joins.tolist()} == {"lead"}


def test_lengths_pauses_and_turns_are_within_what_is_published() -> None:
    trace = made(seed=4, tasks=12)
    assert trace.delay_ms is not None and trace.dependencies is not None
    assert trace.input_tokens.min() > 32_768
    assert 175_000 <= trace.input_tokens.max() <= 175_000 + 12_000
    plain = (trace.delay_ms > 0) & (np.diff(trace.dependencies.offsets) == 0)
    tools = [row for row in rows_of(trace, "teammate") if plain[row]]
    assert 2000 <= trace.delay_ms[tools].min() and trace.delay_ms[tools].max() <= 30_000


def test_a_long_context_is_summed_up_and_grows_again() -> None:
    trace = made(tasks=1, lead_turns=60, compact_at_tokens=80_000, block_size=16, **ALONE)
    prompts = trace.input_tokens
    cuts = np.flatnonzero(np.diff(prompts) < 0)
    assert len(cuts) >= 2
    # The call before the cut has all of it in its prompt; its answer is the summary.
    assert (prompts[cuts] > 80_000).all()
    assert (trace.output_tokens[cuts] == 40_000 - 32_768).all()
    assert (prompts[cuts + 1] >= 40_000).all() and (prompts[cuts + 1] < 55_000).all()
    assert (kept(trace)[cuts + 1] == 32_768).all()  # system prompt and tools


@pytest.mark.parametrize("policy", ["keep", "drop_thinking", "regroup"])
def test_what_becomes_of_thinking_when_a_loop_is_over(policy: str) -> None:
    trace = made(
        tasks=1, lead_turns=30, loop_turns=5, block_size=1, history_policy=policy,
        compact_at_tokens=None, system_tokens=1000, answer_tokens=100, tool_output_tokens=50,
        user_tokens=30, **ALONE,
    )  # fmt: skip
    prompts, same = trace.input_tokens, kept(trace)
    closing = np.arange(5, 30, 5)  # calls behind a loop of five
    inside = np.setdiff1d(np.arange(1, 30), closing)
    assert (same[inside] == prompts[inside - 1]).all()  # nothing old has changed
    if policy == "keep":
        assert (same[closing] == prompts[closing - 1]).all()
        assert (np.diff(prompts)[closing - 1] == 100 + 30).all()
    else:
        first = prompts[closing - 5]  # of the loop: its answers come behind it
        unmoved = 40 if policy == "regroup" else 0  # the first thinking, which stays in front
        assert (same[closing] == first + unmoved).all()
        dropped = 5 * 40 if policy == "drop_thinking" else 0
        assert (np.diff(prompts)[closing - 1] == 100 + 30 - dropped).all()


def test_how_much_of_an_answer_comes_back_is_the_renderers_matter() -> None:
    options: dict[str, Any] = {
        "tasks": 1, "lead_turns": 3, "loop_turns": 9, "answer_tokens": 100,
        "tool_output_tokens": 50, "thinking_share": 0.4, **ALONE,
    }  # fmt: skip
    grown = [np.diff(made(answer_rendered_ratio=r, **options).input_tokens) for r in (1.0, 1.5, 0)]
    assert [one.tolist() for one in grown] == [[150, 150], [180, 180], [90, 90]]


def test_tool_outputs_are_cut_at_tokens_or_at_bytes() -> None:
    options: dict[str, Any] = {
        "tasks": 1, "lead_turns": 2, "loop_turns": 9, "answer_tokens": 100,
        "tool_output_tokens": 50_000, **ALONE,
    }  # fmt: skip
    for unit, most in (("tokens", 10_000), ("bytes", 2500)):
        trace = made(tool_output_limit_unit=unit, **options)
        assert np.diff(trace.input_tokens).tolist() == [100 + most]
    assert np.diff(made(tool_output_limit=None, **options).input_tokens).tolist() == [50_100]


def test_a_varying_preamble_costs_all_reuse_behind_it_unless_it_is_cut_off() -> None:
    options: dict[str, Any] = {"tasks": 2, "block_size": 16, "unstable_preamble_tokens": 40}
    system = 32_768
    stable, cut = made(tasks=2, block_size=16), made(strip_preamble=True, **options)
    assert np.array_equal(kept(stable), kept(cut))
    by_session, by_call = made(**options), made(preamble_varies="call", **options)
    assert (by_session.input_tokens == stable.input_tokens + 40).all()
    assert (kept(by_call) == 0).all()
    firsts = [rows_of(stable, "lead")[0], stable.session_ids.index("t1")]  # type: ignore[union-attr]
    assert kept(stable)[firsts[1]] == system and kept(by_session)[firsts[1]] == 0
    same_session = rows_of(by_session, "lead")[1]
    assert kept(by_session)[same_session] >= system


def test_what_sub_agents_and_teammates_share_with_leads_is_a_matter_of_the_spec() -> None:
    trace = made(
        tasks=1, team_share=1.0, sub_agent_share=0.5, sub_agent_shared_tokens=16_384,
        teammate_shared_tokens=0, block_size=16,
    )  # fmt: skip
    same = kept(trace)
    assert same[rows_of(trace, "sub_agent")[0]] == 16_384
    assert same[rows_of(trace, "teammate")[0]] == 0
    assert same[rows_of(trace, "sub_agent")[1]] >= 32_768  # as the first of its kind


def test_another_arrival_process_leaves_the_tasks_as_they_were() -> None:
    first, second = made(), made(arrival="constant", rate_rps=9.0)
    assert sorted(first.input_tokens.tolist()) == sorted(second.input_tokens.tolist())
    assert first.arrival_ms.tolist() != second.arrival_ms.tolist()
    assert made(seed=2).input_tokens.tolist() != first.input_tokens.tolist()


def test_priorities_and_guesses_are_what_the_spec_says() -> None:
    shares = [{"priority": 0, "share": 3}, {"priority": -5, "share": 1}]
    trace = made(tasks=60, lead_turns=20, priorities=shares, hints_output_tokens=True, **ALONE)
    assert trace.priority is not None and trace.expected_output_tokens is not None
    by_task = {one: set(trace.priority[tree_numbers(trace) == one].tolist()) for one in range(60)}
    assert all(len(found) == 1 for found in by_task.values())
    urgent = sum(found == {-5} for found in by_task.values())
    assert 5 <= urgent <= 28
    assert set(trace.expected_output_tokens.tolist()) == {700}  # never one's own length


# ---- lives that began before -----------------------------------------------------------------


def test_tasks_may_start_in_the_middle_of_their_lives() -> None:
    whole, middle = made(tasks=6, block_size=16), made(tasks=6, block_size=16, snapshot_tasks=6)
    assert whole.request_ids is not None and middle.request_ids is not None
    assert set(middle.request_ids) < set(whole.request_ids)
    assert len(set(tree_numbers(middle).tolist())) == 6
    starts = np.flatnonzero(middle.previous_turn == -1)
    assert middle.input_tokens[starts].max() > 60_000  # with what they have behind them


def test_agents_of_a_snapshot_may_be_warmed_up_by_their_last_prompts() -> None:
    options: dict[str, Any] = {"tasks": 6, "block_size": 16, "snapshot_tasks": 6}
    trace = made(warm_up=True, **options)
    assert trace.classes is not None and trace.previous_turn is not None
    primers = rows_of(trace, "primer")
    assert primers and (trace.output_tokens[primers] == 1).all()
    starts = np.flatnonzero(trace.previous_turn == -1).tolist()
    assert set(starts) == set(primers)
    assert len(trace) == len(made(**options)) + len(primers)


def test_in_a_closed_loop_the_next_task_starts_when_one_is_over() -> None:
    config = {
        "workload": {
            "agents": {"tasks": 3, "arrival": "closed", "lead_turns": 5, **ALONE},
            "concurrency": 1,
        },
        "engine": {"num_gpu_blocks": 20_000, "block_size": 16},
        "timing": {"kind": "fixed", "prefill_ms": 10, "decode_ms": 5},
    }
    log = run(RunConfig.of(config)).result.requests
    starts, ends = np.sort(log.arrival_ms)[::5], np.sort(log.finish_ms)[4::5]
    np.testing.assert_allclose(starts[1:], ends[:-1], atol=1e-6)


# ---- bad input -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": 0}, "tasks: expected at least 1, got 0"),
        ({"taks": 3}, "taks: unknown key of agents, did you mean tasks?"),
        ({"history_policy": "forget"}, "history_policy: expected one of keep"),
        ({"thinking_share": 1.5}, "thinking_share: expected at most 1, got 1.5"),
        ({"compact_to_tokens": 30_000}, "compact_to_tokens: 30000 does not lie between"),
        ({"teammate_shared_tokens": 40_000}, "teammate_shared_tokens: expected at most 32768"),
        ({"warm_up": True}, "warm_up: only tasks in the middle of their lives"),
        ({"rate_rps": None}, "rate_rps: missing"),
        ({"lead_turns": {"dist": "normal"}}, "lead_turns.mean: missing"),
        ({"priorities": [{"priority": 1}]}, r"priorities\[0\]: a key is missing"),
        ({"priorities": [{"priority": 1, "share": -1}]}, r"priorities\[0\].share: expected >= 0"),
    ],
)
def test_a_spec_that_cannot_be_worked_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        as_agents_spec({**BASE, **changes})


def test_a_checked_spec_is_taken_as_it_is() -> None:
    spec = AgentsSpec(tasks=2, rate_rps=1.0)
    assert as_agents_spec(spec) is spec
    with pytest.raises(ConfigError, match="tasks"):
        as_agents_spec(replace(spec, tasks=0))


def test_what_a_run_file_says_wrong_of_agents_is_told_by_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text("workload:\n  agents: {tasks: 2, compact_to_tokens: 9}\n")
    assert main(["run", "run.yaml"]) == 2
    told = capsys.readouterr().err
    assert "agents.compact_to_tokens" in told and "run.yaml:2" in told


# ---- names of blocks -------------------------------------------------------------------------


def test_blocks_are_equal_where_all_of_their_tokens_are() -> None:
    names = BlockNames(4)
    a, b, c = 1, 2, 3
    first, second = names.of_thread([((a, 6),), ((a, 6), (b, 5))])
    assert first.tolist() == second[:2].tolist()  # it ends in a block that the next one fills
    (other,) = names.of_thread([((a, 6), (c, 5))])
    assert other[0] == second[0]
    assert not set(other[1:].tolist()) & set(second.tolist())
    (longer,) = names.of_thread([((a, 9),)])
    assert longer[0] == first[0] and longer[1] not in (first[1], other[1])
