"""How fast replicas may change: stabilisation windows and rate policies, as Kubernetes has them.

Source: Kubernetes, `pkg/controller/podautoscaler/horizontal.go` (autoscaling/v2).
"""

from dataclasses import dataclass, field
from math import ceil
from typing import Literal


@dataclass(frozen=True, slots=True)
class ScalingPolicy:
    """At most `value` workers, or percent of them, more or less within `period_ms`."""

    kind: Literal["pods", "percent"]
    value: int
    period_ms: float

    def limit_up(self, before: int) -> int:
        """The most there may be, of so many at the period's start; part of a worker is one."""
        if self.kind == "pods":
            return before + self.value
        return ceil(before * (1 + self.value / 100))

    def limit_down(self, before: int) -> int:
        """The fewest there may be, of so many at the period's start."""
        if self.kind == "pods":
            return before - self.value
        return int(before * (1 - self.value / 100))


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingRules:
    """What holds a change in one direction back.

    The least extreme proposal of the last `window_ms` counts. Of several policies the one that
    allows the most (`select` "max") or the least ("min"); "disabled": no change in this direction.
    `tolerance`: of this direction alone; None: that of the autoscaler.
    """

    window_ms: float
    policies: tuple[ScalingPolicy, ...]
    select: Literal["max", "min", "disabled"] = "max"
    tolerance: float | None = None

    def __post_init__(self) -> None:
        """Raises: ValueError if nothing says how far a change may go."""
        if not self.policies and self.select != "disabled":
            raise ValueError('scaling rules without policies: give one, or say select "disabled"')


UP_BY_DEFAULT = ScalingRules(
    window_ms=0.0,
    policies=(ScalingPolicy("pods", 4, 15_000.0), ScalingPolicy("percent", 100, 15_000.0)),
)
DOWN_BY_DEFAULT = ScalingRules(
    window_ms=300_000.0, policies=(ScalingPolicy("percent", 100, 15_000.0),)
)


@dataclass(frozen=True, slots=True)
class Settled:
    """What is left of a proposal; `held_by`: "window", "rate", "limit" or none of them."""

    replicas: int
    held_by: str | None = None
    reasons: tuple[str, ...] = ()


@dataclass(slots=True)
class Restraint:
    """Holds proposals against those before and against the changes made.

    Its memory is what rules look back on: proposals and changes with their times.
    """

    up: ScalingRules
    down: ScalingRules
    _proposals: list[tuple[float, int]] = field(default_factory=list)
    _changes: list[tuple[float, int]] = field(default_factory=list)  # when, by how many

    def begin(self, current: int, now_ms: float) -> None:
        """Take what there is for a first proposal, if there was none: nothing falls at once."""
        if not self._proposals:
            self._proposals.append((now_ms, current))

    def settle(self, current: int, proposed: int, low: int, high: int, now_ms: float) -> Settled:
        """What of `proposed` may be now; `current` lies within `low` and `high`."""
        stable = self._stabilized(current, proposed, now_ms)
        if stable != proposed:
            window_ms = (self.up if proposed > current else self.down).window_ms
            reason = f"{proposed} wanted; the last {window_ms / 1e3:g} s allow {stable}"
            windowed = Settled(stable, "window", (reason,))
        else:
            windowed = Settled(stable)
        limited = self._limited(current, stable, low, high, now_ms)
        if limited is None:
            return windowed
        return Settled(limited.replicas, limited.held_by, windowed.reasons + limited.reasons)

    def note(self, before: int, after: int, now_ms: float) -> None:
        """Replicas are changed."""
        if before != after:
            self._changes.append((now_ms, after - before))
        period_ms = max(
            (rule.period_ms for rules in (self.up, self.down) for rule in rules.policies),
            default=0.0,
        )
        self._changes = [one for one in self._changes if one[0] > now_ms - period_ms]

    def _stabilized(self, current: int, proposed: int, now_ms: float) -> int:
        up_to = down_to = proposed
        for at_ms, replicas in self._proposals:
            if at_ms > now_ms - self.up.window_ms:
                up_to = min(up_to, replicas)
            if at_ms > now_ms - self.down.window_ms:
                down_to = max(down_to, replicas)
        longest_ms = max(self.up.window_ms, self.down.window_ms)
        self._proposals = [one for one in self._proposals if one[0] > now_ms - longest_ms]
        self._proposals.append((now_ms, proposed))
        return min(max(current, up_to), down_to)

    def _limited(
        self, current: int, wanted: int, low: int, high: int, now_ms: float
    ) -> Settled | None:
        """What limits allow instead; None: `wanted` is within them."""
        if wanted > current:
            rate = max(self._rate_limit(current, self.up, now_ms, is_up=True), current)
            allowed, limit = min(rate, high), f"maximum {high}"
            is_held = wanted > allowed
        else:
            rate = min(self._rate_limit(current, self.down, now_ms, is_up=False), current)
            allowed, limit = max(rate, low), f"minimum {low}"
            is_held = wanted < allowed
        if not is_held:
            return None
        by_rate = allowed == rate and rate not in (low, high)
        reason = f"{wanted} wanted; {f'rate policies allow {rate}' if by_rate else limit}"
        return Settled(allowed, "rate" if by_rate else "limit", (reason,))

    def _rate_limit(self, current: int, rules: ScalingRules, now_ms: float, *, is_up: bool) -> int:
        if rules.select == "disabled":
            return current
        limits = []
        for policy in rules.policies:
            since_ms = now_ms - policy.period_ms
            before = current - sum(change for at_ms, change in self._changes if at_ms > since_ms)
            limits.append(policy.limit_up(before) if is_up else policy.limit_down(before))
        is_highest = is_up == (rules.select == "max")
        return max(limits) if is_highest else min(limits)
