"""What engines are asked, field by field: each wish in their words, and nothing that is default."""

from typing import Any

import pytest

from dynosim_runtime.card import LiveCard
from dynosim_runtime.clients.base import EngineRequest
from dynosim_runtime.clients.openai import completion_body
from dynosim_runtime.clients.sglang import generate_body
from dynosim_runtime.clients.trtllm import trtllm_body
from dynosim_runtime.requests import Sampling
from dynosim_runtime.testing.discovery import card_of

BARE = {
    "model": "tiny",
    "prompt": [7, 8],
    "max_tokens": 5,
    "temperature": 1.0,
    "stream": True,
    "stream_options": {"include_usage": True},
    "return_token_ids": True,
}


def card(**fields: Any) -> LiveCard:
    return card_of("w", **{"engine": "vllm", **fields})


def asked(*, of: dict[str, Any] | None = None, **sampling: Any) -> EngineRequest:
    return EngineRequest(
        request_id="r",
        token_ids=[7, 8],
        sampling=Sampling(max_tokens=5, **sampling),
        **(of or {}),
    )


WISHES: list[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = [
    # sampling, vLLM's words, SGLang's words
    ({"temperature": 0.0}, {"temperature": 0.0}, {"temperature": 0.0}),
    ({"min_tokens": 3}, {"min_tokens": 3}, {"min_new_tokens": 3}),
    ({"top_p": 0.5}, {"top_p": 0.5}, {"top_p": 0.5}),
    ({"top_k": 4}, {"top_k": 4}, {"top_k": 4}),
    ({"seed": 0}, {"seed": 0}, {"sampling_seed": 0}),
    ({"seed": 9}, {"seed": 9}, {"sampling_seed": 9}),
    ({"presence_penalty": -1.0}, {"presence_penalty": -1.0}, {"presence_penalty": -1.0}),
    ({"frequency_penalty": 0.5}, {"frequency_penalty": 0.5}, {"frequency_penalty": 0.5}),
    ({"repetition_penalty": 1.5}, {"repetition_penalty": 1.5}, {"repetition_penalty": 1.5}),
    ({"stop": ("a", "b")}, {"stop": ["a", "b"]}, {}),
    ({"stop_token_ids": (3, 4)}, {"stop_token_ids": [3, 4]}, {"stop_token_ids": [3, 4]}),
    ({"ignore_eos": True}, {"ignore_eos": True}, {"ignore_eos": True}),
]


@pytest.mark.parametrize(("sampling", "vllm", "sglang"), WISHES)
def test_a_wish_is_passed_on_in_the_engines_words(
    sampling: dict[str, Any], vllm: dict[str, Any], sglang: dict[str, Any]
) -> None:
    request = asked(**sampling)
    assert completion_body(card(), request) == BARE | vllm
    params = {"max_new_tokens": 5, "temperature": 1.0, "top_p": 1.0, "repetition_penalty": 1.0}
    assert generate_body(card(engine="sglang"), request) == {
        "rid": "r", "input_ids": [7, 8], "stream": True, "sampling_params": params | sglang,
    }  # fmt: skip
    no_ids = {key: value for key, value in BARE.items() if key != "return_token_ids"}
    expected = no_ids | {"detokenize": False} | vllm
    expected.pop("stop", None)  # found by the frontend
    assert trtllm_body(card(engine="trtllm"), request) == expected


def test_nothing_wished_is_nothing_said() -> None:
    assert completion_body(card(), asked()) == BARE
    assert completion_body(card(model="other"), asked())["model"] == "other"


@pytest.mark.parametrize("num_top", [0, 3])
def test_logprobs_are_asked_for_with_tokens_as_ids(num_top: int) -> None:
    request = asked(logprobs=num_top)
    assert completion_body(card(), request) == BARE | {
        "logprobs": num_top, "return_tokens_as_token_ids": True,
    }  # fmt: skip
    body = generate_body(card(engine="sglang"), request)
    assert (body["return_logprob"], body["top_logprobs_num"]) == (True, num_top)


@pytest.mark.parametrize(
    ("of", "fields", "vllm", "sglang"),
    [
        ({"cache_salt": "s"}, {}, {"cache_salt": "s"}, {"extra_key": "s"}),
        ({"priority": -3}, {"accepts_priority": True}, {"priority": -3}, {"priority": -3}),
        ({"priority": -3}, {"accepts_priority": False}, {}, {}),
        ({"priority": 0}, {"accepts_priority": True}, {}, {}),
        ({"dp_rank": 1}, {"dp_size": 2}, {}, {"data_parallel_rank": 1}),
        ({"dp_rank": 0}, {"dp_size": 2}, {}, {"data_parallel_rank": 0}),
        ({"dp_rank": 0}, {"dp_size": 1}, {}, {}),
    ],
)
def test_what_is_no_matter_of_sampling(
    of: dict[str, Any], fields: dict[str, Any], vllm: dict[str, Any], sglang: dict[str, Any]
) -> None:
    assert completion_body(card(**fields), asked(of=of)) == BARE | vllm
    body = generate_body(card(engine="sglang", **fields), asked(of=of))
    assert {key: value for key, value in body.items() if key not in
            ("rid", "input_ids", "stream", "sampling_params")} == sglang  # fmt: skip
