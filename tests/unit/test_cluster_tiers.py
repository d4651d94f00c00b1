"""Tiers below the devices, in cases that can be worked out by hand."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from clusters import equal_workers
from probing import Ask, trace_of

from dynosim.cluster import ClusterSpec, RunOptions, simulate
from dynosim.cluster.control import ControlPlane, ProcessGenerator
from dynosim.engine.spec import EngineSpec, HostCacheSpec, TierPolicy
from dynosim.errors import ConfigError
from dynosim.memory.tiers import TierSpec, TiersSpec
from dynosim.metrics import check_conservation
from dynosim.records import Retention, RetentionRange, RunResult
from dynosim.timing.formulas import LinearModel

BLOCK = 4  # tokens
MB = 1_000_000  # of a block: a ms at 1 GB/s
TIMES = LinearModel(
    base_ms=10.0, per_prefill_token_ms=1.0, per_decode_ms=0.0, per_context_token_ms=0.0
)
ENGINE = EngineSpec(
    num_gpu_blocks=11, max_model_len=40, block_size=BLOCK, max_num_batched_tokens=64, max_num_seqs=4
)
HOST = TierSpec(name="host", num_blocks=100, read_gb_s=1.0, write_gb_s=1.0)
STORE = TierSpec(name="remote", num_blocks=100, read_gb_s=0.5, write_gb_s=1.0, scope="cluster")


def cluster(*tiers: TierSpec, workers: int = 1, **others: Any) -> ClusterSpec:
    spec = TiersSpec(tiers=tiers, block_bytes=MB, **others)
    engine = replace(ENGINE, host_cache=HostCacheSpec(num_chunks=tiers[0].num_blocks))
    plain = equal_workers(engine, TIMES, num_workers=workers)
    return replace(plain, pools=(replace(plain.pools[0], tiers=spec),))


def run(asks: Sequence[Ask], spec: ClusterSpec, *said: Retention | None) -> RunResult:
    """`said`: what the requests say of their blocks."""
    trace = replace(trace_of(asks, BLOCK), retention=said or None)
    result = simulate(trace, spec, RunOptions())
    check_conservation(result, trace)
    single = simulate(trace, spec, RunOptions(exact_stepping=True))
    np.testing.assert_allclose(result.requests.finish_ms, single.requests.finish_ms)
    return result


def prompt(at_ms: float, *ids: int, last: int = 1) -> Ask:
    """A request with a block of 4 tokens for each id but the last, of which it has `last`."""
    return Ask(float(at_ms), ids, 0, last_tokens=last)


def test_what_the_device_has_lost_is_loaded_at_the_rate_of_its_lane() -> None:
    """The device holds 10 blocks: the second prompt evicts the first one's tail, and its head."""
    asks = [
        prompt(0, 1, 2, 3, 4, 5, 6),
        prompt(100, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20),
        prompt(200, 1, 2, 3, 4, 5, 6),
    ]
    result = run(asks, cluster(HOST))
    log = result.requests
    assert log.onboards is not None
    # 5 blocks of 1 MB at 1 GB/s, beginning with the arrival; then one token is computed.
    assert log.onboards.num_tokens.tolist() == [0, 0, 20]
    assert log.onboards.start_ms[2] == 200 and log.onboards.end_ms[2] == pytest.approx(205)
    assert log.cached_tokens.tolist() == [0, 0, 20]
    assert log.scheduled_ms[2] == pytest.approx(205)
    assert log.finish_ms[2] == pytest.approx(205 + 10 + 1)
    (host,) = result.tiers
    assert (host.stored_blocks, host.loaded_blocks, host.evicted_blocks) == (5 + 9, 5, 0)


def test_a_tier_that_is_too_small_keeps_what_came_last() -> None:
    asks = [
        prompt(0, 1, 2, 3, 4, 5, 6),
        prompt(100, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20),
        prompt(200, 1, 2, 3, 4, 5, 6),
    ]
    (host,) = run(asks, cluster(replace(HOST, num_blocks=9))).tiers
    assert (host.loaded_blocks, host.evicted_blocks) == (0, 5 + 5)


@pytest.mark.parametrize("is_shared", [False, True])
def test_one_computes_what_four_need_if_they_share_a_store(is_shared: bool) -> None:
    """Four sub-agents with one prefix on four workers: without a shared tier four prefills, with it
    one, and three loads."""
    asks = [prompt(index * 50.0, 1, 2, 3, 4, 5, 6) for index in range(4)]
    tier = STORE if is_shared else HOST
    result = run(asks, cluster(tier, workers=4))
    assert sorted(result.requests.worker_id.tolist()) == [0, 1, 2, 3]
    prefix_tokens = 5 * BLOCK
    computed = int(result.steps.prefill_tokens.sum()) - 4  # the last token is everyone's own
    (log,) = result.tiers
    if is_shared:
        assert computed == prefix_tokens
        assert log.loaded_blocks == 3 * 5
        assert log.stored_blocks == 5
    else:
        assert computed == 4 * prefix_tokens
        assert log.loaded_blocks == 0


