"""How a stream goes on: what is counted of its tokens and when, and the limits of its time."""

import asyncio
from itertools import accumulate, cycle, islice, pairwise

import pytest
from exposition import histogram, samples
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
from virtual_time import in_virtual_time, let_others_run, loop_clock, now_ms, now_s

from dynosim.config.live import LiveConfig
from dynosim.planner.frontend_metrics import ITL_BUCKETS, TOKEN_BUCKETS, TTFT_BUCKETS
from dynosim.router.classes import PolicyClass
from dynosim.router.knobs import CostSpec, LoadSpec, RouterSpec
from dynosim_runtime.card import worker_id_of
from dynosim_runtime.clients.base import EngineRefusedError
from dynosim_runtime.errors import ApiError
from dynosim_runtime.requests import RequestRecord
from dynosim_runtime.serving.placement import HEARTBEAT_TOKENS

# Multiples of 1/4 s, so that sums of them are exact; 1 and 3 are bounds of buckets themselves.
PAUSES_S = st.sampled_from([0.0, 0.25, 1.0, 3.0, 5.0])


def arrivals_s(pieces: list[tuple[float, int]], num_tokens: int) -> list[float]:
    """When each token comes."""
    rounds = list(islice(cycle(pieces), num_tokens))
    ends_s = accumulate(pause_s for pause_s, _ in rounds)
    times = [end_s for end_s, (_, size) in zip(ends_s, rounds, strict=True) for _ in range(size)]
    return times[:num_tokens]


@settings(max_examples=40, deadline=None)
@given(
    pieces=st.lists(st.tuples(PAUSES_S, st.integers(1, 4)), min_size=1, max_size=4),
    num_tokens=st.integers(1, 30),
)
def test_tokens_count_one_by_one_however_they_come(
    pieces: list[tuple[float, int]], num_tokens: int
) -> None:
    @in_virtual_time
    async def serve() -> None:
        inside = Inside(ScriptedEngine(pieces=pieces, cached_tokens=3), "a", now_ms=now_ms)
        stream = await inside.dispatcher.start(request(max_tokens=num_tokens))
        sizes = [len(delta.token_ids) async for delta in stream]
        assert sum(sizes) == num_tokens
        check_record(stream.record, times_s := arrivals_s(pieces, num_tokens))
        said = samples(inside.metrics.registry)
        gaps_s = [later - earlier for earlier, later in pairwise(times_s)]
        expected = {
            **histogram("dynamo_frontend_inter_token_latency_seconds", ITL_BUCKETS, gaps_s),
            **histogram("dynamo_frontend_time_to_first_token_seconds", TTFT_BUCKETS, times_s[:1]),
            **histogram("dynamo_frontend_output_sequence_tokens", TOKEN_BUCKETS, [num_tokens]),
        }
        assert {name: said[name] for name in expected} == pytest.approx(expected)

    serve()


def check_record(record: RequestRecord, times_s: list[float]) -> None:
    first_ms, last_ms = times_s[0] * 1e3, times_s[-1] * 1e3
    assert (record.arrival_ms, record.dispatch_ms) == (0.0, 0.0)
    assert (record.first_token_ms, record.finish_ms) == (first_ms, last_ms)
    assert (record.ttft_ms, record.e2e_ms) == (first_ms, last_ms)
    assert (record.prefill_wait_time_ms, record.prefill_time_ms) == (0.0, first_ms)
    assert (record.input_tokens, record.output_tokens) == (10, len(times_s))
    assert (record.cached_tokens, record.status) == (3, "completed")
    if len(times_s) == 1:
        assert record.tpot_ms is None
    else:
        assert record.tpot_ms == (last_ms - first_ms) / (len(times_s) - 1)


@in_virtual_time
async def test_the_router_hears_of_a_long_answer_now_and_then() -> None:
    """Lest the request look stale; the first token is news of its own."""
    engine = ScriptedEngine(pieces=[(1.0, 100)])
    inside = Inside(engine, "a", now_ms=now_ms)
    stream = await inside.dispatcher.start(request(max_tokens=1200))
    heard_s = []
    async for _ in stream:
        booking = inside.router.router.load.bookings.get("r")
        heard_s.append(None if booking is None else booking.heard_ms / 1e3)
    # 512 tokens are passed with the 6th piece, 1024 with the 11th.
    assert HEARTBEAT_TOKENS == 512
    assert heard_s == [1, 1, 1, 1, 1, 6, 6, 6, 6, 6, 11, 11, None]


@in_virtual_time
async def test_the_router_hears_of_every_block_where_it_counts_them() -> None:
    settings = RouterSpec(BLOCK, mode="kv", load=LoadSpec(track_output_blocks=True))
    engine = ScriptedEngine(pieces=[(1.0, 1)])
    inside = Inside(engine, "a", now_ms=now_ms, settings=settings, tracks_output=True)
    stream = await inside.dispatcher.start(request(max_tokens=9))
    blocks = []
    async for _ in stream:
        booking = inside.router.router.load.bookings.get("r")
        blocks.append(None if booking is None else booking.output_blocks)
    # The prompt fills 2 blocks and half of the third. Told after 4 tokens (14 in 4 blocks) and 8.
    assert blocks == [0, 0, 0, 2, 2, 2, 2, 3, 3, None]


