"""A mock engine's answers and counters: bounds of requests, usage, and every figure of /metrics."""

import json
from typing import Any

import pytest
from exposition import histogram, samples
from mock_support import TokenLog, call, drive, mock_engine
from prometheus_client import CollectorRegistry

from dynosim.engine.spec import EngineSpec
from dynosim.timing.formulas import FixedModel
from dynosim_runtime.errors import ApiError
from dynosim_runtime.mock.calls import CallReader
from dynosim_runtime.mock.collector import EngineCollector
from dynosim_runtime.mock.engine import MockEngine
from dynosim_runtime.mock.frames import (
    DONE,
    FINGERPRINT,
    CompletionFrames,
    usage_of,
    whole_answer,
)
from dynosim_runtime.mock.stats import (
    _E2E_BOUNDS_S,
    _ITL_BOUNDS_S,
    _TTFT_BOUNDS_S,
    MockStats,
)
from dynosim_runtime.mock.tokens import TokenSource, tokens_until_stop

SPEC = EngineSpec(
    num_gpu_blocks=41, max_model_len=20, block_size=4, max_num_seqs=2, max_num_batched_tokens=64
)
READER = CallReader(SPEC, "m", 1000)


def read(**fields: Any) -> Any:
    body = READER.body(json.dumps({"prompt": [1, 2, 3], **fields}).encode())
    return READER.call(body, "id")


def refusal(**fields: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        read(**fields)
    return caught.value


def test_a_call_has_what_was_asked_for() -> None:
    asked = read(
        max_tokens=9,
        min_tokens=4,
        stop_token_ids=[7, 8],
        cache_salt="s",
        model="m",
        n=1,
        echo=False,
    )
    assert asked == call(
        [1, 2, 3], 9, request_id="id", min_tokens=4, stop_token_ids=(7, 8), cache_salt="s"
    )
    assert read() == call([1, 2, 3], 16, request_id="id")
    assert read(prompt=[[1, 2, 3]]).prompt_ids == [1, 2, 3]


@pytest.mark.parametrize(
    ("num_prompt", "max_tokens", "given"),
    # The context is of 20 tokens.
    [
        (19, 1, 1),
        (19, 5, 1),
        (10, 10, 10),
        (10, 11, 10),
        (10, 20, 10),
        (3, None, 17),
        (19, None, 1),
    ],
)
def test_an_answer_fits_behind_its_prompt(
    num_prompt: int, max_tokens: int | None, given: int
) -> None:
    assert read(prompt=[1] * num_prompt, max_tokens=max_tokens).max_tokens == given


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": [1] * 20}, "prompt"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 21}, "max_tokens"),
        ({"max_tokens": 4, "min_tokens": 5}, "min_tokens"),
        ({"min_tokens": -1}, "min_tokens"),
        ({"prompt": [1, 1000]}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"priority": 1}, "priority"),
        ({"priority": -1}, "priority"),
        *(({name: value}, name) for name, value in (
            ("n", 2), ("best_of", 2), ("echo", True), ("logprobs", 0), ("prompt_logprobs", 0),
            ("stop", "x"), ("stop", ["x"]), ("suffix", "x"),
        )),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_and_named(fields: dict[str, Any], param: str) -> None:
    error = refusal(**fields)
    assert (error.status, error.kind, error.param) == (400, "BadRequestError", param)


@pytest.mark.parametrize(
    "fields",
    [{"prompt": [1] * 19}, {"prompt": [999]}, {"max_tokens": 20},
     {"max_tokens": 4, "min_tokens": 4}, {"n": None}, {"best_of": 1}, {"stop": []},
     {"suffix": ""}, {"echo": None}],
)  # fmt: skip
def test_what_just_fits_is_taken(fields: dict[str, Any]) -> None:
    assert read(**fields).request_id == "id"


def test_another_model_is_not_found() -> None:
    error = refusal(model="other")
    assert (error.status, error.kind, error.param) == (404, "NotFoundError", "model")


