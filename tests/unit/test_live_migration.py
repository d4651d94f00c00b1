"""Streams whose workers are lost: no token lost or repeated, and what the next worker is asked."""

import asyncio
from dataclasses import replace as changed

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from live_support import (
    BLOCK,
    Inside,
    Listening,
    ScriptedEngine,
    card,
    next_token,
    request,
    tokens_of,
)
from msgspec.structs import replace
from virtual_time import in_virtual_time, let_others_run, now_ms, now_s

from dynosim.blocks.hashing import local_hashes, sequence_hashes
from dynosim.config.live import LiveConfig
from dynosim.router.knobs import AffinitySpec, LoadSpec, RouterSpec
from dynosim.router.load import Booking
from dynosim_runtime.card import worker_id_of
from dynosim_runtime.clients.base import EngineRequest
from dynosim_runtime.errors import ApiError
from dynosim_runtime.requests import GenerateRequest, RequestRecord, Sampling, StructuredOutput

PROMPT = list(range(10))
ANSWER = [next_token(10 + i) for i in range(20)]


def lengths_before(deaths: list[int], max_tokens: int) -> list[int]:
    """Tokens delivered before each stream begins. One that breaks at its end is not continued."""
    lengths = [0]
    for death in deaths:
        if lengths[-1] + death >= max_tokens:
            break
        lengths.append(lengths[-1] + death)
    return lengths


@settings(max_examples=60, deadline=None)
@given(
    deaths=st.lists(st.integers(0, 6), max_size=3),
    max_tokens=st.integers(1, 12),
    min_tokens=st.integers(0, 12),
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=3),
)
def test_an_answer_is_the_same_wherever_it_breaks(
    deaths: list[int], max_tokens: int, min_tokens: int, sizes: list[int]
) -> None:
    sampling = Sampling(
        max_tokens=max_tokens,
        min_tokens=min_tokens,
        temperature=0.5,
        seed=7,
        stop=("x",),
        stop_token_ids=(3,),
        frequency_penalty=0.25,
    )
    asked = replace(request(priority=5, cache_salt="tenant"), sampling=sampling)
    engine = ScriptedEngine(deaths=list(deaths), pieces=[(0.0, size) for size in sizes])
    inside, record = answered(engine, asked, ANSWER[:max_tokens])

    before = lengths_before(deaths, max_tokens)
    assert [sent for _, sent in engine.requests] == [
        EngineRequest(
            request_id="r" if number == 0 else f"r/{number}",
            token_ids=PROMPT + ANSWER[:done],
            sampling=replace(
                sampling, max_tokens=max_tokens - done, min_tokens=max(min_tokens - done, 0)
            ),
            priority=-5,
            cache_salt="tenant",
        )
        for number, done in enumerate(before)
    ]
    served_by = [worker_id_of(name) for name, _ in engine.requests]
    assert len(set(served_by)) == len(served_by)  # never back to a worker that lost it
    assert (record.prefill_worker_id, record.decode_worker_id) == (served_by[0], served_by[-1])
    assert (record.migrations, record.output_tokens) == (len(before) - 1, max_tokens)
    assert (record.status, record.error, record.input_tokens) == ("completed", None, 10)
    assert (
        inside.num_booked == inside.dispatcher.num_active == inside.dispatcher.num_dispatched == 0
    )


def answered(
    engine: ScriptedEngine, asked: GenerateRequest, expected: list[int]
) -> tuple[Inside, RequestRecord]:
    """Serve a request by four workers, to its end."""

    async def serve() -> tuple[Inside, RequestRecord]:
        inside = Inside(engine, "a", "b", "c", "d")
        stream = await inside.dispatcher.start(asked)
        assert await tokens_of(stream) == expected
        assert inside.records == [stream.record]
        return inside, stream.record

    return asyncio.run(serve())


