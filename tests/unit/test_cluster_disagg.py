"""Requests that go from prefill to decode workers, to the millisecond.

A prefill step takes 10 ms, a decode step 5; a token's KV takes 1 ms on a link of its own.
"""

from dataclasses import replace

import numpy as np
import pytest
from disagg_support import ENGINE, KV, TIMES, pools
from probing import Ask, trace_of
from test_cluster_lives import at

from dynosim.cluster import ClusterSpec, RunOptions, simulate
from dynosim.cluster.control import Process
from dynosim.compare.case_kit import alike
from dynosim.errors import ConfigError, InvariantError
from dynosim.memory.links import LinkSpec
from dynosim.metrics.conservation import check_conservation
from dynosim.metrics.handoffs import handoff_ms, layout, prefill_time_ms, transfer_ms
from dynosim.records import RequestStatus, RunResult, Trace
from dynosim.router.classes import PolicyClass
from dynosim.router.handoff import ConditionalSpec, HandoffSpec
from dynosim.router.knobs import RouterSpec
from dynosim.router.spec import RoutingSpec
from dynosim.router.topology import KvTransferPolicy
from dynosim.timing.formulas import LinearModel

COMPLETED, FAILED, TIMED_OUT = (
    int(status)
    for status in (RequestStatus.COMPLETED, RequestStatus.FAILED, RequestStatus.TIMED_OUT)
)
ASKED = [Ask(0.0, (1, 2, 3), 0, output_tokens=4)]  # 12 prompt tokens


def served(
    asks: list[Ask],
    cluster: ClusterSpec,
    *processes: Process,
    options: RunOptions = RunOptions(),  # noqa: B008
) -> RunResult:
    trace = trace_of(asks, 4)
    result = simulate(trace, cluster, options, processes=processes)
    check_conservation(result, trace)
    return result


def test_a_request_step_by_step() -> None:
    """10 ms of prefill, 12 tokens in 12 ms, then its last prompt token anew as the first decode."""
    result = served(ASKED, pools())
    log = result.requests
    assert log.handoffs is not None and result.links is not None
    assert (log.scheduled_ms[0], log.handoffs.prefill_end_ms[0]) == (0.0, 10.0)
    assert (log.handoffs.transfer_start_ms[0], log.handoffs.transfer_end_ms[0]) == (10.0, 22.0)
    assert log.first_token_ms[0] == 27.0  # one token of a prompt takes as long as one of an answer
    assert (log.second_token_ms[0], log.finish_ms[0]) == (32.0, 42.0)
    assert (log.handoffs.prefill_worker_id[0], log.worker_id[0]) == (0, 1)
    assert result.links.bytes_received == 12_000 == log.handoffs.moved_bytes[0]
    assert log.output_tokens[0] == 4
    assert layout(result.workers) == "1P1D"


def test_ttft_is_wait_and_prefill_and_handoff() -> None:
    asks = [Ask(float(i), (i, 50 + i), i % 3, output_tokens=3) for i in range(6)]
    log = served(asks, pools()).requests
    wait_ms = log.scheduled_ms - log.arrival_ms
    parts_ms = wait_ms + prefill_time_ms(log) + handoff_ms(log)
    np.testing.assert_allclose(parts_ms, log.first_token_ms - log.arrival_ms, rtol=1e-12)
    assert (transfer_ms(log) <= handoff_ms(log)).all()


def test_the_first_token_may_come_from_the_prefill_worker() -> None:
    """At the end of the prefill; the second follows when the KV has come, a decode step later."""
    log = served(ASKED, pools(handoff=HandoffSpec(first_token="prefill"))).requests
    assert (log.first_token_ms[0], log.second_token_ms[0]) == (10.0, 27.0)
    assert (log.finish_ms[0], log.output_tokens[0]) == (37.0, 4)
    assert np.isnan(handoff_ms(log)[0])


