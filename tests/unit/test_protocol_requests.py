"""From bodies to the internal form: prompts, sampling, hints, and the routes that show tokens."""

from typing import Any

import msgspec
import pytest
from http_support import MAX_MODEL_LEN, MODEL, app_of, client_of, dispatcher_saying

from dynosim_runtime.dialects.messages.request import MessagesDialect
from dynosim_runtime.dialects.responses.request import ResponsesDialect
from dynosim_runtime.requests import GenerateRequest, Sampling
from dynosim_runtime.tokenize.byte_tokenizer import ByteTokenizer
from dynosim_runtime.tokenize.tokenizer import Conversation

HELLO = [{"role": "user", "content": "Hello"}]


async def request_of(path: str, body: dict[str, Any], **headers: str) -> GenerateRequest:
    dispatcher = dispatcher_saying("x")
    async with client_of(app_of(dispatcher)) as client:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        answer = await client.post(path, json={"model": MODEL, **body}, headers=names)
    assert answer.status_code == 200, answer.text
    return dispatcher.requests[0]


def conversation_of(dialect: Any, body: dict[str, Any]) -> Conversation:
    [prompt] = dialect.parse(msgspec.json.encode({"model": MODEL, **body})).prompts
    assert isinstance(prompt, Conversation)
    return prompt


async def test_all_sampling_fields_reach_the_engine() -> None:
    request = await request_of(
        "/v1/chat/completions",
        {
            "messages": HELLO,
            "max_completion_tokens": 50,
            "max_tokens": 70,
            "min_tokens": 3,
            "temperature": 0.5,
            "top_p": 0.9,
            "top_k": 40,
            "seed": 7,
            "presence_penalty": 0.1,
            "frequency_penalty": -0.2,
            "repetition_penalty": 1.1,
            "stop": "END",
            "stop_token_ids": [5],
            "ignore_eos": True,
            "user": "somebody",
        },
    )
    assert request.sampling == Sampling(
        max_tokens=50,
        min_tokens=3,
        temperature=0.5,
        top_p=0.9,
        top_k=40,
        seed=7,
        presence_penalty=0.1,
        frequency_penalty=-0.2,
        repetition_penalty=1.1,
        stop=("END",),
        stop_token_ids=(5,),
        ignore_eos=True,
    )


async def test_hints_and_headers_reach_the_router() -> None:
    request = await request_of(
        "/v1/completions",
        {
            "prompt": "x",
            "nvext": {
                "agent_hints": {"priority": 10, "osl": 256, "speculative_prefill": True},
                "routing_constraints": {"required_taints": ["x"], "preferred_taints": {"y": 0.5}},
                "backend_instance_id": 77,
                "dp_rank": 1,
            },
            "cache_salt": "tenant",
        },
        x_request_id="abc",
        x_dynamo_session_id="s1",
        x_dynamo_meta_policy_class="batch",
    )
    assert request.request_id == "abc"
    assert (request.session_id, request.policy_family) == ("s1", "batch")
    assert (request.priority, request.expected_output_tokens) == (10, 256)
    assert (request.worker_id, request.dp_rank) == (77, 1)
    assert (request.required_taints, request.preferred_taints) == (("x",), {"y": 0.5})
    assert request.cache_salt == "tenant"


async def test_weights_of_one_request_reach_the_router_by_our_names() -> None:
    given = {"router_temperature": 0.5, "assume_kv_reuse": False, "prefill_load_scale": None}
    body = {"prompt": "x", "nvext": {"router_config_override": given}}
    request = await request_of("/v1/completions", body)
    assert request.overrides == (("assume_kv_reuse", False), ("temperature", 0.5))
    assert (await request_of("/v1/completions", {"prompt": "x"})).overrides == ()


@pytest.mark.parametrize(
    ("given", "param", "what"),
    [
        ({"temprature": 1}, ".temprature", "unknown key, did you mean temperature?"),
        ({"temperature": -0.5}, ".temperature", "expected a finite number >= 0, got -0.5"),
        ({"track_prefill_tokens": 1}, ".track_prefill_tokens", "expected true or false"),
        ({"shared_cache_multiplier": 1}, ".shared_cache_multiplier", "not for one request"),
        ([1], "", "expected `object | null`, got `array`"),
    ],
)
async def test_weights_that_cannot_be_are_refused_by_their_key(
    given: object, param: str, what: str
) -> None:
    body = {"model": MODEL, "prompt": "x", "nvext": {"router_config_override": given}}
    async with client_of(app_of(dispatcher_saying("x"))) as client:
        answer = await client.post("/v1/completions", json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, f"nvext.router_config_override{param}")
    assert what in error["message"]


