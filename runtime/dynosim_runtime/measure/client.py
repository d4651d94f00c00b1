"""Streams completions from an OpenAI-compatible server and notes when each token came."""

import time
from array import array
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import msgspec
import orjson

from dynosim.errors import ConfigError
from dynosim.records import IntArray, Wishes
from dynosim.timing.sampler import REQUEST_FIELDS, Sampling
from dynosim_runtime.card import worker_id_of
from dynosim_runtime.clients.base import EngineLostError
from dynosim_runtime.clients.sse_read import SseParser
from dynosim_runtime.errors import LiveError

MAX_ERROR_BYTES = 65536
MAX_MESSAGE_CHARS = 500
KEEPALIVE_S = 2.0
"""Idle connections are closed before servers do so (uvicorn's, after 5 s): a request that is just
being sent on one would be lost."""

_EXTRAS: dict[str, Any] = {
    "return_token_ids": True,
    "nvext": {"extra_fields": ["worker_id", "timing"]},
}
"""Beyond OpenAI's protocol: tokens of a chunk as ids (they may come several at once), and what the
frontend knows of the request. Servers that refuse unknown fields are asked without."""


class LoadClock:
    """Time of a measurement in ms since it was started, `speed` times as fast as the wall's."""

    def __init__(self, speed: float = 1.0) -> None:
        self.speed = speed
        self._start_s = time.perf_counter()

    def restart(self) -> None:
        """Now is 0."""
        self._start_s = time.perf_counter()

    def now_ms(self) -> float:
        """Time on this clock."""
        return (time.perf_counter() - self._start_s) * 1e3 * self.speed

    def wall_s(self, clock_ms: float) -> float:
        """Seconds of real time in a span of this clock."""
        return clock_ms / 1e3 / self.speed


@dataclass(slots=True)
class TimedAnswer:
    """One request and its streamed answer. Times on the clock of the measurement."""

    sent_ms: float
    token_ms: "array[float]" = field(default_factory=lambda: array("d"))  # arrival of each token
    input_tokens: int | None = None  # as the server counts
    output_tokens: int | None = None  # as the server counts
    cached_tokens: int | None = None
    extension: dict[str, Any] = field(default_factory=dict)  # nvext, as it came
    http_status: int | None = None
    error: str | None = None


class _Choice(msgspec.Struct):
    text: str | None = None
    token_ids: list[int] | None = None
    finish_reason: str | None = None


class _PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _PromptDetails | None = None


class _Error(msgspec.Struct):
    message: str = ""


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    nvext: dict[str, Any] | None = None
    error: _Error | str | None = None


_decode_chunk = msgspec.json.Decoder(_Chunk).decode


def base_url(url: str) -> str:
    """A server's address in the form that requests use; without a host it is this machine.

    Raises: ConfigError.
    """
    parts = urlsplit(url if "://" in url else f"http://{url}")
    try:
        port = parts.port
    except ValueError:
        port = -1
    if parts.scheme not in ("http", "https") or port == -1 or parts.query or parts.fragment:
        raise ConfigError(f"--url {url}: expected http://HOST:PORT")
    host = parts.hostname or "127.0.0.1"
    host = f"[{host}]" if ":" in host else host
    path = parts.path.rstrip("/").removesuffix("/v1")
    return f"{parts.scheme}://{host}{'' if port is None else f':{port}'}{path}"


