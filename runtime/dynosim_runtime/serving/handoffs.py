"""What all requests on their way through prefill and decode workers share."""

import asyncio
from collections.abc import Mapping
from typing import Any, Literal

from dynosim.blocks.hashing import local_hashes
from dynosim.router.eligibility import Constraints
from dynosim.router.handoff import HandoffFlow, HandoffSpec, PoolLoads
from dynosim.router.topology import decode_constraints
from dynosim.workers.ids import WorkerId
from dynosim_runtime.card import LiveCard
from dynosim_runtime.clients.base import HandoffClient
from dynosim_runtime.kv_lease import MAX_UNCLAIMED_S
from dynosim_runtime.requests import GenerateRequest
from dynosim_runtime.serving.placement import LivePlacement, PlacedAt

LoadFailurePolicy = Literal["fail", "recompute"]


class LiveHandoffs:
    """Both pools and the flow; `clients` speak the engines' dialects.

    A decode worker computes a prompt itself where the plan's conditions say so, and always while no
    prefill worker is there.
    """

    def __init__(
        self,
        spec: HandoffSpec,
        prefill: LivePlacement,
        decode: LivePlacement,
        clients: Mapping[str, HandoffClient],
        *,
        block_size: int,
        on_load_failure: LoadFailurePolicy = "fail",
        max_unclaimed_s: float = MAX_UNCLAIMED_S,
    ) -> None:
        self.flow = HandoffFlow(spec)
        self.prefill = prefill
        self.decode = decode
        self.on_load_failure = on_load_failure
        self.max_unclaimed_s = max_unclaimed_s
        self._clients = clients
        self._block_size = block_size
        self._releasing: set[asyncio.Task[None]] = set()

    @property
    def spec(self) -> HandoffSpec:
        """How requests go from one pool to the other."""
        return self.flow.spec

    def client_for(self, card: LiveCard) -> HandoffClient:
        """Who speaks a worker's dialect."""
        return self._clients[card.engine]

    def is_local(self, request: GenerateRequest, token_ids: list[int], now_ms: float) -> bool:
        """Whether a decode worker computes these tokens itself."""
        if not self.prefill.members.num_ready:
            return True
        if self.spec.conditional is None:
            return False
        blocks = local_hashes(token_ids, self._block_size, salt=request.cache_salt)
        return self.spec.is_local(len(token_ids), self._loads(blocks, now_ms))

    def _loads(self, blocks: list[int], now_ms: float) -> PoolLoads:
        """What the routers know of their pools."""
        prefill, decode = self.prefill.router.router, self.decode.router.router
        tokens = prefill.load.active_prefill_tokens(now_ms)
        usages = []
        for card in decode.table.cards.values():
            slots = [decode.table.slot_of(card.worker_id, rank) for rank in card.ranks]
            usages += [
                decode.load.blocks(slot) / card.total_kv_blocks
                for slot in slots
                if slot is not None and card.total_kv_blocks
            ]
        return PoolLoads(
            cached_tokens=decode.index.find_matches(blocks).best_depth * self._block_size,
            least_prefill_tokens=min(
                (
                    tokens[slot]
                    for slot, who in enumerate(prefill.table.candidates)
                    if who is not None
                ),
                default=0.0,
            ),
            least_decode_usage=min(usages, default=0.0),
        )

    def near(self, source: PlacedAt) -> Constraints | None:
        """Where the decode worker may be. Raises: as `decode_constraints`."""
        policy = self.spec.kv_transfer
        if policy is None:
            return None
        cards = self.prefill.router.router.table.cards
        card = cards.get(WorkerId(source.decision.worker_id))
        if card is None and source.card is not None:
            card = source.card.routing_card()
        return None if card is None else decode_constraints(policy, card)

    def release(self, params: dict[str, Any]) -> None:
        """Have KV that nobody will take let go, by any decode worker."""
        card = next(iter(self.decode.members.cards.values()), None)
        if card is None:
            return  # the prefill worker does so itself, after a while
        task = asyncio.create_task(self.client_for(card).release(card, params))
        self._releasing.add(task)
        task.add_done_callback(self._releasing.discard)

    async def close(self) -> None:
        """Wait for nothing more."""
        for task in self._releasing:
            task.cancel()
        await asyncio.gather(*self._releasing, return_exceptions=True)
