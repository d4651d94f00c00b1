"""A frontend's inside with scripted engines: no sockets, no processes."""

import asyncio
from collections.abc import AsyncIterator, Callable, Hashable, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from typing import cast

from dynosim.blocks.hashing import local_hashes, sequence_hashes
from dynosim.blocks.tier import Tier
from dynosim.config.live import LiveConfig
from dynosim.indexer.base import Stored
from dynosim.indexer.make import make_indexer
from dynosim.router.cost import WorkerOption
from dynosim.router.knobs import RouterSpec
from dynosim.router.kv_router import KvRouter
from dynosim.router.request import RoutingRequest
from dynosim_runtime.card import LiveCard, worker_id_of
from dynosim_runtime.clients.base import EngineDelta, EngineLostError, EngineRequest
from dynosim_runtime.kv_events.subscriber import Subscriptions
from dynosim_runtime.requests import (
    FinishReason,
    GenerateRequest,
    RequestRecord,
    Sampling,
    TokenStream,
)
from dynosim_runtime.serving.dispatcher import LiveDispatcher, stopwatch
from dynosim_runtime.serving.in_flight import InFlight
from dynosim_runtime.serving.make_router import LiveRouting
from dynosim_runtime.serving.membership import Membership
from dynosim_runtime.serving.metrics import FrontendMetrics
from dynosim_runtime.serving.placement import LivePlacement
from dynosim_runtime.serving.pool import Pool
from dynosim_runtime.serving.router import RouterService

BLOCK = 4
MODEL = "test/model"


def next_token(position: int) -> int:
    """What a scripted engine says at a position: the same on every engine."""
    return 1000 + position


@dataclass
class ScriptedEngine:
    """Answers every request; `dies_after[name]` tokens break a worker's streams, once each.

    `deaths` breaks the first streams, whoever serves them, each after so many tokens; both also
    behind the last token. `hangs` names workers that never answer, `hangs_after` those that stop
    to. Tokens come in `pieces` of (seconds to wait, tokens), again and again. `requests` and
    `closed` tell what was asked for and which requests were closed before their end.
    """

    dies_after: dict[str, int] = field(default_factory=dict)
    deaths: list[int] = field(default_factory=list)
    hangs: set[str] = field(default_factory=set)
    hangs_after: dict[str, int] = field(default_factory=dict)
    error: Exception | None = None
    pieces: Sequence[tuple[float, int]] = ((0.0, 1),)
    cached_tokens: int | None = 0  # told behind the last token
    tells_reason: bool = True
    requests: list[tuple[str, EngineRequest]] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)

    async def stream(self, card: LiveCard, request: EngineRequest) -> AsyncIterator[EngineDelta]:
        self.requests.append((card.name, request))
        if self.error is not None:
            raise self.error
        try:
            if card.name in self.hangs:
                await asyncio.Event().wait()
            dies_after = self.dies_after.pop(card.name, None)
            if self.deaths:
                dies_after = self.deaths.pop(0)
            start, count, done = len(request.token_ids), request.sampling.max_tokens, 0
            stops = [count, dies_after, self.hangs_after.get(card.name)]
            for pause_s, size in cycle(self.pieces):
                if done == dies_after:
                    raise EngineLostError(f"{card.name} died")
                if done == self.hangs_after.get(card.name):
                    await asyncio.Event().wait()
                if done == count:
                    break
                await asyncio.sleep(pause_s)
                end = min([done + size, *(stop for stop in stops if stop and stop > done)])
                tokens = [next_token(start + i) for i in range(done, end)]
                done = end
                reason: FinishReason | None = "length" if self.tells_reason else None
                yield EngineDelta(tokens, reason if done == count else None)
            yield EngineDelta([], None, cached_tokens=self.cached_tokens)
        except (asyncio.CancelledError, GeneratorExit):
            self.closed.append(request.request_id)
            raise

    async def close(self) -> None:
        pass


def card(name: str, **changes: object) -> LiveCard:
    values: dict[str, object] = {
        "worker_id": worker_id_of(name),
        "name": name,
        "engine": "mock",
        "url": f"http://{name}",
        "model": MODEL,
        "block_size": BLOCK,
        "total_kv_blocks": 1000,
        "max_num_batched_tokens": 64,
        "max_model_len": 4096,
        "pid": 1,
    }
    return LiveCard(**{**values, **changes})  # type: ignore[arg-type]