class CompletionsClient:
    """One server and one model. Use as `async with`."""

    def __init__(
        self,
        url: str,
        model: str | None = None,
        *,
        timeout_s: float = 600.0,
        sampling: Sampling = "greedy",
    ) -> None:
        """`model` is the name that requests carry; None: the only one that the server has.

        `sampling` is how tokens are chosen.
        """
        self.url = base_url(url)
        self.model = model or ""
        self._timeout_s = timeout_s
        self._sampling = REQUEST_FIELDS[sampling]
        self._extras: dict[str, Any] = _EXTRAS
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> "CompletionsClient":
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE_S)
        self._session = aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=self._timeout_s),
            read_bufsize=1 << 18,
        )
        try:
            self.model = choose_model(await self.model_names(), self.model)
        except BaseException:
            await self._session.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def probe(self, prompt: IntArray) -> None:
        """Ask for one token, to learn whether the server takes what is not in OpenAI's protocol.

        Raises: LiveError if it does not serve completions of token ids.
        """
        answer = await self.complete(prompt, 1, LoadClock())
        if answer.http_status in (400, 422) and self._extras:
            self._extras = {}
            answer = await self.complete(prompt, 1, LoadClock())
        if answer.error is not None:
            raise LiveError(
                f"{self.url}: a completion of {len(prompt)} token ids fails: {answer.error}"
            )

    @property
    def session(self) -> aiohttp.ClientSession:
        """The connections."""
        assert self._session is not None, "used outside of `async with`"
        return self._session

    async def model_names(self) -> list[str]:
        """The models that the server has. Raises: LiveError if it does not answer."""
        data = await self.get_json("/v1/models")
        entries = data.get("data") if isinstance(data, dict) else None
        if not isinstance(entries, list):
            raise LiveError(f"{self.url}/v1/models: no list of models; is this an OpenAI server?")
        return [str(entry["id"]) for entry in entries if isinstance(entry, dict) and "id" in entry]

    async def get_json(self, path: str) -> Any:
        """A document of the server. Raises: LiveError."""
        try:
            return orjson.loads(await self.get_text(path))
        except orjson.JSONDecodeError:
            raise LiveError(f"{self.url}{path}: no JSON document") from None

    async def get_text(self, path: str) -> str:
        """A page of the server. Raises: LiveError."""
        try:
            async with self.session.get(self.url + path) as response:
                if response.status != 200:
                    raise LiveError(f"{self.url}{path}: the server answers {response.status}")
                return await response.text()
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise LiveError(
                f"{self.url}{path}: no answer ({_reason(error)}); is the server running?"
            ) from None

    async def complete(
        self,
        prompt: IntArray,
        output_tokens: int,
        clock: LoadClock,
        *,
        request_id: str | None = None,
        priority: int = 0,
        wishes: Wishes | None = None,
        expected_output_tokens: int | None = None,
        pin_ttl_ms: float | None = None,
        on_first_token: Callable[[], None] | None = None,
    ) -> TimedAnswer:
        """Send a prompt, wait for `output_tokens` tokens. What goes wrong is told in the answer."""
        # Traces count priorities as engines do, lower first; clients the other way round.
        hints = {"priority": -priority or None, "osl": expected_output_tokens}
        body = self._body(prompt, output_tokens, hints, wishes, pin_ttl_ms)
        headers = {"Content-Type": "application/json"}
        if request_id is not None:
            headers["X-Request-Id"] = request_id
        answer = TimedAnswer(sent_ms=clock.now_ms())
        try:
            async with self.session.post(
                f"{self.url}/v1/completions", data=body, headers=headers
            ) as response:
                answer.http_status = response.status
                if response.status == 200:
                    pieces = response.content.iter_any()
                    await _read_answer(pieces, answer, clock, on_first_token)
                else:
                    text = await response.content.read(MAX_ERROR_BYTES)
                    answer.error = f"HTTP {response.status}: {_error_message(text)}"
        except TimeoutError:
            answer.error = f"timeout: no complete answer within {self._timeout_s:g} s"
        except (aiohttp.ClientError, OSError, EngineLostError) as error:
            answer.error = _reason(error)
        if answer.error is None:
            answer.error = _shortfall(answer, output_tokens)
        return answer

    def _body(
        self,
        prompt: IntArray,
        output_tokens: int,
        hints: dict[str, int | None],
        wishes: Wishes | None,
        pin_ttl_ms: float | None,
    ) -> bytes:
        """`hints` are the agent's: a priority, higher is more important; the length expected."""
        body: dict[str, Any] = {
            "model": self.model,
            "prompt": prompt,
            "max_tokens": output_tokens,
            **self._sampling,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
            **self._extras,
        }
        given = {name: hint for name, hint in hints.items() if hint is not None}
        if given and self._extras:
            body["nvext"] = {**body["nvext"], "agent_hints": given}
        if wishes is not None and self._extras:
            body["nvext"] = {**body["nvext"], **wishes_nvext(wishes)}
        if pin_ttl_ms is not None and self._extras:
            control = {"type": "ephemeral", "ttl": f"{max(1, round(pin_ttl_ms / 1e3))}s"}
            body["nvext"] = {**body["nvext"], "cache_control": control}
        return orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)


