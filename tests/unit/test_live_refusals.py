"""What clients and operators are told where something cannot be: the right reason and status."""

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest
from http_support import MODEL, app_of, client_of, dispatcher_saying
from live_support import BLOCK, Inside, ScriptedEngine, card, request

from dynosim.blocks.tier import Tier
from dynosim.config.loading import run_config_from_dict
from dynosim.errors import ConfigError
from dynosim.router.knobs import CostSpec, RouterSpec
from dynosim_runtime.card import LiveCard, worker_id_of
from dynosim_runtime.dialects.nvext import NvExt
from dynosim_runtime.errors import ApiError
from dynosim_runtime.hosts import without_credentials
from dynosim_runtime.http.registry import ModelRegistry
from dynosim_runtime.launch.options import deploy_options
from dynosim_runtime.ports import check_port
from dynosim_runtime.serving.gauges import worker_rows
from dynosim_runtime.serving.membership import DRAINING
from dynosim_runtime.tokenize.byte_tokenizer import ByteTokenizer
from dynosim_runtime.worker.command import describe

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


async def refused(inside: Inside, **asked: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        await inside.dispatcher.start(request(**asked))
    assert inside.records[-1].status == "rejected"
    return caught.value


# ---- no worker -----------------------------------------------------------------------------------


async def test_who_comes_when_no_worker_takes_requests_is_told_why() -> None:
    inside = Inside(ScriptedEngine(), is_well=lambda card: False)
    for cards, why in (
        ((), "no worker has joined yet"),
        ((card("a"),), None),
        ((card("a", is_draining=True),), DRAINING),
        ((), DRAINING),  # it has left, as it had said
        ((card("b"),), None),
        ((), "all workers have left"),
        ((card("a", is_draining=True),), "all workers have left"),  # never taken in
    ):
        inside.show(*cards)
        assert inside.members.absence == why
        if why is not None:
            error = await refused(inside)
            assert (error.status, error.message, error.retry_after_s) == (503, why, 1)
    inside.show(card("c"))
    inside.members.suspect(worker_id_of("c"))
    while not inside.members.num_fenced:
        await asyncio.sleep(0)
    assert (await refused(inside)).message == "no worker answers at the moment"
    await inside.members.close()


async def test_one_worker_that_stays_is_enough() -> None:
    inside = Inside(ScriptedEngine(), "a", "b")
    inside.show(card("a", is_draining=True), card("b"))
    assert inside.members.absence is None
    stream = await inside.dispatcher.start(request())
    assert stream.record.decode_worker_id == worker_id_of("b")
    await stream.aclose()


async def test_a_draining_frontend_says_so() -> None:
    inside = Inside(ScriptedEngine(), "a")
    inside.dispatcher.is_draining = True
    with pytest.raises(ApiError, match="draining") as caught:
        await inside.dispatcher.start(request())
    assert (caught.value.status, caught.value.retry_after_s) == (503, 1)


async def test_a_model_that_may_be_back_is_not_unknown() -> None:
    models = ModelRegistry()
    body = {"model": "a/b", "prompt": "x", "max_tokens": 1}
    async with client_of(app_of(dispatcher_saying("x"), models=models)) as client:
        assert (await client.post(COMPLETIONS, json=body)).status_code == 404
        models.add("a/b", ByteTokenizer(), 100)
        models.remove("a/b", "this is why")
        for answer in (
            await client.post(COMPLETIONS, json=body),
            await client.get("/v1/models/a/b"),
            await client.post("/tokenize", json={"prompt": "x"}),
        ):
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
            assert answer.json()["error"]["message"] == "this is why"
        health = await client.get("/health")
        assert (health.status_code, health.json()["message"]) == (503, "this is why")
        assert (await client.post(COMPLETIONS, json={**body, "model": "c"})).status_code == 404
        assert (await client.get("/v1/models")).json()["data"] == []
        models.add("a/b", ByteTokenizer(), 100)
        assert (await client.post(COMPLETIONS, json=body)).status_code == 200
        assert (await client.get("/health")).status_code == 200


# ---- a worker asked for --------------------------------------------------------------------------


async def test_a_worker_or_rank_that_there_is_not_is_the_clients_mistake() -> None:
    inside = Inside(ScriptedEngine())
    inside.show(card("a", dp_size=2), card("gone", is_draining=True), card("b"))
    a = worker_id_of("a")
    error = await refused(inside, worker_id=0)
    assert (error.status, error.param) == (400, "nvext.worker_id")
    assert str(a) not in error.message  # workers are not listed
    error = await refused(inside, worker_id=a, dp_rank=2)
    assert (error.status, error.param) == (400, "nvext.dp_rank")
    assert error.message == "nvext.dp_rank: the worker's ranks are 0 to 1"
    stream = await inside.dispatcher.start(request(worker_id=a, dp_rank=1))
    await stream.aclose()


async def test_taints_of_a_request_choose_among_those_of_cards() -> None:
    inside = Inside(ScriptedEngine())
    inside.show(card("a", taints=("fast",)), card("b", topology={"zone": "z"}))
    for required, name in (("fast", "a"), ("dynamo.topology/zone=z", "b")):
        for number in range(4):
            asked = request(f"{name}{number}", required_taints=(required,))
            stream = await inside.dispatcher.start(asked)
            assert stream.record.decode_worker_id == worker_id_of(name)
    for weight, name in ((5.0, "b"), (-5.0, "a")):
        asked = request(f"{weight}", preferred_taints={"dynamo.topology/zone=z": weight})
        stream = await inside.dispatcher.start(asked)
        assert stream.record.decode_worker_id == worker_id_of(name)
    error = await refused(inside, required_taints=("slow",))
    assert "no worker has the required taint 'slow'" in error.message


@pytest.mark.parametrize(("host", "disk", "name"), [(0.75, 0.25, "a"), (0.25, 0.75, "b")])
async def test_blocks_in_slower_tiers_count_by_their_weights(
    host: float, disk: float, name: str
) -> None:
    cost = CostSpec(host_cache_hit_weight=host, disk_cache_hit_weight=disk)
    inside = Inside(ScriptedEngine(), "a", "b", settings=RouterSpec(BLOCK, mode="kv", cost=cost))
    inside.caches("a", range(40), tier=Tier.HOST)
    inside.caches("b", range(40), tier=Tier.DISK)
    stream = await inside.dispatcher.start(request(num_tokens=40))
    assert stream.record.decode_worker_id == worker_id_of(name)


async def test_a_worker_that_is_only_not_there_now_may_be_asked_for_again() -> None:
    inside = Inside(ScriptedEngine(), "a", "b", is_well=lambda card: card.name != "a")
    inside.members.suspect(worker_id_of("a"))
    while not inside.members.num_fenced:
        await asyncio.sleep(0)
    error = await refused(inside, worker_id=worker_id_of("a"))
    assert (error.status, error.retry_after_s) == (503, 1)
    await inside.members.close()
    inside = Inside(ScriptedEngine(), "a", "b")
    inside.show(card("a", is_draining=True), card("b"))
    assert (await refused(inside, worker_id=worker_id_of("a"))).status == 503


@pytest.mark.parametrize(
    "field", ["worker_id", "backend_instance_id", "prefill_worker_id", "decode_worker_id"]
)
def test_every_word_for_a_worker_pins_it(field: str) -> None:
    assert NvExt(**{field: 7}).pinned_worker_id() == 7  # type: ignore[arg-type]
    assert NvExt(**{field: 0}).pinned_worker_id() == 0  # type: ignore[arg-type]
    other = "worker_id" if field != "worker_id" else "decode_worker_id"
    same = NvExt(**{field: 7, other: 7}, dp_rank=1)  # type: ignore[arg-type]
    assert same.pinned_worker_id() == 7
    with pytest.raises(ApiError, match="differs from nvext"):
        NvExt(**{field: 7, other: 8}).pinned_worker_id()  # type: ignore[arg-type]


@pytest.mark.parametrize("field", ["worker_id", "prefill_worker_id", "decode_worker_id"])
@pytest.mark.parametrize("value", ["z", 1.5, -1, [1]])
async def test_a_worker_that_is_no_number_is_refused(field: str, value: Any) -> None:
    body = {"model": MODEL, "prompt": "x", "nvext": {field: value}}
    async with client_of(app_of(dispatcher_saying("x"))) as client:
        answer = await client.post(COMPLETIONS, json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == f"nvext.{field}"


# ---- tools ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tool", "param"),
    [
        ({}, "tools[1].function.name"),
        ({"type": "function"}, "tools[1].function.name"),
        ({"type": "function", "function": None}, "tools[1].function.name"),
        ({"type": "function", "function": {"name": ""}}, "tools[1].function.name"),
        ({"type": "function", "function": {"name": 3}}, "tools[1].function.name"),
        ({"type": "retrieval", "function": {"name": "f"}}, "tools[1].type"),
        ({"function": {"name": "f", "parameters": []}}, "tools[1].function.parameters"),
    ],
)
async def test_a_tool_that_is_none_is_refused(tool: dict[str, Any], param: str) -> None:
    good = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    body = {"model": MODEL, "messages": [{"role": "user", "content": "x"}]}
    async with client_of(app_of(dispatcher_saying("x"))) as client:
        for choice in ("auto", "none"):
            asked = {**body, "tools": [good, tool], "tool_choice": choice}
            answer = await client.post(CHAT, json=asked)
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
        without_type = {"function": {"name": "f"}}
        answer = await client.post(CHAT, json={**body, "tools": [good, without_type]})
        assert answer.status_code == 200
        answer = await client.post(
            "/v1/responses", json={"model": MODEL, "input": "x", "tools": [{"type": "function"}]}
        )
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "tools[0].name")


