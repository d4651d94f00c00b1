"""A frontend's inside with scripted prefill and decode engines: no sockets, no processes."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from live_support import BLOCK, MODEL, Listening, ScriptedEngine, card, next_token

from dynosim.config.live import LiveConfig
from dynosim.indexer.make import make_indexer
from dynosim.router.handoff import HandoffSpec
from dynosim.router.knobs import RouterSpec
from dynosim.router.kv_router import KvRouter
from dynosim_runtime.card import LiveCard
from dynosim_runtime.clients.base import EngineDelta, EngineLostError, EngineRequest, PrefillAnswer
from dynosim_runtime.kv_events.subscriber import Subscriptions
from dynosim_runtime.requests import RequestRecord
from dynosim_runtime.serving.dispatcher import LiveDispatcher, stopwatch
from dynosim_runtime.serving.handoffs import LiveHandoffs, LoadFailurePolicy
from dynosim_runtime.serving.in_flight import InFlight
from dynosim_runtime.serving.membership import Membership
from dynosim_runtime.serving.metrics import FrontendMetrics
from dynosim_runtime.serving.placement import LivePlacement
from dynosim_runtime.serving.router import RouterService


@dataclass
class ScriptedPair(ScriptedEngine):
    """Prefill and decode workers. `prefill_deaths` names workers whose next prefill breaks off;
    `prefill_hangs` those that never answer; `held` is the KV that nobody has taken or let go of.

    A decode request takes KV when its first token comes (`takes_at_once`: as soon as it is there).
    """

    prefill_deaths: set[str] = field(default_factory=set)
    prefill_hangs: set[str] = field(default_factory=set)
    load_errors: list[Exception] = field(default_factory=list)  # of decode requests with KV
    prefills: list[tuple[str, EngineRequest]] = field(default_factory=list)
    prefill_cancelled: list[str] = field(default_factory=list)
    held: dict[str, str] = field(default_factory=dict)  # request -> prefill worker
    released: list[dict[str, Any]] = field(default_factory=list)
    taken: list[str] = field(default_factory=list)

    async def prefill(self, card: LiveCard, request: EngineRequest) -> PrefillAnswer:
        self.prefills.append((card.name, request))
        try:
            if card.name in self.prefill_hangs:
                await asyncio.Event().wait()
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            self.prefill_cancelled.append(request.request_id)
            raise
        if card.name in self.prefill_deaths:
            self.prefill_deaths.discard(card.name)
            raise EngineLostError(f"{card.name} died")
        self.held[request.request_id] = card.name
        return PrefillAnswer(
            token_ids=[next_token(len(request.token_ids))],
            finish_reason="length",
            cached_tokens=4,
            kv_transfer_params={"do_remote_prefill": True, "of": request.request_id},
        )

    async def stream(self, card: LiveCard, request: EngineRequest) -> AsyncIterator[EngineDelta]:
        params = request.kv_transfer_params
        if params is not None and self.load_errors:
            self.requests.append((card.name, request))
            raise self.load_errors.pop(0)
        is_first = True
        async for delta in super().stream(card, request):
            if is_first and params is not None:
                del self.held[params["of"]]
                self.taken.append(params["of"])
                delta = EngineDelta(
                    delta.token_ids, delta.finish_reason, delta.cached_tokens, None, 3.5
                )
            is_first = False
            yield delta

    async def release(self, card: LiveCard, params: dict[str, Any]) -> None:
        self.released.append(params)
        self.held.pop(params["of"], None)


class TwoPools:
    """Dispatcher, members and routers of both pools over a scripted pair of engines."""

    def __init__(
        self,
        engine: ScriptedPair,
        *cards: LiveCard,
        spec: HandoffSpec | None = None,
        live: LiveConfig | None = None,
        on_load_failure: LoadFailurePolicy = "fail",
        max_unclaimed_s: float = 50.0,
        decode_settings: RouterSpec | None = None,
        is_well: Callable[[LiveCard], bool] = lambda card: True,
        now_ms: Callable[[], float] | None = None,
    ) -> None:
        self.records: list[RequestRecord] = []
        self.metrics = FrontendMetrics(namespace="test", model=MODEL)
        self._is_well = is_well
        now_ms = now_ms or stopwatch()
        self.prefill_asked, self.decode_asked = Listening(), Listening()
        plain = RouterSpec(BLOCK, mode="kv")
        self.prefill = self._placement(engine, plain, now_ms, self.prefill_asked)
        self.decode = self._placement(engine, decode_settings or plain, now_ms, self.decode_asked)
        self.handoffs = LiveHandoffs(
            spec or HandoffSpec(),
            self.prefill,
            self.decode,
            {"mock": engine},
            block_size=BLOCK,
            on_load_failure=on_load_failure,
            max_unclaimed_s=max_unclaimed_s,
        )
        self.dispatcher = LiveDispatcher(
            self.decode,
            live or LiveConfig(),
            self.metrics,
            now_ms,
            write_record=self.records.append,
            handoffs=self.handoffs,
        )
        self.show(*cards)

    def _placement(
        self,
        engine: ScriptedPair,
        settings: RouterSpec,
        now_ms: Callable[[], float],
        policy: Listening,
    ) -> LivePlacement:
        # a policy of its own: it takes the first worker, whatever that costs
        router = RouterService(
            KvRouter(settings, make_indexer("compressed"), policy=policy), now_ms
        )
        in_flight = InFlight()

        async def probe(card: LiveCard) -> bool:
            return self._is_well(card)

        members = Membership(
            router,
            Subscriptions(),
            probe,
            in_flight,
            model=MODEL,
            block_size=BLOCK,
            follows_events=False,
            check=lambda card: None,  # of either role
        )
        return LivePlacement(router, members, in_flight, {"mock": engine}, block_size=BLOCK)

    def show(self, *cards: LiveCard) -> None:
        """What discovery shows from now on."""
        for role, placement in (("prefill", self.prefill), ("decode", self.decode)):
            placement.members.update({c.worker_id: c for c in cards if c.role == role})

    def assert_idle(self) -> None:
        """Nobody has anything to do, and nobody holds anything."""
        for placement in (self.prefill, self.decode):
            assert len(placement.in_flight) == placement.router.num_queued == 0
            assert not placement.router.router.load.bookings
        assert len(self.handoffs.flow) == self.dispatcher.num_active == 0


def workers(*names: str, **changes: object) -> list[LiveCard]:
    """Cards whose role is the first letter of the name: p1, d1."""
    roles = {"p": "prefill", "d": "decode"}
    return [card(name, role=roles[name[0]], **changes) for name in names]