async def test_a_move_is_a_new_request_of_prompt_and_answer_to_the_router() -> None:
    engine = ScriptedEngine(deaths=[3, 2])
    listening = Listening()
    inside = Inside(engine, "a", "b", "c", policy=listening)
    asked = request(
        max_tokens=8,
        priority=3,
        expected_output_tokens=4,
        session_id="s",
        policy_family="batch",
        cache_salt="tenant",
    )
    await tokens_of(await inside.dispatcher.start(asked))
    assert [one.request_id for one in listening.asked] == ["r", "r/1", "r/2"]
    assert len(listening.asked) == len(listening.options) == 3
    tried: set[int] = set()
    for one, options, done, expected in zip(
        listening.asked, listening.options, (0, 3, 5), (4, 1, 1), strict=True
    ):
        tokens = PROMPT + ANSWER[:done]
        local = local_hashes(tokens, BLOCK, salt="tenant")
        assert (one.input_tokens, one.num_blocks) == (10 + done, (10 + done) // BLOCK)
        assert (list(one.blocks), list(one.keys)) == (local, sequence_hashes(local))
        assert (one.priority_jump, one.expected_output_tokens) == (3, expected)
        assert (one.session_id, one.policy_family) == ("s", "batch")
        assert options == set(inside.members.cards) - tried
        tried.add(worker_id_of(engine.requests[len(tried)][0]))
    assert len(tried) == 3
    assert listening.first_tokens == ["r", "r/1", "r/2"]
    assert listening.ends == ["r", "r/1", "r/2"]


@pytest.mark.parametrize("holder", ["b", "c", "d"])
async def test_it_moves_to_whoever_holds_prompt_and_answer(holder: str) -> None:
    engine = ScriptedEngine(dies_after={"a": 6})
    inside = Inside(engine, "a")
    inside.caches("a", PROMPT)
    stream = await inside.dispatcher.start(request(max_tokens=12))
    inside.show(*map(card, ("a", "b", "c", "d")))
    for name in ("b", "c", "d"):
        inside.caches(name, PROMPT + ANSWER[:6] if name == holder else PROMPT)
    assert await tokens_of(stream) == ANSWER[:12]
    assert [name for name, _ in engine.requests] == ["a", holder]
    assert stream.record.kv_hit_rate == 8 / 10  # as it was placed at first


@pytest.mark.parametrize("limit", [0, 1, 2])
async def test_it_moves_as_often_as_the_plan_allows_and_not_oftener(limit: int) -> None:
    live = LiveConfig(migration_limit=limit)
    enough = Inside(ScriptedEngine(deaths=[1] * limit), "a", "b", "c", "d", live=live)
    stream = await enough.dispatcher.start(request())
    assert await tokens_of(stream) == ANSWER[:6]
    assert stream.record.migrations == limit

    engine = ScriptedEngine(deaths=[1] * (limit + 1))
    inside = Inside(engine, "a", "b", "c", "d", live=live)
    stream = await inside.dispatcher.start(request())
    words = rf"died \(moved {limit} times, live.migration_limit is {limit}\)"
    with pytest.raises(ApiError, match=words) as caught:
        await tokens_of(stream)
    assert (caught.value.status, caught.value.kind) == (502, "server_error")
    record = stream.record
    assert (record.status, record.migrations, record.output_tokens) == ("failed", limit, limit + 1)
    assert record.error == caught.value.message
    assert len(engine.requests) == limit + 1
    assert inside.num_booked == inside.dispatcher.num_active == 0


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (request(worker_id=worker_id_of("a")), "the worker asked for failed: a died"),
        (
            replace(
                request(),
                sampling=Sampling(max_tokens=6, structured=StructuredOutput(kind="json_object")),
            ),
            "a died; an answer of a given form cannot go on elsewhere",
        ),
    ],
)
async def test_what_cannot_move_fails_with_its_worker(asked: GenerateRequest, words: str) -> None:
    engine = ScriptedEngine(dies_after={"a": 2})
    inside = Inside(engine)
    inside.show(card("a", engine="vllm"))
    stream = await inside.dispatcher.start(asked)
    inside.show(card("a", engine="vllm"), card("b", engine="vllm"))
    with pytest.raises(ApiError) as caught:
        await tokens_of(stream)
    assert (caught.value.status, caught.value.message) == (502, words)
    assert (stream.record.migrations, stream.record.output_tokens) == (0, 2)
    assert len(engine.requests) == 1
    assert inside.num_booked == 0


async def test_an_answer_of_a_given_form_may_begin_elsewhere() -> None:
    engine = ScriptedEngine(dies_after={"a": 0})
    inside = Inside(engine)
    inside.show(card("a", engine="vllm"))
    form = Sampling(max_tokens=6, structured=StructuredOutput(kind="json_object"))
    stream = await inside.dispatcher.start(replace(request(), sampling=form))
    inside.show(card("a", engine="vllm"), card("b", engine="vllm"))
    assert await tokens_of(stream) == ANSWER[:6]
    assert [name for name, _ in engine.requests] == ["a", "b"]


