"""What a router was, but for its workers and the blocks that they hold."""

from dataclasses import dataclass

from dynosim.indexer.base import Guess
from dynosim.router.load import LoadSnapshot
from dynosim.router.queue import QueueSnapshot
from dynosim.router.sessions import SessionsSnapshot

RandomState = tuple[int, tuple[int, ...], float | None]


@dataclass(slots=True)
class RouterSnapshot:
    """All that future answers depend on; None: this router has no such part."""

    load: LoadSnapshot
    queue: QueueSnapshot | None
    sessions: SessionsSnapshot | None
    next_slot: int | None  # of the mode round-robin
    random: RandomState
    policy: object  # what a policy with a state gave
    guesses: list[Guess] | None
