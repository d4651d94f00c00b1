"""Requests through prefill and decode workers: who is asked for what, and who is lost when."""

import asyncio
from typing import Any

import pytest
from handoff_support import ScriptedPair, TwoPools, workers
from hypothesis import given, settings
from hypothesis import strategies as st
from live_support import next_token, request, tokens_of
from msgspec.structs import replace

from dynosim.router.handoff import ConditionalSpec, HandoffSpec
from dynosim.router.topology import KvTransferPolicy
from dynosim_runtime.card import worker_id_of
from dynosim_runtime.clients.base import EngineFailedError, EngineLostError, EngineRequest
from dynosim_runtime.errors import ApiError
from dynosim_runtime.requests import Sampling
from dynosim_runtime.serving.handoff_stream import HOLD_KV

PROMPT = list(range(10))
ANSWER = [next_token(10 + i) for i in range(6)]


async def test_a_request_is_prefilled_here_and_decoded_there() -> None:
    engine = ScriptedPair()
    pools = TwoPools(engine, *workers("p1", "d1"))
    stream = await pools.dispatcher.start(request(priority=2, cache_salt="s"))
    assert await tokens_of(stream) == ANSWER
    assert engine.prefills == [
        (
            "p1",
            EngineRequest(
                request_id="r",
                token_ids=PROMPT,
                sampling=Sampling(max_tokens=1, temperature=0.0, ignore_eos=True),
                priority=-2,
                cache_salt="s",
                kv_transfer_params=HOLD_KV,
            ),
        )
    ]
    (name, asked), *others = engine.requests
    assert (name, asked.token_ids, others) == ("d1", PROMPT, [])
    assert asked.kv_transfer_params == {"do_remote_prefill": True, "of": "r"}
    assert asked.sampling == request().sampling
    record = stream.record
    assert record.prefill_worker_id == worker_id_of("p1")
    assert record.decode_worker_id == worker_id_of("d1")
    assert (record.status, record.cached_tokens, record.transfer_ms) == ("completed", 4, 3.5)
    parts = (record.prefill_wait_time_ms, record.prefill_time_ms, record.handoff_ms)
    assert None not in parts and record.ttft_ms == pytest.approx(sum(parts))  # type: ignore[arg-type]
    assert pools.prefill_asked.first_tokens == pools.prefill_asked.ends == ["r"]
    assert pools.decode_asked.first_tokens == pools.decode_asked.ends == ["r"]
    pools.assert_idle()


async def test_the_prefill_workers_load_ends_with_its_answer() -> None:
    engine = ScriptedPair(hangs={"d1"})
    pools = TwoPools(engine, *workers("p1", "d1"))
    stream = await pools.dispatcher.start(request())
    assert pools.dispatcher.num_prefilling == 1
    reading = asyncio.ensure_future(tokens_of(stream))
    while not engine.requests:
        await asyncio.sleep(0)
    assert not pools.prefill.router.router.load.bookings
    assert (pools.dispatcher.num_prefilling, pools.dispatcher.num_dispatched) == (0, 1)
    assert len(pools.prefill.in_flight) == 1  # its KV is still there
    await stream.aclose()
    with pytest.raises(ApiError):
        await reading
    pools.assert_idle()


@settings(max_examples=80, deadline=None)
@given(
    prefill_deaths=st.sets(st.sampled_from(["p1", "p2", "p3"])),
    deaths=st.lists(st.integers(0, 6), max_size=3),
    load_errors=st.integers(0, 2),
    on_load_failure=st.sampled_from(["fail", "recompute"]),
    max_tokens=st.integers(1, 8),
    first_token=st.sampled_from(["decode", "prefill"]),
)
def test_an_answer_is_the_same_whoever_is_lost(
    prefill_deaths: set[str],
    deaths: list[int],
    load_errors: int,
    on_load_failure: Any,
    max_tokens: int,
    first_token: Any,
) -> None:
    async def serve() -> None:
        engine = ScriptedPair(
            prefill_deaths=set(prefill_deaths),
            deaths=list(deaths),
            load_errors=[EngineFailedError("no KV")] * load_errors,
        )
        names = ("p1", "p2", "p3", "p4", "d1", "d2", "d3", "d4")
        pools = TwoPools(
            engine,
            *workers(*names),
            spec=HandoffSpec(first_token=first_token),
            on_load_failure=on_load_failure,
            live=pools_live(),
        )
        stream = await pools.dispatcher.start(request(max_tokens=max_tokens))
        assert await tokens_of(stream) == [next_token(10 + i) for i in range(max_tokens)]
        assert (stream.record.status, stream.record.output_tokens) == ("completed", max_tokens)
        pools.assert_idle()

    asyncio.run(serve())


