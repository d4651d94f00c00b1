"""Requests over router and engines: streamed once, whatever happens to the workers."""

import asyncio
import contextlib
from collections.abc import Hashable, Sequence
from typing import Any

import pytest
from live_support import BLOCK, Inside, ScriptedEngine, card, next_token, request, tokens_of
from msgspec.structs import replace
from virtual_time import in_virtual_time, loop_clock, now_ms, now_s

from dynosim.config.live import LiveConfig
from dynosim.router.classes import PolicyClass
from dynosim.router.cost import WorkerOption
from dynosim.router.knobs import RouterSpec
from dynosim.router.request import RoutingRequest
from dynosim_runtime.card import LiveCard, worker_id_of
from dynosim_runtime.clients.base import EngineRefusedError
from dynosim_runtime.errors import ApiError
from dynosim_runtime.requests import Sampling, StructuredOutput
from dynosim_runtime.serving.stream import LET_END_S

EXPECTED = [next_token(10 + i) for i in range(6)]


@in_virtual_time
async def test_tokens_come_once_and_the_books_are_closed() -> None:
    inside = Inside(ScriptedEngine(), "a", "b")
    stream = await inside.dispatcher.start(request())
    assert inside.num_booked == 1
    assert await tokens_of(stream) == EXPECTED
    record = stream.record
    assert record.status == "completed"
    assert record.output_tokens == 6
    assert record.ttft_ms == pytest.approx(record.prefill_wait_time_ms + record.prefill_time_ms)
    assert inside.num_booked == 0
    assert inside.records == [record]
    assert inside.dispatcher.num_active == 0


@in_virtual_time
async def test_what_an_engine_refuses_is_the_clients_business() -> None:
    inside = Inside(ScriptedEngine(error=EngineRefusedError(400, "too long")), "a")
    with pytest.raises(ApiError, match="too long") as caught:
        await tokens_of(await inside.dispatcher.start(request()))
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("field", "wish"),
    [
        ("logprobs", {"logprobs": 0}),
        ("response_format", {"structured": StructuredOutput(kind="json_object")}),
    ],
)
@in_virtual_time
async def test_what_an_engine_cannot_do_is_refused_before_it_is_placed(
    field: str, wish: dict[str, Any]
) -> None:
    inside = Inside(ScriptedEngine(), "a")
    asked = replace(request(), sampling=Sampling(max_tokens=3, **wish))
    with pytest.raises(ApiError, match=f"{field}: .* mock") as caught:
        await inside.dispatcher.start(asked)
    assert (caught.value.status, caught.value.param) == (400, field)
    inside.show(card("b", engine="vllm"))
    assert await tokens_of(await inside.dispatcher.start(asked)) == EXPECTED[:3]


@in_virtual_time
async def test_a_pin_is_refused_where_an_engine_cannot_keep_it_or_ignored_if_told() -> None:
    engine = ScriptedEngine()
    inside = Inside(engine, "a")
    asked, wished = (request(n, pin_ttl_s=60.0, must_pin=n == "must") for n in ("must", "may"))
    assert await tokens_of(await inside.dispatcher.start(asked)) == EXPECTED
    inside.show(card("b", engine="vllm"))
    with pytest.raises(ApiError, match="not supported by this server, whose engine is vllm") as no:
        await inside.dispatcher.start(asked)
    assert (no.value.status, no.value.param) == (400, "nvext.cache_control")
    assert await tokens_of(await inside.dispatcher.start(wished)) == EXPECTED
    lenient = Inside(engine, ignores_pins=True)
    lenient.show(card("b", engine="vllm"))
    assert await tokens_of(await lenient.dispatcher.start(asked)) == EXPECTED


@in_virtual_time
async def test_closing_reaches_the_engine() -> None:
    engine = ScriptedEngine()
    inside = Inside(engine, "a")
    stream = await inside.dispatcher.start(request(max_tokens=100))
    async for delta in stream:
        assert delta.token_ids
        break
    await stream.aclose()
    assert engine.closed == ["r"]
    assert stream.record.status == "cancelled"
    assert inside.num_booked == 0


@pytest.mark.parametrize(("engine_kind", "cached_tokens"), [("vllm", 0), ("mock", None)])
@in_virtual_time
async def test_an_engine_that_finds_the_stop_itself_may_tell_what_it_knows(
    engine_kind: str, cached_tokens: int | None
) -> None:
    engine = ScriptedEngine()
    inside = Inside(engine)
    inside.show(card("a", engine=engine_kind))
    stream = await inside.dispatcher.start(request(max_tokens=100))
    with contextlib.suppress(ApiError):
        async for delta in stream:
            assert delta.token_ids or engine_kind == "vllm"
            stream.let_end()
    assert engine.closed == ([] if engine_kind == "vllm" else ["r"])
    assert stream.record.cached_tokens == cached_tokens
    assert (stream.record.status, stream.record.output_tokens) == ("completed", 1)
    assert stream.record.error is None
    assert inside.num_booked == 0