@pytest.mark.parametrize(
    ("ttl", "seconds"),
    [({}, 300), ({"ttl": "45s"}, 45), ({"ttl": "5m"}, 300), ({"ttl": "1h"}, 3600)],
)
async def test_cache_control_says_how_long_the_prompt_is_to_be_kept(
    ttl: dict[str, str], seconds: float
) -> None:
    asked = {"prompt": "x", "nvext": {"cache_control": {"type": "ephemeral", **ttl}}}
    request = await request_of("/v1/completions", asked)
    assert (request.pin_ttl_s, request.must_pin) == (seconds, True)
    plain = await request_of("/v1/completions", {"prompt": "x"})
    assert (plain.pin_ttl_s, plain.must_pin) == (None, False)


async def test_marks_of_blocks_are_wishes_and_the_longest_counts() -> None:
    mark, long_mark = {"type": "ephemeral"}, {"type": "ephemeral", "ttl": "1h"}
    user = {"role": "user", "content": [{"type": "text", "text": "x", "cache_control": long_mark}]}
    body = {
        "messages": [user],
        "max_tokens": 5,
        "system": [{"type": "text", "text": "S", "cache_control": mark}],
    }
    request = await request_of("/v1/messages", body)
    assert (request.pin_ttl_s, request.must_pin) == (3600, False)
    body["tools"] = [{"name": "f", "input_schema": {}, "cache_control": {"type": "x"}}]
    async with client_of(app_of(dispatcher_saying("x"))) as client:
        answer = await client.post("/v1/messages", json={"model": MODEL, **body})
    assert answer.status_code == 400
    assert "tools[0].cache_control.type" in answer.json()["error"]["message"]


async def test_a_blocks_cache_control_changes_no_token() -> None:
    """Clients of Anthropic's API mark blocks with it always."""
    block = {"type": "text", "text": "S", "cache_control": {"type": "ephemeral"}}
    body = {"messages": HELLO, "max_tokens": 5, "system": [block]}
    plain = {**body, "system": [{"type": "text", "text": "S"}]}
    asked, other = [await request_of("/v1/messages", each) for each in (body, plain)]
    assert asked.token_ids == other.token_ids


async def test_missing_max_tokens_is_filled() -> None:
    chat = await request_of("/v1/chat/completions", {"messages": HELLO})
    assert chat.sampling.max_tokens == MAX_MODEL_LEN - len(chat.token_ids)
    text = await request_of("/v1/completions", {"prompt": [1] * 10})
    assert text.sampling.max_tokens == 16
    tight = await request_of("/v1/completions", {"prompt": [1] * (MAX_MODEL_LEN - 5)})
    assert tight.sampling.max_tokens == 5


async def test_choices_differ_by_seed() -> None:
    dispatcher = dispatcher_saying("x")
    async with client_of(app_of(dispatcher)) as client:
        await client.post(
            "/v1/completions", json={"model": MODEL, "prompt": "x", "n": 3, "seed": 5}
        )
    assert sorted(request.sampling.seed or 0 for request in dispatcher.requests) == [5, 6, 7]


