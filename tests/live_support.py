"""A frontend's inside with scripted engines: no sockets, no processes."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from dynosim.config.live import LiveConfig
from dynosim.indexer.compressed import CompressedRadixIndex
from dynosim.router.kv_router import KvRouter
from dynosim.router.settings import RouterSettings
from dynosim_runtime.card import WorkerCard, worker_id_of
from dynosim_runtime.engines.base import EngineDelta, EngineLostError, EngineRequest
from dynosim_runtime.events.subscriber import Subscriptions
from dynosim_runtime.frontend.fleet import Fleet
from dynosim_runtime.frontend.metrics import FrontendMetrics
from dynosim_runtime.frontend.router_service import RouterService
from dynosim_runtime.frontend.service import LiveGenerator, stopwatch
from dynosim_runtime.generation import GenerateRequest, RequestRecord, Sampling

BLOCK = 4
MODEL = "test/model"


def next_token(position: int) -> int:
    """What a scripted engine says at a position: the same on every engine."""
    return 1000 + position


@dataclass
class ScriptedEngine:
    """Answers every request; `dies_after[name]` tokens break a worker's streams, once each.

    `hangs` names workers that never answer, `hangs_after` those that stop to. `requests`
    and `closed` tell what was asked for and which requests were closed before their end.
    """

    dies_after: dict[str, int] = field(default_factory=dict)
    hangs: set[str] = field(default_factory=set)
    hangs_after: dict[str, int] = field(default_factory=dict)
    error: Exception | None = None
    requests: list[tuple[str, EngineRequest]] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)

    async def stream(self, card: WorkerCard, request: EngineRequest) -> AsyncIterator[EngineDelta]:
        self.requests.append((card.name, request))
        if self.error is not None:
            raise self.error
        try:
            if card.name in self.hangs:
                await asyncio.Event().wait()
            dies_after = self.dies_after.pop(card.name, None)
            start, count = len(request.token_ids), request.sampling.max_tokens
            for i in range(count):
                if i == dies_after:
                    raise EngineLostError(f"{card.name} died")
                if i == self.hangs_after.get(card.name):
                    await asyncio.Event().wait()
                await asyncio.sleep(0)
                yield EngineDelta([next_token(start + i)], "length" if i == count - 1 else None)
            yield EngineDelta([], None, cached_tokens=0)
        except (asyncio.CancelledError, GeneratorExit):
            self.closed.append(request.request_id)
            raise

    async def close(self) -> None:
        pass


def card(name: str, **changes: object) -> WorkerCard:
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
    return WorkerCard(**{**values, **changes})  # type: ignore[arg-type]


class Inside:
    """Generator, fleet and router over a scripted engine."""

    def __init__(
        self,
        engine: ScriptedEngine,
        *names: str,
        settings: RouterSettings | None = None,
        live: LiveConfig | None = None,
        is_well: Callable[[WorkerCard], bool] = lambda card: True,
    ) -> None:
        self.records: list[RequestRecord] = []
        now_ms = stopwatch()
        router = KvRouter(settings or RouterSettings(BLOCK), CompressedRadixIndex())
        self.router = RouterService(router, now_ms)
        self.generator = LiveGenerator(
            self.router,
            {"mock": engine, "vllm": engine},
            live or LiveConfig(),
            FrontendMetrics(namespace="test", model=MODEL),
            now_ms,
            block_size=BLOCK,
            write_record=self.records.append,
        )

        async def probe(card: WorkerCard) -> bool:
            return is_well(card)

        self.fleet = self.generator.fleet = Fleet(
            self.router,
            Subscriptions(),
            probe,
            model=MODEL,
            block_size=BLOCK,
            follows_events=False,
            num_in_hand=self.generator.num_in_hand,
            on_lost=self.generator.lose_worker,
        )
        self.show(*[card(name) for name in names])

    def show(self, *cards: WorkerCard) -> None:
        """What discovery shows from now on."""
        self.fleet.update({card.worker_id: card for card in cards})

    @property
    def in_hand(self) -> int:
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