def test_who_comes_while_the_first_one_stores_waits_for_it() -> None:
    """All four at once: the others ask later instead of computing the same."""
    asks = [prompt(0.0, 1, 2, 3, 4, 5, 6) for _ in range(4)]
    result = run(asks, cluster(STORE, workers=4))
    assert int(result.steps.prefill_tokens.sum()) == 5 * BLOCK + 4
    log = result.requests
    assert log.onboards is not None
    # 31 ms of prefill, 5 ms to store; then 10 ms to load, each over a link of its own.
    assert log.onboards.start_ms[1:].tolist() == pytest.approx([36.0] * 3)
    assert log.onboards.end_ms[1:].tolist() == pytest.approx([46.0] * 3)


def test_all_who_load_share_what_a_store_gives_in_all() -> None:
    asks = [prompt(0.0, 1, 2, 3, 4, 5, 6) for _ in range(3)]
    asks = [asks[0], *[replace(ask, at_ms=100.0) for ask in asks[1:]]]
    log = run(asks, cluster(replace(STORE, total_read_gb_s=0.5), workers=3)).requests
    assert log.onboards is not None
    assert log.onboards.end_ms[1:].tolist() == pytest.approx([120.0] * 2)


def test_behind_the_host_disks_keep_what_it_throws_out() -> None:
    disk = TierSpec(name="disk", num_blocks=100, read_gb_s=0.25, write_gb_s=1.0, latency_ms=2.0)
    asks = [
        prompt(0, 1, 2, 3, 4, 5, 6),
        prompt(100, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20),
        prompt(200, 1, 2, 3, 4, 5, 6),
    ]
    for writes_evicted in (False, True):
        spec = cluster(replace(HOST, num_blocks=9), disk, writes_evicted=writes_evicted)
        result = run(asks, spec)
        log = result.requests
        assert log.onboards is not None
        assert log.onboards.num_beyond.tolist() == [0, 0, 20]
        assert log.onboards.end_ms[2] == pytest.approx(200 + 2 + 5 * 4)
        host, disks = result.tiers
        assert (host.loaded_blocks, disks.loaded_blocks) == (0, 5)


def test_a_peer_gives_what_it_has() -> None:
    peers = TierSpec(name="peers", num_blocks=0, read_gb_s=0.5, write_gb_s=0.5)
    asks = [prompt(index * 50.0, 1, 2, 3, 4, 5, 6) for index in range(2)]
    result = run(asks, cluster(HOST, peers, workers=2))
    log = result.requests
    assert log.onboards is not None
    assert log.onboards.num_beyond.tolist() == [0, 20]
    assert log.onboards.end_ms[1] == pytest.approx(50 + 10)


@pytest.mark.parametrize(("gb_s", "loaded"), [(1.0, 20), (0.1, 0)])
def test_only_what_comes_sooner_than_it_is_computed_is_loaded(gb_s: float, loaded: int) -> None:
    """20 tokens take 20 ms to compute; 5 blocks 5 ms to load at 1 GB/s, 50 at a tenth of it."""
    asks = [
        prompt(0, 1, 2, 3, 4, 5, 6),
        prompt(100, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20),
        prompt(300, 1, 2, 3, 4, 5, 6),
    ]
    result = run(asks, cluster(replace(HOST, read_gb_s=gb_s), is_choosy=True))
    assert result.requests.onboards is not None
    assert result.requests.onboards.num_tokens[2] == loaded


def test_a_shared_tier_of_nodes_needs_nodes() -> None:
    with pytest.raises(ConfigError, match=r"cluster\.tiers\.host\.scope: node, but the workers"):
        cluster(replace(HOST, scope="node"))


def test_what_a_node_shares_others_do_not_have() -> None:
    """Workers 0 and 2 are in a node: of the same prompt on all four, one computes in each."""
    asks = [prompt(index * 50.0, 1, 2, 3, 4, 5, 6) for index in range(4)]
    tiers = TiersSpec(tiers=(replace(HOST, scope="node"),), block_bytes=MB)
    plain = cluster(HOST, workers=4)
    pool = replace(plain.pools[0], tiers=tiers, topology={"node": ("a", "b")})
    result = run(asks, replace(plain, pools=(pool,)))
    assert sorted(result.requests.worker_id.tolist()) == [0, 1, 2, 3]
    (log,) = result.tiers
    assert (log.stored_blocks, log.loaded_blocks, log.capacity_blocks) == (2 * 5, 2 * 5, 200)


