"""Requests in a mock engine: tokens, ends, aborts, events, counters."""

import asyncio
from collections import Counter
from itertools import pairwise

import pytest
from mock_support import TIMING, FakeClock, TokenLog, call, drive, mock_engine

from dynosim.blocks.hashing import local_hashes
from dynosim.engine.pace import NEVER
from dynosim.engine.spec import EngineSpec
from dynosim.errors import ConfigError
from dynosim.indexer.base import Stored
from dynosim.indexer.wire import EngineEvent, to_block_event
from dynosim.timing.step import StepShape
from dynosim_runtime.mock.engine import MockEngine
from dynosim_runtime.mock.loop import EngineLoop
from dynosim_runtime.mock.tokens import TokenSource

SPEC = EngineSpec(
    num_gpu_blocks=41, max_model_len=128, block_size=4, max_num_seqs=8, max_num_batched_tokens=64
)


def output_of(prompt: list[int], max_tokens: int, **options: object) -> list[int]:
    requests, _, _ = drive(mock_engine(SPEC), [(0.0, call(prompt, max_tokens, **options))])
    return requests[0].output


@pytest.mark.parametrize("num_before", [1, 2, 7, 39])
def test_another_worker_continues_with_the_same_tokens(num_before: int) -> None:
    prompt = [11, 2**31, 0, 999]
    whole = output_of(prompt, 40)
    assert output_of(prompt + whole[:num_before], 40 - num_before) == whole[num_before:]


def test_tokens_stay_in_their_range_and_depend_on_the_prompt() -> None:
    source = TokenSource(3, 50)
    tokens = source.continuation(10, 5, 20_000)
    assert set(tokens) == set(range(3, 50))
    assert source.continuation(11, 5, 100) != tokens[:100]
    assert source.continuation(10, 6, 100) != tokens[:100]
    assert TokenSource(3, 50).continuation(10, 5, 100) == tokens[:100]


def test_an_empty_range_of_tokens_is_refused() -> None:
    with pytest.raises(ConfigError, match="from 3 up to, not including, 3"):
        TokenSource(3, 3)


def test_a_stop_token_ends_the_answer_but_not_before_the_minimum() -> None:
    prompt = [5, 6, 7]
    free = output_of(prompt, 30)
    third = free[2]
    assert third not in free[:2]
    engine = mock_engine(SPEC)
    asked = call(prompt, 30, stop_token_ids=(third,))
    requests, logs, _ = drive(engine, [(0.0, asked)])
    assert logs[0].tokens == free[:3]
    assert (requests[0].finish_reason, requests[0].stop_reason) == ("stop", third)
    assert len(output_of(prompt, 30, stop_token_ids=(third,), min_tokens=4)) > 3


def test_the_model_length_ends_an_answer() -> None:
    assert len(output_of(list(range(120)), 50)) == 8


def test_a_repeated_prompt_is_found_in_the_cache_with_its_answer() -> None:
    engine = mock_engine(SPEC)
    prompt = list(range(10, 22))
    first, _, _ = drive(engine, [(0.0, call(prompt, 9))])
    later, _, _ = drive(engine, [(1000.0, call(prompt + first[0].output, 5))])
    assert (first[0].cached_tokens, later[0].cached_tokens) == (0, 20)
    salted, _, _ = drive(engine, [(2000.0, call(prompt, 5, cache_salt="mine"))])
    assert salted[0].cached_tokens == 0
    assert engine.stats.prefix_queries == 12 + 21 + 12
    assert engine.stats.prefix_hits == 20


@pytest.mark.parametrize(("ttl_ms", "is_kept"), [(None, False), (400.0, False), (1e6, True)])
def test_a_pinned_prompt_outlives_others_for_its_time(ttl_ms: float | None, is_kept: bool) -> None:
    engine = mock_engine(SPEC)  # 40 blocks of 4 tokens
    prompt = list(range(100, 140))
    drive(engine, [(0.0, call(prompt, 2, pin_ttl_ms=ttl_ms))])
    for number in range(4):
        others = [1000 * (number + 2) + i for i in range(60)]
        drive(engine, [(1000.0 * (number + 1), call(others, 2))])
    again, _, _ = drive(engine, [(9000.0, call([*prompt, 7], 2))])
    assert again[0].cached_tokens == (40 if is_kept else 0)


def test_aborts_take_effect_at_once_and_reach_nobody_else() -> None:
    engine = mock_engine(SPEC)
    logs = [TokenLog(), TokenLog()]
    leaves = engine.submit(call([1, 2, 3, 4, 5], 50), logs[0], 0.0)
    stays = engine.submit(call([6, 7, 8], 3), logs[1], 0.0)
    engine.next_end_ms(0.0)
    engine.abort(leaves)
    engine.abort(leaves)
    early = engine.submit(call([9], 3), TokenLog(), 1.0)
    engine.abort(early)
    emitted = []
    while (end_ms := engine.next_end_ms(0.0)) < NEVER:
        assert end_ms > 0
        emitted += engine.complete().emitted
    assert emitted == [stays] * 3
    assert engine.stats.num_aborted == 2
    assert (len(engine), len(engine.ledger)) == (0, 0)
    assert engine.core.pool.free_blocks == SPEC.usable_blocks


