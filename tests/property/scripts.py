"""Random deployments with random scripts of what happens to them, and a controller beside."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
from clusters import equal_workers
from controllers import Script
from disagg_support import ENGINE, pools
from probing import Ask, trace_of
from strategies import (
    pressed_spec,
    pressing_trace,
    random_routing,
    random_spec,
    random_timing,
    random_trace,
    with_lossy_events,
    with_rarer_routing,
)
from test_disagg_laws import KV, PATIENT, TIMES
from test_ranks import random_ranks, with_ranks
from test_tier_laws import LONG_MS, random_tiers, with_tiers

from dynosim.cluster import ClusterSpec, RunOptions, simulate, updates
from dynosim.cluster.control import ControlPlane, Process, ProcessGenerator
from dynosim.cluster.scaling import ScalingProcess, ScalingSpec
from dynosim.cluster.scenario import (
    Crash,
    CutLinks,
    Drain,
    EventTrouble,
    Launch,
    LoseFrontend,
    Replacement,
    ScenarioEvent,
    Slow,
    SpotLoss,
    WorkerTarget,
    play,
)
from dynosim.cluster.spec import with_numbered_events, without_mixing
from dynosim.cluster.updates import Canary, RollingUpdate
from dynosim.errors import ConfigError
from dynosim.planner.look import Look
from dynosim.planner.rolling import RollingLimits
from dynosim.records import RunResult, Trace
from dynosim.router.handoff import ConditionalSpec, HandoffSpec
from dynosim.workers.lifecycle import Phase

RECONCILE_MS = 20.0  # runs last less than a second of virtual time


@dataclass(frozen=True)
class World:
    """A deployment, its load, what happens to it, and who scales it meanwhile."""

    trace: Trace
    cluster: ClusterSpec
    events: list[ScenarioEvent]
    options: dict[str, Any]
    scaling_seed: int | None  # None: nobody

    def run(self, *, exact: bool) -> tuple[RunResult, list[Look]]:
        """One run, and what its controller saw."""
        result, scaler = self.scaled_run(exact=exact)
        return result, [] if scaler is None else scaler.looks

    def scaled_run(self, *, exact: bool = False) -> tuple[RunResult, ScalingProcess | None]:
        """One run, and who scaled it."""
        processes: list[Process] = play([_Gentle(one) for one in self.events])
        scaler = None if self.scaling_seed is None else _scaler(random.Random(self.scaling_seed))
        if scaler is not None:
            processes.append(scaler)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(updates, "RECONCILE_MS", RECONCILE_MS)
            options = RunOptions(**self.options, exact_stepping=exact)
            result = simulate(self.trace, self.cluster, options, processes=processes)
        return result, scaler


class _Gentle:
    """A script's event; who was hit twice, or is gone by then, is let alone."""

    def __init__(self, event: ScenarioEvent) -> None:
        self._event = event
        self.at_ms = event.at_ms

    def happen(self, control: ControlPlane) -> ProcessGenerator:
        is_update = isinstance(self._event, (RollingUpdate, Canary))
        if is_update and not any(one.phase is Phase.READY for one in control.workers):
            return  # a pool of nobody: the update would wait for workers for ever
        try:
            yield from self._event.happen(control)
        except ConfigError as error:
            assert "cannot hang" in str(error) or "gone" in str(error), error


def _scaler(rng: random.Random) -> ScalingProcess:
    """Looks at round times and at others; from no workers to four, one in the end."""
    times_ms = [rng.choice([rng.uniform(0, 900), 50.0 * rng.randint(0, 18)]) for _ in range(6)]
    targets = [rng.choice([0, 1, 1, 2, 3, 4]) for _ in range(8)] + [1]
    spec = ScalingSpec(
        scrape_interval_ms=rng.choice([25.0, 33.3]),
        metric_lag_ms=rng.choice([0.0, 40.0]),
        actuation_delay_ms=rng.choice([0.0, 60.0]),
        max_passes=rng.choice([3, 16]),
        max_wait_ms=3000.0,
    )
    return ScalingProcess(Script([*times_ms, 2000.0], targets), spec)