def test_a_peer_that_is_gone_gives_nothing() -> None:
    peers = TierSpec(name="peers", num_blocks=0, read_gb_s=0.5, write_gb_s=0.5)
    trace = trace_of([prompt(index * 50.0, 1, 2, 3, 4, 5, 6) for index in range(2)], BLOCK)

    def lose_the_first(control: ControlPlane) -> ProcessGenerator:
        yield control.env.timeout(45.0)
        control.fail(0)

    result = simulate(
        trace, cluster(HOST, peers, workers=2), RunOptions(), processes=[lose_the_first]
    )
    check_conservation(result, trace)
    assert result.requests.onboards is not None
    assert result.requests.onboards.num_tokens.tolist() == [0, 0]
    assert int(result.steps.prefill_tokens.sum()) == 2 * 21


SLOW_STORE = replace(STORE, write_gb_s=0.1)  # 50 ms for 5 blocks


def test_what_gathers_while_a_batch_is_on_its_way_goes_next() -> None:
    """The second prompt of a worker is on its host at 76 ms; the first one's write ends at 86."""
    asks = [
        prompt(0, 1, 2, 3, 4, 5, 6),
        prompt(20, 31),
        prompt(40, 11, 12, 13, 14, 15, 16),
        prompt(1000, 11, 12, 13, 14, 15, 16),
    ]
    result = run(asks, cluster(HOST, SLOW_STORE, workers=2))
    assert result.requests.worker_id.tolist() == [0, 1, 0, 1]
    assert result.requests.onboards is not None
    assert result.requests.onboards.num_beyond.tolist() == [0, 0, 0, 20]


def test_what_a_lost_worker_was_writing_is_written_by_the_next_who_has_it() -> None:
    """It is lost at 50 ms, amid its write; the next worker writes the same until 186."""
    asks = [prompt(at_ms, 1, 2, 3, 4, 5, 6) for at_ms in (0.0, 100.0, 300.0)]
    trace = trace_of(asks, BLOCK)

    def lose_the_first(control: ControlPlane) -> ProcessGenerator:
        yield control.env.timeout(50.0)
        control.fail(0)

    spec = cluster(HOST, SLOW_STORE, workers=3)
    result = simulate(trace, spec, RunOptions(), processes=[lose_the_first])
    check_conservation(result, trace)
    first, second, third = result.requests.worker_id.tolist()
    assert first == 0 and second != third
    assert result.requests.onboards is not None
    assert result.requests.onboards.num_beyond.tolist() == [0, 0, 20]
    store = result.tiers[-1]
    assert (store.stored_blocks, store.lost_blocks, store.resident_blocks) == (10, 5, 5)


@pytest.mark.parametrize(("tokens", "loaded"), [(None, 5), (8, 4), (12, 3), (24, 0)])
def test_loads_end_where_prefixes_can_be_reused(tokens: int | None, loaded: int) -> None:
    """Of five blocks of 4 tokens: in multiples of what layers with a state are reused in."""
    spec = cluster(HOST)
    engine = replace(spec.pools[0].engine, reuse_granularity_tokens=tokens)
    result = run(
        agent_between(1, 200), replace(spec, pools=(replace(spec.pools[0], engine=engine),))
    )
    assert result.tiers[0].loaded_blocks == loaded
    assert result.requests.cached_tokens.tolist() == [0, 0, BLOCK * loaded]


def test_what_the_last_token_needs_is_loaded_up_to_before_it() -> None:
    """A prompt of 24 tokens ends at a multiple of 8, whose state lies behind its last token."""
    spec = cluster(HOST)
    engine = replace(spec.pools[0].engine, reuse_granularity_tokens=8)
    asks = [replace(ask, last_tokens=None) for ask in agent_between(1, 200)]
    result = run(asks, replace(spec, pools=(replace(spec.pools[0], engine=engine),)))
    assert result.requests.cached_tokens.tolist() == [0, 0, 16]


# ---- what blocks are worth -----------------------------------------------------------------------

BY_WORTH = replace(HOST, policy="priority")
PINNED = Retention(pin_ttl_ms=1000.0)
AGENT, FIRST_OTHER = (1, 2, 3, 4, 5, 6), 100


def agent_between(others: int, back_ms: float, prompt_blocks: int = 9) -> list[Ask]:
    """An agent's prompt, so many others that each fill the device, and the agent's again."""
    asks = [prompt(0, *AGENT)]
    for number in range(others):
        first = FIRST_OTHER * (number + 1)
        asks.append(prompt(100 * (number + 1), *range(first, first + prompt_blocks + 1)))
    return [*asks, prompt(back_ms, *AGENT)]