def pools_live() -> Any:
    from dynosim.config.live import LiveConfig

    return LiveConfig(migration_limit=20)


async def test_a_prefill_that_breaks_off_goes_to_another_prefill_worker() -> None:
    engine = ScriptedPair(prefill_deaths={"p1"})
    pools = TwoPools(engine, *workers("p1", "p2", "d1"))
    stream = await pools.dispatcher.start(request())
    assert await tokens_of(stream) == ANSWER
    assert [name for name, _ in engine.prefills] == ["p1", "p2"]
    assert [asked.kv_transfer_params for _, asked in engine.requests] == [
        {"do_remote_prefill": True, "of": "r/1"}
    ]
    assert stream.record.prefill_worker_id == worker_id_of("p2")
    assert stream.record.migrations == 1


async def test_without_another_prefill_worker_the_decode_worker_computes_the_prompt() -> None:
    engine = ScriptedPair(prefill_deaths={"p1"})
    pools = TwoPools(engine, *workers("p1", "d1"))
    stream = await pools.dispatcher.start(request())
    assert await tokens_of(stream) == ANSWER
    assert [asked.kv_transfer_params for _, asked in engine.requests] == [None]
    engine, pools = ScriptedPair(), TwoPools(ScriptedPair(), *workers("d1"))
    stream = await pools.dispatcher.start(request())
    assert await tokens_of(stream) == ANSWER
    assert stream.record.prefill_worker_id == stream.record.decode_worker_id == worker_id_of("d1")
    assert stream.record.handoff_ms is None


@pytest.mark.parametrize(("policy", "num_prefills"), [("fail", 2), ("recompute", 1)])
async def test_a_prefill_worker_that_dies_while_its_kv_moves(
    policy: Any, num_prefills: int
) -> None:
    """`recompute`: the engine sees to it; `fail`: the request starts again."""
    engine = ScriptedPair(pieces=[(0.05, 1)])
    pools = TwoPools(engine, *workers("p1", "p2", "d1"), on_load_failure=policy)
    stream = await pools.dispatcher.start(request())
    reading = asyncio.ensure_future(tokens_of(stream))
    while not engine.requests:
        await asyncio.sleep(0)
    pools.prefill.in_flight.lose_worker(worker_id_of("p1"))
    assert await reading == ANSWER
    assert len(engine.prefills) == num_prefills
    assert {name for name, _ in engine.requests} == {"d1"}  # which is not to blame
    pools.assert_idle()


async def test_a_decode_worker_that_dies_has_the_prompt_prefilled_again() -> None:
    """Its KV may have been taken, and let go of at the source."""
    engine = ScriptedPair(dies_after={"d1": 0})
    pools = TwoPools(engine, *workers("p1", "d1", "d2"))
    stream = await pools.dispatcher.start(request())
    assert await tokens_of(stream) == ANSWER
    assert [name for name, _ in engine.prefills] == ["p1", "p1"]
    assert [name for name, _ in engine.requests] == ["d1", "d2"]
    engine = ScriptedPair(dies_after={"d1": 3})
    pools = TwoPools(engine, *workers("p1", "d1", "d2"))
    stream = await pools.dispatcher.start(request())
    assert await tokens_of(stream) == ANSWER
    assert [asked.token_ids for _, asked in engine.prefills] == [PROMPT, PROMPT + ANSWER[:3]]


async def test_kv_that_nobody_takes_is_let_go_of() -> None:
    engine = ScriptedPair()
    pools = TwoPools(engine, *workers("p1", "d1"))
    pools.decode_asked.choose = stuck  # type: ignore[method-assign]
    stream = await pools.dispatcher.start(request())
    with pytest.raises(RuntimeError):
        await tokens_of(stream)
    await asyncio.sleep(0)
    assert engine.released == [{"do_remote_prefill": True, "of": "r"}]
    assert not engine.held
    pools.assert_idle()


