"""A frontend over scripted streams, for tests of its HTTP layer."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from starlette.applications import Starlette

from dynosim_runtime.dialects.parsing.output_parser import Parsing
from dynosim_runtime.http.app import create_app
from dynosim_runtime.http.connection import BoundedConnection
from dynosim_runtime.http.limits import HttpLimits
from dynosim_runtime.http.observer import HttpObserver
from dynosim_runtime.http.registry import ModelRegistry
from dynosim_runtime.requests import Dispatcher, GenerateRequest, TokenDelta
from dynosim_runtime.testing.dispatcher import Script, ScriptedDispatcher, Step
from dynosim_runtime.tokenize.byte_tokenizer import BYTE_OFFSET, ByteTokenizer

MODEL = "org/tiny-model"
MAX_MODEL_LEN = 4096


def says(text: str, finish_reason: str = "stop") -> Script:
    """A script of byte tokens, one per delta, that ends in a delta of its own."""

    def script(request: GenerateRequest) -> Sequence[Step]:
        deltas: list[Step] = [TokenDelta([byte + BYTE_OFFSET]) for byte in text.encode()]
        return [*deltas, TokenDelta([], "stop" if finish_reason == "stop" else "length")]

    return script


def served_models() -> ModelRegistry:
    """One model with a byte tokenizer."""
    models = ModelRegistry()
    models.add(MODEL, ByteTokenizer(), MAX_MODEL_LEN, created_s=1_700_000_000)
    return models


def app_of(
    dispatcher: Dispatcher,
    *,
    models: ModelRegistry | None = None,
    limits: HttpLimits | None = None,
    metrics: HttpObserver | None = None,
    strip_anthropic_preamble: bool = False,
    parsing: Parsing | None = None,
) -> Starlette:
    """The application under test."""
    return create_app(
        dispatcher,
        served_models() if models is None else models,
        limits=limits,
        metrics=metrics,
        strip_anthropic_preamble=strip_anthropic_preamble,
        parsing=parsing,
    )


def client_of(app: Starlette) -> httpx.AsyncClient:
    """A client that calls the application in this process."""
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://frontend", timeout=10)


@asynccontextmanager
async def serving(app: Starlette) -> AsyncIterator[str]:
    """The application behind a real server on a free port of this machine; gives its URL."""
    config = uvicorn.Config(
        app, host="127.0.0.1", port=0, log_level="warning", http=BoundedConnection, ws="none"
    )
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        await task


def events_of(stream: str) -> list[tuple[str | None, Any]]:
    """(name, content) of server-sent events; comments are left out."""
    events = []
    for block in stream.split("\n\n"):
        name, content = None, None
        for line in block.splitlines():
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: "):
                data = line.removeprefix("data: ")
                content = data if data == "[DONE]" else json.loads(data)
        if content is not None:
            events.append((name, content))
    return events


def dispatcher_saying(text: str, finish_reason: str = "stop", **options: Any) -> ScriptedDispatcher:
    """A dispatcher that answers everything with one text."""
    return ScriptedDispatcher(says(text, finish_reason), **options)


def tokenizer_folder(path: Path) -> Path:
    """A model folder with a small byte-level BPE tokenizer and a ChatML template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    words = "the quick brown fox jumps over the lazy dog; häß 😀 日本語 naïve café"
    tokenizer.train_from_iterator([words] * 20, trainer)
    path.mkdir(parents=True, exist_ok=True)
    (path / "tokenizer.json").write_text(tokenizer.to_str())
    template = (
        "{%- if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
        "{%- if enable_thinking %}[thinking]{% endif %}"
        "{%- for m in messages %}"
        "{%- if m.role == 'tool' and loop.first %}{{ raise_exception('no tool first') }}{% endif %}"
        "{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
        "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "chat_template": template,
        "clean_up_tokenization_spaces": False,
    }
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    return path
