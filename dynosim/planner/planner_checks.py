"""What of a planner's spec cannot be, said before it starts."""

from collections.abc import Sequence

from dynosim.planner.forecast import FORECASTERS
from dynosim.planner.observation import PoolCard
from dynosim.planner.planner_spec import ROLES, PlannerSpec


def check_spec(spec: PlannerSpec, cards: Sequence[PoolCard]) -> None:
    """See that spec and cards go together; `cards`: those that are scaled.

    Raises: ValueError with all that is wrong, a line each.
    """
    wrong = [
        *_wrong_pools(spec, cards),
        *_wrong_numbers(spec),
        *_wrong_intervals(spec),
        *_wrong_limits(spec, cards),
        *_wrong_thresholds(spec, cards),
    ]
    if wrong:
        raise ValueError("\n".join(wrong))


def _wrong_pools(spec: PlannerSpec, cards: Sequence[PoolCard]) -> list[str]:
    found = [card.role for card in cards]
    return [
        f"mode {spec.mode} scales one {role} pool, there are {found.count(role)}"
        for role in ROLES[spec.mode]
        if found.count(role) != 1
    ]


def _wrong_numbers(spec: PlannerSpec) -> list[str]:
    positive = (
        "ttft_ms",
        "itl_ms",
        "throughput_adjustment_interval_ms",
        "load_adjustment_interval_ms",
        "max_throughput_scaling_replicas",
        "max_utilization",
        "max_num_fpm_samples",
        "fpm_sample_bucket_size",
        "load_min_observations",
        "load_scaling_down_sensitivity",
        "max_metric_age_ms",
    )
    wrong = [
        f"{name}: expected more than 0, got {getattr(spec, name)}"
        for name in positive
        if not getattr(spec, name) > 0
    ]
    wrong += [
        f"{name}: expected at least 0, got {getattr(spec, name)}"
        for name in (
            "speculative_nextn",
            "scale_down_headroom",
            "scale_down_stabilization_ms",
            "fpm_warmup_ms",
        )
        if not getattr(spec, name) >= 0
    ]
    if not 0 < spec.tail_quantile < 1:
        wrong.append(f"tail_quantile: expected a number between 0 and 1, got {spec.tail_quantile}")
    side = round(max(0, spec.fpm_sample_bucket_size) ** 0.5)
    if side * side != spec.fpm_sample_bucket_size:
        wrong.append(
            f"fpm_sample_bucket_size: expected a square number, got {spec.fpm_sample_bucket_size}"
        )
    return wrong + _wrong_predictor(spec)


def _wrong_predictor(spec: PlannerSpec) -> list[str]:
    predictor = spec.load_predictor
    wrong = [
        f"load_predictor.{name}: expected at least {least}, got {getattr(predictor, name)}"
        for name, least in (
            ("min_points", 1),
            ("window_points", 5),
            ("average_points", 1),
            ("season_points", 2),
            ("kalman_q_level", 0),
            ("kalman_q_trend", 0),
        )
        if getattr(predictor, name) < least
    ]
    if not predictor.kalman_r > 0:
        wrong.append(f"load_predictor.kalman_r: expected more than 0, got {predictor.kalman_r}")
    if predictor.method not in FORECASTERS:
        known = ", ".join(FORECASTERS)
        wrong.append(f"load_predictor.method: {predictor.method} is none of {known}")
    return wrong


def _wrong_intervals(spec: PlannerSpec) -> list[str]:
    if not (spec.scales_by_demand or spec.scales_by_load):
        return ["neither throughput nor load scaling is enabled: nothing would ever be decided"]
    long_ms, short_ms = spec.throughput_adjustment_interval_ms, spec.load_adjustment_interval_ms
    if spec.scales_by_demand and spec.scales_by_load and short_ms >= long_ms:
        return [
            f"load_adjustment_interval_ms: expected less than throughput_adjustment_interval_ms "
            f"({long_ms:g}), got {short_ms:g}"
        ]
    return []


def _wrong_limits(spec: PlannerSpec, cards: Sequence[PoolCard]) -> list[str]:
    wrong, least_gpus = [], 0
    for card in cards:
        least, most = spec.min_replicas(card.role), spec.max_replicas(card.role)
        least_gpus += least * card.gpus_per_worker
        if least < 0:
            wrong.append(f"pool {card.name}: a minimum of {least} replicas; expected at least 0")
        if most is not None and most < max(1, least):
            wrong.append(
                f"pool {card.name}: max_endpoint: {most}, expected at least 1 and min_endpoint, "
                f"which is {least} (raise the one or lower the other)"
            )
    budget, floor = spec.max_gpu_budget, spec.min_gpu_budget
    if budget is not None and least_gpus > budget:
        wrong.append(
            f"max_gpu_budget: {budget}, but the fewest workers have {least_gpus} GPUs (raise it to "
            "that, or lower min_endpoint)"
        )
    if budget is not None and floor is not None and floor > budget:
        wrong.append(f"min_gpu_budget: {floor} is more than max_gpu_budget, {budget} (lower it)")
    return wrong


def _wrong_thresholds(spec: PlannerSpec, cards: Sequence[PoolCard]) -> list[str]:
    target = spec.optimization_target
    wrong = []
    for card in cards:
        is_prefill = card.role == "prefill"
        if target == "load":
            wrong += _wrong_load(spec, "prefill" if is_prefill else "decode")
        size_name = "max_model_len" if is_prefill else "max_kv_tokens"
        needs_size = target in ("throughput", "latency") or (target == "load" and not is_prefill)
        if needs_size and not getattr(card, size_name):
            wrong.append(f"pool {card.name}: target {target} needs its {size_name}")
    return wrong


def _wrong_load(spec: PlannerSpec, role: str) -> list[str]:
    unit = "queue_tokens" if role == "prefill" else "kv_rate"
    up, down = (getattr(spec, f"{role}_scale_{way}_{unit}") for way in ("up", "down"))
    if up is None or down is None:
        return [f"{role}_scale_up_{unit} and {role}_scale_down_{unit}: target load needs both"]
    if not 0 <= down < up:
        return [
            f"{role}_scale_down_{unit}: expected at least 0 and less than "
            f"{role}_scale_up_{unit} ({up:g}), got {down:g}"
        ]
    return []