def wishes_nvext(wishes: Wishes) -> dict[str, Any]:
    """What a trace's row asks of its placement, as a client asks a live frontend.

    Workers of a deployment are named by their number; their ids follow from that.
    """
    constraints: dict[str, Any] = {}
    if wishes.required_taints:
        constraints["required_taints"] = list(wishes.required_taints)
    if wishes.preferred_taints:
        constraints["preferred_taints"] = dict(wishes.preferred_taints)
    asked: dict[str, Any] = {"routing_constraints": constraints} if constraints else {}
    if wishes.worker_id is not None:
        asked["worker_id"] = worker_id_of(f"worker-{wishes.worker_id}")
    if wishes.overrides:
        asked["router_config_override"] = dict(wishes.overrides)
    return asked


def choose_model(names: list[str], wanted: str) -> str:
    """The name to ask for. Raises: LiveError if it is not clear."""
    if wanted in names:
        return wanted
    if len(names) == 1:
        return names[0]
    known = ", ".join(names) or "none"
    raise LiveError(f"the server has no model {wanted!r} (it has: {known}); set the plan's model")


async def _read_answer(
    pieces: AsyncIterator[bytes],
    answer: TimedAnswer,
    clock: LoadClock,
    on_first_token: Callable[[], None] | None,
) -> None:
    parser = SseParser()
    async for piece in pieces:
        now_ms = clock.now_ms()
        for event in parser.feed(piece):
            if event != b"[DONE]":
                _note(event, answer, now_ms)
        if on_first_token is not None and answer.token_ms:
            on_first_token()
            on_first_token = None


def _note(event: bytes, answer: TimedAnswer, now_ms: float) -> None:
    """Add what one event tells. A chunk that does not list its tokens counts as one."""
    try:
        chunk = _decode_chunk(event)
    except msgspec.DecodeError as error:
        raise EngineLostError(f"no completion chunk: {error}") from None
    if chunk.error is not None:
        message = chunk.error if isinstance(chunk.error, str) else chunk.error.message
        answer.error = f"error in the stream: {message[:MAX_MESSAGE_CHARS]}"
    for choice in chunk.choices:
        if choice.token_ids is not None:
            answer.token_ms.extend([now_ms] * len(choice.token_ids))
        elif choice.text or choice.finish_reason is None:
            answer.token_ms.append(now_ms)
    if chunk.usage is not None:
        answer.input_tokens = chunk.usage.prompt_tokens
        answer.output_tokens = chunk.usage.completion_tokens
        details = chunk.usage.prompt_tokens_details
        if details is not None:
            answer.cached_tokens = details.cached_tokens
    if chunk.nvext is not None:
        answer.extension.update(chunk.nvext)


def _shortfall(answer: TimedAnswer, wanted: int) -> str | None:
    """What is wrong with the number of tokens of an answer that ended without an error."""
    got = len(answer.token_ms) if answer.output_tokens is None else answer.output_tokens
    if got != wanted:
        return f"{got} tokens instead of {wanted}; does the server know ignore_eos?"
    return None


def _reason(error: BaseException) -> str:
    text = str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _error_message(text: bytes) -> str:
    try:
        error = _decode_chunk(text).error
    except msgspec.DecodeError:
        error = None
    if error is None:
        return text.decode(errors="replace")[:MAX_MESSAGE_CHARS]
    message = error if isinstance(error, str) else error.message
    return message[:MAX_MESSAGE_CHARS]
