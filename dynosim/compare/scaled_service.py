"""A small service that autoscalers are tried on: its load, its workers, and who may scale them.

A worker computes 10,000 prompt tokens a second and has eight seats, in which a token takes 36 ms:
of requests of 1,000 tokens that get 100 it serves about 1.8 a second. In seconds.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from dynosim.cluster import ClusterSpec, PoolSpec, RunOptions, simulate
from dynosim.cluster.control import ControlPlane, Process, ProcessGenerator
from dynosim.cluster.scaling import ScalingProcess, ScalingSpec, pool_cards
from dynosim.cluster.scenario import ScenarioEvent, play
from dynosim.cluster.spec import DisaggSpec, TransferSpec
from dynosim.compare.pass_rules import TTFT_S
from dynosim.compare.scaled_run import ScaledRun
from dynosim.engine.spec import EngineSpec
from dynosim.memory.kv_transfer import KvGeometry
from dynosim.memory.links import LinkSpec
from dynosim.planner.conflict import Guarded
from dynosim.planner.controller import Controller
from dynosim.planner.decision import PoolDecision, ScalingDecision
from dynosim.planner.forecast import ForecastSpec
from dynosim.planner.hpa import Hpa, HpaSpec
from dynosim.planner.keda import Keda, KedaSpec, KedaTrigger
from dynosim.planner.observation import Observation
from dynosim.planner.planner import Planner
from dynosim.planner.planner_spec import PlannerSpec
from dynosim.planner.queries import PENDING_REQUESTS, TTFT_P95_S, ServiceMetric
from dynosim.records import Trace
from dynosim.router.handoff import HandoffSpec
from dynosim.router.knobs import RouterSpec
from dynosim.router.spec import RoutingSpec
from dynosim.timing.formulas import LinearModel
from dynosim.workers.lifecycle import Phase

ControllerKind = Literal["planner", "hpa", "keda"]
KINDS: tuple[ControllerKind, ...] = ("planner", "hpa", "keda")

ITL_S = 0.06
"""What the planner aims at, beside the TTFT that is in time."""

MAX_WORKERS = 8
DEMAND_INTERVAL_S, MAX_UTILIZATION = 60.0, 0.8
HPA_TTFT_S = 1.0
KEDA_PENDING = 2.0
"""Requests without a first token, for each worker."""

_BLOCK = 16
_ROUTING = RoutingSpec(RouterSpec(_BLOCK, mode="least-loaded"))
_TIMES = LinearModel(
    base_ms=20.0, per_prefill_token_ms=0.1, per_decode_ms=2.0, per_context_token_ms=0.0
)
_ENGINE = EngineSpec(
    num_gpu_blocks=4001,
    max_model_len=8192,
    block_size=_BLOCK,
    max_num_seqs=8,
    max_num_batched_tokens=2048,
)
_GEOMETRY = KvGeometry(layers=32, kv_heads=8, head_dim=128)
_LINK = LinkSpec(name="fast", line_gb_s=None, achieved_gb_s=50.0)


@dataclass(frozen=True, slots=True)
class Stretch:
    """A time of Poisson arrivals at one rate; 0: nobody."""

    until_s: float
    rps: float
    isl: int = 1000
    osl: int = 100


def arrivals(stretches: Sequence[Stretch], seed: int = 1) -> Trace:
    """Requests that share nothing, stretch after stretch; the seed draws their arrivals."""
    random = np.random.default_rng(seed)
    times, isl, osl, from_s = [], [], [], 0.0
    for one in stretches:
        count = int(random.poisson(one.rps * (one.until_s - from_s)))
        times.append(np.sort(random.uniform(from_s, one.until_s, count)))
        isl.append(np.full(count, one.isl, np.int64))
        osl.append(np.full(count, one.osl, np.int64))
        from_s = one.until_s
    arrival_s = np.concatenate(times)
    return Trace(
        arrival_ms=arrival_s * 1e3,
        input_tokens=np.concatenate(isl),
        output_tokens=np.concatenate(osl),
        hash_ids=np.zeros(0, np.int64),
        hash_offsets=np.zeros(len(arrival_s) + 1, np.int64),
        trace_block_size=_BLOCK,
    )


def one_pool(workers: int, *, start_s: float = 30.0) -> ClusterSpec:
    """Workers that do all of a request; those of the start are ready."""
    pool = PoolSpec(engine=_ENGINE, times=_TIMES, workers=workers, startup_ms=start_s * 1e3)
    return ClusterSpec(pools=(pool,), routing=_ROUTING)


def two_pools(prefill: int, decode: int, *, start_s: float = 30.0) -> ClusterSpec:
    """Prefill and decode workers with links that cost next to nothing."""
    first, second = one_pool(prefill, start_s=start_s), one_pool(decode, start_s=start_s)
    (a,), (b,) = first.pools, second.pools
    return ClusterSpec(
        pools=(
            replace(a, name="prefill", role="prefill",
                    engine=replace(a.engine, kv_role="kv_producer")),
            replace(b, name="decode", role="decode",
                    engine=replace(b.engine, kv_role="kv_consumer")),
        ),
        routing=_ROUTING,
        disagg=DisaggSpec(
            handoff=HandoffSpec(),
            transfer=TransferSpec(link=_LINK, geometry=_GEOMETRY),
            decode_routing=_ROUTING,
        ),
    )  # fmt: skip


class Hand:
    """Somebody who sets the workers of a pool by hand, at given seconds."""

    name = "hand"

    def __init__(self, pool: str, edits: Sequence[tuple[float, int]]) -> None:
        self._pool = pool
        self._edits = [*edits]

    @property
    def next_ms(self) -> float:
        """See `Controller`."""
        return self._edits[0][0] * 1e3 if self._edits else float("inf")

    def look(self, seen: Observation) -> ScalingDecision | None:
        """See `Controller`."""
        _, target = self._edits.pop(0)
        pool = seen.pool(self._pool)
        found = PoolDecision(self._pool, pool.wanted, target, "by_hand")
        return ScalingDecision(seen.now_ms, self.name, (found,))


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaledService:
    """A service, its load, what happens to it, and within which limits it is scaled.

    `pools`: those that are scaled; a planner scales all of them, of others each has its own.
    `gpu_budget` is for all together. `learns`: the planner is told no step times. `slow_start_s`:
    so long a new worker's steps take eight times as long. `outage`: from and to when no metrics
    come. `is_guarded`: who scales stands back where somebody else does. `hand`: what another sets.
    """

    load: Trace
    cluster: ClusterSpec
    pools: tuple[str, ...] = ("workers",)
    min_workers: int = 1
    gpu_budget: int | None = None
    predictor: ForecastSpec = field(default_factory=ForecastSpec)
    learns: bool = False
    slow_start_s: float = 0.0
    outage: tuple[float, float] | None = None
    events: tuple[ScenarioEvent, ...] = ()
    is_guarded: bool = False
    hand: tuple[tuple[float, int], ...] = ()

    def run(self, kind: ControllerKind) -> ScaledRun:
        """Let a controller of a kind scale it."""
        return self.run_under(CONTROLLERS[kind](self))

    def run_under(self, controllers: Sequence[Controller]) -> ScaledRun:
        """Let these scale it."""
        outages = () if self.outage is None else ((self.outage[0] * 1e3, self.outage[1] * 1e3),)
        spec = ScalingSpec(outages=outages, keeps_metrics=False)
        scaled = [
            ScalingProcess(Guarded(one) if self.is_guarded else one, spec) for one in controllers
        ]
        others: list[Process] = [*play(self.events)]
        if self.slow_start_s:
            others.append(_slow_starts(self.slow_start_s))
        if self.hand:
            others.append(ScalingProcess(Hand(self.pools[0], self.hand), spec))
        options = RunOptions(waits_for_workers=True)
        result = simulate(self.load, self.cluster, options, processes=[*scaled, *others])
        decisions = [look.decision for one in scaled for look in one.looks if look.decision]
        return ScaledRun.of(result, decisions)


def planner_spec(service: ScaledService) -> PlannerSpec:
    """How a planner is set up, in all scenarios alike."""
    roles = {pool.name: pool.role for pool in service.cluster.pools}
    return PlannerSpec(
        mode="disagg" if len(service.pools) > 1 else roles[service.pools[0]],
        optimization_target="sla",
        ttft_ms=TTFT_S * 1e3,
        itl_ms=ITL_S * 1e3,
        throughput_adjustment_interval_ms=DEMAND_INTERVAL_S * 1e3,
        enable_load_scaling=True,
        max_gpu_budget=service.gpu_budget,
        min_endpoint=service.min_workers,
        max_endpoint=MAX_WORKERS,
        max_utilization=MAX_UTILIZATION,
        load_predictor=service.predictor,
    )


def make_planner(service: ScaledService, spec: PlannerSpec) -> Planner:
    """A planner of a service."""
    times = {pool.name: pool.times for pool in service.cluster.pools}
    return Planner(spec, pool_cards(service.cluster), None if service.learns else times)


def _planner(service: ScaledService) -> list[Controller]:
    return [make_planner(service, planner_spec(service))]


def _hpa(service: ScaledService) -> list[Controller]:
    metric = ServiceMetric(name="ttft_p95_s", query=TTFT_P95_S, target=HPA_TTFT_S)
    return [
        Hpa(
            HpaSpec(
                pool=pool,
                metrics=(metric,),
                min_replicas=service.min_workers,
                max_replicas=MAX_WORKERS,
            )
        )
        for pool in service.pools
    ]


def _keda(service: ScaledService) -> list[Controller]:
    metric = ServiceMetric(
        name="pending_requests", query=PENDING_REQUESTS, target=KEDA_PENDING, is_average=True
    )
    return [
        Keda(
            KedaSpec(
                pool=pool,
                triggers=(KedaTrigger(metric=metric),),
                min_replicas=service.min_workers,
                max_replicas=MAX_WORKERS,
            )
        )
        for pool in service.pools
    ]


CONTROLLERS: dict[ControllerKind, Callable[[ScaledService], list[Controller]]] = {
    "planner": _planner,
    "hpa": _hpa,
    "keda": _keda,
}
"""Who scales a service, by kind; each decides anew, with nothing known of other runs."""


def _slow_starts(for_s: float) -> Process:
    """New workers are slow at first: they compile and fill caches."""

    def process(control: ControlPlane) -> ProcessGenerator:
        slow_until_s = {worker.worker_id: 0.0 for worker in control.workers}
        while True:
            now_s = control.now_ms / 1e3
            for worker in control.workers:
                if worker.phase is not Phase.READY:
                    continue
                if worker.worker_id not in slow_until_s:
                    slow_until_s[worker.worker_id] = now_s + for_s
                    control.slow(worker.worker_id, _SLOW_FACTOR)
                elif 0.0 < slow_until_s[worker.worker_id] <= now_s:
                    slow_until_s[worker.worker_id] = 0.0
                    control.slow(worker.worker_id, 1.0)
            yield control.env.timeout(500.0)

    return process


_SLOW_FACTOR = 8.0
