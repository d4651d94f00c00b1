"""TensorRT-LLM's OpenAI server: completions with token ids in and, undetokenized, out.

Written from TensorRT-LLM's documentation and tried against answers in its form, not proven on
hardware. It ends a request when the connection closes; unknown fields it refuses, so that only
its own are sent.
"""

from typing import Any

from dynosim_runtime.card import LiveCard
from dynosim_runtime.clients.base import EngineRequest
from dynosim_runtime.clients.connections import Connections
from dynosim_runtime.clients.openai import OpenAiEngineClient, completion_body

UNKNOWN_FIELDS = ("return_token_ids", "priority")


class TrtllmEngineClient(OpenAiEngineClient):
    """The OpenAI client with TensorRT-LLM's fields."""

    def __init__(self, connections: Connections) -> None:
        super().__init__(connections, body=trtllm_body)


def trtllm_body(card: LiveCard, request: EngineRequest) -> dict[str, Any]:
    """The JSON body for `/v1/completions`."""
    body = completion_body(card, request)
    for name in UNKNOWN_FIELDS:
        body.pop(name, None)
    return {**body, "detokenize": False}
