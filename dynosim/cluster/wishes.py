"""What the requests of a trace want of their workers, and whether any worker can do it."""

from collections.abc import Sequence
from dataclasses import replace

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


def check_wishes(
    trace: Trace, pools: Sequence[Sequence[WorkerCard]], *, all_name_workers: bool
) -> None:
    """Refuse a trace with a request that no worker of some pool may serve.

    A worker that a request names is of one pool; the others are free to choose.
    `all_name_workers`: nobody chooses for a request that does not name its worker.

    Raises: InfeasibleError naming the first such request.
    """
    if all_name_workers:
        _check_all_pinned(trace)
    if trace.wishes is None:
        return
    tables = [_table_of(cards) for cards in pools]
    can_be: set[Wishes] = set()
    for row, one in enumerate(trace.wishes):
        constraints = None if one is None or one in can_be else constraints_of(one)
        if one is None or constraints is None:
            continue
        can_be.add(one)
        try:
            _check_served(constraints, tables)
        except NoEligibleWorkerError as error:
            raise InfeasibleError(f"{_row(trace, row)} cannot be served: {error}") from None


def _check_all_pinned(trace: Trace) -> None:
    wishes: Sequence[Wishes | None] = trace.wishes or [None] * len(trace)
    for row, one in enumerate(wishes):
        if one is None or one.worker_id is None:
            raise InfeasibleError(
                f"{_row(trace, row)} names no worker, but router.mode is direct (give each row "
                "a worker_id, or choose another mode)"
            )


def _table_of(cards: Sequence[WorkerCard]) -> WorkerTable:
    table = WorkerTable(cards[0].block_size if cards else 1)
    for card in cards:
        table.add(card)
    return table


def _check_served(constraints: Constraints, tables: Sequence[WorkerTable]) -> None:
    """Raises: NoEligibleWorkerError if a pool cannot serve, or none has the worker named."""
    if len(tables) == 1:
        eligible_mask(tables[0], constraints)
        return
    for table in tables:
        eligible_mask(table, in_pool(constraints, table))
    pinned = constraints.pinned_worker
    if pinned is not None and not any(pinned in table.cards for table in tables):
        raise NoEligibleWorkerError(f"there is no worker {pinned}")


def in_pool(constraints: Constraints, table: WorkerTable) -> Constraints:
    """What a request's wishes are in a pool: a worker of another one is none of its business."""
    pinned = constraints.pinned_worker
    if pinned is None or pinned in table.cards:
        return constraints
    return replace(constraints, pinned_worker=None, pinned_dp_rank=None)


def _row(trace: Trace, row: int) -> str:
    name = "" if trace.request_ids is None else f" ({trace.request_ids[row]})"
    return f"{trace.source or 'trace'}: request {row}{name}"