@in_virtual_time
async def test_an_engine_that_does_not_find_the_stop_is_not_waited_for_long() -> None:
    engine = ScriptedEngine(hangs_after={"a": 3})
    inside = Inside(engine)
    inside.show(card("a", engine="vllm"))
    stream = await inside.dispatcher.start(request(max_tokens=100))
    with pytest.raises(ApiError, match="nothing more"):
        async for _ in stream:
            stream.let_end()
    assert now_s() == LET_END_S
    assert engine.closed == ["r"]
    assert stream.record.status == "completed"


@in_virtual_time
async def test_closing_a_stream_that_another_task_reads_reaches_the_engine() -> None:
    engine = ScriptedEngine(hangs={"a"})
    inside = Inside(engine, "a")
    stream = await inside.dispatcher.start(request())
    reader = asyncio.create_task(tokens_of(stream))
    await asyncio.sleep(0.01)
    await stream.aclose()
    with pytest.raises(ApiError, match="cancelled"):
        await reader
    assert engine.closed == ["r"]
    assert inside.num_booked == 0


@in_virtual_time
async def test_cancelling_the_reader_closes_the_books() -> None:
    engine = ScriptedEngine(hangs={"a"})
    inside = Inside(engine, "a")
    stream = await inside.dispatcher.start(request())
    reader = asyncio.create_task(tokens_of(stream))
    await asyncio.sleep(0.01)
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    assert engine.closed == ["r"]
    assert stream.record.status == "cancelled"
    assert inside.num_booked == 0


def test_a_worker_that_comes_back_is_another_try_and_nothing_is_kept_of_those_gone() -> None:
    inside = Inside(ScriptedEngine())
    stays = set()
    for number in range(50):
        names = ("a", f"b{number}")
        inside.show(*map(card, names))
        stays |= {inside.members.stay_of(worker_id_of(name)) for name in names}
        inside.show()
    assert len(stays) == 100
    assert not inside.members._members


@in_virtual_time
async def test_streams_stay_on_a_worker_whose_card_is_gone_while_it_answers() -> None:
    probes = 0

    def is_well(card: LiveCard) -> bool:
        nonlocal probes
        probes += 1
        return True

    engine = ScriptedEngine(hangs={"a"})
    inside = Inside(engine, "a", is_well=is_well)
    stream = await inside.dispatcher.start(request())
    reader = asyncio.create_task(tokens_of(stream))
    await asyncio.sleep(0.01)
    inside.show(card("b"))
    while probes < 5:
        await asyncio.sleep(0.01)
    assert not reader.done()
    assert (await inside.dispatcher.start(request("2"))).record.decode_worker_id == worker_id_of(
        "b"
    )
    reader.cancel()
    await inside.members.close()


@in_virtual_time
async def test_streams_leave_a_worker_whose_card_is_gone_and_that_is_silent() -> None:
    engine = ScriptedEngine(hangs={"a"})
    inside = Inside(engine, "a", is_well=lambda card: card.name != "a")
    stream = await inside.dispatcher.start(request())
    reader = asyncio.create_task(tokens_of(stream))
    await asyncio.sleep(0.01)
    inside.show(card("b"))
    assert await reader == EXPECTED
    assert stream.record.migrations == 1
    assert stream.record.prefill_worker_id == worker_id_of("a")
    assert stream.record.decode_worker_id == worker_id_of("b")


@in_virtual_time
async def test_streams_stay_on_a_worker_that_drains() -> None:
    engine = ScriptedEngine()
    inside = Inside(engine, "a", "b")
    pinned = await inside.dispatcher.start(request("1", worker_id=worker_id_of("a")))
    inside.show(card("a", is_draining=True), card("b"))
    others = [await inside.dispatcher.start(request(str(i))) for i in range(2, 6)]
    assert await tokens_of(pinned) == EXPECTED
    for other in others:
        assert await tokens_of(other) == EXPECTED
    assert [name for name, _ in engine.requests] == ["a", "b", "b", "b", "b"]


@in_virtual_time
async def test_a_worker_that_does_not_answer_is_fenced_until_it_does() -> None:
    is_well = False
    engine = ScriptedEngine(dies_after={"a": 1})
    inside = Inside(engine, "a", "b", is_well=lambda card: is_well)
    stream = await inside.dispatcher.start(request(worker_id=None))
    while stream.record.decode_worker_id != worker_id_of("a"):  # ties are drawn
        await tokens_of(stream)
        stream = await inside.dispatcher.start(request(f"r{len(engine.requests)}"))
    await tokens_of(stream)
    await asyncio.sleep(0)
    assert list(inside.members.cards) == [worker_id_of("b")]
    assert inside.members.num_fenced == 1
    is_well = True
    while inside.members.num_ready < 2:
        await asyncio.sleep(0.01)
    await inside.members.close()


