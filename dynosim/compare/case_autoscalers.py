"""Published examples of HPA and KEDA, step by step, on made-up metrics: no service behind them."""

from collections.abc import Sequence
from itertools import pairwise
from math import inf

from dynosim.compare.case_kit import Outcome, equal
from dynosim.planner.controller import Controller
from dynosim.planner.decision import ScalingDecision
from dynosim.planner.hpa import Hpa, HpaSpec
from dynosim.planner.keda import Keda, KedaSpec, KedaTrigger
from dynosim.planner.queries import PENDING_REQUESTS, TTFT_P95_S, Query, ServiceMetric
from dynosim.planner.rehearsal import Metrics, Rehearsal, targets
from dynosim.planner.scaling_rules import ScalingPolicy, ScalingRules

_UP = ScalingRules(window_ms=0.0, policies=(ScalingPolicy("pods", 2, 30_000.0),))
_DOWN = ScalingRules(window_ms=60_000.0, policies=(ScalingPolicy("pods", 1, 30_000.0),))
_METRIC = "metric"
_BUCKET = "dynamo_frontend_time_to_first_token_seconds_bucket"
_QUEUED = 'dynamo_frontend_stage_requests{phase="",stage="dispatch"}'


def autoscaler_rules() -> list[Outcome]:
    """Climb and descent of an HPA on TTFT, and what moves neither it nor KEDA."""
    climb = _steps(_decisions(_hpa(TTFT_P95_S, 0.5), _ttft(4.0)))
    descent = _decisions(_hpa(TTFT_P95_S, 0.5), _ttft(4.0, until_s=900.0, then_s=0.09), workers=10)
    high_s = max(one.now_ms / 1e3 for one in descent if one.pools[0].figures.get(_METRIC, 0.0) > 1)
    down = [step for step in _steps(descent) if step[0] > high_s]
    idle = _steps(_decisions(_keda(min_replicas=0), _ttft(0.09), workers=0))
    woken = _steps(_decisions(_keda(min_replicas=0), _ttft(0.3), workers=0))
    queues = (10, 11, 12, 25)
    grown = [_steps(_decisions(_hpa(PENDING_REQUESTS, 10.0), _queue(n)))[0][1] for n in queues]
    return [
        equal("overload: workers", [1, 3, 5, 7, 9, 10], _workers(climb)),
        equal("overload: s from step to step", [30] * 4, _apart_s(climb[1:])),
        equal("descent: workers", [9, 8, 7, 6, 5, 4, 3, 2, 1], _workers(down)),
        equal("descent: s after the last look at an overload", 60, down[0][0] - high_s),
        equal("descent: s from step to step", [30] * 8, _apart_s(down)),
        equal("HPA, 45m of 500m: workers", [1], _workers(_steps(_still(_hpa(TTFT_P95_S, 0.5))))),
        equal("KEDA, 45m of 500m: workers", [1], _workers(_steps(_still(_keda(min_replicas=1))))),
        equal("KEDA at none, TTFT of 90 ms: workers", [0], _workers(idle)),
        equal("KEDA at none, TTFT of 300 ms: workers", [0, 1], _workers(woken)),
        equal(f"first step at {queues} in the queue", [1, 1, 2, 3], grown),
    ]


def _hpa(query: Query, target: float) -> Hpa:
    metric = ServiceMetric(name=_METRIC, query=query, target=target)
    return Hpa(HpaSpec(pool="pool", metrics=(metric,), max_replicas=10, up=_UP, down=_DOWN))


def _keda(*, min_replicas: int) -> Keda:
    metric = ServiceMetric(name=_METRIC, query=TTFT_P95_S, target=0.5, is_average=True)
    spec = KedaSpec(
        pool="pool",
        triggers=(KedaTrigger(metric=metric, activation=0.1),),
        min_replicas=min_replicas,
        max_replicas=10,
        poll_ms=15_000.0,
        cooldown_ms=60_000.0,
    )
    return Keda(spec)


def _still(controller: Controller) -> list[ScalingDecision]:
    return _decisions(controller, _ttft(0.045))


def _decisions(
    controller: Controller, metrics: Metrics, *, workers: int = 1
) -> list[ScalingDecision]:
    """All decisions of half an hour, in which workers start at once."""
    rehearsal = Rehearsal(
        metrics=metrics, until_ms=1_800_000.0, num_workers=workers, scrape_ms=15_000.0
    )
    return rehearsal.decisions(controller)


def _ttft(first_s: float, *, until_s: float = inf, then_s: float = 0.0) -> Metrics:
    """A request a second, each with the first TTFT, and after `until_s` with another.

    A bucket ends at each, and begins just below it: a quantile is one or the other.
    """
    bounds = sorted({share * ttft_s for ttft_s in (first_s, then_s) for share in (0.999, 1.0)})

    def metrics(now_ms: float, num_ready: int) -> dict[str, float]:
        now_s = now_ms / 1e3
        numbers = ((first_s, min(now_s, until_s)), (then_s, max(now_s - until_s, 0.0)))
        counts = {bound: sum(n for ttft_s, n in numbers if ttft_s <= bound) for bound in bounds}
        values = {f'{_BUCKET}{{le="{bound}"}}': count for bound, count in counts.items()}
        return values | {f'{_BUCKET}{{le="+Inf"}}': now_s}

    return metrics


def _queue(length: int) -> Metrics:
    return lambda now_ms, num_ready: {_QUEUED: float(length)}


def _steps(decisions: list[ScalingDecision]) -> list[tuple[float, int]]:
    return [(at_ms / 1e3, count) for at_ms, count in targets(decisions)]


def _workers(steps: Sequence[tuple[float, int]]) -> list[int]:
    return [count for _, count in steps]


def _apart_s(steps: Sequence[tuple[float, int]]) -> list[float]:
    return [after - before for (before, _), (after, _) in pairwise(steps)]
