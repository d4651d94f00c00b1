"""Drafts in vLLM's scheduler: what they take, what comes of them, what stays."""

import pytest

from dynosim.conformance import run_scenario
from dynosim.conformance.log import Json
from dynosim.engine.plan import StepPlan
from dynosim.engine.sequence import FINISHED, Sequence
from dynosim.engine.spec import DraftMethod, EngineSpec, SpeculativeSpec
from dynosim.engine.vllm import VllmScheduler

BLOCK = 4


def scheduler(
    method: DraftMethod = "ngram", *, is_async: bool = False, budget: int = 64, blocks: int = 40
) -> VllmScheduler:
    """An engine that verifies up to three drafts of a request."""
    spec = EngineSpec(
        num_gpu_blocks=blocks + 1,
        max_model_len=100,
        block_size=BLOCK,
        max_num_seqs=4,
        max_num_batched_tokens=budget,
        async_scheduling=is_async,
        speculation=SpeculativeSpec(num_drafts=3, method=method),
    )
    return VllmScheduler(spec, keep_rows=True)


def request(index: int, prompt: int, output: int) -> Sequence:
    """One whose blocks nobody shares, but with those of the same index."""
    blocks = (prompt + output) // BLOCK
    return Sequence(index, prompt, output, [100 * index + block for block in range(blocks)], blocks)


def plan_of(core: VllmScheduler) -> list[tuple[int, int]]:
    """What a step computes, by request: tokens; not finished."""
    return [(row.sequence.index, row.num_tokens) for row in core.plan_step().rows]


def finish(core: VllmScheduler, plan: StepPlan, *, accepted: int, offered: int) -> dict[int, int]:
    """End a step in which everybody fares alike; returns the tokens delivered, by request."""
    work = plan.drafts
    assert work is not None
    for sequence, num_drafts in work.scheduled.items():
        if sequence not in work.padded:
            work.accepted[sequence] = min(accepted, num_drafts)
    for sequence in plan.emitting:
        work.offered[sequence] = offered
    core.finish_step(plan)
    return {sequence.index: number for sequence, number in work.delivered.items()}


def do_step(core: VllmScheduler, *, accepted: int = 0, offered: int = 3) -> dict[int, int]:
    return finish(core, core.plan_step(), accepted=accepted, offered=offered)


def test_accepted_drafts_are_tokens_and_rejected_ones_leave_their_blocks_behind() -> None:
    core, sequence = scheduler(), request(1, prompt=4, output=20)
    core.add(sequence)
    assert do_step(core) == {1: 1}
    assert (sequence.num_computed, core.used_blocks) == (4, 1)
    plan = core.plan_step()
    assert (sequence.num_computed, core.used_blocks) == (8, 2)
    assert finish(core, plan, accepted=1, offered=3) == {1: 2}
    assert (sequence.num_computed, sequence.generated_tokens, core.used_blocks) == (6, 3, 2)


def test_without_an_offer_a_step_gives_one_token() -> None:
    core = scheduler()
    core.add(request(1, prompt=4, output=20))
    do_step(core, offered=0)
    assert plan_of(core) == [(1, 1)]


def test_tokens_beyond_the_end_of_a_request_are_thrown_away() -> None:
    core, sequence = scheduler(), request(1, prompt=4, output=3)
    core.add(sequence)
    do_step(core)
    plan = core.plan_step()
    assert [row.num_tokens for row in plan.rows] == [4]
    assert finish(core, plan, accepted=3, offered=3) == {1: 2}
    assert (sequence.state, core.used_blocks, core.num_running) == (FINISHED, 0, 0)


@pytest.mark.parametrize(("method", "tokens"), [("ngram", [4, 4, 1]), ("draft_model", [4, 3])])
def test_a_budget_cuts_drafts_and_a_draft_model_takes_a_slot_of_it_for_each_request(
    method: DraftMethod, tokens: list[int]
) -> None:
    core = scheduler(method, budget=9)
    for index in range(3):
        core.add(request(index, prompt=2, output=20))
    do_step(core)
    assert [number for _, number in plan_of(core)] == tokens


@pytest.mark.parametrize(("method", "blocks"), [("ngram", 1), ("eagle", 2), ("draft_model", 2)])
def test_a_drafter_that_keeps_kv_needs_room_ahead(method: DraftMethod, blocks: int) -> None:
    core = scheduler(method)
    core.add(request(1, prompt=4, output=20))
    core.plan_step()
    assert core.used_blocks == blocks


@pytest.mark.parametrize(("method", "hit"), [("ngram", 12), ("eagle", 8), ("draft_model", 12)])
def test_eagle_computes_the_last_block_of_a_hit_again(method: DraftMethod, hit: int) -> None:
    core = scheduler(method)
    core.add(request(1, prompt=13, output=1))
    do_step(core)
    again = request(1, prompt=13, output=1)
    core.add(again)
    core.plan_step()
    assert again.cached_tokens == hit