def test_priorities_are_for_engines_that_schedule_by_them() -> None:
    spec = EngineSpec(num_gpu_blocks=41, max_model_len=20, block_size=4, policy="priority")
    reader = CallReader(spec, "m", 1000)
    for priority in (-3, 0, 5):
        body = reader.body(b'{"prompt": [1], "priority": %d}' % priority)
        assert reader.call(body, "id").priority == priority


@pytest.mark.parametrize(
    ("min_tokens", "stops", "count"),
    [
        (0, {7}, 2),
        (2, {7}, 2),
        (3, {7}, 4),
        (0, {5}, 1),
        (1, {5}, 1),
        (5, {7}, None),
        (0, {9}, None),
    ],
)
def test_a_stop_counts_from_the_minimum_on(
    min_tokens: int, stops: set[int], count: int | None
) -> None:
    assert tokens_until_stop([5, 7, 6, 7], stops, min_tokens) == count


def test_tokens_continue_each_other_at_any_position() -> None:
    source = TokenSource(3, 50)
    whole = source.continuation(10, 5, 12)
    for done in range(1, 12):
        assert source.continuation(whole[done - 1], 5 + done, 12 - done) == whole[done:]
    far = source.continuation(10, 3 * (1 << 13), 3)  # beyond what was worked out beforehand
    assert TokenSource(3, 50).continuation(10, 3 * (1 << 13), 3) == far


# ---- figures -------------------------------------------------------------------------------------

STEP_MS = 10.0


def served(spec: EngineSpec = SPEC, speedup: float = 1.0) -> MockEngine:
    """Two requests at 0 ms, one at 35 ms with the prompt of the first; every step takes 10 ms."""
    engine = mock_engine(spec, FixedModel(STEP_MS, STEP_MS), stats=MockStats(speedup))
    prompt = list(range(10, 18))
    drive(engine, [(0.0, call(prompt, 3)), (0.0, call([1], 1)), (35.0, call(prompt, 2))])
    return engine


def shown(engine: MockEngine) -> dict[str, float]:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(EngineCollector(engine, "m"))
    return samples(registry, without=("engine", "model_name"))


@pytest.mark.parametrize("speedup", [1.0, 4.0])
def test_every_figure_of_a_known_load(speedup: float) -> None:
    page = shown(served(speedup=speedup))
    per_s = 1e-3 / speedup
    # At 10, 20 and 30 ms; at 10 ms; and, from 35 ms on, at 45 and 55 ms.
    first, gaps, ends = [10, 10, 10], [10, 10, 10], [30, 10, 20]
    expected = {
        "vllm:cache_config_info{block_size=4,enable_prefix_caching=True,num_gpu_blocks=41}": 1,
        "vllm:num_requests_running": 0,
        "vllm:num_requests_waiting": 0,
        "vllm:kv_cache_usage_perc": 0,
        "dynosim:mock_speedup": speedup,
        "vllm:num_preemptions_total": 0,
        "vllm:prefix_cache_queries_total": 8 + 1 + 8,
        "vllm:prefix_cache_hits_total": 4,  # the last block of the prompt is computed anew
        "vllm:prompt_tokens_total": 8 + 1 + 8,
        "vllm:prompt_tokens_cached_total": 4,
        "vllm:generation_tokens_total": 3 + 1 + 2,
        "dynosim:mock_steps_total": 3 + 2,
        "dynosim:mock_slipped_seconds_total": 0,
        "vllm:request_success_total{finished_reason=stop}": 0,
        "vllm:request_success_total{finished_reason=length}": 3,
        "vllm:request_success_total{finished_reason=abort}": 0,
        **histogram("vllm:time_to_first_token_seconds", _TTFT_BOUNDS_S, [v * per_s for v in first]),
        **histogram("vllm:inter_token_latency_seconds", _ITL_BOUNDS_S, [v * per_s for v in gaps]),
        **histogram("vllm:e2e_request_latency_seconds", _E2E_BOUNDS_S, [v * per_s for v in ends]),
    }
    assert page == pytest.approx(expected)


