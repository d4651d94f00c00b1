"""The rule of Kubernetes' HPA: how many workers one metric asks for, before anything holds it back.

Source: Kubernetes, `pkg/controller/podautoscaler/replica_calculator.go`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, inf

from dynosim.planner.observation import EngineReport, PoolState
from dynosim.planner.queries import ServiceMetric, WorkerMetric, in_thousandths
from dynosim.planner.series import ScrapeStore
from dynosim.workers.lifecycle import Phase


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far the ratio to the target may be below and above 1 with nothing done."""

    down: float = 0.1
    up: float = 0.1

    def covers(self, ratio: float) -> bool:
        """Whether a ratio is near enough to 1."""
        return 1.0 - self.down <= ratio <= 1.0 + self.up


@dataclass(frozen=True, slots=True)
class Proposal:
    """What one metric asks for: `replicas`, None if it could not be read; its figure, and why."""

    metric: str
    replicas: int | None
    value: float | None
    reason: str


def by_service(
    metric: ServiceMetric, pool: PoolState, seen: ScrapeStore, now_ms: float, near: Tolerance
) -> Proposal:
    """What a figure of the service asks for: a multiple of the ready workers, or a share each.

    Workers that start do not multiply, so a figure that stays high while they do asks for no more.
    """
    value = metric.read(seen, now_ms)
    alive = pool.count(Phase.STARTING) + pool.count(Phase.READY)
    if value is None:
        return Proposal(metric.name, None, None, f"{metric.name} is not known")
    ratio = in_thousandths(value) / in_thousandths(metric.target)
    said = f"{metric.name} {value:g} of {metric.target:g}"
    if metric.is_average:
        replicas, unchanged = ceil(ratio), alive
        rule = f"{said} a worker asks for {replicas}"
        ratio = ratio / alive if alive else inf
    elif pool.wanted == 0:
        replicas = unchanged = ceil(ratio)
        rule = f"{said} on no worker asks for {replicas}"
    elif alive == 0:
        return Proposal(metric.name, None, value, f"{metric.name}: there are no workers")
    else:
        ready = pool.count(Phase.READY)
        replicas, unchanged = ceil(ratio * ready), pool.wanted
        rule = f"{said} on {ready} ready asks for {replicas}"
    if near.covers(ratio):
        rule = f"{metric.name} {value:g} is near its target of {metric.target:g}"
        replicas = unchanged
    return Proposal(metric.name, replicas, value, rule)


def by_workers(
    metric: WorkerMetric,
    pool: PoolState,
    reports: Sequence[EngineReport],
    now_ms: float,
    near: Tolerance,
) -> Proposal:
    """What the mean of a figure over the workers asks for, with doubt counted against a change.

    Ready workers without a report count as at the target where fewer are asked for, as idle where
    more are; those that start as idle where more are. Where that turns growth into shrinking or the
    reverse, nothing changes.
    """
    latest = {
        report.worker_id: getattr(report, metric.figure)
        for report in reports
        if report.pool == pool.name and now_ms - report.at_ms <= metric.max_age_ms
    }
    ready = [one.worker_id for one in pool.workers if one.phase is Phase.READY]
    known = [float(latest[worker]) for worker in ready if worker in latest]
    if not known:
        return Proposal(metric.name, None, None, f"no ready worker reports {metric.name}")
    mean = sum(known) / len(known)
    ratio = mean / metric.target
    missing, starting = len(ready) - len(known), pool.count(Phase.STARTING)
    said = f"{metric.name} {mean:g} of {metric.target:g} on {len(known)} workers"
    if missing == 0 and not (starting and ratio > 1):
        replicas = pool.wanted if near.covers(ratio) else ceil(ratio * len(ready))
        return Proposal(metric.name, replicas, mean, f"{said} asks for {replicas}")
    assumed = [metric.target if ratio < 1 else 0.0] * missing
    assumed += [0.0] * (starting if ratio > 1 else 0)
    corrected = sum(known + assumed) / (len(known) + len(assumed)) / metric.target
    replicas = ceil(corrected * (len(known) + len(assumed)))
    turned = (ratio < 1 < corrected) or (ratio > 1 > corrected)
    grown = replicas - pool.wanted
    reversed_ = (corrected < 1 and grown > 0) or (corrected > 1 and grown < 0)
    if near.covers(corrected) or turned or reversed_:
        replicas = pool.wanted
    doubt = f"with {missing} missing and {starting} starting"
    return Proposal(metric.name, replicas, mean, f"{said}, {doubt}, asks for {replicas}")
