"""Sessions in a router: where each lives, and which requests in flight hold it there."""

from collections.abc import Hashable, Iterable
from dataclasses import dataclass

from dynosim.router.affinity import AffinitySnapshot, SessionAffinity
from dynosim.router.knobs import AffinitySpec
from dynosim.router.refusals import NoEligibleWorkerError
from dynosim.router.workers import Candidate, WorkerTable
from dynosim.workers.ids import WorkerId


@dataclass(slots=True)
class SessionsSnapshot:
    """What a `Sessions` was."""

    affinity: AffinitySnapshot
    leases: list[tuple[Hashable, str]]


class Sessions:
    """Keeps sessions with the workers of `table` that served them."""

    def __init__(self, settings: AffinitySpec, table: WorkerTable) -> None:
        self._table = table
        self._is_hard = settings.mode == "hard"
        self._affinity = SessionAffinity(settings.ttl_ms)
        self._leases: dict[Hashable, str] = {}  # requests in flight -> their session

    def narrow(self, session_id: str, eligible: int, now_ms: float) -> int:
        """What is left of the eligible slots for a session that may have a home.

        Raises: NoEligibleWorkerError if it must stay where it may not go.
        """
        home = self._affinity.lookup(session_id, now_ms)
        if home is None:
            return eligible
        slot = self._table.slot_of(home.worker_id, home.dp_rank)
        bit = 0 if slot is None else 1 << slot
        if eligible & bit:
            return bit
        if self._is_hard:
            raise NoEligibleWorkerError(
                f"session {session_id!r} lives on worker {home.worker_id}, which this request "
                "may not use"
            )
        return eligible

    def begin(self, session_id: str, request_id: Hashable, home: Candidate, now_ms: float) -> None:
        """A request of a session was placed."""
        self._affinity.begin(session_id, home, now_ms)
        self._leases[request_id] = session_id

    def end(self, request_id: Hashable, now_ms: float) -> None:
        """A request ended; of no session, it changes nothing."""
        session_id = self._leases.pop(request_id, None)
        if session_id is not None:
            self._affinity.end(session_id, now_ms)

    def unbind(self, session_id: str) -> None:
        """Let a session go anywhere again."""
        self._affinity.unbind(session_id)
        self._end_leases([session_id])

    def remove_worker(self, worker_id: WorkerId, lost: Iterable[Hashable]) -> None:
        """A worker left with its requests; its sessions may go anywhere."""
        self._end_leases(self._affinity.remove_worker(worker_id))
        for request_id in lost:
            session_id = self._leases.pop(request_id, None)
            if session_id is not None:
                self._affinity.lose(session_id)

    def snapshot(self) -> SessionsSnapshot:
        """All that future answers depend on; see `restore`."""
        return SessionsSnapshot(self._affinity.snapshot(), list(self._leases.items()))

    def restore(self, snapshot: SessionsSnapshot) -> None:
        """Make one without sessions what another one was."""
        self._affinity.restore(snapshot.affinity)
        self._leases.update(snapshot.leases)

    def _end_leases(self, session_ids: Iterable[str]) -> None:
        """Sessions were forgotten: what they still have must not end a later binding."""
        gone = set(session_ids)
        for request_id in [r for r, s in self._leases.items() if s in gone]:
            del self._leases[request_id]