@pytest.mark.parametrize(
    ("first_s", "all_s", "hangs_after", "ends_s", "words"),
    [
        (10, 30, 0, 10, "10 s (live.first_token_timeout_s)"),
        (30, 10, 0, 10, "10 s (live.request_timeout_s)"),
        (20, 20, 0, 20, "20 s (live.request_timeout_s)"),
        (10, 30, 1, 30, "30 s (live.request_timeout_s)"),
    ],
)
@in_virtual_time
async def test_a_request_has_so_long_for_its_first_token_and_so_long_in_all(
    first_s: float, all_s: float, hangs_after: int, ends_s: float, words: str
) -> None:
    live = LiveConfig(first_token_timeout_s=first_s, request_timeout_s=all_s)
    engine = ScriptedEngine(hangs_after={"a": hangs_after}, pieces=[(2.0, 1)])
    inside = Inside(engine, "a", live=live, now_ms=now_ms)
    stream = await inside.dispatcher.start(request())
    with pytest.raises(ApiError) as caught:
        await tokens_of(stream)
    assert now_s() == ends_s
    assert (caught.value.status, caught.value.code) == (504, "timeout")
    assert caught.value.message == f"not done within {words}"
    record = stream.record
    assert (record.status, record.error) == ("failed", caught.value.message)
    assert record.output_tokens == hangs_after
    assert engine.closed == ["r"]
    assert inside.num_booked == inside.dispatcher.num_active == 0


@in_virtual_time
async def test_the_time_in_the_queue_counts() -> None:
    classes = (PolicyClass(prefill_busy_threshold=1),)
    live = LiveConfig(request_timeout_s=10, first_token_timeout_s=10)
    inside = Inside(
        ScriptedEngine(hangs={"a"}),
        "a",
        settings=RouterSpec(BLOCK, mode="kv", classes=classes),
        live=live,
        now_ms=now_ms,
    )
    first = await inside.dispatcher.start(request("1"))
    waiting = asyncio.create_task(inside.dispatcher.start(request("2")))
    await let_others_run()
    assert (inside.dispatcher.num_routing, inside.dispatcher.num_dispatched) == (1, 1)
    assert (inside.dispatcher.num_active, inside.router.num_queued) == (2, 1)
    with pytest.raises(ApiError, match="not done within 10 s"):
        await waiting
    assert (now_s(), inside.router.num_queued) == (10, 0)
    assert inside.records[0].dispatch_ms is None
    with pytest.raises(ApiError):
        await tokens_of(first)
    assert inside.dispatcher.num_active == inside.num_booked == 0


@in_virtual_time
async def test_what_waited_in_the_queue_is_dispatched_when_its_turn_comes() -> None:
    classes = (PolicyClass(prefill_busy_threshold=1),)
    engine = ScriptedEngine(pieces=[(2.0, 1)])
    inside = Inside(
        engine, "a", settings=RouterSpec(BLOCK, mode="kv", classes=classes), now_ms=now_ms
    )
    first = await inside.dispatcher.start(request("1"))
    reader = asyncio.create_task(tokens_of(first))
    second = await inside.dispatcher.start(request("2"))
    await tokens_of(second)
    await reader
    record = second.record
    assert (record.arrival_ms, record.dispatch_ms, record.first_token_ms) == (0, 2000, 4000)
    assert (record.prefill_wait_time_ms, record.prefill_time_ms) == (2000, 2000)
    said = samples(inside.metrics.registry)
    waits = histogram("dynosim_router_wait_seconds", TTFT_BUCKETS, [0.0, 2.0])
    assert {name: said[name] for name in waits} == waits


@in_virtual_time
async def test_an_engine_that_finds_stops_has_a_moment_to_tell_what_it_knows() -> None:
    engine = ScriptedEngine(hangs_after={"a": 1})
    inside = Inside(engine, now_ms=now_ms)
    inside.show(card("a", engine="vllm"))
    stream = await inside.dispatcher.start(request())
    with pytest.raises(ApiError, match="nothing more"):
        async for _ in stream:
            stream.let_end()
            stream.let_end()  # once is enough
    assert now_s() == pytest.approx(0.2)
    assert (stream.record.status, stream.record.error) == ("completed", None)


@in_virtual_time
async def test_a_request_arrived_when_it_had_come_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dynosim_runtime.serving.dispatcher.time", loop_clock)
    await asyncio.sleep(10.0)
    engine = ScriptedEngine(pieces=[(2.0, 1)])
    inside = Inside(engine, "a", now_ms=now_ms)
    stream = await inside.dispatcher.start(request(received_s=7.5))
    await tokens_of(stream)
    record = stream.record
    assert (record.arrival_ms, record.dispatch_ms) == (7500, 10_000)
    assert (record.prefill_wait_time_ms, record.ttft_ms) == (2500, 4500)