def stuck(*_: object) -> Any:
    raise RuntimeError("a policy with a defect")


async def test_a_client_that_leaves_cancels_the_prefill() -> None:
    engine = ScriptedPair(prefill_hangs={"p1"})
    pools = TwoPools(engine, *workers("p1", "d1"))
    stream = await pools.dispatcher.start(request())
    reading = asyncio.ensure_future(tokens_of(stream))
    while not engine.prefills:
        await asyncio.sleep(0)
    await stream.aclose()
    with pytest.raises(ApiError):
        await reading
    assert engine.prefill_cancelled == ["r"]
    assert stream.record.status == "cancelled"
    pools.assert_idle()


async def test_short_prompts_stay_where_they_are_answered() -> None:
    engine = ScriptedPair()
    spec = HandoffSpec(conditional=ConditionalSpec(eff_isl_threshold=8, eff_isl_ratio_threshold=2))
    pools = TwoPools(engine, *workers("p1", "d1"), spec=spec)
    for length, num_prefills in ((7, 0), (9, 1)):
        await tokens_of(await pools.dispatcher.start(request(num_tokens=length)))
        assert len(engine.prefills) == num_prefills
    pools.assert_idle()


async def test_the_decode_worker_is_in_the_same_place() -> None:
    engine = ScriptedPair()
    cards = [
        *workers("p1", topology={"zone": "b"}),
        *workers("d1", topology={"zone": "a"}),
        *workers("d2", topology={"zone": "b"}),
    ]
    pools = TwoPools(engine, *cards, spec=HandoffSpec(kv_transfer=KvTransferPolicy("zone")))
    await tokens_of(await pools.dispatcher.start(request()))
    assert [name for name, _ in engine.requests] == ["d2"]
    pools.show(*cards[:2])
    stream = await pools.dispatcher.start(request("q"))
    with pytest.raises(ApiError, match="no worker is in zone 'b'"):
        await tokens_of(stream)
    pools.assert_idle()


async def test_nobody_is_prefilled_while_nobody_can_answer() -> None:
    engine = ScriptedPair()
    pools = TwoPools(engine, *workers("p1"))
    with pytest.raises(ApiError, match="no worker has joined yet"):
        await pools.dispatcher.start(request())
    assert not engine.prefills


async def test_a_wait_for_a_decode_worker_ends_before_the_lease_does() -> None:
    engine = ScriptedPair()
    pools = TwoPools(engine, *workers("p1", "p2", "d1"), max_unclaimed_s=0.0)
    blocked = asyncio.Event()
    find = pools.decode.place

    async def slow(*arguments: Any) -> Any:
        if len(engine.prefills) == 1:
            await blocked.wait()
        return await find(*arguments)

    pools.decode.place = slow  # type: ignore[method-assign]
    stream = await pools.dispatcher.start(request())
    assert await tokens_of(stream) == ANSWER
    assert [name for name, _ in engine.prefills] == ["p1", "p2"]
    pools.assert_idle()


async def test_a_pinned_decode_worker_answers() -> None:
    engine = ScriptedPair()
    pools = TwoPools(engine, *workers("p1", "d1", "d2"))
    asked = replace(request(), worker_id=worker_id_of("d2"))
    await tokens_of(await pools.dispatcher.start(asked))
    assert [name for name, _ in engine.requests] == ["d2"]
    assert [name for name, _ in engine.prefills] == ["p1"]


async def test_an_engine_that_is_gone_is_told_from_one_that_fails() -> None:
    """One that fails to load KV may serve the next request; one that is gone may not."""
    engine = ScriptedPair(load_errors=[EngineLostError("gone")])
    pools = TwoPools(engine, *workers("p1", "d1", "d2"))
    assert await tokens_of(await pools.dispatcher.start(request())) == ANSWER
    assert [name for name, _ in engine.requests] == ["d1", "d2"]
    engine = ScriptedPair(load_errors=[EngineFailedError("no KV")])
    pools = TwoPools(engine, *workers("p1", "p2", "d1", "d2"))
    assert await tokens_of(await pools.dispatcher.start(request())) == ANSWER
    assert [name for name, _ in engine.requests] == ["d1", "d1"]
    assert [name for name, _ in engine.prefills] == ["p1", "p2"]
