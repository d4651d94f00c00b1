"""KV from and for elsewhere: what an engine does with loads, held blocks and news of them.

That the decisions are vLLM's is for `tests/conformance` to say.
"""

from typing import Any

import pytest

from dynosim.engine.engine import Engine
from dynosim.engine.pace import NEVER
from dynosim.engine.recorder import Recorder
from dynosim.engine.sequence import FINISHED, LOADING, WAITING, Sequence
from dynosim.engine.spec import EngineSpec
from dynosim.engine.vllm import VllmScheduler
from dynosim.timing.formulas import LinearModel

BLOCK = 4
STEP_MS = 10.0
TIMES = LinearModel(
    base_ms=STEP_MS, per_prefill_token_ms=0.0, per_decode_ms=0.0, per_context_token_ms=0.0
)


class Silent(Recorder):
    """Notes nothing."""

    def __init__(self) -> None:
        self.num_dropped = 0

    def admitted(self, *_: Any) -> None: ...
    def missed(self, *_: Any) -> None: ...
    def delivered(self, *_: Any) -> None: ...
    def delivered_run(self, *_: Any) -> None: ...
    def ended(self, *_: Any) -> None: ...

    def dropped(self, *_: Any) -> None:
        self.num_dropped += 1

    def wants_single_steps(self) -> bool:
        return False


def engine_of(num_blocks: int = 32, **knobs: Any) -> Engine:
    spec = EngineSpec(
        **{
            "num_gpu_blocks": num_blocks + 1,
            "max_model_len": 64,
            "block_size": BLOCK,
            "max_num_seqs": 4,
            "max_num_batched_tokens": 32,
            "kv_role": "kv_consumer",
            **knobs,
        }
    )
    return Engine(VllmScheduler(spec), TIMES, Silent(), depth=spec.pipeline_depth)


def sequence(index: int, prompt: int, output: int, *, remote: int = 0) -> Sequence:
    blocks = (prompt + output) // BLOCK
    made = Sequence(index, prompt, output, [100 * index + i for i in range(blocks)], blocks)
    made.remote_tokens = remote
    return made


def give(engine: Engine, *sequences: Sequence, now_ms: float = 0.0) -> None:
    for one in sequences:
        engine.add(one, now_ms)
    if engine.next_ms == NEVER:
        engine.start(now_ms)


def run_until(engine: Engine, until_ms: float) -> list[Sequence]:
    """End all that ends before a time."""
    finished: list[Sequence] = []
    while engine.next_ms < until_ms:
        now_ms = engine.next_ms
        finished += engine.complete(now_ms)
        engine.start(now_ms)
    return finished


def free_blocks(engine: Engine) -> int:
    core = engine.core
    assert isinstance(core, VllmScheduler)
    return core.pool.free_blocks


@pytest.mark.parametrize("is_async", [False, True])
def test_an_idle_engine_loads_and_computes_one_token_when_all_has_come(is_async: bool) -> None:
    engine = engine_of(async_scheduling=is_async)
    one = sequence(0, 20, 3, remote=20)
    give(engine, one)
    assert engine.started_loads == [(one, 0.0)]
    assert (one.state, engine.next_ms, engine.is_done) == (LOADING, NEVER, False)
    assert (free_blocks(engine), engine.core.num_loading) == (27, 1)
    assert not engine.loaded(one, 7.0, 20)
    engine.start(7.0)
    assert engine.next_ms == 7.0 + STEP_MS
    assert (one.cached_tokens, one.external_tokens) == (0, 20)
    assert run_until(engine, 1e9) == [one]
    assert engine.is_done and engine.last_delivery_ms == 7.0 + 3 * STEP_MS


@pytest.mark.parametrize("is_async", [False, True])
def test_others_decode_in_bulk_while_one_loads_until_it_has_loaded(is_async: bool) -> None:
    engine = engine_of(async_scheduling=is_async)
    decodes, loads = sequence(0, 8, 50), sequence(1, 8, 2, remote=8)
    give(engine, decodes)
    run_until(engine, 25.0)
    engine.add(loads, 25.0)
    run_until(engine, 65.0)
    assert loads.state == LOADING and engine.run_steps > 10
    end_ms = engine.next_ms
    assert engine.loaded(loads, 103.0, 8)
    assert engine.next_ms == pytest.approx(110.0) and engine.next_ms < end_ms
    finished = run_until(engine, 1e9)
    assert finished == [loads, decodes]
    assert engine.is_done


