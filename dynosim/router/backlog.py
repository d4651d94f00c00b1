"""What waits in the router: who has to, and who may go on."""

from collections.abc import Callable, Hashable, Sequence

from dynosim.router.classes import PolicyClass, class_for, must_wait
from dynosim.router.load import ActiveLoad
from dynosim.router.queue import PendingQueue, QueuedRequest, QueueSnapshot
from dynosim.router.refusals import RequestRefusedError, WorkersBusyError
from dynosim.router.request import RoutingRequest
from dynosim.router.workers import WorkerTable

Eligible = Callable[[RoutingRequest, float], int]
"""The slots that may serve a request now. Raises: RequestRefusedError."""


class Backlog:
    """Lets requests wait by the rules of their classes while the workers of `table` are busy."""

    def __init__(
        self, classes: Sequence[PolicyClass], table: WorkerTable, load: ActiveLoad
    ) -> None:
        self._classes = classes
        self._table = table
        self._load = load
        self._queue = PendingQueue(classes)

    def __len__(self) -> int:
        return len(self._queue)

    def __contains__(self, request_id: Hashable) -> bool:
        return request_id in self._queue

    def takes(
        self, request: RoutingRequest, eligible: int, cached_tokens: int, now_ms: float
    ) -> bool:
        """Queue a request if it has to wait; `cached_tokens` is what the best worker holds.

        Raises: QueueFullError.
        """
        uncached_tokens = max(request.input_tokens - cached_tokens, 0)
        rules = class_for(self._classes, request.policy_family, uncached_tokens)
        if not rules.can_wait:
            return False
        prefill_tokens = self._load.active_prefill_tokens(now_ms)
        has_backlog = self._queue.depth(rules.name) > 0
        if not has_backlog and not must_wait(rules, self._table, eligible, prefill_tokens):
            return False
        constraints = request.constraints
        is_pinned = constraints is not None and constraints.pinned_worker is not None
        pinned_slot = eligible.bit_length() - 1 if is_pinned else None
        entry = QueuedRequest(request, cached_tokens, now_ms, pinned_slot)
        self._queue.push(rules.name, entry, len(self._table.cards))
        return True

    def next(self, eligible_of: Eligible, now_ms: float) -> tuple[RoutingRequest, float] | None:
        """The next request that need wait no longer, and since when it has; None if all must."""

        def can_go(rules: PolicyClass, entry: QueuedRequest) -> bool:
            return self._can_go(rules, entry, eligible_of, now_ms)

        entry = self._queue.pop(can_go) if len(self._queue) else None
        return None if entry is None else (entry.request, entry.enqueue_ms)

    def discard(self, request_id: Hashable) -> None:
        """A request was cancelled; one that does not wait changes nothing."""
        self._queue.discard(request_id)

    def snapshot(self) -> QueueSnapshot:
        """All that future answers depend on; see `restore`."""
        return self._queue.snapshot()

    def restore(self, snapshot: QueueSnapshot) -> None:
        """Make an empty backlog of the same classes what another one was."""
        self._queue.restore(snapshot)

    def _can_go(
        self, rules: PolicyClass, entry: QueuedRequest, eligible_of: Eligible, now_ms: float
    ) -> bool:
        """Whether a waiting request need wait no longer; one that nobody can serve goes to fail."""
        try:
            eligible = eligible_of(entry.request, now_ms)
        except WorkersBusyError:
            return False
        except RequestRefusedError:
            return True
        prefill_tokens = self._load.active_prefill_tokens(now_ms)
        return not must_wait(rules, self._table, eligible, prefill_tokens)