def test_what_is_under_way_shows_in_gauges() -> None:
    engine = mock_engine(SPEC, FixedModel(STEP_MS, STEP_MS))
    for prompt in ([1] * 5, [2] * 9, [3]):
        engine.submit(call(prompt, 4), TokenLog(), 0.0)
    engine.next_end_ms(0.0)
    page = shown(engine)
    assert (page["vllm:num_requests_running"], page["vllm:num_requests_waiting"]) == (2, 1)
    assert page["vllm:kv_cache_usage_perc"] == pytest.approx((2 + 3) / 40)


def test_preemptions_and_aborts_are_counted_and_queries_are_not_counted_again() -> None:
    spec = EngineSpec(
        num_gpu_blocks=8, max_model_len=24, block_size=4, max_num_seqs=2, max_num_batched_tokens=64
    )
    engine = mock_engine(spec, FixedModel(STEP_MS, STEP_MS))
    requests, _, _ = drive(engine, [(0.0, call([1] * 8, 12)), (0.0, call([2] * 8, 12))])
    assert sum(request.sequence.preemptions for request in requests) > 0
    page = shown(engine)
    assert page["vllm:num_preemptions_total"] == engine.core.num_preemptions > 0
    assert page["vllm:prefix_cache_queries_total"] == 16
    engine.abort(engine.submit(call([1], 1), TokenLog(), 1000.0))
    assert shown(engine)["vllm:request_success_total{finished_reason=abort}"] == 1


def test_usage_and_frames_tell_the_same_counts() -> None:
    engine = mock_engine(SPEC, FixedModel(STEP_MS, STEP_MS))
    prompt = list(range(10, 18))
    drive(engine, [(0.0, call(prompt, 2))])
    requests, _, _ = drive(engine, [(100.0, call(prompt, 5))])
    [request] = requests
    usage = {
        "prompt_tokens": 8,
        "total_tokens": 13,
        "completion_tokens": 5,
        "prompt_tokens_details": {"cached_tokens": 4},
    }
    assert usage_of(request) == usage
    frame = CompletionFrames("cmpl-1", "m", 7, None).usage(request)
    assert json.loads(frame.removeprefix(b"data: ")) == {
        "id": "cmpl-1",
        "object": "text_completion",
        "created": 7,
        "model": "m",
        "choices": [],
        "usage": usage,
        "system_fingerprint": FINGERPRINT,
    }
    whole = json.loads(whole_answer(request, "cmpl-1", "m", 7, [1, 2]))
    assert whole["usage"] == usage
    [choice] = whole["choices"]
    assert choice["token_ids"] == request.output
    assert choice["text"] == "".join(f" {token}" for token in request.output)
    assert (choice["finish_reason"], choice["stop_reason"]) == ("length", None)
    assert choice["prompt_token_ids"] == [1, 2]
    assert json.loads(whole_answer(request, "c", "m", 7, None))["choices"][0]["token_ids"] is None
    assert DONE == b"data: [DONE]\n\n"


def test_the_last_event_says_why_it_is_the_last() -> None:
    frames = CompletionFrames("cmpl-1", "m", 7, [1, 2])
    first = json.loads(frames.tokens([5])[6:])["choices"][0]
    last = json.loads(frames.tokens([6, 7], finish_reason="stop", stop_reason=7)[6:])["choices"][0]
    assert (first["prompt_token_ids"], first["token_ids"]) == ([1, 2], [5])
    assert last == {
        "index": 0,
        "text": " 6 7",
        "logprobs": None,
        "finish_reason": "stop",
        "stop_reason": 7,
        "prompt_token_ids": None,
        "token_ids": [6, 7],
    }