@in_virtual_time
async def test_a_worker_that_starts_anew_takes_the_place_of_the_old_one() -> None:
    engine = ScriptedEngine(hangs={"a"})
    inside = Inside(engine, "a")
    reader = asyncio.create_task(tokens_of(await inside.dispatcher.start(request())))
    await asyncio.sleep(0.01)
    engine.hangs.clear()
    inside.show(card("a", pid=2))
    assert await reader == EXPECTED
    assert [name for name, _ in engine.requests] == ["a", "a"]


@in_virtual_time
async def test_a_worker_of_another_model_or_block_size_is_not_used() -> None:
    inside = Inside(ScriptedEngine())
    inside.show(card("a", model="other"), card("b", block_size=BLOCK + 1))
    assert inside.members.num_ready == 0
    with pytest.raises(ApiError, match="no worker has joined") as caught:
        await inside.dispatcher.start(request())
    assert caught.value.status == 503
    assert caught.value.retry_after_s == 1
    assert inside.records[0].status == "rejected"


@in_virtual_time
async def test_silence_ends_a_request() -> None:
    live = LiveConfig(first_token_timeout_s=50)
    inside = Inside(ScriptedEngine(hangs={"a"}), "a", live=live)
    with pytest.raises(ApiError, match=r"50 s \(live\.first_token_timeout_s\)") as caught:
        await tokens_of(await inside.dispatcher.start(request()))
    assert now_s() == 50
    assert caught.value.status == 504
    assert inside.num_booked == 0


@in_virtual_time
async def test_requests_wait_their_turn_and_a_full_queue_refuses() -> None:
    rules = PolicyClass(prefill_busy_threshold=1, request_queue_limit_per_worker=1)
    settings = RouterSpec(BLOCK, mode="kv", classes=(rules,))
    engine = ScriptedEngine()
    inside = Inside(engine, "a", settings=settings)
    first = await inside.dispatcher.start(request("1"))
    second = asyncio.create_task(inside.dispatcher.start(request("2")))
    await asyncio.sleep(0)
    assert inside.router.num_queued == 1
    with pytest.raises(ApiError) as caught:
        await inside.dispatcher.start(request("3"))
    assert caught.value.status == 529
    assert await tokens_of(first) == EXPECTED
    assert await tokens_of(await second) == EXPECTED
    assert inside.router.num_queued == 0


@in_virtual_time
async def test_giving_up_in_the_queue_leaves_nothing_behind() -> None:
    settings = RouterSpec(BLOCK, mode="kv", classes=(PolicyClass(prefill_busy_threshold=1),))
    inside = Inside(ScriptedEngine(), "a", settings=settings)
    first = await inside.dispatcher.start(request("1"))
    waiting = asyncio.create_task(inside.dispatcher.start(request("2")))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert inside.router.num_queued == 0
    await tokens_of(first)
    assert inside.num_booked == 0
    assert [record.status for record in inside.records] == ["cancelled", "completed"]


@in_virtual_time
async def test_a_frontend_that_drains_takes_nothing_new() -> None:
    inside = Inside(ScriptedEngine(), "a")
    running = await inside.dispatcher.start(request("1"))
    inside.dispatcher.is_draining = True
    with pytest.raises(ApiError, match="shutting down"):
        await inside.dispatcher.start(request("2"))
    assert await tokens_of(running) == EXPECTED


@in_virtual_time
async def test_a_request_arrives_when_it_has_come_in_before_it_is_tokenized(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("dynosim_runtime.serving.dispatcher.time", loop_clock)
    inside = Inside(ScriptedEngine(pieces=[(0.25, 1)]), "a", now_ms=now_ms)
    await asyncio.sleep(5.0)
    late = await inside.dispatcher.start(request(received_s=now_s() - 2.0))
    assert late.record.prefill_wait_time_ms == 2000
    assert await tokens_of(late) == EXPECTED
    assert late.record.ttft_ms == 2250


class Broken:
    """A placement policy that fails for one request, and when another one ends."""

    def choose(
        self, request: RoutingRequest, options: Sequence[WorkerOption], now_ms: float
    ) -> WorkerOption:
        if request.request_id == "bad":
            raise ValueError("no idea")
        return options[0]

    def on_first_token(self, request_id: Hashable, now_ms: float) -> None:
        pass

    def on_end(self, request_id: Hashable, now_ms: float) -> None:
        if request_id == "1":
            raise ValueError("who was that?")


@in_virtual_time
async def test_a_policy_that_fails_costs_no_stream_that_has_been_placed() -> None:
    settings = RouterSpec(BLOCK, mode="kv", classes=(PolicyClass(prefill_busy_threshold=1),))
    inside = Inside(ScriptedEngine(), "a", settings=settings)
    inside.router.router.use_policy(Broken())
    first = await inside.dispatcher.start(request("1"))
    bad = asyncio.create_task(inside.dispatcher.start(request("bad")))
    await asyncio.sleep(0)
    assert await tokens_of(first) == EXPECTED
    with pytest.raises(ValueError, match="no idea"):
        await bad
    assert await tokens_of(await inside.dispatcher.start(request("2"))) == EXPECTED
    assert inside.num_booked == inside.dispatcher.num_active == inside.router.num_queued == 0