def random_events(
    rng: random.Random, cluster: ClusterSpec, span_ms: float
) -> Iterator[ScenarioEvent]:
    """Things that may happen to this cluster, some of them to workers that are gone by then."""
    routing = cluster.routing
    has_lost = False
    for _ in range(rng.randint(1, 6)):
        at_ms = rng.uniform(0.0, span_ms)
        pool = rng.choice([pool for pool in cluster.pools if pool.workers])
        target = WorkerTarget(pool.name, rng.randrange(pool.workers))
        kind = rng.choice(["start", "start", "takeover", "none"])
        replacement = Replacement(kind=kind, after_ms=rng.choice([0.0, 30.0]), takeover_ms=20.0)
        detect_ms = rng.uniform(1.0, 200.0)
        choices: list[ScenarioEvent] = [
            Launch(at_ms=at_ms, pool=pool.name),
            Drain(at_ms=at_ms, target=target),
            Crash(at_ms=at_ms, target=target, replacement=replacement),
            Crash(at_ms=at_ms, target=target, detect_ms=detect_ms, replacement=replacement),
            SpotLoss(at_ms=at_ms, target=target, notice_ms=40.0, replacement=replacement),
            Slow(at_ms=at_ms, target=target, factor=rng.choice([0.5, 3.0]), for_ms=90.0),
            random_update(rng, cluster, at_ms),
        ]
        if cluster.disagg is not None:
            choices += [CutLinks(at_ms=at_ms, for_ms=rng.uniform(1.0, 100.0))] * 2
        if routing is not None and routing.frontends > 1 and not has_lost:
            choices.append(LoseFrontend(at_ms=at_ms, number=0, for_ms=50.0))
        if hears_numbers(cluster):
            choices.append(
                EventTrouble(
                    at_ms=at_ms,
                    for_ms=rng.uniform(1.0, 200.0),
                    target=rng.choice([None, target]),
                    lost_share=rng.choice([0.0, 0.5, 1.0]),
                    delay_ms=rng.choice([0.0, 30.0]),
                )
            )
        if cluster.mixes_no_generations:
            counts = {one.name: rng.randint(1, 2) for one in cluster.pools}
            for_ms = rng.choice([None, 100.0])
            choices.append(Canary(at_ms=at_ms, share=0.4, counts=counts, for_ms=for_ms))
        chosen = rng.choice(choices)
        has_lost |= isinstance(chosen, LoseFrontend)
        yield chosen


def random_update(rng: random.Random, cluster: ClusterSpec, at_ms: float) -> RollingUpdate:
    """Of one pool or of all."""
    names = [pool.name for pool in cluster.pools]
    limits = rng.choice([RollingLimits(1, 0), RollingLimits(0, 1), RollingLimits(0.25, 0.25)])
    share = rng.choice([1.0, 1.0, 0.5])
    chosen = tuple(rng.choice([names, names[:1]]))
    return RollingUpdate(at_ms=at_ms, pools=chosen, limits=limits, share=share)


def hears_numbers(cluster: ClusterSpec) -> bool:
    """Whether some router would notice that KV events are lost."""
    routings = [cluster.routing]
    if cluster.disagg is not None:
        routings.append(cluster.disagg.decode_routing)
    heard = [one for one in routings if one is not None and one.follows_caches]
    return any(one.numbers_events for one in heard)


def aggregated(seed: int) -> World:
    """Some with tiers, some with ranks."""
    rng = random.Random(seed)
    has_tiers = rng.random() < 0.3
    options: dict[str, Any] = {"until_ms": LONG_MS if has_tiers else 20_000.0}
    if has_tiers:
        trace = pressing_trace(rng)
        spec = replace(pressed_spec(rng, trace), enable_prefix_caching=True)
    else:
        trace = random_trace(rng)
        spec = random_spec(rng, trace)
    timing = random_timing(rng, spec)
    routing = random_routing(rng, spec)
    if not has_tiers and rng.random() < 0.5:
        routing = with_rarer_routing(routing, timing, spec)
    cluster = equal_workers(spec, timing, num_workers=rng.randint(1, 3), routing=routing)
    if has_tiers:
        cluster = with_tiers(cluster, random_tiers(rng, spec))
    elif rng.random() < 0.25:
        ranks = random_ranks(rng, number=2, in_lock_step=rng.random() < 0.5)
        cluster = with_ranks(cluster, replace(ranks, rule=None))
    return _world(rng, trace, cluster, float(trace.arrival_ms[-1]) + 500.0, options)