@pytest.mark.parametrize("order", ["prefill_first", "decode_first"])
def test_a_single_token_from_the_prefill_worker_needs_no_transfer(order: str) -> None:
    spec = HandoffSpec(order=order, first_token="prefill")  # type: ignore[arg-type]
    result = served([replace(ASKED[0], output_tokens=1)], pools(handoff=spec))
    assert result.requests.finish_ms[0] == result.requests.first_token_ms[0]
    assert result.requests.status[0] == COMPLETED
    assert result.links is not None and result.links.num_transfers == 0


def test_room_may_be_made_before_the_prompt_is_computed() -> None:
    """Nothing is different while there is room, but who waits for it waits before its prefill."""
    small = replace(ENGINE, num_gpu_blocks=1 + 256)
    spec = HandoffSpec(order="decode_first")
    one, other = (
        served(ASKED, pools(handoff=how, engine=small)).requests for how in (HandoffSpec(), spec)
    )
    assert one.finish_ms[0] == other.finish_ms[0]
    asks = [Ask(0.0, tuple(range(100 * i, 100 * i + 200)), 0, output_tokens=40) for i in (1, 9)]
    late = served(asks, pools(handoff=spec, engine=small)).requests
    assert late.scheduled_ms[1] >= late.finish_ms[0]  # its 200 blocks were free only then
    early = served(asks, pools(engine=small)).requests
    assert early.scheduled_ms[1] < early.finish_ms[0]


def test_a_prefill_worker_holds_blocks_until_they_have_been_sent() -> None:
    """Two prompts of 800 tokens in a cache of 1,024: the second waits 800 ms for the first's KV."""
    small = replace(ENGINE, num_gpu_blocks=1 + 256)
    asks = [Ask(0.0, tuple(range(1000 * i, 1000 * i + 200)), 0, output_tokens=2) for i in (1, 2)]
    log = served(asks, pools(engine=small)).requests
    assert log.handoffs is not None
    assert log.handoffs.transfer_end_ms[0] == 810.0
    assert log.scheduled_ms[1] == 810.0
    fast = served(asks, pools(engine=small, gb_s=1.0)).requests
    assert fast.scheduled_ms[1] == pytest.approx(10.8)


def test_transfers_share_the_link_of_a_worker() -> None:
    """Two at once take twice as long; on links of their own they do not."""
    asks = [Ask(0.0, (10 * i + 1, 10 * i + 2, 10 * i + 3), 0, output_tokens=2) for i in (1, 2)]
    shared = served(asks, pools(prefill=2, decode=1)).requests
    assert shared.handoffs is not None
    np.testing.assert_allclose(shared.handoffs.transfer_end_ms, [34.0, 34.0])
    apart = served(asks, pools(prefill=2, decode=2)).requests
    assert apart.handoffs is not None
    np.testing.assert_allclose(apart.handoffs.transfer_end_ms, [22.0, 22.0])


def test_workers_of_a_node_share_its_uplink_to_others_only() -> None:
    asks = [Ask(0.0, (10 * i + 1, 10 * i + 2, 10 * i + 3), 0, output_tokens=2) for i in (1, 2)]
    node_a, node_b = {"node": ("a",)}, {"node": ("b",)}
    for places, end_ms in (((node_a, node_b), 34.0), ((node_a, node_a), 22.0)):
        cluster = pools(prefill=2, decode=2, places=places, uplinks={"node": 0.001})
        handoffs = served(asks, cluster).requests.handoffs
        assert handoffs is not None
        np.testing.assert_allclose(handoffs.transfer_end_ms, [end_ms, end_ms])


def test_the_first_transfer_of_two_workers_pays_a_handshake() -> None:
    link = LinkSpec(name="slow", line_gb_s=None, achieved_gb_s=0.001, handshake_ms=100.0)
    asks = [Ask(200.0 * i, (10 * i + 1, 10 * i + 2), 0, output_tokens=2) for i in range(2)]
    log = served(asks, pools(link=link)).requests
    np.testing.assert_allclose(transfer_ms(log), [108.0, 8.0])