async def test_text_parts_and_tool_calls_become_what_templates_know() -> None:
    from dynosim_runtime.dialects.chat.request import ChatDialect

    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    conversation = conversation_of(
        ChatDialect(),
        {
            "messages": [
                {"role": "developer", "content": "Be brief."},
                {"role": "user", "content": [{"type": "text", "text": "x"}] * 2},
                {"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "content": "2", "tool_call_id": "c1"},
            ],
            "tools": [{"type": "function", "function": {"name": "f"}}],
            "reasoning_effort": "low",
            "chat_template_kwargs": {"enable_thinking": False},
        },
    )
    assert [message["role"] for message in conversation.messages] == [
        "system",
        "user",
        "assistant",
        "tool",
    ]
    assert conversation.messages[1]["content"] == "x\nx"
    assert conversation.messages[2]["tool_calls"][0]["function"]["arguments"] == {"a": 1}
    assert conversation.tools == [{"type": "function", "function": {"name": "f"}}]
    assert conversation.template_args == {"reasoning_effort": "low", "enable_thinking": False}


def test_interleaved_reasoning_of_messages_keeps_its_order() -> None:
    def call(name: str) -> dict[str, Any]:
        return {"type": "tool_use", "id": name, "name": name, "input": {}}

    def result(name: str) -> dict[str, Any]:
        return {"type": "tool_result", "tool_use_id": name, "content": "ok"}

    def thought(text: str) -> dict[str, Any]:
        return {"type": "thinking", "thinking": text, "signature": "s"}

    conversation = conversation_of(
        MessagesDialect(),
        {
            "max_tokens": 5,
            "system": [{"type": "text", "text": "S", "cache_control": {"type": "ephemeral"}}],
            "thinking": {"type": "enabled", "budget_tokens": 1024},
            "messages": [
                {"role": "user", "content": "go"},
                {
                    "role": "assistant",
                    "content": [thought("t0"), call("a"), thought("t1"), call("b")],
                },
                {
                    "role": "user",
                    "content": [result("a"), result("b"), {"type": "text", "text": "?"}],
                },
            ],
        },
    )
    assert [
        (m["role"], m.get("reasoning_content"), [c["id"] for c in m.get("tool_calls", ())])
        for m in conversation.messages
    ] == [
        ("system", None, []),
        ("user", None, []),
        ("assistant", "t0", ["a"]),
        ("assistant", "t1", ["b"]),
        ("tool", None, []),
        ("tool", None, []),
        ("user", None, []),
    ]
    assert conversation.template_args == {
        "enable_thinking": True,
        "truncate_history_thinking": False,
    }


def test_answer_that_was_begun_is_continued() -> None:
    messages = [*HELLO, {"role": "assistant", "content": "Once upon"}]
    conversation = conversation_of(MessagesDialect(), {"messages": messages, "max_tokens": 5})
    assert conversation.continue_final_message
    assert not conversation.add_generation_prompt
    assert ByteTokenizer().decode(ByteTokenizer().encode_chat(conversation)).endswith("Once upon")


def test_billing_line_is_stripped_when_asked() -> None:
    system = "x-anthropic-billing-header: cc_version=1; cch=abc==;\nYou are"
    body = {"messages": HELLO, "max_tokens": 5, "system": system}
    kept = conversation_of(MessagesDialect(), body)
    stripped = conversation_of(MessagesDialect(strip_preamble=True), body)
    assert kept.messages[0]["content"] == system
    assert stripped.messages[0]["content"] == "You are"


def test_items_of_responses_become_turns() -> None:
    conversation = conversation_of(
        ResponsesDialect(),
        {
            "instructions": "I",
            "input": [
                {"role": "user", "content": [{"type": "input_text", "text": "go"}]},
                {
                    "type": "reasoning",
                    "id": "r",
                    "summary": [{"type": "summary_text", "text": "t0"}],
                },
                {"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "a", "output": "ok"},
                {
                    "type": "reasoning",
                    "id": "r2",
                    "content": [{"type": "reasoning_text", "text": "t1"}],
                },
                {
                    "type": "message",
                    "role": "assistant",
                    "content": [{"type": "output_text", "text": "done", "annotations": []}],
                },
                {"role": "user", "content": "more"},
            ],
        },
    )
    assert [
        (m["role"], m["content"], m.get("reasoning_content")) for m in conversation.messages
    ] == [
        ("system", "I", None),
        ("user", "go", None),
        ("assistant", "", "t0"),
        ("tool", "ok", None),
        ("assistant", "done", "t1"),
        ("user", "more", None),
    ]


async def test_responses_repeat_the_fields_of_their_request() -> None:
    fields = {
        "instructions": "Be brief.",
        "max_output_tokens": 99,
        "max_tool_calls": 3,
        "metadata": {"a": "b"},
        "parallel_tool_calls": False,
        "prompt_cache_key": "k",
        "reasoning": {"effort": "low", "summary": "auto"},
        "safety_identifier": "u1",
        "service_tier": "auto",
        "store": True,
        "temperature": 0.25,
        "text": {"format": {"type": "text"}, "verbosity": "low"},
        "tool_choice": "none",
        "tools": [{"type": "function", "name": "f", "parameters": {}, "strict": True}],
        "top_p": 0.5,
        "truncation": "disabled",
        "user": "u2",
    }
    body = {"model": MODEL, "input": "x", **fields}
    async with client_of(app_of(dispatcher_saying("x"))) as client:
        answer = (await client.post("/v1/responses", json=body)).json()
    assert {key: answer[key] for key in fields} == fields


@pytest.mark.parametrize("prefix", ["", "/v1"])
async def test_tokenize_and_back(prefix: str) -> None:
    async with client_of(app_of(dispatcher_saying("x"))) as client:
        told = await client.post(f"{prefix}/tokenize", json={"prompt": "Grüße"})
        tokens = told.json()["tokens"]
        back = await client.post(f"{prefix}/detokenize", json={"model": MODEL, "tokens": tokens})
        chat = await client.post(
            f"{prefix}/tokenize",
            json={"model": MODEL, "messages": HELLO, "return_token_strs": True},
        )
        neither = await client.post(f"{prefix}/tokenize", json={"model": MODEL})
    assert told.json() == {
        "count": 7,
        "max_model_len": MAX_MODEL_LEN,
        "tokens": tokens,
        "token_strs": None,
    }
    assert back.json() == {"prompt": "Grüße"}
    request = await request_of("/v1/chat/completions", {"messages": HELLO})
    assert chat.json()["tokens"] == request.token_ids
    assert chat.json()["token_strs"][0] == "<|im_start|>"
    assert neither.status_code == 400


async def test_request_ids_under_way_are_unique() -> None:
    import asyncio

    from dynosim_runtime.testing.dispatcher import Pause, ScriptedDispatcher

    waiting = ScriptedDispatcher(lambda request: [Pause(3600)])
    async with client_of(app_of(waiting)) as client:
        body = {"model": MODEL, "prompt": "x"}
        post = client.post
        tasks = [
            asyncio.create_task(post("/v1/completions", json=body, headers={"x-request-id": "a"}))
            for _ in range(2)
        ]
        while len(waiting.requests) < 2:
            await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    first, second = waiting.requests
    assert first.request_id == "a"
    assert second.request_id.startswith("a-")
