"""The workers a router may choose from, and the small numbers (slots) that stand for them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from dynosim.errors import ConfigError
from dynosim.indexer.answers import members
from dynosim.workers.ids import FIRST_RANK, DpRank, Slot, WorkerId

TOPOLOGY_TAINT = "dynamo.topology/"


class Candidate(NamedTuple):
    """Where a request can run: a worker, and one of its data-parallel ranks."""

    worker_id: WorkerId
    dp_rank: DpRank = FIRST_RANK


@dataclass(frozen=True, slots=True)
class WorkerCard:
    """What a worker says of itself when it joins."""

    worker_id: WorkerId
    block_size: int  # tokens per KV block
    total_kv_blocks: int | None = None  # per rank
    max_num_batched_tokens: int | None = None  # per rank
    dp_size: int = 1
    dp_start: int = 0  # rank of the first of its `dp_size` ranks
    device: Literal["gpu", "cpu"] = "gpu"
    taints: frozenset[str] = frozenset()
    topology: Mapping[str, str] = field(default_factory=dict)  # domain -> value

    @property
    def ranks(self) -> list[DpRank]:
        """The data-parallel ranks that it hosts."""
        return [DpRank(rank) for rank in range(self.dp_start, self.dp_start + self.dp_size)]

    @property
    def all_taints(self) -> frozenset[str]:
        """Its own taints, and one for each topology domain it is in."""
        return self.taints | {topology_taint(d, v) for d, v in self.topology.items()}


def topology_taint(domain: str, value: str) -> str:
    """The taint of all workers whose topology domain `domain` has this value."""
    return f"{TOPOLOGY_TAINT}{domain}={value}"


class WorkerTable:
    """Slots of all known candidates. A slot that becomes free is given to the next that joins.

    `mask` attributes and results are sets of slots (bit i: slot i).
    """

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self.cards: dict[WorkerId, WorkerCard] = {}
        self.candidates: list[Candidate | None] = []  # by slot
        self.all_mask = 0
        self.cpu_mask = 0
        self._slots: dict[tuple[WorkerId, DpRank], Slot] = {}  # by `Candidate`
        self._taint_masks: dict[str, int] = {}
        self._worker_masks: dict[WorkerId, int] = {}

    def add(self, card: WorkerCard) -> list[Slot]:
        """Take in a worker; returns the slots of its ranks. A known worker id is replaced.

        Raises: ConfigError, see `check`.
        """
        self.check(card)
        if card.worker_id in self.cards:
            self.remove(card.worker_id)
        slots = [self._take_slot(Candidate(card.worker_id, rank)) for rank in card.ranks]
        self._enter(card, slots)
        return slots

    def check(self, card: WorkerCard) -> None:
        """Refuse a card whose blocks would match no others, or that has no rank.

        Raises: ConfigError.
        """
        if card.block_size != self.block_size:
            raise ConfigError(
                f"worker {card.worker_id}: KV block size {card.block_size} differs from the "
                f"router's {self.block_size}; start both with the same block size"
            )
        if card.dp_size < 1:
            raise ConfigError(f"worker {card.worker_id}: dp_size must be at least 1")

    def restore(
        self, cards: Iterable[WorkerCard], candidates: Iterable[Candidate | None]
    ) -> list[Slot]:
        """Make an empty table what another one was; returns the slots in use."""
        self.candidates = list(candidates)
        used = [(Slot(i), who) for i, who in enumerate(self.candidates) if who is not None]
        self._slots = {candidate: slot for slot, candidate in used}
        for card in cards:
            slots = [self._slots[Candidate(card.worker_id, rank)] for rank in card.ranks]
            self._enter(card, slots)
        return [slot for slot, _ in used]

    def _enter(self, card: WorkerCard, slots: list[Slot]) -> None:
        """Note a card, and what the slots of its ranks have in common."""
        self.cards[card.worker_id] = card
        mask = sum(1 << slot for slot in slots)
        self._worker_masks[card.worker_id] = mask
        self.all_mask |= mask
        if card.device == "cpu":
            self.cpu_mask |= mask
        for taint in card.all_taints:
            self._taint_masks[taint] = self._taint_masks.get(taint, 0) | mask

    def remove(self, worker_id: WorkerId) -> list[Slot]:
        """Let a worker go; returns the slots that it had (none if it was unknown)."""
        card = self.cards.pop(worker_id, None)
        if card is None:
            return []
        mask = self._worker_masks.pop(worker_id)
        self.all_mask &= ~mask
        self.cpu_mask &= ~mask
        for taint in card.all_taints:
            self._taint_masks[taint] &= ~mask
        slots = list(members(mask))
        for slot in slots:
            candidate = self.candidates[slot]
            assert candidate is not None
            del self._slots[candidate]
            self.candidates[slot] = None
        return slots

    def slot_of(self, worker_id: WorkerId, dp_rank: DpRank = FIRST_RANK) -> Slot | None:
        """The slot of a candidate, or None if there is no such worker or rank."""
        return self._slots.get((worker_id, dp_rank))

    def candidate(self, slot: Slot) -> Candidate:
        """Who has a slot that is in use."""
        candidate = self.candidates[slot]
        assert candidate is not None
        return candidate

    def card(self, slot: Slot) -> WorkerCard:
        """The card of the worker that has a slot."""
        return self.cards[self.candidate(slot).worker_id]

    def mask_of_worker(self, worker_id: WorkerId) -> int:
        """All ranks of a worker; empty if it is unknown."""
        return self._worker_masks.get(worker_id, 0)

    def mask_with_taint(self, taint: str) -> int:
        """Every candidate whose worker has a taint."""
        return self._taint_masks.get(taint, 0)

    def _take_slot(self, candidate: Candidate) -> Slot:
        slots = self.candidates
        try:
            slot = Slot(slots.index(None))
            slots[slot] = candidate
        except ValueError:
            slot = Slot(len(slots))
            slots.append(candidate)
        self._slots[candidate] = slot
        return slot