@pytest.mark.parametrize(
    ("said", "policy", "loaded"),
    [
        (None, "priority", 0),
        (PINNED, "lru", 0),
        (PINNED, "priority", 5),
        (Retention(pin_ttl_ms=50.0), "priority", 0),  # over before the second prompt comes
        (Retention((RetentionRange(0, None, 80),)), "priority", 5),
        (Retention((RetentionRange(0, None, 80, 50.0),)), "priority", 0),
        (Retention((RetentionRange(0, 12, 80),)), "priority", 3),
    ],
)
def test_a_host_tier_by_worth_keeps_what_is_worth_more_from_a_scan(
    said: Retention | None, policy: TierPolicy, loaded: int
) -> None:
    """15 blocks: the second and the third prompt have 9 each."""
    asks = agent_between(2, 400)
    spec = cluster(replace(HOST, policy=policy, num_blocks=15))
    (host,) = run(asks, spec, said, None, None, said).tiers
    assert host.loaded_blocks == loaded


def test_ephemeral_blocks_leave_the_tier_first() -> None:
    asks = agent_between(2, 400)
    spec = cluster(replace(BY_WORTH, num_blocks=15))
    (host,) = run(asks, spec, None, Retention(is_ephemeral=True), None, None).tiers
    assert (host.loaded_blocks, host.evicted_blocks) == (5, 9 - 1)


def test_a_tier_full_of_pins_takes_nothing_until_they_expire() -> None:
    """On the device a pin gives way; here nobody has to be served."""
    asks = agent_between(1, 300)
    spec = cluster(replace(BY_WORTH, num_blocks=9))
    (host,) = run(asks, spec, PINNED, None, PINNED).tiers
    assert (host.stored_blocks, host.evicted_blocks, host.loaded_blocks) == (5, 0, 5)
    (host,) = run(asks, spec, Retention(pin_ttl_ms=20.0), None, None).tiers
    assert (host.stored_blocks, host.evicted_blocks) == (5 + 9 + 5, 5 + 5)


@pytest.mark.parametrize("writes_evicted", [False, True])
@pytest.mark.parametrize(("said", "loaded"), [(None, 0), (PINNED, 5)])
def test_worth_goes_along_to_the_tiers_beyond(
    said: Retention | None, loaded: int, writes_evicted: bool
) -> None:
    """The host keeps no more than the last prompt; the disks could keep two of the three."""
    host = replace(HOST, num_blocks=9)
    disk = TierSpec(name="disk", num_blocks=15, read_gb_s=1.0, write_gb_s=1.0, policy="priority")
    spec = cluster(host, disk, writes_evicted=writes_evicted)
    others = 4 if writes_evicted else 2
    result = run(agent_between(others, 700), spec, said, *[None] * others, said)
    assert [tier.loaded_blocks for tier in result.tiers] == [0, loaded]


def test_of_two_who_share_a_tier_the_one_that_wants_more_is_heard() -> None:
    """The second worker says it of blocks that the first one has stored."""
    store = replace(STORE, num_blocks=15, policy="priority")
    low, high = (Retention((RetentionRange(0, None, level),)) for level in (0, 90))
    asks = [prompt(0, *AGENT), *agent_between(2, 900)[:-1], prompt(900, *AGENT)]
    asks = [replace(ask, at_ms=ask.at_ms + 100.0 * bool(place)) for place, ask in enumerate(asks)]
    for said, kept in ((low, 0), (high, 5)):
        (log,) = run(asks, cluster(store, workers=2), low, said, None, None, None).tiers
        assert log.loaded_blocks == 5 + kept


@pytest.mark.parametrize(("ends_with_session", "loaded"), [(False, 5), (True, 0)])
def test_a_tier_lets_go_of_pins_of_a_session_that_is_over(
    ends_with_session: bool, loaded: int
) -> None:
    """The first two requests are its turns; then the device and the host are filled with others."""
    said = Retention(pin_ttl_ms=1e6, pin_ends_with_session=ends_with_session)
    asks = [prompt(0, *AGENT), *agent_between(3, 900)]
    asks = [replace(ask, at_ms=ask.at_ms + 50.0 * bool(place)) for place, ask in enumerate(asks)]
    trace = replace(
        trace_of(asks, BLOCK),
        retention=(said, None, None, None, None, None),
        session_ids=("s", "s", "", "", "", ""),
    )
    spec = cluster(replace(BY_WORTH, num_blocks=15))
    for exact in (False, True):
        (host,) = simulate(trace, spec, RunOptions(exact_stepping=exact)).tiers
        assert host.loaded_blocks == loaded
