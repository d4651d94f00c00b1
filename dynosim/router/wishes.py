"""From what a client asks of its placement to what the router goes by."""

from collections.abc import Iterable
from dataclasses import replace

from dynosim.records import Wishes
from dynosim.router.eligibility import Constraints
from dynosim.router.knobs import CostSpec
from dynosim.workers.ids import WorkerId


def constraints_of(wishes: Wishes) -> Constraints | None:
    """Where the request may go, and where it would rather go; None: anywhere."""
    if wishes.worker_id is None and not wishes.required_taints and not wishes.preferred_taints:
        return None
    return Constraints(
        pinned_worker=None if wishes.worker_id is None else WorkerId(wishes.worker_id),
        required_taints=frozenset(wishes.required_taints),
        preferred_taints=dict(wishes.preferred_taints),
    )


def overridden(cost: CostSpec, overrides: Iterable[tuple[str, float]]) -> CostSpec | None:
    """The weights with other values for some of them; None where there are none."""
    values = dict(overrides)
    return replace(cost, **values) if values else None  # type: ignore[arg-type]