# ---- operators -----------------------------------------------------------------------------------


@pytest.mark.parametrize("port", [-1, 65536, 99999])
def test_a_port_that_no_machine_has_is_bad_input(port: int, tmp_path: Path) -> None:
    plan = run_config_from_dict(
        {
            "workload": {"synthetic": {"requests": 1, "isl": 1, "osl": 1, "rate_rps": 1}},
            "timing": {"kind": "fixed", "prefill_ms": 1, "decode_ms": 1},
            "engine": {"num_gpu_blocks": 100},
        }
    )
    with pytest.raises(ConfigError, match=f"--port {port}: expected 0 to 65535") as caught:
        deploy_options(plan, tmp_path / "p", mock=True, real=False, out=tmp_path, port=port)
    assert caught.value.exit_code == 2
    for possible in (None, 0, 65535):
        check_port(possible)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://h:1", "http://h:1"),
        ("http://user:secret@h:1/base", "http://h:1/base"),
        ("https://secret@[::1]:2", "https://[::1]:2"),
        ("http://u:p@ss@h/a@b", "http://h/a@b"),
    ],
)
def test_addresses_are_shown_without_passwords(url: str, shown: str) -> None:
    assert without_credentials(url) == shown


async def test_a_workers_password_is_in_no_log_and_on_no_page(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    secretive: LiveCard = card("a", url="http://user:secret@127.0.0.1:1/base", speedup=4.0)
    inside = Inside(ScriptedEngine(), is_well=lambda card: False)
    inside.show(secretive)
    rows = worker_rows(inside.placement)
    assert (rows[0]["url"], rows[0]["speedup"]) == ("http://127.0.0.1:1/base", 4.0)
    inside.members.suspect(secretive.worker_id)
    while not inside.members.num_fenced:
        await asyncio.sleep(0)
    await inside.members.close()
    assert "127.0.0.1:1/base" in caplog.text and "127.0.0.1:1/base" in describe(secretive)
    assert "secret" not in caplog.text + describe(secretive) + str(rows)