def named_blocks(events: list[EngineEvent]) -> Counter[int]:
    """Copies of each block that the events leave, by hash."""
    held: Counter[int] = Counter()
    for event in events:
        (held.update if event.kind == "BlockStored" else held.subtract)(
            event.fields["block_hashes"]
        )
    return +held


@pytest.mark.parametrize("is_async", [False, True])
def test_events_tell_the_resident_blocks_and_their_tokens(is_async: bool) -> None:
    spec = EngineSpec(
        num_gpu_blocks=21,
        max_model_len=64,
        block_size=4,
        max_num_seqs=4,
        max_num_batched_tokens=16,
        async_scheduling=is_async,
    )
    engine = mock_engine(spec)
    arrivals = [
        (float(index), call([*range(10, 18), *range(index, index + 9)], 20)) for index in range(12)
    ]
    requests, _, outcomes = drive(engine, arrivals)
    events = [event for outcome in outcomes for event in outcome.events]
    assert any(event.kind == "BlockRemoved" for event in events)  # they fight for blocks
    assert set(named_blocks(events)) == set(engine.core.pool.resident_blocks)

    local_of = {
        name: local
        for request in requests
        for name, local in zip(
            request.blocks,
            local_hashes([*arrivals[request.sequence.index][1].prompt_ids, *request.output], 4),
            strict=True,
        )
    }
    for event in events:
        told = to_block_event(event, 4)
        if isinstance(told, Stored):
            assert list(told.local_hashes) == [local_of[name] for name in told.block_hashes]


def test_without_prefix_caching_there_are_no_events() -> None:
    spec = EngineSpec(
        num_gpu_blocks=41, max_model_len=64, block_size=4, enable_prefix_caching=False
    )
    engine = mock_engine(spec)
    _, _, outcomes = drive(engine, [(0.0, call(range(20), 10))])
    assert not engine.has_events
    assert not any(outcome.events for outcome in outcomes)


def test_counters_when_all_is_done_add_up() -> None:
    engine = mock_engine(SPEC)
    _, logs, _ = drive(engine, [(i * 3.0, call(range(i, i + 10), 1 + i)) for i in range(6)])
    stats = engine.stats
    num_tokens = sum(len(log.tokens) for log in logs)
    assert (stats.generation_tokens, stats.prompt_tokens) == (num_tokens, 60)
    assert stats.num_finished == {"stop": 0, "length": 6}
    (*_, (_, num_first)), first_s = stats.ttft.buckets()
    (*_, (_, num_gaps)), gaps_s = stats.itl.buckets()
    assert (num_first, num_gaps) == (6, num_tokens - 6)
    assert first_s == pytest.approx(
        sum(log.times_ms[0] - 3.0 * i for i, log in enumerate(logs)) / 1e3
    )
    assert gaps_s == pytest.approx(sum(log.times_ms[-1] - log.times_ms[0] for log in logs) / 1e3)


def test_a_step_serves_nobody_who_arrives_after_its_start() -> None:
    engine = mock_engine(SPEC)
    engine.submit(call([1, 2, 3], 5), TokenLog(), 0.0)
    late = engine.submit(call([4, 5, 6], 5), TokenLog(), 6.0)  # its driver lags behind
    assert 5.0 < engine.next_end_ms(0.0) < 6.0
    assert (engine.complete().emitted[0] is not late, engine.num_waiting) == (True, 1)
    engine.next_end_ms(5.9)
    assert late not in engine.complete().emitted
    engine.next_end_ms(6.0)
    assert late in engine.complete().emitted


async def served(
    engine: MockEngine, clock: FakeClock, max_tokens: int, outside_ms: float = 0.0
) -> TokenLog:
    """One call through the loop, to its end."""
    loop = EngineLoop(engine, clock, lambda events: None, outside_ms=outside_ms)
    task = asyncio.create_task(loop.run())
    log = TokenLog(clock)
    loop.submit(call(range(20), max_tokens), log)
    while not log.has_ended:
        await asyncio.sleep(0)
    task.cancel()
    return log


async def test_late_wake_ups_do_not_add_up() -> None:
    log = await served(mock_engine(SPEC), FakeClock(late_ms=4.0), 100)
    _, exact, _ = drive(mock_engine(SPEC), [(0.0, call(range(20), 100))])
    late = [mine - true for mine, true in zip(log.times_ms, exact[0].times_ms, strict=True)]
    assert max(late) == pytest.approx(4.0) and min(late) >= 0


async def test_time_outside_the_engine_delays_every_token_alike() -> None:
    log = await served(mock_engine(SPEC), FakeClock(), 20, outside_ms=7.5)
    _, exact, _ = drive(mock_engine(SPEC), [(0.0, call(range(20), 20))])
    assert log.times_ms == pytest.approx([time_ms + 7.5 for time_ms in exact[0].times_ms])


async def test_time_that_cannot_be_caught_up_with_is_written_off_and_told() -> None:
    engine = mock_engine(SPEC)
    log = await served(engine, FakeClock(late_ms=1500.0), 10)
    gaps = [b - a for a, b in pairwise(log.times_ms)]
    step_ms = TIMING.step_ms(StepShape.of_decodes(1, 25))
    assert min(gaps) > 450 > 50 * step_ms
    assert engine.stats.slipped_s == pytest.approx(10 * 0.5)
