"""What becomes of seats, blocks and neighbours when a request is aborted."""

import pytest

from dynosim.engine.sequence import DECODING, DRAINING, FINISHED, PREFILLING, WAITING, Sequence
from dynosim.engine.spec import EngineSpec
from dynosim.engine.vllm import VllmScheduler

BLOCK = 4


def scheduler(num_blocks: int = 16, *, is_async: bool = False, **spec: int) -> VllmScheduler:
    return VllmScheduler(
        EngineSpec(
            num_gpu_blocks=num_blocks + 1,
            max_model_len=64,
            block_size=BLOCK,
            max_num_seqs=spec.get("max_num_seqs", 4),
            max_num_batched_tokens=spec.get("max_num_batched_tokens", 8),
            async_scheduling=is_async,
        ),
        [1] * 64,
        publish_events=True,
    )


def sequence(index: int, prompt_tokens: int, output_tokens: int) -> Sequence:
    blocks = (prompt_tokens + output_tokens) // BLOCK
    path = list(range(16 * index, 16 * index + blocks))
    return Sequence(index, prompt_tokens, output_tokens, path, blocks)


def step(engine: VllmScheduler) -> list[Sequence]:
    return engine.finish_step(engine.plan_step())


def test_a_waiting_request_leaves_the_queue() -> None:
    engine = scheduler()
    first, second = sequence(0, 8, 2), sequence(1, 8, 2)
    engine.add(first)
    engine.add(second)
    engine.abort(first)
    assert (first.state, engine.num_waiting) == (FINISHED, 1)
    assert engine.plan_step().admitted == [second]


def test_half_a_prompt_frees_its_blocks_and_keeps_full_ones_cached() -> None:
    engine = scheduler()
    long = sequence(0, 14, 2)
    engine.add(long)
    step(engine)
    assert (long.state, engine.pool.free_blocks) == (PREFILLING, 14)
    engine.abort(long)
    assert not engine.has_work
    assert (engine.pool.free_blocks, engine.pool.idle_blocks) == (16, 2)
    again = sequence(1, 14, 2)
    again.path[:] = long.path
    engine.add(again)
    step(engine)
    assert again.cached_tokens == 8


def test_a_decoding_request_takes_its_context_along() -> None:
    engine = scheduler()
    stays, leaves = sequence(0, 3, 9), sequence(1, 5, 9)
    engine.add(stays)
    engine.add(leaves)
    step(engine)
    step(engine)
    assert leaves.state == DECODING
    engine.abort(leaves)
    plan = engine.plan_step()
    assert (plan.num_decodes, plan.decode_context_tokens) == (1, 3 + 2)


def test_an_abort_while_its_step_is_under_way_ends_nothing_else() -> None:
    engine = scheduler()
    one_token, other = sequence(0, 4, 1), sequence(1, 4, 1)
    engine.add(one_token)
    engine.add(other)
    plan = engine.plan_step()
    engine.abort(one_token)
    assert engine.finish_step(plan) == [other]
    assert engine.pool.free_blocks == 16


def test_a_freed_seat_goes_to_the_blocked_head_of_the_queue() -> None:
    engine = scheduler(max_num_seqs=1)
    running, waiting = sequence(0, 4, 20), sequence(1, 4, 1)
    engine.add(running)
    step(engine)
    engine.add(waiting)
    step(engine)
    assert engine.uniform_steps() > 0  # blocked: no step can admit it
    engine.abort(running)
    assert engine.uniform_steps() == 0
    assert engine.plan_step().admitted == [waiting]


def test_a_preempted_request_leaves_while_it_waits() -> None:
    engine = scheduler(num_blocks=4)
    first, second = sequence(0, 7, 8), sequence(1, 7, 8)
    engine.add(first)
    engine.add(second)
    while second.preemptions == 0:
        step(engine)
    assert second.state == WAITING
    engine.abort(second)
    assert engine.num_waiting == 0
    while engine.has_work:
        step(engine)
    assert (first.state, engine.pool.free_blocks) == (FINISHED, 4)


def test_aborting_twice_or_after_the_end_changes_nothing() -> None:
    engine = scheduler()
    done = sequence(0, 4, 1)
    engine.add(done)
    step(engine)
    free = engine.pool.free_blocks
    engine.abort(done)
    engine.abort(done)
    assert (engine.pool.free_blocks, engine.has_work) == (free, False)


@pytest.mark.parametrize("num_steps", [1, 2, 3])
def test_asynchronous_scheduling_delivers_nothing_to_an_aborted_request(num_steps: int) -> None:
    engine = scheduler(is_async=True)
    leaves, stays = sequence(0, 4, 3), sequence(1, 4, 3)
    engine.add(leaves)
    engine.add(stays)
    plans = [engine.plan_step() for _ in range(num_steps + 1)]
    engine.abort(leaves)
    finished = [s for plan in plans for s in engine.finish_step(plan)]
    assert leaves not in finished
    while engine.has_work:
        finished += step(engine)
    assert finished == [stays]
    assert engine.pool.free_blocks == 16


def test_a_draining_request_gives_its_seat_up_at_once() -> None:
    engine = scheduler(is_async=True, max_num_seqs=1)
    leaves, waiting = sequence(0, 4, 1), sequence(1, 4, 1)
    engine.add(leaves)
    first = engine.plan_step()
    engine.add(waiting)
    second = engine.plan_step()
    assert leaves.state == DRAINING and second.is_empty
    engine.abort(leaves)
    assert engine.plan_step().admitted == [waiting]
    assert engine.finish_step(first) == []


def test_many_aborts_leave_no_trace_in_the_heap_of_ends() -> None:
    engine = scheduler()
    for index in range(1000):
        leaves = sequence(0, 4, 50)
        leaves.index = index
        engine.add(leaves)
        step(engine)
        engine.abort(leaves)
    assert len(engine.decodes.finishes) <= 64