@pytest.mark.parametrize("tells_reason", [True, False])
async def test_a_worker_lost_after_the_last_token_costs_nothing(tells_reason: bool) -> None:
    engine = ScriptedEngine(dies_after={"a": 6}, tells_reason=tells_reason)
    inside = Inside(engine, "a")
    stream = await inside.dispatcher.start(request())
    deltas = [delta async for delta in stream]
    assert [token for delta in deltas for token in delta.token_ids] == ANSWER[:6]
    assert (deltas[-1].token_ids, deltas[-1].finish_reason) == ([], "length")
    assert (stream.record.status, stream.record.migrations) == ("completed", 0)
    assert len(engine.requests) == 1


def placed_at_a(engine: ScriptedEngine, **options: object) -> Inside:
    """A frontend that knows one worker yet."""
    return Inside(engine, "a", now_ms=now_ms, **options)  # type: ignore[arg-type]


@in_virtual_time
async def test_its_record_tells_where_it_began_and_when_it_was_sent_last() -> None:
    engine = ScriptedEngine(dies_after={"a": 2}, pieces=[(2.0, 1)], cached_tokens=4)
    inside = placed_at_a(engine)
    inside.caches("a", PROMPT[:BLOCK])
    stream = await inside.dispatcher.start(request())
    inside.show(card("a"), card("b"))
    assert await tokens_of(stream) == ANSWER[:6]
    record = stream.record
    assert (record.arrival_ms, record.dispatch_ms) == (0.0, 4000.0)
    assert (record.first_token_ms, record.finish_ms) == (2000.0, 12_000.0)
    assert (record.prefill_wait_time_ms, record.prefill_time_ms) == (0.0, 2000.0)
    assert (record.ttft_ms, record.e2e_ms, record.tpot_ms) == (2000.0, 12_000.0, 2000.0)
    assert (record.prefill_worker_id, record.decode_worker_id) == (
        worker_id_of("a"),
        worker_id_of("b"),
    )
    assert (record.prefill_dp_rank, record.decode_dp_rank) == (0, 0)
    assert (record.kv_hit_rate, record.cached_tokens, record.preemptions) == (0.4, 4, 0)


@in_virtual_time
async def test_wait_and_prefill_add_up_to_the_first_token_wherever_it_came() -> None:
    inside = placed_at_a(ScriptedEngine(dies_after={"a": 0}, pieces=[(2.0, 1)]))
    stream = await inside.dispatcher.start(request())
    await asyncio.sleep(1.0)
    reader = asyncio.create_task(tokens_of(stream))
    await asyncio.sleep(5.0)
    inside.show(card("a"), card("b"))
    await reader
    record = stream.record
    assert record.dispatch_ms == pytest.approx(6000, abs=250)  # the retries' interval
    assert record.first_token_ms == record.dispatch_ms + 2000
    assert (record.prefill_wait_time_ms, record.prefill_time_ms) == (0.0, record.first_token_ms)


@in_virtual_time
async def test_to_the_router_a_move_loads_a_worker_as_a_new_request_would() -> None:
    """Of prompt and answer so far, with the rest of the answer to come."""
    settings = RouterSpec(BLOCK, mode="kv", load=LoadSpec(track_output_blocks=True))

    async def booked(engine: ScriptedEngine, asked: GenerateRequest, name: str) -> Booking:
        inside = placed_at_a(engine, settings=settings, tracks_output=True)
        reader = asyncio.create_task(tokens_of(await inside.dispatcher.start(asked)))
        inside.show(card("a"), card("b"))
        await let_others_run(50)
        reader.cancel()
        return changed(inside.router.router.load.bookings[name], slot=0)

    moved = await booked(
        ScriptedEngine(dies_after={"a": 6}, hangs_after={"b": 5}),
        request(max_tokens=20, expected_output_tokens=16),
        "r/1",
    )
    fresh = await booked(
        ScriptedEngine(hangs_after={"a": 5}),
        replace(
            request("new", max_tokens=14, expected_output_tokens=10), token_ids=PROMPT + ANSWER[:6]
        ),
        "new",
    )
    assert moved == fresh
    assert (moved.input_tokens, moved.output_blocks, moved.fraction) == (16, 1, 1 - 4 / 10)


