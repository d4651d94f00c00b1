"""Requests that have lost their worker and look for another, where one worker does all of one."""

from math import isnan

from dynosim.cluster.journal import Journal
from dynosim.cluster.pool import Worker
from dynosim.engine.sequence import Sequence


class Migrants:
    """Those on their way to another worker; `waiting` has each with the time of its last token.

    One that has lost its worker more than `limit` times goes no further; None: it always does.
    """

    def __init__(self, journal: Journal, limit: int | None) -> None:
        self.waiting: dict[int, tuple[Sequence, float]] = {}
        self._journal = journal
        self._limit = limit

    def may_move(self, index: int) -> bool:
        """Whether a request may be placed anew once more."""
        return self._limit is None or self._journal.migrations.get(index, 0) < self._limit

    def count(self, index: int) -> None:
        """A request has moved."""
        migrations = self._journal.migrations
        migrations[index] = migrations.get(index, 0) + 1

    def set_out(self, worker: Worker, sequence: Sequence, num_tokens: int) -> None:
        """A request leaves its worker, which is lost, with so many tokens."""
        journal, index = self._journal, sequence.index
        last_token_ms = worker.token_log.last_token_ms(sequence, worker.engine.last_delivery_ms)
        sequence.restart(num_tokens)
        if isnan(journal.scheduled_ms[index]):
            sequence.cached_tokens = -1
            if journal.tiers is not None:
                journal.tiers.forget(index)
        self.waiting[index] = sequence, last_token_ms

    def move_in(self, index: int, worker: Worker) -> Sequence:
        """A request has found another worker."""
        sequence, last_token_ms = self.waiting.pop(index)
        self.count(index)
        if sequence.generated_tokens:
            worker.token_log.moved_in(sequence, last_token_ms)
        return sequence

    def leave(self, index: int) -> bool:
        """A request looks for no worker any more; returns whether it did."""
        return self.waiting.pop(index, None) is not None
