"""Policy classes: kinds of requests that wait in lines of their own, under rules of their own."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from dynosim.errors import ConfigError
from dynosim.indexer.answers import members
from dynosim.router.workers import WorkerTable
from dynosim.workers.ids import Slot

UNKNOWN_TOKEN_BUDGET = 10_000_000
"""Token budget of a worker that does not tell its own: never busy in practice (Dynamo's value)."""


@dataclass(frozen=True, slots=True)
class PolicyClass:
    """How one class of requests waits.

    Its requests wait while all (or `busy_worker_ratio` of) the workers they could use have more
    prefill tokens in flight than `prefill_busy_threshold`, or than `prefill_busy_threshold_frac`
    times their `max_num_batched_tokens`; without a threshold they never wait. `queue_policy` is
    the order of the line: `fcfs` (good tail), `wspt` (short uncached prompts first: good mean) or
    `lcfs` (for comparison). `quantum` is what a class earns in a round, in uncached prompt tokens:
    where prompts exceed it, classes share by their quanta; where not, they take turns.

    A request belongs to the class of its `policy_family` (None: any) whose bucket
    `min_uncached_tokens <= uncached prompt tokens < max_uncached_tokens` it falls into. Limits on
    what may wait are per worker.
    """

    name: str = "default"
    queue_policy: Literal["fcfs", "lcfs", "wspt"] = "fcfs"
    quantum: int = 8192
    prefill_busy_threshold: int | None = None
    prefill_busy_threshold_frac: float | None = None
    busy_worker_ratio: float = 1.0
    request_queue_limit_per_worker: int | None = None
    raw_isl_token_queue_limit_per_worker: int | None = None
    cached_token_queue_limit_per_worker: int | None = None
    policy_family: str | None = None
    min_uncached_tokens: int = 0
    max_uncached_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.queue_policy not in ("fcfs", "lcfs", "wspt"):
            raise ConfigError(
                f"policy class {self.name!r}: queue_policy {self.queue_policy!r} is unknown; "
                "known: fcfs, lcfs, wspt"
            )
        if self.quantum < 1:
            raise ConfigError(f"policy class {self.name!r}: quantum must be at least 1 token")
        if not 0 < self.busy_worker_ratio <= 1:
            raise ConfigError(
                f"policy class {self.name!r}: busy_worker_ratio must be above 0 and at most 1"
            )
        threshold, frac = self.prefill_busy_threshold, self.prefill_busy_threshold_frac
        if (threshold is not None and threshold < 0) or (frac is not None and not frac >= 0):
            raise ConfigError(f"policy class {self.name!r}: a busy threshold is below 0")
        top = self.max_uncached_tokens
        if self.min_uncached_tokens < 0 or (top is not None and top <= self.min_uncached_tokens):
            raise ConfigError(
                f"policy class {self.name!r}: the bucket from {self.min_uncached_tokens} up to "
                f"{top} uncached tokens is empty"
            )

    @property
    def can_wait(self) -> bool:
        """Whether requests of this class ever wait."""
        return (
            self.prefill_busy_threshold is not None or self.prefill_busy_threshold_frac is not None
        )

    def takes(self, family: str | None, uncached_tokens: int) -> bool:
        """Whether a request belongs to this class."""
        if self.policy_family is not None and self.policy_family != family:
            return False
        top = self.max_uncached_tokens
        return uncached_tokens >= self.min_uncached_tokens and (
            top is None or uncached_tokens < top
        )


def class_for(
    classes: Sequence[PolicyClass], family: str | None, uncached_tokens: int
) -> PolicyClass:
    """The first class that takes a request; the last class takes what no other does."""
    for policy_class in classes:
        if policy_class.takes(family, uncached_tokens):
            return policy_class
    return classes[-1]


def is_busy(
    policy_class: PolicyClass, table: WorkerTable, slot: Slot, prefill_tokens: Sequence[int]
) -> bool:
    """Whether a slot has more prefill work in flight than requests of this class put up with."""
    tokens = prefill_tokens[slot]
    threshold = policy_class.prefill_busy_threshold
    if threshold is not None and tokens > threshold:
        return True
    frac = policy_class.prefill_busy_threshold_frac
    if frac is None:
        return False
    budget = table.card(slot).max_num_batched_tokens
    return tokens > frac * (UNKNOWN_TOKEN_BUDGET if budget is None else budget)


def must_wait(
    policy_class: PolicyClass, table: WorkerTable, eligible: int, prefill_tokens: Sequence[int]
) -> bool:
    """Whether so many of the eligible slots are busy that a request of the class has to wait."""
    if not policy_class.can_wait or not eligible:
        return False
    num_busy = 0
    ratio = policy_class.busy_worker_ratio
    slots = list(members(eligible))
    for slot in slots:
        if is_busy(policy_class, table, slot, prefill_tokens):
            num_busy += 1
        elif ratio == 1.0:
            return False
    return num_busy >= ratio * len(slots)
