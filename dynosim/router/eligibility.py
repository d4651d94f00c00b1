"""Hard rules on where a request may run, and soft wishes, before any cost is looked at."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import exp, tanh

from dynosim.indexer.answers import members
from dynosim.router.refusals import NoEligibleWorkerError
from dynosim.router.workers import TOPOLOGY_TAINT, WorkerTable
from dynosim.workers.ids import DpRank, Slot, WorkerId


@dataclass(frozen=True, slots=True)
class Constraints:
    """Where a request may run.

    `preferred_taints` maps a taint to a weight: positive attracts, negative repels.
    """

    allowed_workers: frozenset[WorkerId] | None = None  # None: all
    pinned_worker: WorkerId | None = None
    pinned_dp_rank: DpRank | None = None
    required_taints: frozenset[str] = frozenset()
    preferred_taints: Mapping[str, float] = field(default_factory=dict)


def both(wished: Constraints, implied: Constraints) -> Constraints:
    """A request's own wishes, and those taints that follow from where it has been."""
    return replace(
        wished,
        required_taints=wished.required_taints | implied.required_taints,
        preferred_taints={**implied.preferred_taints, **wished.preferred_taints},
    )


def eligible_mask(table: WorkerTable, constraints: Constraints) -> int:
    """The slots that satisfy all hard rules; at least one.

    Raises: NoEligibleWorkerError telling which rule nobody satisfies.
    """
    mask = table.all_mask
    if not mask:
        raise NoEligibleWorkerError("no worker has joined yet")
    if constraints.pinned_worker is not None:
        mask = _pinned_mask(table, constraints)
    elif constraints.allowed_workers is not None:
        allowed = sorted(constraints.allowed_workers)
        mask = sum(table.mask_of_worker(worker_id) for worker_id in allowed)
        if not mask:
            raise NoEligibleWorkerError(f"none of the allowed workers is here: {_listed(allowed)}")
    for taint in sorted(constraints.required_taints):
        mask &= table.mask_with_taint(taint)
        if not mask:
            raise NoEligibleWorkerError(_missing_taint(table, taint, constraints))
    return mask


def preference_factors(table: WorkerTable, preferred: Mapping[str, float]) -> dict[Slot, float]:
    """By slot: what to multiply the cost with; slots without a preferred taint are left out.

    exp(-tanh(sum of the weights of matching taints)), so between 0.37 and 2.72.
    """
    weights: dict[Slot, float] = {}
    for taint, weight in preferred.items():
        for slot in members(table.mask_with_taint(taint)):
            weights[slot] = weights.get(slot, 0.0) + weight
    return {slot: exp(-tanh(weight)) for slot, weight in weights.items()}


def _pinned_mask(table: WorkerTable, constraints: Constraints) -> int:
    worker_id, rank = constraints.pinned_worker, constraints.pinned_dp_rank
    assert worker_id is not None
    card = table.cards.get(worker_id)
    if card is None:
        known = _listed(sorted(table.cards))
        raise NoEligibleWorkerError(f"worker {worker_id} is not here; known workers: {known}")
    allowed = constraints.allowed_workers
    if allowed is not None and worker_id not in allowed:
        raise NoEligibleWorkerError(
            f"worker {worker_id} is asked for, but only {_listed(sorted(allowed))} are allowed"
        )
    if rank is None:
        return table.mask_of_worker(worker_id)
    slot = table.slot_of(worker_id, rank)
    if slot is None:
        last = card.dp_start + card.dp_size - 1
        raise NoEligibleWorkerError(
            f"worker {worker_id} has no data-parallel rank {rank}: its ranks are "
            f"{card.dp_start} to {last}"
        )
    return 1 << slot


def _missing_taint(table: WorkerTable, taint: str, constraints: Constraints) -> str:
    if taint.startswith(TOPOLOGY_TAINT):
        domain, _, value = taint.removeprefix(TOPOLOGY_TAINT).partition("=")
        what = f"no worker is in {domain} {value!r}, which this request must not leave"
    else:
        what = f"no worker has the required taint {taint!r}"
    if table.mask_with_taint(taint):
        what += " (of those that the request's other rules leave)"
    return what


def _listed(worker_ids: list[WorkerId]) -> str:
    shown = ", ".join(str(worker_id) for worker_id in worker_ids[:8])
    more = len(worker_ids) - 8
    return f"{shown} and {more} more" if more > 0 else shown or "none"
