"""The mock worker: our engine core in real time behind a server that speaks vLLM's dialect."""

import asyncio
import logging
import uuid
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import web

from dynosim.build.engine import prepare
from dynosim.config.cluster import PoolRole
from dynosim.config.schema import RunConfig
from dynosim.engine.room import require_room
from dynosim.engine.spec import KV_ROLES, LoadFailurePolicy
from dynosim.errors import ConfigError
from dynosim.memory.kv_transfer import HandoffCost, Moved
from dynosim.timing.scaled import ScaledModel
from dynosim_runtime.card import EventSource
from dynosim_runtime.config import model_folder, served_model_name
from dynosim_runtime.errors import LiveError
from dynosim_runtime.kv_events.publisher import EventPublisher
from dynosim_runtime.mock.calls import CallReader
from dynosim_runtime.mock.engine import MockEngine
from dynosim_runtime.mock.held_kv import HeldKv, KvTaker
from dynosim_runtime.mock.links import IngressLinks, handoff_cost
from dynosim_runtime.mock.loop import EngineLoop, RealClock
from dynosim_runtime.mock.server import MockServer
from dynosim_runtime.mock.stats import MockStats
from dynosim_runtime.mock.tiers import check_mock_tiers
from dynosim_runtime.mock.tokens import FIRST_ORDINARY_TOKEN, TokenSource
from dynosim_runtime.ports import BACKLOG, listening_socket
from dynosim_runtime.tokenize.byte_tokenizer import TOKEN_ID_LIMIT

MADE_UP_VOCABULARY = 32_000  # token ids below it are generated where no model says otherwise
_POLL_S = 0.01  # how often a draining worker looks whether it is done
_CLOSE_S = 0.5  # for connections to end by themselves
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class MockEndpoint:
    """Where a mock worker serves, and what its card says of it."""

    url: str  # http://HOST:PORT
    model: str  # the name that clients use
    events: tuple[EventSource, ...]  # one, or none without prefix caching
    block_size: int
    total_kv_blocks: int  # that can hold KV
    max_num_batched_tokens: int
    max_num_seqs: int
    max_model_len: int
    accepts_priority: bool  # whether a request's priority may be other than 0


@dataclass(frozen=True, slots=True, kw_only=True)
class MockExchange:
    """A mock worker's part in handing KV over."""

    role: PoolRole
    cost: HandoffCost
    moves: Moved
    load_failure_policy: LoadFailurePolicy


def mock_exchange(plan: RunConfig, role: PoolRole) -> MockExchange:
    """Of a disaggregated plan. Raises: ConfigError, see `handoff_cost`."""
    transfer = plan.cluster.transfer
    assert transfer is not None, "checked with the plan"
    return MockExchange(
        role=role,
        cost=handoff_cost(plan),
        moves=transfer.moves,
        load_failure_policy=plan.cluster.handoff.load_failure_policy,
    )


