"""KV events that a script has lost or late, and how routers find their way back; by hand.

A prefill step takes 10 ms. Prompts consist of blocks of four tokens; whoever misses an event
notices with the worker's next one, and has what is missing 10 ms later.
"""

from collections.abc import Sequence

import pytest
from clusters import equal_workers
from probing import PROBE, Ask, Watch, Watched, trace_of

from dynosim.cluster import ClusterSpec, RunOptions, simulate
from dynosim.cluster.event_faults import EventFault, EventFaults
from dynosim.cluster.scenario import EventTrouble, ScenarioEvent, WorkerTarget, play
from dynosim.cluster.spec import with_numbered_events
from dynosim.engine.spec import EngineSpec
from dynosim.errors import ConfigError
from dynosim.metrics import check_conservation
from dynosim.router.knobs import RouterSpec
from dynosim.router.spec import DelaySpec, RoutingSpec
from dynosim.timing.formulas import FixedModel

SPEC = EngineSpec(num_gpu_blocks=101, max_model_len=80, block_size=4)
TIMING = FixedModel(prefill_ms=10.0, decode_ms=5.0)
A, B = (1, 2), (3, 4)
FIRST = WorkerTarget("workers", 0)


def cluster_of(routing: RoutingSpec | None) -> ClusterSpec:
    return equal_workers(SPEC, TIMING, num_workers=2, routing=routing)


def run(
    asks: Sequence[Ask], *events: ScenarioEvent, exact: bool = False, frontends: int = 1
) -> Watched:
    trace, watch = trace_of(asks, 4), Watch([ask.worker for ask in asks])
    routing = RoutingSpec(
        RouterSpec(4, mode="kv"),
        policy=watch.policy,
        frontends=frontends,
        events=DelaySpec(delay_ms=1.0, recovery_ms=10.0),
    )
    cluster = with_numbered_events(cluster_of(routing))
    options = RunOptions(exact_stepping=exact)
    result = simulate(trace, cluster, options, processes=play(events))
    check_conservation(result, trace)
    return Watched(watch, result, trace)


def known(watched: Watched, first: int) -> list[list[int]]:
    """What each worker had as the probes from this request on were told."""
    return [watched.overlaps(index) for index in range(first, len(watched.trace))]


def counters(watched: Watched) -> dict[str, int]:
    assert watched.result.routing is not None
    return watched.result.routing.counters


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("target", [None, FIRST])
def test_what_is_lost_is_known_once_a_later_event_has_shown_the_gap(
    target: WorkerTarget | None, exact: bool
) -> None:
    trouble = EventTrouble(at_ms=5.0, for_ms=20.0, target=target, lost_share=1.0)
    asks = [Ask(0.0, A, 0), Ask(0.0, A, 1), Ask(40.0, B, 0), Ask(40.0, B, 1)]
    # The prompts A are computed by 10 ms, B by 50; that comes to the frontend 1 ms later.
    asks += [Ask(at_ms, A, PROBE) for at_ms in (52.0, 60.9, 61.1)]
    watched = run(asks, trouble, exact=exact)
    others = 2 if target is FIRST else 0
    assert known(watched, 4) == [[0, others], [0, others], [2, 2]]
    assert counters(watched)["events_lost"] == (2 if target is FIRST else 4)  # one of each block
    assert counters(watched)["event_gaps"] == counters(watched)["event_replays"]


@pytest.mark.parametrize("exact", [False, True])
def test_what_is_late_comes_by_itself_if_nothing_overtakes_it(exact: bool) -> None:
    trouble = EventTrouble(at_ms=5.0, for_ms=20.0, delay_ms=30.0)
    probes = [Ask(at_ms, A, PROBE) for at_ms in (40.9, 41.1)]
    watched = run([Ask(0.0, A, 0), *probes], trouble, exact=exact)
    assert known(watched, 1) == [[0, 0], [2, 0]]
    assert counters(watched)["events_lost"] == counters(watched)["event_gaps"] == 0


def test_what_is_overtaken_is_asked_for() -> None:
    trouble = EventTrouble(at_ms=5.0, for_ms=20.0, delay_ms=500.0)
    asks = [Ask(0.0, A, 0), Ask(40.0, B, 0)]
    asks += [Ask(at_ms, A, PROBE) for at_ms in (60.9, 61.1, 600.0)]
    watched = run(asks, trouble)
    assert known(watched, 2) == [[0, 0], [2, 0], [2, 0]]
    assert counters(watched)["event_gaps"] == 1


def test_before_and_after_all_arrives() -> None:
    troubles = [
        EventTrouble(at_ms=0.0, for_ms=9.0, lost_share=1.0),
        EventTrouble(at_ms=11.0, for_ms=9.0, lost_share=1.0, delay_ms=5.0),
    ]
    watched = run([Ask(0.0, A, 0), Ask(12.0, A, PROBE)], *troubles)
    assert known(watched, 1) == [[2, 0]] and counters(watched)["events_lost"] == 0


def test_faults_at_a_time_add_up_and_each_frontend_draws_for_itself() -> None:
    faults = EventFaults(seed=3)
    first = faults.begin(EventFault(None, delay_ms=5.0))
    faults.begin(EventFault(frozenset([1]), delay_ms=7.0))
    assert faults.delay_ms(0, 0) == 5.0 and faults.delay_ms(1, 0) == 12.0
    faults.end(first)
    assert faults.delay_ms(0, 0) == 0.0 and faults.delay_ms(1, 0) == 7.0
    faults.begin(EventFault(None, lost_share=0.5))
    fates = [[faults.delay_ms(0, frontend) for _ in range(400)] for frontend in (0, 1)]
    lost = [fate.count(None) for fate in fates]
    assert all(160 < count < 240 for count in lost) and fates[0] != fates[1]
    again = EventFaults(seed=3)
    for _ in range(2):
        again.begin(EventFault(None))
    again.begin(EventFault(None, lost_share=0.5))
    for fate in fates[0]:  # whatever becomes of others' messages between them
        again.delay_ms(5, 0)
        assert again.delay_ms(0, 0) == fate


@pytest.mark.parametrize(
    "routing",
    [
        None,
        RoutingSpec(RouterSpec(4, mode="round-robin"), frontends=2),
        RoutingSpec(RouterSpec(4, mode="kv"), use_kv_events=False),
        RoutingSpec(RouterSpec(4, mode="kv")),  # not numbered
    ],
)
def test_where_nobody_would_notice_it_is_refused(routing: RoutingSpec | None) -> None:
    trouble = EventTrouble(at_ms=5.0, for_ms=20.0, lost_share=1.0)
    cluster = cluster_of(routing)
    if routing is None or routing.settings.mode != "kv" or not routing.use_kv_events:
        cluster = with_numbered_events(cluster)
    with pytest.raises(ConfigError, match=r"at 0\.005 s: no router here gets KV events"):
        simulate(trace_of([Ask(0.0, A, 0)], 4), cluster, RunOptions(), processes=play([trouble]))


def test_a_worker_that_never_was_cannot_be_troubled() -> None:
    trouble = EventTrouble(at_ms=5.0, for_ms=2.0, target=WorkerTarget("workers", 7), delay_ms=1.0)
    with pytest.raises(ConfigError, match=r"workers/7: at 0\.005 s there has been no such"):
        run([Ask(0.0, A, 0)], trouble)
