"""What the requests of a trace want of their workers, and whether any worker can do it."""

from collections.abc import Sequence

from dynosim.errors import InfeasibleError
from dynosim.records import Trace, Wishes
from dynosim.router.eligibility import Constraints, eligible_mask
from dynosim.router.knobs import CostSpec
from dynosim.router.refusals import NoEligibleWorkerError
from dynosim.router.wishes import constraints_of, overridden
from dynosim.router.workers import WorkerCard, WorkerTable

RequestRules = tuple[Constraints | None, CostSpec | None]
"""Where a request may run, and the weights that it brings."""

NO_RULES: RequestRules = (None, None)


class RequestWishes:
    """The rules of each request; requests with equal wishes share theirs."""

    def __init__(self, wishes: Sequence[Wishes | None], cost: CostSpec) -> None:
        rules: dict[Wishes, RequestRules] = {}
        self._rules: list[RequestRules] = []
        for one in wishes:
            if one is None:
                self._rules.append(NO_RULES)
                continue
            if one not in rules:
                rules[one] = constraints_of(one), overridden(cost, one.overrides)
            self._rules.append(rules[one])

    def of(self, index: int) -> RequestRules:
        """The rules of a request."""
        return self._rules[index]


def check_wishes(trace: Trace, cards: Sequence[WorkerCard], *, all_name_workers: bool) -> None:
    """Refuse a trace with a request that none of these workers may serve.

    `all_name_workers`: nobody chooses for a request that does not name its worker.

    Raises: InfeasibleError naming the first such request.
    """
    wishes: Sequence[Wishes | None] = trace.wishes or [None] * len(trace)
    if all_name_workers:
        for row, one in enumerate(wishes):
            if one is None or one.worker_id is None:
                raise InfeasibleError(
                    f"{_row(trace, row)} names no worker, but router.mode is direct (give each row "
                    "a worker_id, or choose another mode)"
                )
    if trace.wishes is None:
        return
    table = WorkerTable(cards[0].block_size)
    for card in cards:
        table.add(card)
    can_be: set[Wishes] = set()
    for row, one in enumerate(trace.wishes):
        if one is None or one in can_be:
            continue
        can_be.add(one)
        constraints = constraints_of(one)
        if constraints is None:
            continue
        try:
            eligible_mask(table, constraints)
        except NoEligibleWorkerError as error:
            raise InfeasibleError(f"{_row(trace, row)} cannot be served: {error}") from None


def _row(trace: Trace, row: int) -> str:
    name = "" if trace.request_ids is None else f" ({trace.request_ids[row]})"
    return f"{trace.source or 'trace'}: request {row}{name}"
