"""From the configured scenario to what happens in a run."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from dynosim.build.engine import require_long_prompts
from dynosim.cluster.scenario import (
    Crash,
    CutLinks,
    Drain,
    EventTrouble,
    Launch,
    LoseFrontend,
    PlaceTarget,
    Replacement,
    ScenarioEvent,
    Slow,
    SpotLoss,
    Target,
    WorkerTarget,
)
from dynosim.cluster.spec import ClusterSpec, PoolSpec
from dynosim.cluster.updates import Canary, RollingUpdate
from dynosim.config.base import stated_in
from dynosim.config.scenario import (
    ALL_WORKERS,
    ON_KV_EVENTS,
    NewWorkersConfig,
    ScenarioEventConfig,
)
from dynosim.engine.room import require_room
from dynosim.errors import InfeasibleError
from dynosim.planner.rolling import RollingLimits
from dynosim.timing.scaled import ScaledModel


def scenario_events(
    events: Sequence[ScenarioEventConfig], cluster: ClusterSpec
) -> list[ScenarioEvent]:
    """What happens to a cluster, in order.

    Raises: InfeasibleError if an engine of a new generation cannot serve the longest requests.
    """
    made = []
    for number, event in enumerate(events):
        try:
            made.append(_MAKERS[event.action](event, cluster))
        except InfeasibleError as error:
            raise InfeasibleError(f"scenario[{number}].{event.action}: {error}") from None
    return made


def keeps_generations_apart(events: Sequence[ScenarioEventConfig]) -> bool:
    """Whether some update says that a request is served by one generation of workers."""
    return any(
        event.canary is not None
        or (event.rolling_update is not None and event.rolling_update.generations == "isolated")
        for event in events
    )


def troubles_kv_events(events: Sequence[ScenarioEventConfig]) -> bool:
    """Whether some KV events are lost or late, which routers have to notice."""
    return any(event.action in ON_KV_EVENTS for event in events)


def _launch(event: ScenarioEventConfig, cluster: ClusterSpec) -> ScenarioEvent:
    assert event.launch is not None
    return Launch(at_ms=event.at_s * 1e3, pool=event.launch, count=event.count)


def _drain(event: ScenarioEventConfig, cluster: ClusterSpec) -> ScenarioEvent:
    return Drain(at_ms=event.at_s * 1e3, target=_target(event))


def _crash(event: ScenarioEventConfig, cluster: ClusterSpec) -> ScenarioEvent:
    detect_ms = 0.0 if event.detect_s is None else event.detect_s * 1e3
    return Crash(
        at_ms=event.at_s * 1e3,
        target=_target(event),
        detect_ms=detect_ms,
        replacement=_replacement(event),
    )


def _spot_loss(event: ScenarioEventConfig, cluster: ClusterSpec) -> ScenarioEvent:
    assert event.notice_s is not None
    return SpotLoss(
        at_ms=event.at_s * 1e3,
        target=_target(event),
        notice_ms=event.notice_s * 1e3,
        replacement=_replacement(event),
    )


def _slow(event: ScenarioEventConfig, cluster: ClusterSpec) -> ScenarioEvent:
    assert event.factor is not None
    return Slow(
        at_ms=event.at_s * 1e3, target=_target(event), factor=event.factor, for_ms=_for_ms(event)
    )


def _partition(event: ScenarioEventConfig, cluster: ClusterSpec) -> ScenarioEvent:
    for_ms = _for_ms(event)
    assert for_ms is not None
    return CutLinks(at_ms=event.at_s * 1e3, for_ms=for_ms)


def _lose_frontend(event: ScenarioEventConfig, cluster: ClusterSpec) -> ScenarioEvent:
    for_ms = _for_ms(event)
    assert for_ms is not None and event.lose_frontend is not None
    return LoseFrontend(at_ms=event.at_s * 1e3, number=event.lose_frontend, for_ms=for_ms)


def _rolling_update(event: ScenarioEventConfig, cluster: ClusterSpec) -> ScenarioEvent:
    update = event.rolling_update
    assert update is not None
    names = update.pools or tuple(pool.name for pool in cluster.pools)
    return RollingUpdate(
        at_ms=event.at_s * 1e3,
        pools=names,
        specs=_new_pools(update, [pool for pool in cluster.pools if pool.name in names]),
        limits=RollingLimits(update.max_surge, update.max_unavailable),
        share=update.share,
    )


def _canary(event: ScenarioEventConfig, cluster: ClusterSpec) -> ScenarioEvent:
    canary = event.canary
    assert canary is not None
    return Canary(
        at_ms=event.at_s * 1e3,
        share=canary.share,
        counts={pool.name: canary.workers for pool in cluster.pools},
        specs=_new_pools(canary, cluster.pools),
        for_ms=_for_ms(event),
    )


def _new_pools(new: NewWorkersConfig, pools: Iterable[PoolSpec]) -> dict[str, PoolSpec]:
    """The workers of a new generation by pool; empty: the same as before."""
    return {} if new.is_the_same else {pool.name: _new_pool(new, pool) for pool in pools}


def _new_pool(new: NewWorkersConfig, pool: PoolSpec) -> PoolSpec:
    engine = replace(pool.engine, **stated_in(new.engine))
    require_room(engine)
    require_long_prompts(engine, engine.max_model_len)
    if new.step_time_factor == 1:
        return replace(pool, engine=engine)
    return replace(
        pool,
        engine=engine,
        times=ScaledModel(pool.times, new.step_time_factor),
        step_time_scale=pool.step_time_scale * new.step_time_factor,
    )


def _event_trouble(event: ScenarioEventConfig, cluster: ClusterSpec) -> ScenarioEvent:
    for_ms = _for_ms(event)
    assert for_ms is not None
    is_loss = event.action == "lose_events"
    return EventTrouble(
        at_ms=event.at_s * 1e3,
        for_ms=for_ms,
        target=None if getattr(event, event.action) == ALL_WORKERS else _target(event),
        lost_share=event.share if is_loss else 0.0,
        delay_ms=0.0 if event.delay_ms is None else event.delay_ms,
    )


_MAKERS: dict[str, Callable[[ScenarioEventConfig, ClusterSpec], ScenarioEvent]] = {
    "launch": _launch,
    "drain": _drain,
    "fail": _crash,
    "hang": _crash,
    "spot_loss": _spot_loss,
    "slow": _slow,
    "partition": _partition,
    "lose_frontend": _lose_frontend,
    "lose_events": _event_trouble,
    "delay_events": _event_trouble,
    "rolling_update": _rolling_update,
    "canary": _canary,
}


def _target(event: ScenarioEventConfig) -> Target:
    """The worker or place that an event is about."""
    text = getattr(event, event.action)
    domain, is_place, value = text.partition("=")
    if is_place:
        return PlaceTarget(domain, value)
    pool, _, number = text.partition("/")
    return WorkerTarget(pool, int(number))


def _replacement(event: ScenarioEventConfig) -> Replacement:
    takeover_ms = 0.0 if event.takeover_s is None else event.takeover_s * 1e3
    return Replacement(
        kind=event.replace, after_ms=event.replace_after_s * 1e3, takeover_ms=takeover_ms
    )


def _for_ms(event: ScenarioEventConfig) -> float | None:
    return None if event.for_s is None else event.for_s * 1e3
