"""`keda:` and `concurrency:`, autoscalers that may scale to none; an HPA stands by the planner."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from dynosim.config.base import (
    Amount,
    Count,
    NotNegative,
    PositiveMs,
    Rule,
    Section,
    Share,
    check_rules,
)


class ScalingPolicyConfig(Section):
    """How far a change may go within a time."""

    kind: Literal["pods", "percent"]
    """Of what `value` is a number: workers, or percent of them."""
    value: Amount
    """At most so many more or fewer. Unit: workers, or percent."""
    period_ms: PositiveMs
    """Within which time."""


class ScalingRulesConfig(Section):
    """What holds changes in one direction back; a missing key is as Kubernetes has it."""

    window_ms: NotNegative | None = None
    """The least extreme wish of so long a time counts; null: 0 up, 300,000 down."""
    policies: Annotated[tuple[ScalingPolicyConfig, ...], Field(strict=False)] | None = None
    """How far changes may go; null: up by 4 or by 100 % in 15 s, down by 100 %."""
    select: Literal["max", "min", "disabled"] = "max"
    """Which of several policies counts: what allows the most or the least; or no change at all."""
    tolerance: Share | None = None
    """Deviation that changes nothing in this direction; null: as for both. Unit: share."""

    @model_validator(mode="after")
    def _rules(self) -> Self:
        is_empty = self.policies == () and self.select != "disabled"
        check_rules([("policies", is_empty, "none", "give one, or set select: disabled")])
        return self


class KedaTriggerConfig(Section):
    """A figure of the frontend, and what it should be."""

    metric: Literal["ttft_p95_s", "pending_requests", "waiting_requests"]
    """What it looks at: the 95th percentile of the time to the first token over five minutes;
    requests without a first token; or requests that no worker has."""
    target: Annotated[float, Field(ge=0.001)]
    """What that should be. Unit: s, or requests."""
    is_average: bool = True
    """Whether the target is one worker's share of the figure, not the figure itself."""
    activation: NotNegative = 0.0
    """Above it the pool is not idle. Unit: as of the target."""
    poll_ms: NotNegative = 0.0
    """The figure is read at multiples of it only; 0: whenever it is asked for."""


class KedaConfig(Section):
    """A ScaledObject of KEDA of one pool."""

    pool: str | None = None
    """Pool that it scales, `prefill` or `decode`; null: the only one."""
    triggers: Annotated[tuple[KedaTriggerConfig, ...], Field(strict=False, min_length=1)]
    """What it looks at; the figure that asks for the most workers counts."""
    min_replicas: Amount = 0
    """Fewest workers; at 0 there are none while nobody comes. Unit: workers."""
    max_replicas: Count = 100
    """Most workers. Unit: workers."""
    poll_ms: PositiveMs = 30_000.0
    """How often it looks whether the pool is idle."""
    cooldown_ms: NotNegative = 300_000.0
    """How long it must have been idle before the last worker goes."""
    initial_cooldown_ms: NotNegative = 0.0
    """How long after the start of the run no last worker goes."""
    scale_up: ScalingRulesConfig = ScalingRulesConfig.model_construct()
    """What holds growth back."""
    scale_down: ScalingRulesConfig = ScalingRulesConfig.model_construct()
    """What holds shrinking back, but from one to none."""
    tolerance: Share = 0.1
    """Deviation from a target that changes nothing. Unit: share."""
    sync_ms: PositiveMs = 15_000.0
    """How often its HPA looks, which decides from one worker on."""

    @model_validator(mode="after")
    def _rules(self) -> Self:
        names = [trigger.metric for trigger in self.triggers]
        check_rules(
            [
                _not_crossed(self.min_replicas, self.max_replicas),
                ("triggers", len(set(names)) < len(names), "two on the same metric",
                 "keep the one that is to count"),
            ]
        )  # fmt: skip
        return self


class ConcurrencyConfig(Section):
    """An autoscaler of one pool by requests in flight, with Knative's defaults."""

    pool: str | None = None
    """Pool that it scales, `prefill` or `decode`; null: the only one."""
    selector: str = "dynamo_frontend_active_requests"
    """Gauges of the frontend that are added up, in Prometheus' words."""
    target: Annotated[float, Field(ge=0.001)] = 100.0
    """Requests in flight that a worker can take. Unit: requests."""
    utilization: Annotated[float, Field(gt=0, le=1)] = 0.7
    """Share of the target that is aimed at. Unit: share."""
    min_replicas: Amount = 0
    """Fewest workers; at 0 there are none while nobody comes. Unit: workers."""
    max_replicas: Count
    """Most workers. Unit: workers."""
    tick_ms: PositiveMs = 2_000.0
    """How often it looks."""
    stable_ms: PositiveMs = 60_000.0
    """Over which window requests in flight are averaged."""
    panic_share: Annotated[float, Field(gt=0, le=1)] = 0.1
    """The panic window, as a part of the stable one. Unit: share."""
    panic_threshold: Annotated[float, Field(ge=1)] = 2.0
    """Panic begins if its window asks for so many times the ready workers. Unit: factor."""
    max_growth: Annotated[float, Field(gt=1)] = 1000.0
    """At most so many times the ready workers at once. Unit: factor."""
    max_shrinkage: Annotated[float, Field(gt=1)] = 2.0
    """At least the ready workers through this at once. Unit: factor."""
    grace_ms: NotNegative = 30_000.0
    """How long the last worker stays when it is wanted no more."""

    @model_validator(mode="after")
    def _rules(self) -> Self:
        check_rules([_not_crossed(self.min_replicas, self.max_replicas)])
        return self


def _not_crossed(least: int, most: int) -> Rule:
    return ("min_replicas", least > most, f"more than max_replicas, {most}", "lower it")
