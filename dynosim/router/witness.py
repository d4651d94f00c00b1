"""Keeps what a router weighed for some requests: the answer to "why was it sent there?"."""

from collections.abc import Collection, Hashable
from dataclasses import dataclass

from dynosim.router.cost import WorkerOption
from dynosim.workers.ids import Slot


@dataclass(frozen=True, slots=True)
class SeenChoice:
    """A placement, and every candidate as it was just before it."""

    request_id: Hashable
    now_ms: float
    slot: Slot  # the chosen candidate's
    options: tuple[WorkerOption, ...]  # by slot
    queued_ms: float  # waited in the router


class ChoiceWitness:
    """Notes the placements of the requests `watched`, in order; one that moves has several."""

    def __init__(self, watched: Collection[Hashable]) -> None:
        self.watched = frozenset(watched)
        self.choices: list[SeenChoice] = []
