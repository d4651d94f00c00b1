"""How a mock server sends tokens: one event each, or several to a client that reads too slowly."""

import json
from typing import Any

from mock_support import TokenLog, call, mock_engine

from dynosim.engine.spec import EngineSpec
from dynosim_runtime.mock.engine import MockRequest
from dynosim_runtime.mock.frames import CompletionFrames
from dynosim_runtime.mock.server import StreamedAnswer

SPEC = EngineSpec(num_gpu_blocks=41, max_model_len=128, block_size=4, max_num_batched_tokens=64)


class FakeConnection:
    """The two sides of a connection that the server writes to."""

    def __init__(self) -> None:
        self.unread_bytes = 0
        self.frames: list[bytes] = []
        self.is_lost = False

    def get_write_buffer_size(self) -> int:
        return self.unread_bytes

    async def write(self, data: bytes) -> None:
        if self.is_lost:
            raise ConnectionResetError
        self.frames.append(data)

    def choices(self) -> list[dict[str, Any]]:
        return [json.loads(f.removeprefix(b"data: "))["choices"][0] for f in self.frames]


def streamed(
    connection: FakeConnection, *, prompt_ids: list[int] | None
) -> tuple[MockRequest, StreamedAnswer]:
    request = mock_engine(SPEC).submit(call([1, 2, 3], 6), TokenLog(), 0.0)
    frames = CompletionFrames('cmpl-" 0"', 'a "model" [0]', 7, prompt_ids)
    return request, StreamedAnswer(connection, connection, frames)  # type: ignore[arg-type]


async def push(request: MockRequest, answer: StreamedAnswer, num_tokens: int) -> None:
    for _ in range(num_tokens):
        request.num_delivered += 1
        await answer.push(request)


async def test_every_token_but_the_last_is_an_event_of_its_own() -> None:
    connection = FakeConnection()
    request, answer = streamed(connection, prompt_ids=[1, 2, 3])
    await push(request, answer, 6)
    choices = connection.choices()
    assert [choice["token_ids"] for choice in choices] == [[t] for t in request.output[:5]]
    assert [choice["text"] for choice in choices] == [f" {t}" for t in request.output[:5]]
    assert [choice["prompt_token_ids"] for choice in choices] == [[1, 2, 3], *[None] * 4]
    assert answer.unsent == request.output[5:]


async def test_cheap_and_general_events_are_alike() -> None:
    for prompt_ids in (None, [1, 2, 3]):
        frames = CompletionFrames('cmpl-" 0"', 'a "model" [0]', 7, prompt_ids)
        frames.tokens([1])  # the first one has the prompt
        assert json.loads(frames.token(42)[6:]) == json.loads(frames.tokens([42])[6:])


async def test_a_slow_reader_gets_several_tokens_in_one_event() -> None:
    connection = FakeConnection()
    request, answer = streamed(connection, prompt_ids=[1, 2, 3])
    await push(request, answer, 1)
    connection.unread_bytes = 1 << 20
    await push(request, answer, 3)
    assert len(connection.frames) == 1
    connection.unread_bytes = 0
    await push(request, answer, 1)
    assert connection.choices()[1]["token_ids"] == request.output[1:5]
    assert answer.unsent == []


async def test_a_lost_client_does_not_disturb_the_engine() -> None:
    connection = FakeConnection()
    connection.is_lost = True
    request, answer = streamed(connection, prompt_ids=None)
    await push(request, answer, 6)
    answer.end()
    answer.end()
    assert answer.is_done.done()