def test_a_last_token_beside_decodes_is_padded_with_placeholders_that_are_rejected() -> None:
    core = scheduler()
    core.add(request(1, prompt=5, output=20))
    do_step(core)
    core.add(request(2, prompt=1, output=5))
    plan = core.plan_step()
    assert plan.drafts is not None
    assert [sequence.index for sequence in plan.drafts.padded] == [2]
    assert [row.num_tokens for row in plan.rows] == [4, 4]
    assert finish(core, plan, accepted=3, offered=3) == {1: 4, 2: 1}


def test_asynchronously_the_next_step_is_planned_as_if_all_drafts_were_accepted() -> None:
    core, sequence = scheduler("eagle", is_async=True), request(1, prompt=4, output=9)
    core.add(sequence)
    first, second, third = core.plan_step(), core.plan_step(), core.plan_step()
    assert [plan.rows[0].num_computed_before for plan in (first, second, third)] == [0, 4, 8]
    finish(core, first, accepted=0, offered=0)
    finish(core, second, accepted=0, offered=0)
    assert (sequence.num_computed, sequence.generated_tokens) == (9, 2)
    finish(core, third, accepted=3, offered=0)
    assert (sequence.num_computed, sequence.generated_tokens) == (9, 6)


def test_a_request_that_ended_has_its_blocks_freed_though_a_step_under_way_goes_on() -> None:
    core, sequence = scheduler("eagle", is_async=True), request(1, prompt=4, output=4)
    core.add(sequence)
    first, second = core.plan_step(), core.plan_step()
    finish(core, first, accepted=0, offered=0)
    third = core.plan_step()  # it might be that all drafts are rejected
    assert finish(core, second, accepted=3, offered=0) == {1: 3}
    assert (sequence.state, core.used_blocks) == (FINISHED, 0)
    assert finish(core, third, accepted=3, offered=0) == {}


def test_drafts_are_refused_where_steps_are_not_listed() -> None:
    spec = EngineSpec(num_gpu_blocks=9, max_model_len=8, speculation=SpeculativeSpec(num_drafts=1))
    with pytest.raises(AssertionError, match="step by step only"):
        VllmScheduler(spec)


# ---- laws ----------------------------------------------------------------------------------------


def crowded(seed: int, spec: Json | None) -> Json:
    """Requests of one engine with few blocks."""
    engine: Json = {
        "num_gpu_blocks": 12 + seed % 7,
        "block_size": BLOCK,
        "max_num_seqs": 2 + seed % 4,
        "max_num_batched_tokens": 16 + seed,
        "max_model_len": 40,
        "policy": ("fcfs", "priority")[seed % 2],
    }
    if spec is not None:
        engine["spec"] = spec
    requests = [
        {
            "id": f"r{number}",
            "arrival_step": number * (seed % 3),
            "prompt_ranges": [[1000 * (number % 4), 6 + 7 * number * seed % 11]],
            "output_length": 3 + 5 * number * seed % 13,
            "priority": number % 3,
        }
        for number in range(9)
    ]
    return {"engine": engine, "requests": requests}


def checked(scenario: Json) -> Json:
    """The log of a scenario in which everybody gets all tokens, and all blocks come back."""
    log = run_scenario(scenario)
    assert log["free_at_end"] == log["usable_blocks"]
    for row, wanted in zip(log["requests"], scenario["requests"], strict=True):
        assert (row["status"], row["out"]) == ("length", wanted["output_length"])
    return log


def test_where_nothing_is_ever_offered_steps_are_those_of_plain_decoding() -> None:
    num_compared = num_preempted = 0
    for seed in range(1, 40):
        log = checked(crowded(seed, {"k": 3, "method": "ngram", "drafts": [0]}))
        if not any("pad" in step for step in log["steps"]):
            assert log["steps"] == checked(crowded(seed, None))["steps"]
            num_compared += 1
            num_preempted += log["totals"]["preemptions"]
    assert num_compared > 10 < num_preempted


@pytest.mark.parametrize(
    ("method", "is_async"),
    [
        ("ngram", False),
        ("eagle", False),
        ("draft_model", False),
        ("eagle", True),
        ("draft_model", True),
    ],
)
def test_whatever_is_accepted_every_request_gets_its_tokens_and_no_block_is_lost(
    method: str, is_async: bool
) -> None:
    for seed in range(1, 7):
        for accept in ([0], [3], [2, 0, 3, 1]):
            scenario = crowded(seed, {"k": 3, "method": method, "accept": accept})
            scenario["engine"]["async_scheduling"] = is_async
            assert checked(scenario)["totals"]["drafts"] > 0