def test_what_a_decode_worker_has_cached_is_not_sent_again() -> None:
    """The second prompt begins as the first: 12 tokens are there, 4 and the last block are not."""
    asks = [*ASKED, Ask(100.0, (1, 2, 3, 4), 0, output_tokens=4)]
    result = served(asks, pools())
    assert result.requests.handoffs is not None
    assert result.requests.handoffs.held_tokens.tolist() == [0, 12]
    assert result.requests.handoffs.moved_bytes.tolist() == [12_000, 4_000]
    whole = served(asks, pools(moves="full_prompt")).requests
    assert whole.handoffs is not None
    assert whole.handoffs.moved_bytes.tolist() == [12_000, 16_000]


def test_the_last_block_of_a_cached_prompt_is_sent_all_the_same() -> None:
    """Of 12 tokens vLLM finds 8, for one must be computed: the block that it is in has to come."""
    asks = [*ASKED, Ask(100.0, (1, 2, 3), 0, output_tokens=2)]
    log = served(asks, pools()).requests
    assert log.handoffs is not None
    assert log.handoffs.held_tokens.tolist() == [0, 8]
    assert log.handoffs.moved_bytes.tolist() == [12_000, 4_000]


def test_room_made_before_a_prefill_is_not_looked_up_as_if_it_were_over() -> None:
    """The first token comes from a prefill that has not begun: 8 of 12 tokens are a hit, not 12."""
    spec = HandoffSpec(order="decode_first", first_token="prefill")
    log = served([*ASKED, replace(ASKED[0], at_ms=100.0)], pools(handoff=spec)).requests
    assert log.handoffs is not None
    assert log.handoffs.held_tokens.tolist() == [0, 8]
    assert (log.first_token_ms[1], log.second_token_ms[1], log.finish_ms[1]) == (110, 119, 129)


