"""Keeping KV transfers inside a topology domain: from a prefill worker to its decode workers.

The prefill worker is chosen first; what its card says of the domain becomes a rule or a wish for
the decode request. Nobody calls this yet: it waits for prefill and decode pools.
"""

import re
from dataclasses import dataclass
from typing import Literal

from dynosim.errors import ConfigError
from dynosim.router.eligibility import Constraints
from dynosim.router.refusals import NoEligibleWorkerError
from dynosim.router.workers import WorkerCard, topology_taint

DOMAIN_NAME = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")


@dataclass(frozen=True, slots=True)
class KvTransferPolicy:
    """Whether decode must (`required`) or should (`preferred`) stay in the prefill's domain.

    `domain` is a kind of place (`zone`, `rack`); workers with the same value share one.
    `preferred_weight`, 0 to 1, says how strongly, and belongs to `preferred` only.
    Raises: ConfigError for a malformed domain or a weight that is missing, misplaced or off range.
    """

    domain: str
    enforcement: Literal["required", "preferred"] = "required"
    preferred_weight: float | None = None
    label_key: str | None = None  # node label that carries the value, for deployments

    def __post_init__(self) -> None:
        if not DOMAIN_NAME.fullmatch(self.domain):
            raise ConfigError(
                f"kv_transfer.domain: {self.domain!r} is not a domain name "
                "(lowercase letters, digits and inner dashes)"
            )
        weight = self.preferred_weight
        if self.enforcement == "required":
            if weight is not None:
                raise ConfigError(
                    "kv_transfer.preferred_weight: only valid with enforcement: preferred; "
                    "remove it"
                )
        elif self.enforcement != "preferred":
            raise ConfigError(
                f"kv_transfer.enforcement: {self.enforcement!r}; known: required, preferred"
            )
        elif weight is None or not 0 <= weight <= 1:
            raise ConfigError(
                f"kv_transfer.preferred_weight: a number from 0 to 1 is needed with enforcement: "
                f"preferred, got {weight}"
            )


def decode_constraints(policy: KvTransferPolicy, prefill: WorkerCard) -> Constraints:
    """The constraints of the decode request once `prefill` has been chosen.

    Raises: NoEligibleWorkerError if the prefill worker does not say where it is, under `required`.
    """
    value = prefill.topology.get(policy.domain)
    if value is None:
        if policy.enforcement == "preferred":
            return Constraints()
        raise NoEligibleWorkerError(
            f"prefill worker {prefill.worker_id} does not say its {policy.domain}, so no decode "
            "worker can be in the same one; give its card a topology value"
        )
    taint = topology_taint(policy.domain, value)
    if policy.enforcement == "required":
        return Constraints(required_taints=frozenset([taint]))
    assert policy.preferred_weight is not None
    return Constraints(preferred_taints={taint: policy.preferred_weight})