async def test_ranks_are_those_that_the_router_chose() -> None:
    engine = ScriptedEngine(dies_after={"a": 2})
    inside = Inside(engine)
    a, b = card("a", dp_size=3), card("b", dp_size=3)
    inside.show(a)
    inside.caches("a", PROMPT, dp_rank=2)
    stream = await inside.dispatcher.start(request())
    inside.show(a, b)
    inside.caches("b", PROMPT, dp_rank=1)
    assert await tokens_of(stream) == ANSWER[:6]
    assert [(name, sent.dp_rank) for name, sent in engine.requests] == [("a", 2), ("b", 1)]
    assert (stream.record.prefill_dp_rank, stream.record.decode_dp_rank) == (2, 1)


@in_virtual_time
async def test_it_waits_for_another_worker_and_takes_the_first_that_comes() -> None:
    engine = ScriptedEngine(dies_after={"a": 2})
    inside = placed_at_a(engine)
    reader = asyncio.create_task(tokens_of(await inside.dispatcher.start(request())))
    await asyncio.sleep(29.0)
    inside.show(card("a"), card("b"))
    assert await reader == ANSWER[:6]
    assert now_s() == pytest.approx(29.0, abs=0.25)  # looked for as often
    assert inside.records[0].migrations == 1


@in_virtual_time
async def test_it_waits_half_a_minute_for_another_worker_and_no_longer() -> None:
    inside = placed_at_a(ScriptedEngine(dies_after={"a": 2}))
    stream = await inside.dispatcher.start(request())
    with pytest.raises(ApiError, match="a died; no other worker came") as caught:
        await tokens_of(stream)
    assert now_s() == pytest.approx(30.0)
    assert (caught.value.status, caught.value.retry_after_s) == (503, 5)
    assert (stream.record.status, stream.record.output_tokens) == ("failed", 2)
    assert inside.num_booked == inside.dispatcher.num_active == 0


@in_virtual_time
async def test_a_client_may_leave_while_another_worker_is_waited_for() -> None:
    inside = placed_at_a(ScriptedEngine(dies_after={"a": 2}))
    stream = await inside.dispatcher.start(request())
    reader = asyncio.create_task(tokens_of(stream))
    await asyncio.sleep(3.0)
    await stream.aclose()
    with pytest.raises(ApiError, match="cancelled"):
        await reader
    assert now_s() == 3.0
    assert stream.record.status == "cancelled"
    assert inside.num_booked == inside.dispatcher.num_active == 0


@in_virtual_time
async def test_the_worker_that_lost_it_may_go_on_when_it_has_started_anew() -> None:
    engine = ScriptedEngine(dies_after={"a": 2})
    inside = placed_at_a(engine)
    reader = asyncio.create_task(tokens_of(await inside.dispatcher.start(request())))
    await asyncio.sleep(1.0)
    inside.show(card("a", pid=2))
    assert await reader == ANSWER[:6]
    assert [name for name, _ in engine.requests] == ["a", "a"]


async def test_a_loss_between_two_reads_is_noticed_at_the_next() -> None:
    engine = ScriptedEngine()
    inside = Inside(engine, "a")
    stream = await inside.dispatcher.start(request())
    deltas = aiter(stream)
    assert (await anext(deltas)).token_ids == ANSWER[:1]
    inside.show(card("b"))
    inside.in_flight.lose_worker(worker_id_of("a"))
    rest = [token async for delta in deltas for token in delta.token_ids]
    assert rest == ANSWER[1:6]
    assert [name for name, _ in engine.requests] == ["a", "b"]
    assert engine.closed == ["r"]


async def test_the_worker_that_broke_a_stream_is_looked_after_and_no_other() -> None:
    inside = Inside(ScriptedEngine(dies_after={"a": 1}), "a")
    stream = await inside.dispatcher.start(request())
    inside.show(card("a"), card("b"))
    await tokens_of(stream)
    await let_others_run()
    assert inside.probed == ["a"]


@pytest.mark.parametrize("mode", ["hard", "soft"])
async def test_a_session_goes_on_where_its_stream_went(mode: str) -> None:
    affinity = AffinitySpec(1e9, mode)  # type: ignore[arg-type]
    engine = ScriptedEngine(dies_after={"a": 1})
    inside = Inside(engine, "a", settings=RouterSpec(BLOCK, mode="kv", affinity=affinity))
    stream = await inside.dispatcher.start(request(session_id="s"))
    inside.show(card("a"), card("b"))
    assert await tokens_of(stream) == ANSWER[:6]
    for number in range(4):
        turn = request(f"turn-{number}", session_id="s")
        assert await tokens_of(await inside.dispatcher.start(turn)) == ANSWER[:6]
    assert [name for name, _ in engine.requests] == ["a", *["b"] * 5]