@pytest.mark.parametrize(("tokens", "moved"), [(11, 12_000), (13, 16_000), (15, 16_000)])
def test_a_block_is_sent_as_a_whole(tokens: int, moved: int) -> None:
    """As NIXL does it: real engines were seen to move no less (`live/test_real_handoff.py`)."""
    ask = [Ask(0.0, (1, 2, 3, 4)[: -(-tokens // 4)], 0, output_tokens=2, last_tokens=tokens % 4)]
    result = served(ask, pools())
    assert result.requests.input_tokens.tolist() == [tokens]
    assert result.requests.handoffs is not None and result.links is not None
    assert result.links.bytes_received == moved == result.requests.handoffs.moved_bytes[0]
    assert transfer_ms(result.requests)[0] == moved / 1000


def test_layer_by_layer_hides_what_the_link_could_carry_meanwhile() -> None:
    """Of 12 KB 6 may be hidden, and 10 could have been carried in the 10 ms of the prefill."""
    log = served(ASKED, pools(exposed_share=0.5)).requests
    assert transfer_ms(log)[0] == pytest.approx(6.0)
    slow = served(ASKED, pools(exposed_share=0.5, gb_s=0.0001)).requests
    assert transfer_ms(slow)[0] == pytest.approx(110.0)  # 1 KB of 12 was hidden


# ---- the ladder of links (V1) --------------------------------------------------------------------

LLAMA_8B = replace(KV, layers=32, kv_heads=8, head_dim=128)


@pytest.mark.parametrize(
    ("gb_s", "low_ms", "high_ms"),
    [(0.1, 90_000, 110_000), (1.0, 8_000, 12_000), (9.6, 800, 1_400)],
)
def test_ten_clients_on_one_link(gb_s: float, low_ms: float, high_ms: float) -> None:
    assert LLAMA_8B.bytes_per_token == 131_072
    engine = replace(ENGINE, block_size=16, num_gpu_blocks=20_000, max_model_len=16_000)
    times = LinearModel(
        base_ms=8.0, per_prefill_token_ms=165 / 8000, per_decode_ms=0.6, per_context_token_ms=0.0
    )
    cluster = pools(engine=replace(engine, max_num_seqs=64), times=times, gb_s=gb_s)
    assert cluster.disagg is not None
    transfer = replace(cluster.disagg.transfer, geometry=LLAMA_8B)
    cluster = replace(cluster, disagg=replace(cluster.disagg, transfer=transfer))
    trace = alike(60, inputs=8000, outputs=50)
    result = simulate(trace, cluster, RunOptions(concurrency=10))
    log = result.requests
    assert low_ms < float((log.first_token_ms - log.arrival_ms).mean()) < high_ms


# ---- workers that are lost -----------------------------------------------------------------------

KV_ROUTING = RoutingSpec(RouterSpec(4, mode="kv"))
LONG = [Ask(0.0, tuple(range(1, 51)), 0, output_tokens=4)]  # 200 tokens: 200 ms on the link


def lost(worker: int, at_ms: float) -> Process:
    return at((at_ms, lambda control: control.fail(worker)))


def test_kv_that_does_not_come_is_computed_anew_if_so_told() -> None:
    result = served(LONG, pools(failure_policy="recompute"), lost(0, 60.0))
    log = result.requests
    assert log.status[0] == COMPLETED and log.output_tokens[0] == 4
    assert log.first_token_ms[0] == 70.0 and log.worker_id[0] == 1
    assert result.links is not None
    assert (result.links.num_cancelled, result.links.bytes_lost) == (1, 50_000)


def test_or_else_the_request_fails() -> None:
    log = served(LONG, pools(), lost(0, 60.0)).requests
    assert log.status[0] == FAILED and "did not arrive" in log.errors[0]


def test_it_fails_though_its_decode_worker_has_nothing_else_to_do() -> None:
    """The only seat is another's, who gives up at 60 ms; its last step, for nobody, is the one that
    the load begins with: none follows in which its loss could be reported."""
    engine = replace(ENGINE, async_scheduling=True, max_num_seqs=1)
    asks = [replace(ASKED[0], output_tokens=200), replace(LONG[0], at_ms=30.0)]
    options = RunOptions(client_timeout_ms=60.0)
    log = served(asks, pools(engine=engine), lost(0, 50.0), options=options).requests
    assert log.status.tolist() == [TIMED_OUT, FAILED]


def test_a_prompt_whose_worker_is_lost_is_computed_by_another() -> None:
    log = served(LONG, pools(prefill=2), lost(0, 5.0)).requests
    assert log.handoffs is not None
    assert (log.status[0], log.handoffs.prefill_worker_id[0]) == (COMPLETED, 1)
    assert log.handoffs.prefill_end_ms[0] == 15.0
    assert log.migrations[0] == 1


def test_kv_on_its_way_to_a_lost_worker_goes_to_another() -> None:
    """The prefill worker still holds it: nothing is computed again but the last token."""
    result = served(LONG, pools(decode=2), lost(1, 60.0))
    log = result.requests
    assert log.handoffs is not None and result.links is not None
    assert (log.status[0], log.worker_id[0], log.output_tokens[0]) == (COMPLETED, 2, 4)
    assert (log.handoffs.transfer_start_ms[0], log.handoffs.transfer_end_ms[0]) == (60.0, 260.0)
    assert result.links.bytes_lost == 50_000
    assert int(result.steps.prefill_tokens.sum()) == 201


def test_a_stream_whose_decode_worker_is_lost_loses_no_token() -> None:
    """Two tokens by 221 ms; prefill, transfer and the third come from elsewhere."""
    result = served(LONG, pools(decode=2), lost(1, 221.0))
    log = result.requests
    assert (log.status[0], log.worker_id[0], log.output_tokens[0]) == (COMPLETED, 2, 4)
    assert (log.first_token_ms[0], log.second_token_ms[0]) == (215.0, 220.0)
    assert log.migrations[0] == 1


def test_a_client_that_gives_up_leaves_nothing_behind() -> None:
    """At every moment of its way: the next request finds both workers as if it had been alone."""
    for timeout_ms in (5.0, 10.0, 12.0, 60.0, 215.0, 222.0):
        for order in ("prefill_first", "decode_first"):
            spec = HandoffSpec(order=order)  # type: ignore[arg-type]
            asks = [*LONG, Ask(1000.0, (900, 901), 0, output_tokens=1)]
            options = RunOptions(client_timeout_ms=timeout_ms)
            small = replace(ENGINE, num_gpu_blocks=1 + 256)
            result = served(asks, pools(handoff=spec, engine=small), options=options)
            assert result.requests.status[0] == TIMED_OUT
            assert result.steps.used_blocks[-1] <= 2


@pytest.mark.parametrize(("worker", "other"), [(0, 1), (1, 0)])
def test_kv_that_nobody_waits_for_stops_with_a_worker_that_is_lost(worker: int, other: int) -> None:
    """It is on its way from 10 to 210 ms. Whoever is lost at 60 ms hears of no arrival after that.

    By one, a lost engine would go on with what it had in flight, here the prompt from 55 ms on.
    """
    asks = [*LONG, Ask(55.0, (900, 901), 0, output_tokens=40)]
    options = RunOptions(client_timeout_ms=50.0)
    result = served(asks, pools(), lost(worker, 60.0), options=options)
    assert result.requests.status.tolist() == [TIMED_OUT, FAILED]
    assert result.links is not None
    assert (result.links.num_cancelled, result.links.bytes_lost) == (1, 50_000)
    assert result.links.bytes_in_flight == 0
    held = result.workers.held_blocks
    assert held is not None and held[other] == 0


def test_a_refused_request_is_not_left_behind_by_a_worker_that_is_lost() -> None:
    """The decode worker took blocks at 0 ms and is busy with the other prompt till 10: nobody is
    there to compute this one's, and the decode worker is lost before it hears of that."""
    rule = ConditionalSpec(eff_isl_threshold=40, eff_isl_ratio_threshold=1.1)
    kv = RoutingSpec(RouterSpec(4, mode="kv"))
    spec = HandoffSpec(order="decode_first", conditional=rule)
    cluster = pools(handoff=spec, routing=kv, decode_routing=kv)
    asks = [replace(one, at_ms=2.0) for one in (*LONG, *ASKED)]
    result = served(asks, cluster, lost(0, 1.0), lost(1, 5.0))
    assert result.requests.status.tolist() == [FAILED, FAILED]


def test_a_request_refused_after_it_waited_leaves_no_blocks_behind() -> None:
    """Its prompt is computed at 10 ms; the router of the decode workers, all busy, keeps it until
    the last of them is lost. A third prompt has room only then."""
    patient = (PolicyClass(prefill_busy_threshold=1),)
    waits = RoutingSpec(RouterSpec(4, mode="kv", classes=patient))
    small = replace(ENGINE, num_gpu_blocks=1 + 256)
    others = [Ask(i, tuple(range(1000 * i, 1000 * i + 100 * i)), 0) for i in (1, 2)]
    cluster = pools(routing=KV_ROUTING, decode_routing=waits, engine=small)
    result = served([*LONG, *others], cluster, lost(1, 60.0))
    assert result.requests.status.tolist() == [FAILED] * 3
    assert "HTTP" in result.requests.errors[1]
    assert result.requests.scheduled_ms[2] == 60.0
    held = result.workers.held_blocks
    assert held is not None and held[0] == 0


def test_a_draining_worker_goes_when_what_it_waits_for_will_not_come() -> None:
    drain = at((20.0, lambda control: control.drain(1)))
    result = served(LONG, pools(), drain, lost(0, 60.0))
    assert result.requests.status[0] == FAILED
    assert result.workers.ended_ms.tolist() == [60.0, 60.0]


def test_a_token_under_way_for_nobody_was_not_made_if_its_worker_is_lost() -> None:
    """With two steps in flight a request is dropped after 220 ms, and its next step ends at 225."""
    engine = replace(ENGINE, async_scheduling=True)
    options = RunOptions(client_timeout_ms=218.0)
    asks = [replace(LONG[0], output_tokens=40)]
    before, after = (
        served(asks, pools(engine=engine), lost(1, at_ms), options=options).requests
        for at_ms in (222.0, 226.0)
    )
    assert before.output_tokens[0] == after.output_tokens[0] - 1


def test_a_draining_prefill_worker_stays_until_its_kv_has_been_sent() -> None:
    process = at((15.0, lambda control: control.drain(0)))
    result = served(LONG, pools(prefill=2), process)
    assert result.requests.status[0] == COMPLETED
    assert result.workers.ended_ms[0] == 210.0


# ---- every prompt token is accounted for ---------------------------------------------------------


@pytest.mark.parametrize("first_token", ["decode", "prefill"])
@pytest.mark.parametrize("missing", [-1, 1])
def test_a_prompt_token_too_many_or_too_few_is_noticed(first_token: str, missing: int) -> None:
    """Three prompts of 12, 12 and 16 tokens, of which 8 and 12 are cached, and one token each."""
    asks = [*ASKED, Ask(100.0, (1, 2, 3), 0, output_tokens=2), Ask(200.0, (1, 2, 3, 4), 0)]
    spec = HandoffSpec(first_token=first_token)  # type: ignore[arg-type]
    result = served(asks, pools(handoff=spec))
    steps = result.steps
    moved = 3 if first_token == "decode" else 2  # the third was over with its first token
    assert int(steps.prefill_tokens.sum()) == 12 + 4 + 4 + moved
    wrong = steps.prefill_tokens.copy()
    wrong[0] += missing
    with pytest.raises(InvariantError, match="prompt tokens are computed or cached"):
        check_conservation(
            replace(result, steps=replace(steps, prefill_tokens=wrong)), trace_of(asks, 4)
        )


# ---- who computes, and where ---------------------------------------------------------------------


def test_short_prompts_stay_with_the_decode_worker_if_so_told() -> None:
    rule = ConditionalSpec(eff_isl_threshold=40, eff_isl_ratio_threshold=1.1)
    asks = [*ASKED, Ask(0.0, tuple(range(100, 120)), 0, output_tokens=2)]  # 12 and 80 tokens
    kv = RoutingSpec(RouterSpec(4, mode="kv"))
    cluster = pools(handoff=HandoffSpec(conditional=rule), routing=kv, decode_routing=kv)
    log = served(asks, cluster).requests
    assert log.handoffs is not None
    assert log.handoffs.prefill_worker_id.tolist() == [-1, 0]
    assert log.first_token_ms[0] == 10.0


def test_a_busy_decode_pool_computes_no_prompts() -> None:
    rule = ConditionalSpec(eff_isl_ratio_threshold=1.1, decode_busy_threshold=0.0)
    kv = RoutingSpec(RouterSpec(4, mode="kv"))
    cluster = pools(handoff=HandoffSpec(conditional=rule), routing=kv, decode_routing=kv)
    asks = [Ask(0.0, (1, 2, 3), 0, output_tokens=40), Ask(20.0, (7, 8, 9), 0, output_tokens=2)]
    log = served(asks, cluster).requests
    assert log.handoffs is not None
    assert log.handoffs.prefill_worker_id.tolist() == [-1, 0]


def topology(prefill: tuple[str, ...], decode: tuple[str, ...], policy: KvTransferPolicy,
             *, workers: tuple[int, int] = (6, 12)) -> RunResult:  # fmt: skip
    kv = RoutingSpec(RouterSpec(4, mode="kv"))
    cluster = pools(
        prefill=workers[0],
        decode=workers[1],
        gb_s=0.1,
        places=({"zone": prefill}, {"zone": decode}),
        handoff=HandoffSpec(kv_transfer=policy),
        routing=kv,
        decode_routing=kv,
    )
    asks = [Ask(0.7 * i, (10 * i + 1, 10 * i + 2), 0, output_tokens=40) for i in range(200)]
    return served(asks, cluster)


FEW_IN_A = ("a", "b", "b", "b", "b", "b")


def in_zone_share(result: RunResult, decode: tuple[str, ...] = ("a", "b")) -> float:
    handoffs = result.requests.handoffs
    assert handoffs is not None
    num_prefill = result.workers.role.count("prefill")
    zones = [("a", "b")[i % 2] for i in range(num_prefill)]
    zones += [decode[i % len(decode)] for i in range(len(result.workers) - num_prefill)]
    pairs = zip(handoffs.prefill_worker_id, result.requests.worker_id, strict=True)
    return float(np.mean([zones[first] == zones[second] for first, second in pairs]))


def test_transfers_stay_in_their_zone_where_they_must() -> None:
    """V10: two zones with prefill and decode workers as 1 to 2."""
    result = topology(("a", "b"), ("a", "b"), KvTransferPolicy("zone"), workers=(60, 120))
    assert in_zone_share(result) == 1.0 and (result.requests.status == COMPLETED).all()


def test_a_zone_without_decode_workers_fails_what_it_has_computed() -> None:
    result = topology(("a", "b"), ("a",), KvTransferPolicy("zone"))
    handoffs = result.requests.handoffs
    assert handoffs is not None
    in_b = handoffs.prefill_worker_id % 2 == 1
    assert in_b.any() and (result.requests.status[in_b] == FAILED).all()
    assert (result.requests.status[~in_b] == COMPLETED).all()


def test_a_zone_may_be_preferred() -> None:
    shares = [
        in_zone_share(
            topology(("a", "b"), FEW_IN_A, KvTransferPolicy("zone", "preferred", weight)), FEW_IN_A
        )
        for weight in (0.0, 0.85)
    ]
    assert shares[0] < shares[1] < 1.0


# ---- what cannot be ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model": "other"}, "cluster.decode.model: other"),
        ({"kv_dtype": "fp8"}, "cluster.decode.engine.kv_cache_dtype: fp8"),
        ({"engine": replace(ENGINE, block_size=8)}, "cluster.decode.engine.block_size: 8"),
        ({"workers": 0}, "cluster.decode.workers: at least 1"),
    ],
)
def test_pools_must_agree(change: dict[str, object], says: str) -> None:
    good = pools()
    bad = (good.pools[0], replace(good.pools[1], **change))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=says):
        replace(good, pools=bad)


def test_bulk_steps_are_single_steps() -> None:
    trace: Trace = trace_of(
        [Ask(7.0 * i, (i % 3, 20 + i), i % 4, output_tokens=5 + i) for i in range(30)], 4
    )
    for depth in (False, True):
        engine = replace(ENGINE, async_scheduling=depth)
        one, other = (
            simulate(trace, pools(engine=engine, times=TIMES), RunOptions(exact_stepping=singly))
            for singly in (False, True)
        )
        np.testing.assert_allclose(one.requests.finish_ms, other.requests.finish_ms, atol=1e-6)
        assert other.num_scheduling_events > one.num_scheduling_events


def test_prompts_in_runs_of_blocks_are_prompts_block_by_block() -> None:
    """A run that something may go wrong in follows single blocks; with room for all, both agree."""
    shared = tuple(range(1, 30))
    asks = [
        Ask(15.0 * i, (*shared[: 5 * (i % 6)], 1000 + i, 2000 + i), 0, output_tokens=6 + i % 5)
        for i in range(60)
    ]
    nothing = at((1.0, lambda control: None))
    fast = served(asks, pools(prefill=2, decode=2, gb_s=0.05))
    slow = served(asks, pools(prefill=2, decode=2, gb_s=0.05), nothing)
    assert fast.requests.handoffs is not None and slow.requests.handoffs is not None
    np.testing.assert_allclose(fast.requests.finish_ms, slow.requests.finish_ms)
    np.testing.assert_array_equal(
        fast.requests.handoffs.held_tokens, slow.requests.handoffs.held_tokens
    )
    assert fast.requests.handoffs.held_tokens.any()
