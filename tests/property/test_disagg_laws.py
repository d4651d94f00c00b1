"""Prefill and decode pools under random loads, links and losses: nothing is lost, bulk is exact."""

from dataclasses import replace

from disagg_support import ENGINE, pools
from hypothesis import given, settings
from hypothesis import strategies as st
from probing import Ask, trace_of
from same_runs import assert_same

from dynosim.cluster import ClusterSpec, RunOptions, simulate
from dynosim.cluster.control import ControlPlane, Process, ProcessGenerator
from dynosim.metrics.conservation import check_conservation
from dynosim.records import RequestStatus, RunResult, Trace
from dynosim.router.classes import PolicyClass
from dynosim.router.handoff import ConditionalSpec, HandoffSpec
from dynosim.router.knobs import RouterSpec
from dynosim.router.spec import RoutingSpec
from dynosim.timing.formulas import LinearModel

KV = RoutingSpec(RouterSpec(4, mode="kv"))
PATIENT = RoutingSpec(
    RouterSpec(4, mode="kv", classes=(PolicyClass(prefill_busy_threshold=30),))
)  # requests wait in the router
TIMES = LinearModel(
    base_ms=3.0, per_prefill_token_ms=0.07, per_decode_ms=0.31, per_context_token_ms=0.003
)


@st.composite
def traces(draw: st.DrawFn) -> Trace:
    asks, now_ms = [], 0.0
    for index in range(draw(st.integers(1, 25))):
        now_ms += draw(st.floats(0, 40))
        shared = tuple(range(draw(st.integers(0, 6))))
        own = tuple(1000 + 50 * index + i for i in range(draw(st.integers(1, 12))))
        outputs = draw(st.integers(1, 30))
        last = draw(st.integers(1, 4))
        ask = Ask(now_ms, (*shared, *own), 0, last_tokens=last, output_tokens=outputs)
        if asks and draw(st.integers(0, 3)) == 0:  # a prompt that came before
            ask = replace(asks[0], at_ms=now_ms, output_tokens=outputs)
        asks.append(ask)
    return trace_of(asks, 4)


@st.composite
def clusters(draw: st.DrawFn) -> ClusterSpec:
    conditional = None
    if draw(st.booleans()):
        conditional = ConditionalSpec(eff_isl_threshold=30, eff_isl_ratio_threshold=1.1)
    handoff = HandoffSpec(
        order=draw(st.sampled_from(["prefill_first", "decode_first"])),
        first_token=draw(st.sampled_from(["decode", "prefill"])),
        conditional=conditional,
    )
    engine = replace(
        ENGINE,
        num_gpu_blocks=1 + draw(st.sampled_from([30, 40, 90])),
        max_model_len=110,
        max_num_seqs=draw(st.sampled_from([1, 3, 8])),
        max_num_batched_tokens=draw(st.sampled_from([16, 64])),
        async_scheduling=draw(st.booleans()),
        enable_prefix_caching=draw(st.booleans()),
    )
    routing = draw(st.sampled_from([None, KV, PATIENT]))
    return pools(
        prefill=draw(st.integers(1, 3)),
        decode=draw(st.integers(1, 3)),
        gb_s=draw(st.sampled_from([0.0001, 0.001, 0.1])),
        engine=engine,
        times=TIMES,
        handoff=handoff,
        failure_policy=draw(st.sampled_from(["fail", "recompute"])),
        moves=draw(st.sampled_from(["full_prompt", "destination_missing"])),
        exposed_share=draw(st.sampled_from([0.3, 1.0])),
        places=({"node": ("a", "b")}, {"node": ("a", "b")}),
        uplinks=draw(st.sampled_from([{}, {"node": 0.0005}])),
        routing=KV if conditional else routing,
        decode_routing=KV if conditional else routing,
    )


@given(traces(), clusters(), st.sampled_from([None, 60.0, 400.0]))
@settings(max_examples=60)
def test_bulk_equals_single_steps(
    trace: Trace, cluster: ClusterSpec, timeout_ms: float | None
) -> None:
    options = RunOptions(client_timeout_ms=timeout_ms)
    bulk = simulate(trace, cluster, options)
    single = simulate(trace, cluster, replace(options, exact_stepping=True))
    assert_same(bulk, single)
    check_conservation(bulk, trace)
    _nothing_is_left(bulk)


Act = tuple[float, str, int]


def scenario(acts: list[Act]) -> Process:
    """Losses, drains and launches at random times; what cannot be done is left out."""

    def act(control: ControlPlane) -> ProcessGenerator:
        for time_ms, what, number in sorted(acts):
            yield control.env.timeout(max(time_ms - control.now_ms, 0.0))
            if what == "launch":
                control.launch(("prefill", "decode")[number % 2])
                continue
            alive = [w.worker_id for w in control.workers if w.phase.value in ("ready", "draining")]
            if alive:
                chosen = alive[number % len(alive)]
                (control.fail if what == "fail" else control.drain)(chosen)

    return act


ACTS = st.lists(
    st.tuples(st.floats(0, 600), st.sampled_from(["fail", "drain", "launch"]), st.integers(0, 7)),
    max_size=8,
)


@given(traces(), clusters(), ACTS, st.sampled_from([None, 60.0, 400.0]))
@settings(max_examples=80)
def test_nothing_is_lost_under_faults(
    trace: Trace, cluster: ClusterSpec, acts: list[Act], timeout_ms: float | None
) -> None:
    results = [
        simulate(
            trace,
            cluster,
            RunOptions(client_timeout_ms=timeout_ms, exact_stepping=singly),
            processes=[scenario(acts)],
        )
        for singly in (False, True)
    ]
    assert_same(*results)
    result = results[0]
    check_conservation(result, trace)
    known = {int(one) for one in RequestStatus}
    assert set(result.requests.status.tolist()) <= known
    _nothing_is_left(result)


def _nothing_is_left(result: RunResult) -> None:
    """Every reservation was released: who has ended refers to no block of a worker that lives."""
    links = result.links
    assert links is not None
    assert links.bytes_sent == links.bytes_received + links.bytes_lost + links.bytes_in_flight
    unfinished = int((result.requests.status == int(RequestStatus.UNFINISHED)).sum())
    if unfinished:
        return  # no worker of some role was left to finish them
    assert links.bytes_in_flight == 0
    assert result.workers.held_blocks is not None and not result.workers.held_blocks.any()
