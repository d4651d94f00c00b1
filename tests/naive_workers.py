"""A router's workers, and which of them a request may use: every rule looked at for every slot."""

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Any

from naive_caches import NaiveCaches
from naive_load import NaiveLoad
from naive_queue import NaiveQueue

from dynosim.router.eligibility import Constraints
from dynosim.router.knobs import RouterSpec
from dynosim.router.refusals import (
    InvalidRequestError,
    NoEligibleWorkerError,
    UnknownWorkerError,
    WorkersBusyError,
)
from dynosim.router.request import RoutingRequest
from dynosim.router.workers import Candidate, WorkerCard


@dataclass
class Home:
    """Where a session lives, and which of its requests are in hand."""

    candidate: Candidate
    in_flight: set[Hashable]
    idle_since_ms: float = 0.0


class NaiveWorkers:
    """Who is here, what they have in hand and hold, and whom a request may go to."""

    def __init__(self, settings: RouterSpec, caches: NaiveCaches, *, estimator: Any = None) -> None:
        self.settings = settings
        self.caches = caches
        self.load = NaiveLoad(
            settings.block_size, settings.cost, settings.load, estimator=estimator
        )
        self.cards: dict[int, WorkerCard] = {}
        self.slots: list[Candidate | None] = []
        self.homes: dict[str, Home] = {}
        self.queue = NaiveQueue(settings.classes)

    def add_worker(self, card: WorkerCard) -> list[int]:
        self.remove_worker(card.worker_id)
        self.cards[card.worker_id] = card
        made = []
        for rank in range(card.dp_start, card.dp_start + card.dp_size):
            if None not in self.slots:
                self.slots.append(None)
            made.append(self.slots.index(None))
            self.slots[made[-1]] = Candidate(card.worker_id, rank)
        return made

    def remove_worker(self, worker_id: int) -> list[Hashable]:
        lost: list[Hashable] = []
        for slot in self.slots_of(worker_id):
            lost += self.load.remove_slot(slot)
            self.caches.leave(slot)
            self.slots[slot] = None
        self.cards.pop(worker_id, None)
        gone = [s for s, home in self.homes.items() if home.candidate.worker_id == worker_id]
        for session_id in gone:
            del self.homes[session_id]
        for home in self.homes.values():  # nobody knows when they ended
            home.in_flight -= set(lost)
        return lost

    def apply_events(self, worker_id: int, dp_rank: int, events: Iterable[Any]) -> None:
        if Candidate(worker_id, dp_rank) not in self.slots:
            raise UnknownWorkerError("not here")
        for event in events:
            self.caches.apply(self.slots.index(Candidate(worker_id, dp_rank)), event)

    def slots_of(self, worker_id: int) -> list[int]:
        return [s for s, who in enumerate(self.slots) if who is not None and who[0] == worker_id]

    def in_use(self) -> list[int]:
        return [slot for slot, who in enumerate(self.slots) if who is not None]

    def card(self, slot: int) -> WorkerCard:
        return self.cards[self.slots[slot].worker_id]  # type: ignore[union-attr]

    # ---- who may -------------------------------------------------------------------------------

    def eligible(self, request: RoutingRequest, now_ms: float) -> list[int]:
        """Slots that satisfy every rule, are near the session's home, and are not busy."""
        rules = request.constraints
        if self.settings.mode == "direct" and (rules is None or rules.pinned_worker is None):
            raise InvalidRequestError("names no worker")
        slots = self.in_use()
        if rules is not None:
            slots = [slot for slot in slots if self._keeps(slot, rules)]
        if not slots:
            raise NoEligibleWorkerError("nobody")
        slots = self._near_home(request.session_id, slots, now_ms)
        slots = [slot for slot in slots if not self._is_above_threshold(slot, now_ms)]
        if not slots:
            raise WorkersBusyError("all are busy")
        return slots

    def _keeps(self, slot: int, rules: Constraints) -> bool:
        worker_id, rank = self.slots[slot]  # type: ignore[misc]
        if rules.allowed_workers is not None and worker_id not in rules.allowed_workers:
            return False
        if rules.pinned_worker is not None:
            if worker_id != rules.pinned_worker or rules.pinned_dp_rank not in (None, rank):
                return False
        return all(self.has_taint(slot, taint) for taint in rules.required_taints)

    def has_taint(self, slot: int, taint: str) -> bool:
        card = self.card(slot)
        places = {f"dynamo.topology/{domain}={value}" for domain, value in card.topology.items()}
        return taint in card.taints or taint in places

    def _near_home(self, session_id: str | None, slots: list[int], now_ms: float) -> list[int]:
        affinity = self.settings.affinity
        home = None if session_id is None else self.homes.get(session_id)
        if affinity is None or home is None:
            return slots
        if not home.in_flight and home.idle_since_ms + affinity.ttl_ms <= now_ms:
            del self.homes[session_id]  # type: ignore[arg-type]
            return slots
        at_home = [slot for slot in slots if self.slots[slot] == home.candidate]
        if not at_home and affinity.mode == "hard":
            raise NoEligibleWorkerError("lives elsewhere")
        return at_home or slots

    def _is_above_threshold(self, slot: int, now_ms: float) -> bool:
        """A worker is busy if every rank of it is above some limit."""
        card = self.card(slot)
        limits = self.settings.busy
        share, most = limits.active_decode_blocks_threshold, limits.active_prefill_tokens_threshold
        times = limits.active_prefill_tokens_threshold_frac

        def is_above(rank: int) -> bool:
            blocks, tokens = self.load.blocks(rank), self.load.prefill_tokens(rank, now_ms)
            by_blocks = share is not None and card.total_kv_blocks is not None
            by_budget = times is not None and card.max_num_batched_tokens is not None
            return (
                (by_blocks and blocks > share * card.total_kv_blocks)  # type: ignore[operator]
                or (most is not None and tokens > most)
                or (by_budget and tokens > times * card.max_num_batched_tokens)  # type: ignore[operator]
            )

        return all(is_above(rank) for rank in self.slots_of(card.worker_id))
