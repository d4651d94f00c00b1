"""Sessions that stay with the worker that served them."""

from collections import OrderedDict
from typing import NamedTuple

from dynosim.router.workers import Candidate
from dynosim.workers.ids import WorkerId


class Binding(NamedTuple):
    """Where a session lives."""

    candidate: Candidate
    leases: int  # requests of the session in flight
    expires_ms: float  # if no request comes before; meaningless while leases are held


class AffinitySnapshot(NamedTuple):
    """What a `SessionAffinity` was."""

    bindings: list[tuple[str, Binding]]
    idle: list[str]  # in order of expiry


class SessionAffinity:
    """Session id -> candidate, forgotten `ttl_ms` after the session's last request ended.

    Bindings in use never expire. Memory is bounded by the sessions seen within one `ttl_ms`.
    """

    def __init__(self, ttl_ms: float) -> None:
        self.ttl_ms = ttl_ms
        self._bindings: dict[str, Binding] = {}
        self._idle: OrderedDict[str, None] = OrderedDict()  # in order of expiry

    def __len__(self) -> int:
        return len(self._bindings)

    def lookup(self, session_id: str, now_ms: float) -> Candidate | None:
        """Where the session lives; None if it is new or was idle for too long."""
        self._expire(now_ms)
        binding = self._bindings.get(session_id)
        return None if binding is None else binding.candidate

    def begin(self, session_id: str, candidate: Candidate, now_ms: float) -> None:
        """A request of the session goes to `candidate`, which the session is bound to from now."""
        binding = self._bindings.get(session_id)
        leases = 1 if binding is None else binding.leases + 1
        self._bindings[session_id] = Binding(candidate, leases, 0.0)
        self._idle.pop(session_id, None)

    def end(self, session_id: str, now_ms: float) -> None:
        """A request of the session ended; with the last one the idle time begins."""
        binding = self._bindings.get(session_id)
        if binding is None:
            return
        leases = max(binding.leases - 1, 0)
        self._bindings[session_id] = Binding(binding.candidate, leases, now_ms + self.ttl_ms)
        if leases == 0:
            self._idle[session_id] = None
            self._idle.move_to_end(session_id)

    def unbind(self, session_id: str) -> None:
        """Forget where a session lives (its worker failed it)."""
        self._bindings.pop(session_id, None)
        self._idle.pop(session_id, None)

    def lose(self, session_id: str) -> None:
        """A request of the session was lost with a worker that the session has moved away from.

        Nobody knows when it ended; the idle time begins with the last end that was heard of.
        """
        binding = self._bindings.get(session_id)
        if binding is None:
            return
        self._bindings[session_id] = binding._replace(leases=binding.leases - 1)
        if binding.leases == 1:
            idle = sorted([*self._idle, session_id], key=self._expiry_ms)
            self._idle = OrderedDict.fromkeys(idle)

    def remove_worker(self, worker_id: WorkerId) -> list[str]:
        """Forget all sessions that live on a worker; returns them."""
        gone = [s for s, b in self._bindings.items() if b.candidate.worker_id == worker_id]
        for session_id in gone:
            self.unbind(session_id)
        return gone

    def snapshot(self) -> AffinitySnapshot:
        """All that future answers depend on; see `restore`."""
        return AffinitySnapshot(list(self._bindings.items()), list(self._idle))

    def restore(self, snapshot: AffinitySnapshot) -> None:
        """Make one without bindings what another one was."""
        self._bindings.update(snapshot.bindings)
        self._idle.update(dict.fromkeys(snapshot.idle))

    def _expiry_ms(self, session_id: str) -> float:
        return self._bindings[session_id].expires_ms

    def _expire(self, now_ms: float) -> None:
        while self._idle:
            session_id = next(iter(self._idle))
            if self._bindings[session_id].expires_ms > now_ms:
                return
            self.unbind(session_id)
