"""Which slots may serve a request now: its own rules, its session's home, busy thresholds."""

from dynosim.router.busy import busy_mask
from dynosim.router.eligibility import Constraints, eligible_mask
from dynosim.router.knobs import RouterSpec
from dynosim.router.load import ActiveLoad
from dynosim.router.refusals import InvalidRequestError, WorkersBusyError
from dynosim.router.request import RoutingRequest
from dynosim.router.sessions import Sessions
from dynosim.router.workers import WorkerTable

UNCONSTRAINED = Constraints()


class Admission:
    """Tells the slots of `table` that may serve a request."""

    def __init__(
        self,
        settings: RouterSpec,
        table: WorkerTable,
        load: ActiveLoad,
        sessions: Sessions | None,
    ) -> None:
        self._is_direct = settings.mode == "direct"
        self._thresholds = settings.busy
        self._table = table
        self._load = load
        self._sessions = sessions

    def eligible(self, request: RoutingRequest, now_ms: float) -> int:
        """Slots that may serve a request now; at least one. Raises: RequestRefusedError."""
        constraints = request.constraints
        if self._is_direct and (constraints is None or constraints.pinned_worker is None):
            raise InvalidRequestError("router mode direct: the request names no worker")
        if constraints is None and self._table.all_mask:
            mask = self._table.all_mask
        else:
            mask = eligible_mask(self._table, constraints or UNCONSTRAINED)
        if self._sessions is not None and request.session_id is not None:
            mask = self._sessions.narrow(request.session_id, mask, now_ms)
        if self._thresholds.is_set:
            prefill_tokens = self._load.active_prefill_tokens(now_ms)
            blocks = self._load.active_blocks()
            mask &= ~busy_mask(self._thresholds, self._table, blocks, prefill_tokens)
            if not mask:
                raise WorkersBusyError("all eligible workers are above a busy threshold")
        return mask
