"""Whatever a script does to a cluster: nothing is lost, and runs in bulk are exact."""

import random
from dataclasses import replace

from clusters import equal_workers
from hypothesis import given, settings
from hypothesis import strategies as st
from same_runs import assert_same
from strategies import random_routing, random_spec, random_timing, random_trace, with_rarer_routing
from test_disagg_laws import clusters as disagg_clusters
from test_disagg_laws import traces as disagg_traces

from dynosim.cluster import ClusterSpec, RunOptions, simulate
from dynosim.cluster.control import ControlPlane
from dynosim.cluster.scenario import (
    Crash,
    CutLinks,
    Drain,
    Launch,
    LoseFrontend,
    Replacement,
    ScenarioEvent,
    Slow,
    SpotLoss,
    WorkerTarget,
    play,
)
from dynosim.metrics import check_conservation
from dynosim.records import RequestStatus, RunResult, Trace

SEEDS = st.integers(0, 2**32 - 1)


def random_script(rng: random.Random, cluster: ClusterSpec, span_ms: float) -> list[ScenarioEvent]:
    """Things that may happen to this cluster, some of them to workers that are gone by then."""
    events: list[ScenarioEvent] = []
    for _ in range(rng.randint(1, 6)):
        at_ms = rng.uniform(0.0, span_ms)
        pool = rng.choice(cluster.pools)
        if not pool.workers:
            continue
        target = WorkerTarget(pool.name, rng.randrange(pool.workers))
        kind = rng.choice(["start", "start", "takeover", "none"])
        replacement = Replacement(kind=kind, after_ms=rng.choice([0.0, 30.0]), takeover_ms=20.0)
        ranks = cluster.ranks.number > 1
        frontends = 1 if cluster.routing is None else cluster.routing.frontends
        choices: list[ScenarioEvent] = [
            Launch(at_ms=at_ms, pool=pool.name),
            Drain(at_ms=at_ms, target=target),
            Crash(at_ms=at_ms, target=target, replacement=replacement),
            SpotLoss(at_ms=at_ms, target=target, notice_ms=40.0, replacement=replacement),
        ]
        if not ranks:
            detect_ms = rng.uniform(1.0, 200.0)
            choices += [
                Crash(at_ms=at_ms, target=target, detect_ms=detect_ms, replacement=replacement),
                Slow(at_ms=at_ms, target=target, factor=rng.choice([0.5, 3.0]), for_ms=90.0),
            ]
        if cluster.disagg is not None:
            choices += [CutLinks(at_ms=at_ms, for_ms=rng.uniform(1.0, 100.0))] * 2
        if frontends > 1 and not any(isinstance(one, LoseFrontend) for one in events):
            choices.append(LoseFrontend(at_ms=at_ms, number=0, for_ms=50.0))
        events.append(rng.choice(choices))
    return events


def check(result: RunResult, trace: Trace) -> None:
    check_conservation(result, trace)
    completed = result.requests.status == RequestStatus.COMPLETED
    assert (result.requests.output_tokens[completed] == trace.output_tokens[completed]).all()


class _Gentle:
    """A script's events; who was hit twice, or is gone by then, is let alone."""

    def __init__(self, event: ScenarioEvent) -> None:
        self._event = event
        self.at_ms = event.at_ms

    def happen(self, control: ControlPlane):  # type: ignore[no-untyped-def]
        from dynosim.errors import ConfigError

        try:
            yield from self._event.happen(control)
        except ConfigError as error:
            assert "cannot hang" in str(error) or "gone" in str(error), error


@settings(max_examples=60, deadline=None)
@given(SEEDS)
def test_aggregated_clusters_under_scripts(seed: int) -> None:
    results = []
    for exact in (False, True):
        rng = random.Random(seed)
        trace = random_trace(rng)
        spec = random_spec(rng, trace)
        timing = random_timing(rng, spec)
        routing = random_routing(rng, spec)
        if rng.random() < 0.5:
            routing = with_rarer_routing(routing, timing, spec)
        cluster = equal_workers(spec, timing, num_workers=rng.randint(1, 3), routing=routing)
        pool = replace(cluster.pools[0], startup_ms=rng.choice([0.0, 100.0]))
        cluster = replace(cluster, pools=(pool,))
        span_ms = float(trace.arrival_ms[-1]) + 500.0
        script = [_Gentle(one) for one in random_script(rng, cluster, span_ms)]
        options = RunOptions(exact_stepping=exact, migration_limit=rng.choice([None, 0, 1]))
        results.append(simulate(trace, cluster, options, processes=play(script)))
    assert_same(*results)
    check(results[0], trace)


@settings(max_examples=60, deadline=None)
@given(disagg_traces(), disagg_clusters(), SEEDS, st.sampled_from([None, 80.0]))
def test_disaggregated_clusters_under_scripts(
    trace: Trace, cluster: ClusterSpec, seed: int, timeout_ms: float | None
) -> None:
    rng = random.Random(seed)
    script = [_Gentle(one) for one in random_script(rng, cluster, 600.0)]
    limit = rng.choice([None, 0, 2])
    results = [
        simulate(
            trace,
            cluster,
            RunOptions(exact_stepping=exact, migration_limit=limit, client_timeout_ms=timeout_ms),
            processes=play(script),
        )
        for exact in (False, True)
    ]
    assert_same(*results)
    check(results[0], trace)