class MockWorker:
    """One simulated engine with its HTTP server and its KV events, in the running event loop.

        worker = MockWorker(config, name="worker-0", speedup=10.0)
        endpoint = await worker.start()
        ...  # register the card made of `endpoint`; wait for SIGTERM
        await worker.stop(config.live.drain_timeout_s)

    It installs no signal handlers and registers nowhere; that is its caller's business.
    """

    def __init__(
        self,
        config: RunConfig,
        *,
        name: str = "worker-0",
        host: str = "127.0.0.1",
        port: int = 0,
        speedup: float = 1.0,
        model: str | None = None,
        model_path: Path | None = None,
        on_cpu: bool = False,
        exchange: MockExchange | None = None,
    ) -> None:
        """Prepare the engine that `config` describes.

        `name` is for log messages. `port` 0 is any free one. Steps take `speedup` times less than
        the step times say. `model` is the name that clients use, `model_path` the folder whose
        vocabulary the tokens come from; the plan's if not given. With `on_cpu` steps take
        `cluster.cpu_step_time_scale` times as long. `exchange` is its part in handing KV over.

        Raises: ConfigError; InfeasibleError as `build.engine.prepare` does, and for an engine
        whose cache cannot hold one request of its context length.
        """
        if not speedup > 0:
            raise ConfigError(f"--speedup: {speedup}; use a number above 0")
        self.speedup = speedup
        check_mock_tiers(config.cluster.tiers)
        prepared = prepare(config)
        spec, timing = prepared.engine, prepared.timing
        if on_cpu:
            timing = ScaledModel(timing, config.cluster.cpu_step_time_scale)
        require_room(spec)
        links = None
        if exchange is not None:
            spec = replace(
                spec,
                kv_role=KV_ROLES[exchange.role],
                kv_load_failure_policy=exchange.load_failure_policy,
            )
            if exchange.role == "decode":
                links = IngressLinks(exchange.cost, exchange.moves)
        lanes = None if prepared.tiers is None else prepared.tiers.lanes()
        self._role = None if exchange is None else exchange.role
        self._held: HeldKv | None = None
        self._taker = KvTaker() if self._role == "decode" else None
        self._spec = spec
        self._name = name
        self._host = host
        self._port = port
        self._max_body_bytes = config.live.max_body_bytes
        self._model = model or served_model_name(config, model_path)
        folder = model_folder(config, model_path)
        self._model_root = self._model if folder is None else str(folder)
        vocabulary = None if folder is None else vocabulary_size(folder)
        tokens = TokenSource(FIRST_ORDINARY_TOKEN, vocabulary or MADE_UP_VOCABULARY)
        self._reader = CallReader(spec, self._model, vocabulary or TOKEN_ID_LIMIT)
        self._engine = MockEngine(spec, timing, tokens, MockStats(speedup), links, lanes)
        self._outside_ms = timing.ingress_ms + timing.egress_ms
        self._clock = RealClock(speedup)
        self._publisher = EventPublisher(host=host)
        self._server: MockServer | None = None
        self._runner: web.AppRunner | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def engine(self) -> MockEngine:
        """The engine inside, for tests and reports."""
        return self._engine

    async def start(self) -> MockEndpoint:
        """Serve; returns once requests are answered. Call it once.

        Raises: LiveError if a port is taken.
        """
        assert self._runner is None, "start was called before"
        listener = listening_socket(self._host, self._port)
        try:
            sources = (self._publisher.start(),) if self._engine.has_events else ()
        except LiveError:
            listener.close()
            raise
        loop = EngineLoop(
            self._engine, self._clock, self._publisher.publish, outside_ms=self._outside_ms
        )
        host = f"[{self._host}]" if ":" in self._host else self._host
        url = f"http://{host}:{listener.getsockname()[1]}"
        if self._role == "prefill":
            self._held = HeldKv(loop, url, f"{self._name}/{uuid.uuid4().hex}")
        self._server = MockServer(
            loop,
            self._reader,
            self._model,
            model_root=self._model_root,
            held=self._held,
            taker=self._taker,
        )
        self._runner = web.AppRunner(
            self._server.application(self._max_body_bytes),
            access_log=None,
            handler_cancellation=True,
            shutdown_timeout=_CLOSE_S,
        )
        await self._runner.setup()
        await web.SockSite(self._runner, listener, backlog=BACKLOG).start()
        self._task = asyncio.create_task(loop.run())
        return self._endpoint(url, sources)

    async def wait(self) -> None:
        """Run until `stop`. Raises: whatever broke the engine loop, which only a defect can."""
        assert self._task is not None, "start first"
        await asyncio.wait([self._task])
        if not self._task.cancelled():
            self._task.result()

    async def stop(self, drain_s: float) -> bool:
        """Refuse new requests (503), finish those under way for up to `drain_s`, and close.

        Returns whether all finished; what did not is cut off.
        """
        if self._runner is None or self._server is None or self._task is None:
            return True
        self._server.is_draining = True
        loop = asyncio.get_running_loop()
        deadline = loop.time() + drain_s
        while self._num_busy > 0 and not self._task.done() and loop.time() < deadline:
            await asyncio.sleep(_POLL_S)
        num_left = self._num_busy
        if num_left > 0:
            _logger.warning("%s: cut off %d requests after %g s", self._name, num_left, drain_s)
        await self._runner.cleanup()
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._publisher.close()
        if self._taker is not None:
            await self._taker.close()
        self._runner = None
        return num_left == 0

    @property
    def _num_busy(self) -> int:
        """Requests under way, and those whose KV others have still to take."""
        return len(self._engine) + (0 if self._held is None else len(self._held))

    def _endpoint(self, url: str, events: tuple[EventSource, ...]) -> MockEndpoint:
        spec = self._spec
        return MockEndpoint(
            url=url,
            model=self._model,
            events=events,
            block_size=spec.block_size,
            total_kv_blocks=spec.usable_blocks,
            max_num_batched_tokens=spec.max_num_batched_tokens,
            max_num_seqs=spec.max_num_seqs,
            max_model_len=spec.max_model_len,
            accepts_priority=spec.policy == "priority",
        )


def vocabulary_size(folder: Path) -> int:
    """Token ids of the model in a folder. Raises: ConfigError if its config does not tell."""
    file = folder / "config.json"
    try:
        data: Any = msgspec.json.decode(file.read_bytes())
        size = data.get("text_config", data)["vocab_size"]
    except (OSError, msgspec.DecodeError, AttributeError, KeyError, TypeError) as error:
        raise ConfigError(f"{file}: cannot read vocab_size: {error!r}") from None
    if type(size) is not int or size <= FIRST_ORDINARY_TOKEN:
        raise ConfigError(f"{file}: vocab_size: {size!r} is no number of tokens")
    return size
