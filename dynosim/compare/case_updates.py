"""Published case of rolling updates: their arithmetic, pairs across generations, and the hash."""

from dataclasses import replace
from typing import Any

from dynosim.build.worker_hash import workers_hash
from dynosim.cluster import ClusterSpec, PoolSpec, simulate
from dynosim.cluster.control import ControlPlane, ProcessGenerator
from dynosim.cluster.scenario import play
from dynosim.cluster.spec import DisaggSpec, TransferSpec, without_mixing
from dynosim.cluster.updates import RollingUpdate
from dynosim.compare.case_kit import Outcome, alike, equal, large_engine
from dynosim.engine.spec import KV_ROLES
from dynosim.memory.kv_transfer import KvGeometry
from dynosim.memory.links import LINKS
from dynosim.metrics import summarize
from dynosim.planner.rolling import USUAL_LIMITS, RollingLimits
from dynosim.records import Trace
from dynosim.router.handoff import HandoffSpec
from dynosim.router.knobs import RouterSpec
from dynosim.router.spec import RoutingSpec
from dynosim.timing.formulas import LinearModel
from dynosim.workers.lifecycle import Phase

START_MS, UPDATE_AT_MS, LOOK_MS = 20_000.0, 10_000.0, 250.0
ANSWER_TOKENS, GAP_MS = 400, 250.0
_TIMES = LinearModel(
    base_ms=8.0, per_prefill_token_ms=0.02, per_decode_ms=0.2, per_context_token_ms=0.0
)
_KV = RoutingSpec(RouterSpec(16, mode="kv"))


def rolling_updates() -> list[Outcome]:
    """Ready and present workers of updates, what they mix, and when one is needed at all."""
    found: list[Outcome] = []
    for replicas, limits, name in (
        (4, RollingLimits(1, 0), "1/0"),
        (8, RollingLimits(0, 2), "0/2"),
    ):
        fewest, most = _extremes(replicas, limits)
        surge, unavailable = limits.workers(replicas)
        claim = f"{replicas} replicas, surge/unavailable {name}"
        found.append(equal(f"{claim}: never fewer ready", replicas - unavailable, fewest))
        found.append(equal(f"{claim}: never more at once", replicas + surge, most))
    for replicas, expected in ((1, (1, 0)), (10, (3, 2))):
        claim = f"25 %/25 % of {replicas}: surge and unavailable"
        found.append(equal(claim, expected, USUAL_LIMITS.workers(replicas)))
    apart, mixed = _across(isolated=True), _across(isolated=False)
    found += [
        equal("isolated generations: requests served by two of them", 0, apart),
        Outcome("mixed generations: the same (published: some)", "some", str(mixed), mixed > 0),
    ]
    before = workers_hash(_specs())
    return [
        *found,
        equal(
            "another number of replicas leaves the hash",
            before[:16],
            workers_hash(_specs(replicas=9))[:16],
        ),
        Outcome(
            "another image moves it",
            "another hash",
            workers_hash(_specs(image="engine:1.1"))[:16],
            workers_hash(_specs(image="engine:1.1")) != before,
        ),
        Outcome(
            "another engine argument of one pool moves it",
            "another hash",
            workers_hash(_specs(args=["--max-num-seqs", "64"]))[:16],
            workers_hash(_specs(args=["--max-num-seqs", "64"])) != before,
        ),
    ]


class _Extremes:
    """The fewest ready workers and the most that hold GPUs, of all moments looked at."""

    def __init__(self) -> None:
        self.fewest = 10**9
        self.most = 0

    def __call__(self, control: ControlPlane) -> ProcessGenerator:
        while True:
            phases = [worker.phase for worker in control.workers]
            over = phases.count(Phase.GONE) + phases.count(Phase.FAILED)
            self.fewest = min(self.fewest, phases.count(Phase.READY))
            self.most = max(self.most, len(phases) - over)
            yield control.env.timeout(LOOK_MS)


def _extremes(replicas: int, limits: RollingLimits) -> tuple[int, int]:
    pool = PoolSpec(engine=large_engine(), times=_TIMES, workers=replicas, startup_ms=START_MS)
    seen = _Extremes()
    update = RollingUpdate(at_ms=UPDATE_AT_MS, pools=(pool.name,), limits=limits)
    cluster = ClusterSpec(pools=(pool,))
    simulate(_steady(1200), cluster, processes=[*play([update]), seen])
    return seen.fewest, seen.most


def _across(*, isolated: bool) -> int:
    """Requests that workers of two generations served while both pools were updated."""
    pools = tuple(
        PoolSpec(
            name=role,
            role=role,
            engine=replace(large_engine(), kv_role=KV_ROLES[role]),
            times=_TIMES,
            workers=4,
            startup_ms=START_MS,
        )
        for role in ("prefill", "decode")
    )
    geometry = KvGeometry(layers=32, kv_heads=8, head_dim=128)
    cluster = ClusterSpec(
        pools=pools,
        routing=_KV,
        disagg=DisaggSpec(
            handoff=HandoffSpec(),
            transfer=TransferSpec(link=LINKS["nvlink"], geometry=geometry),
            decode_routing=_KV,
        ),
    )
    if isolated:
        cluster = without_mixing(cluster)
    update = RollingUpdate(at_ms=UPDATE_AT_MS, pools=("prefill", "decode"))
    result = simulate(_steady(800), cluster, processes=play([update]))
    report = summarize(result, _TIMES, sla=None, wall_time_ms=0.0, prefill_timing=_TIMES)
    return int(report["cross_generation_requests"])


def _steady(count: int) -> Trace:
    return alike(count, inputs=512, outputs=ANSWER_TOKENS, gap_ms=GAP_MS)


def _specs(**changes: Any) -> dict[str, dict[str, Any]]:
    worker = {"image": "engine:1.0", "args": ["--max-num-seqs", "256"], "replicas": 4}
    return {"prefill": worker | changes, "decode": worker}
