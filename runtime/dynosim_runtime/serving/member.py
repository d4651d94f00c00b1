"""A worker as a frontend has it: its card, and where it is in its life."""

from dynosim.workers.lifecycle import Phase, WorkerEvent, next_phase
from dynosim_runtime.card import LiveCard

Stay = tuple[int, int]
"""A worker and the number of its joining: one that comes back is given another try."""


def life_of(card: LiveCard) -> tuple[int, int | None, str]:
    """What distinguishes a worker from the one of the same name before it."""
    return card.worker_id, card.pid, card.url


def shown_event(card: LiveCard) -> WorkerEvent:
    """What has happened to a worker whose card looks so."""
    return WorkerEvent.TOLD_TO_DRAIN if card.is_draining else WorkerEvent.BECAME_READY


class Member:
    """One stay of a worker. What happens to it follows `dynosim.workers.lifecycle`.

    A stay has one life: a worker that drains does not become ready again in it, and one that failed
    comes back as a new member.
    """

    def __init__(self, card: LiveCard, number: int) -> None:
        self.card = card
        self.stay: Stay = (card.worker_id, number)
        self.phase = Phase.STARTING

    def happens(self, event: WorkerEvent) -> bool:
        """Whether `event` can happen to it; it is in the next phase if so."""
        after = next_phase(self.phase, event)
        if after is None:
            return False
        self.phase = after
        return True