@pytest.mark.parametrize(
    ("status", "told"), [(400, 400), (404, 404), (413, 413), (422, 422), (401, 502), (418, 502)]
)
async def test_an_engines_refusal_is_the_clients_business_or_a_fault(
    status: int, told: int
) -> None:
    inside = Inside(ScriptedEngine(error=EngineRefusedError(status, "no")), "a", "b")
    stream = await inside.dispatcher.start(request())
    with pytest.raises(ApiError) as caught:
        await tokens_of(stream)
    assert (caught.value.status, caught.value.message) == (
        told,
        "the engine refuses the request: no",
    )
    assert (stream.record.status, stream.record.migrations) == ("failed", 0)
    assert inside.num_booked == 0


async def test_a_name_in_use_is_refused_and_its_owner_goes_on() -> None:
    inside = Inside(ScriptedEngine(), "a")
    first = await inside.dispatcher.start(request("same"))
    with pytest.raises(ApiError, match="'same' is in use") as caught:
        await inside.dispatcher.start(request("same"))
    assert (caught.value.status, caught.value.param) == (400, "request_id")
    assert len(await tokens_of(first)) == 6
    assert len(await tokens_of(await inside.dispatcher.start(request("same")))) == 6


async def test_what_the_router_refuses_is_told_in_its_words() -> None:
    inside = Inside(ScriptedEngine(), "a", settings=RouterSpec(BLOCK, mode="direct"))
    with pytest.raises(ApiError, match="the request names no worker") as caught:
        await inside.dispatcher.start(request("1"))
    assert (caught.value.status, caught.value.code) == (400, "refused")
    assert (caught.value.kind, caught.value.retry_after_s) == ("invalid_request_error", None)
    with pytest.raises(ApiError) as caught:
        await inside.dispatcher.start(request("2", worker_id=7))
    assert (caught.value.status, caught.value.code) == (400, "refused")
    assert (caught.value.kind, caught.value.retry_after_s) == ("invalid_request_error", None)
    assert [record.status for record in inside.records] == ["rejected", "rejected"]
    assert inside.records[1].error == caught.value.message
    assert inside.dispatcher.num_active == 0


@pytest.mark.parametrize(("priority", "jump"), [(4, 4), (0, 0), (-4, 0)])
async def test_priorities_turn_round_for_the_engine_and_only_jump_ahead(
    priority: int, jump: int
) -> None:
    engine, policy = ScriptedEngine(), Listening()
    inside = Inside(engine, "a", policy=policy)
    await tokens_of(await inside.dispatcher.start(request(priority=priority)))
    assert policy.asked[0].priority_jump == jump
    assert engine.requests[0][1].priority == -priority


async def test_a_pinned_request_goes_to_its_worker_and_rank() -> None:
    engine = ScriptedEngine()
    inside = Inside(engine)
    inside.show(card("a", dp_size=3), card("b", dp_size=3))
    for name, rank in (("a", 2), ("b", 1), ("b", 0)):
        asked = request(f"{name}{rank}", worker_id=worker_id_of(name), dp_rank=rank)
        record = (stream := await inside.dispatcher.start(asked)).record
        await tokens_of(stream)
        assert (record.decode_worker_id, record.decode_dp_rank) == (worker_id_of(name), rank)
    assert [(name, sent.dp_rank) for name, sent in engine.requests] == [
        ("a", 2), ("b", 1), ("b", 0),
    ]  # fmt: skip


async def test_a_disk_that_is_full_costs_the_record_and_not_the_stream(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def full(record: RequestRecord) -> None:
        raise OSError(28, "No space left on device")

    inside = Inside(ScriptedEngine(), "a")
    inside.dispatcher._write_record = full
    assert await tokens_of(await inside.dispatcher.start(request())) == [
        next_token(10 + i) for i in range(6)
    ]
    assert "the record of request r is lost" in caplog.text
    assert inside.dispatcher.num_active == inside.num_booked == 0


async def test_a_request_closed_before_it_is_read_is_cancelled() -> None:
    inside = Inside(engine := ScriptedEngine(), "a")
    stream = await inside.dispatcher.start(request())
    await stream.aclose()
    await stream.aclose()
    assert (stream.record.status, stream.record.finish_ms) == ("cancelled", None)
    assert inside.num_booked == inside.dispatcher.num_active == len(engine.requests) == 0
    assert len(inside.records) == 1
    again = await inside.dispatcher.start(replace(request(), request_id="r"))
    assert len(await tokens_of(again)) == 6


async def test_a_request_brings_its_own_weights_of_the_cost() -> None:
    """The others are those of the plan, and the next request has all of them again."""
    engine, policy = ScriptedEngine(), Listening()
    inside = Inside(engine, "a", policy=policy, settings=RouterSpec(BLOCK, mode="kv"))
    asked = request("1", overrides=(("overlap_score_credit", 0.0), ("track_prefill_tokens", False)))
    await tokens_of(await inside.dispatcher.start(asked))
    await tokens_of(await inside.dispatcher.start(request("2")))
    first, second = (one.overrides for one in policy.asked)
    assert first == CostSpec(overlap_score_credit=0.0, track_prefill_tokens=False)
    assert second is None