def test_a_load_begins_with_the_step_that_was_planned_with_it() -> None:
    engine = engine_of(async_scheduling=True)
    first, loads = sequence(0, 40, 9), sequence(1, 8, 2, remote=8)
    give(engine, first)
    engine.add(loads, 4.0)
    run_until(engine, 15.0)
    assert engine.started_loads == [(loads, 20.0)]


def test_a_failed_load_ends_the_request_or_is_made_good() -> None:
    strict, lenient = (engine_of(kv_load_failure_policy=policy) for policy in ("fail", "recompute"))
    for engine in (strict, lenient):
        one = sequence(0, 20, 3, remote=20)
        give(engine, one)
        engine.loaded(one, 5.0, 9)
        engine.start(5.0)
        assert engine.failed == ([one] if engine is strict else [])
        assert (one.state == FINISHED, engine.is_done) == (engine is strict,) * 2
        if engine is lenient:
            assert one.num_computed == 20  # two whole blocks were valid, twelve tokens computed
            assert run_until(engine, 1e9) == [one]
        assert free_blocks(engine) == 32


def test_blocks_of_one_that_loads_stay_taken_until_its_load_ends_though_it_is_gone() -> None:
    engine = engine_of()
    one = sequence(0, 20, 3, remote=20)
    give(engine, one)
    engine.give_up(one, 2.0)
    assert (one.state, engine.core.num_waiting) == (FINISHED, 0)
    assert (free_blocks(engine), engine.is_done) == (27, False)
    engine.loaded(one, 9.0, 20)
    assert (free_blocks(engine), engine.is_done, engine.failed) == (32, True, [])


def test_blocks_to_be_sent_are_held_and_block_admission_until_they_are_sent() -> None:
    engine = engine_of(num_blocks=16, kv_role="kv_producer")
    sent, waits = sequence(0, 30, 1), sequence(1, 40, 1)
    sent.is_sent = True
    give(engine, sent, waits)
    assert run_until(engine, 1e9) == [sent]
    assert engine.core.holds(sent) and engine.core.num_held == 1
    assert (waits.state, engine.next_ms, engine.is_done) == (WAITING, NEVER, False)
    assert not engine.sent(sent, 100.0)
    engine.start(100.0)
    assert run_until(engine, 1e9) == [waits]
    assert engine.is_done and free_blocks(engine) == 16


def test_an_engine_that_gives_kv_computes_a_preempted_ones_token_again() -> None:
    for role, tokens in (("kv_producer", 0), (None, 1)):
        engine = engine_of(num_blocks=9, kv_role=role, async_scheduling=True)
        first, second = sequence(0, 15, 20), sequence(1, 15, 20)
        give(engine, first, second)
        while not second.preemptions:
            run_until(engine, engine.next_ms + 1)
        before = second.generated_tokens
        run_until(engine, engine.next_ms + 1)
        assert second.generated_tokens - before <= tokens
        assert set(run_until(engine, 1e9)) == {first, second}


def test_an_engine_that_takes_kv_frees_no_block_that_a_step_under_way_writes() -> None:
    engine = engine_of(async_scheduling=True)
    core = engine.core
    one = sequence(0, 20, 30)
    core.add(one)
    plans = [core.plan_step(), core.plan_step()]
    core.finish_step(plans[0])
    core.abort(one)
    assert (core.deferred_blocks, free_blocks(engine)) == (6, 26)
    core.finish_step(plans[1])
    assert (core.deferred_blocks, free_blocks(engine)) == (0, 32)


def test_loads_do_not_take_what_other_loads_will_need() -> None:
    engine = engine_of(num_blocks=10)
    first, second = sequence(0, 30, 2, remote=8), sequence(1, 16, 2, remote=16)
    give(engine, first, second)
    assert [one for one, _ in engine.started_loads] == [first]  # the second leaves it too little