class Listening:
    """A placement policy that takes the first worker and remembers what it was asked and told."""

    def __init__(self) -> None:
        self.asked: list[RoutingRequest] = []
        self.options: list[set[int]] = []
        self.first_tokens: list[Hashable] = []
        self.ends: list[Hashable] = []

    def choose(
        self, request: RoutingRequest, options: Sequence[WorkerOption], now_ms: float
    ) -> WorkerOption:
        self.asked.append(request)
        self.options.append({option.worker_id for option in options})
        return options[0]

    def on_first_token(self, request_id: Hashable, now_ms: float) -> None:
        self.first_tokens.append(request_id)

    def on_end(self, request_id: Hashable, now_ms: float) -> None:
        self.ends.append(request_id)


class Inside:
    """Dispatcher, members and router over a scripted engine."""

    def __init__(
        self,
        engine: ScriptedEngine,
        *names: str,
        settings: RouterSpec | None = None,
        live: LiveConfig | None = None,
        is_well: Callable[[LiveCard], bool] = lambda card: True,
        now_ms: Callable[[], float] | None = None,
        tracks_output: bool = False,
        policy: Listening | None = None,
        follows_events: bool = False,
        ignores_pins: bool = False,
    ) -> None:
        self.records: list[RequestRecord] = []
        self.probed: list[str] = []
        self.num_changes = 0
        now_ms = now_ms or stopwatch()
        settings = settings or RouterSpec(BLOCK, mode="kv")
        router = KvRouter(settings, make_indexer("compressed"), policy=policy)
        self.router = RouterService(router, now_ms)
        self.metrics = FrontendMetrics(namespace="test", model=MODEL)
        self.in_flight = InFlight()

        async def probe(card: LiveCard) -> bool:
            self.probed.append(card.name)
            return is_well(card)

        self.members = Membership(
            self.router,
            Subscriptions(),
            probe,
            self.in_flight,
            model=MODEL,
            block_size=BLOCK,
            follows_events=follows_events,
            on_change=self._note_change,
        )
        self.placement = LivePlacement(
            self.router,
            self.members,
            self.in_flight,
            {"mock": engine, "vllm": engine},
            block_size=BLOCK,
            tracks_output=tracks_output,
            ignores_pins=ignores_pins,
        )
        self.dispatcher = LiveDispatcher(
            self.placement,
            live or LiveConfig(),
            self.metrics,
            now_ms,
            write_record=self.records.append,
        )
        self.show(*[card(name) for name in names])

    def _note_change(self, members: Membership) -> None:
        self.num_changes += 1

    def show(self, *cards: LiveCard) -> None:
        """What discovery shows from now on."""
        self.members.update({card.worker_id: card for card in cards})

    def caches(
        self, name: str, tokens: Sequence[int], dp_rank: int = 0, tier: Tier = Tier.DEVICE
    ) -> None:
        """A worker publishes that it has these tokens' full blocks."""
        local = local_hashes(tokens, BLOCK)
        stored = Stored(None, sequence_hashes(local), local, tier)
        self.router.apply_events(worker_id_of(name), dp_rank, [stored])

    @property
    def pool(self) -> Pool:
        """What the frontend's pages show."""
        routing = cast(LiveRouting, None)  # they do not ask it
        return Pool(
            role="agg", routing=routing, subscriptions=Subscriptions(), placement=self.placement
        )

    @property
    def num_booked(self) -> int:
        """Requests that the router counts as placed."""
        return len(self.router.router.load.bookings)


def request(name: str = "r", *, num_tokens: int = 10, max_tokens: int = 6, **more: object):  # type: ignore[no-untyped-def]
    return GenerateRequest(
        request_id=name,
        model=MODEL,
        token_ids=list(range(num_tokens)),
        sampling=Sampling(max_tokens=max_tokens),
        **more,  # type: ignore[arg-type]
    )


async def tokens_of(stream: TokenStream) -> list[int]:
    """All that it delivers."""
    tokens: list[int] = []
    async for delta in stream:
        tokens += delta.token_ids
    return tokens