def disaggregated(seed: int) -> World:
    """In either order, with links of any speed, some with tiers at the prefill workers."""
    rng = random.Random(seed)
    conditional = None
    if rng.random() < 0.4:
        conditional = ConditionalSpec(eff_isl_threshold=30, eff_isl_ratio_threshold=1.1)
    engine = replace(
        ENGINE,
        num_gpu_blocks=1 + rng.choice([30, 40, 90]),
        max_model_len=110,
        max_num_seqs=rng.choice([1, 3, 8]),
        max_num_batched_tokens=rng.choice([16, 64]),
        async_scheduling=rng.random() < 0.5,
        enable_prefix_caching=rng.random() < 0.7,
    )
    routing = KV if conditional else rng.choice([None, KV, PATIENT])
    cluster = pools(
        prefill=rng.randint(1, 3),
        decode=rng.randint(1, 3),
        gb_s=rng.choice([0.0001, 0.001, 0.1]),
        engine=engine,
        times=TIMES,
        handoff=HandoffSpec(
            order=rng.choice(["prefill_first", "decode_first"]),
            first_token=rng.choice(["decode", "prefill"]),
            conditional=conditional,
        ),
        failure_policy=rng.choice(["fail", "recompute"]),
        moves=rng.choice(["full_prompt", "destination_missing"]),
        exposed_share=rng.choice([0.3, 1.0]),
        places=({"node": ("a", "b")}, {"node": ("a", "b")}),
        uplinks=rng.choice([{}, {"node": 0.0005}]),
        routing=routing,
        decode_routing=routing,
    )
    if engine.enable_prefix_caching and rng.random() < 0.3:
        tiered = with_tiers(replace(cluster, pools=cluster.pools[:1], disagg=None),
                            random_tiers(rng, cluster.pools[0].engine))  # fmt: skip
        cluster = replace(cluster, pools=(*tiered.pools, *cluster.pools[1:]))
    return _world(rng, random_handoff_trace(rng), cluster, 600.0, {"until_ms": LONG_MS})


def random_handoff_trace(rng: random.Random) -> Trace:
    """Prompts with shared beginnings, some of which come again."""
    asks: list[Ask] = []
    now_ms = 0.0
    for index in range(rng.randint(1, 25)):
        now_ms += rng.choice([0.0, rng.uniform(0, 10), rng.uniform(0, 40)])
        shared = tuple(range(rng.randint(0, 6)))
        own = tuple(1000 + 50 * index + i for i in range(rng.randint(1, 12)))
        outputs = rng.randint(1, 30)
        ask = Ask(now_ms, (*shared, *own), 0, outputs, rng.randint(1, 4))
        if asks and rng.random() < 0.25:
            ask = replace(asks[0], at_ms=now_ms, output_tokens=outputs)
        asks.append(ask)
    return trace_of(asks, 4)


def _world(
    rng: random.Random,
    trace: Trace,
    cluster: ClusterSpec,
    span_ms: float,
    options: dict[str, Any],
) -> World:
    startup_ms = rng.choice([0.0, 35.0, 100.0])
    cluster = replace(
        cluster, pools=tuple(replace(pool, startup_ms=startup_ms) for pool in cluster.pools)
    )
    if cluster.routing is not None and rng.random() < 0.4:
        cluster = with_numbered_events(cluster)
    if rng.random() < 0.4:
        cluster = without_mixing(cluster)
    events = list(random_events(rng, cluster, span_ms))
    is_scaled = rng.random() < 0.4
    options |= {
        "migration_limit": rng.choice([None, 0, 1, 2]),
        "client_timeout_ms": rng.choice([None, None, 80.0, 300.0]),
        "waits_for_workers": is_scaled and rng.random() < 0.7,
    }
    scaling_seed = rng.getrandbits(32) if is_scaled else None
    return World(trace, _with_lossy_events(rng, cluster), events, options, scaling_seed)


def _with_lossy_events(rng: random.Random, cluster: ClusterSpec) -> ClusterSpec:
    """Now and then with KV events that get lost or overtake each other, at all pools alike."""
    routing, disagg = cluster.routing, cluster.disagg
    if routing is not None:
        cluster = replace(cluster, routing=with_lossy_events(rng, routing))
    if disagg is not None and disagg.decode_routing is not None:
        decode_routing = with_lossy_events(rng, disagg.decode_routing)
        cluster = replace(cluster, disagg=replace(disagg, decode_routing=decode_routing))
    return cluster
